"""Own data from a folder as tools export it, to a trained run, and on again."""

import json
import pathlib
import shutil
import subprocess
import sys

import gin
import pytest
import tensorflow as tf
from experiment_runs import REPOSITORY, read_metrics

from rethink_tf import config, config_record, experiment
from rethink_tf.data.sources import shapes
from rethink_tf.own_data import deriving, preparing

pytestmark = pytest.mark.usefixtures("fresh_tensorflow_settings")

# Of a width that runs in seconds.
NARROW = {
    "ResNet.blocks_per_stage": (1, 1, 1, 1),
    "FPN.channels": 32,
    "RPN.channels": 32,
    "BoxHead.fc_channels": 16,
    "run.log_every": 2,
}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A folder of drawn images with COCO files."""
    folder = tmp_path_factory.mktemp("drawn") / "shapes"
    drawing = shapes.Drawing(
        num_train=10, num_val=4, image_size=128, seed=0, max_objects=6, num_shards=1
    )
    shapes.write_shapes(str(folder), drawing)
    return folder


@pytest.fixture
def one_file(drawn, tmp_path):
    """One COCO file with masks and its images: no split to evaluate."""
    folder = tmp_path / "mine"
    shutil.copytree(drawn / "images" / "train", folder / "images")
    shutil.copy(drawn / "annotations" / "instances_train.json", folder / "labels.json")
    return folder


def export_boxes(drawn, folder):
    """Writes what Roboflow's export of boxes looks like."""
    for split, name in (("train", "train"), ("val", "valid")):
        shutil.copytree(drawn / "images" / split, folder / name)
        truth = json.loads((drawn / "annotations" / f"instances_{split}.json").read_text())
        truth["categories"].insert(0, {"id": 0, "name": "things", "supercategory": "none"})
        for each in truth["annotations"]:
            each["segmentation"] = []
            each.pop("keypoints", None)
        for each in truth["categories"]:
            each.pop("keypoints", None)
        (folder / name / "_annotations.coco.json").write_text(json.dumps(truth))


def parse(data_dir, model_dir, *params, **bindings):
    places = [f"DATA_DIR={str(data_dir)!r}", f"MODEL_DIR={str(model_dir)!r}"]
    given = [f"{name}={value!r}" for name, value in bindings.items()]
    config.parse(["own_data.gin"], [*places, *params, *given])


def test_an_export_of_boxes_trains_and_goes_on_with_its_settings(drawn, tmp_path, caplog):
    export_boxes(drawn, tmp_path / "mine")
    run = tmp_path / "run"
    parse(tmp_path / "mine", run, "STEPS=2", **NARROW)
    # Two steps are done before their graph would be traced.
    tf.config.run_functions_eagerly(True)
    try:
        metrics = experiment.run()
    finally:
        tf.config.run_functions_eagerly(False)
    assert "box/AP" in metrics and "mask/AP" not in metrics
    assert len(read_metrics(run)) == 1
    assert "Categories without an object to train on: things." in caplog.text
    # What was derived stands in config.gin, to be read.
    text = (run / "config.gin").read_text()
    for line in (
        "StepwiseSchedule.num_steps = 2",
        "MaskRCNN.mask_head = None",
        "run.train_split = 'train'",
        "run.evaluation_split = 'valid'",
        "'num_images': 10",
    ):
        assert line in text
    # Its settings are read by what uses a trained detector, too, which trains nothing itself.
    places = [f"--input={tmp_path / 'mine' / 'valid'}", f"--output={tmp_path / 'found'}"]
    command = [sys.executable, "-m", "rethink_tf.predict", f"--model_dir={run}", *places]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(json.loads((tmp_path / "found" / "detections.json").read_text())["images"]) == 4
    sizes = config.value_of("RPN.anchor_sizes")
    recorded = config.value_of("own_data_settings.statistics")

    # Started again it takes the numbers of its folder, and nothing has to be measured.
    statistics = config_record.recorded(run, "own_data_settings.statistics")
    (run / "config.json").write_text(
        (run / "config.json").read_text().replace(statistics, statistics.replace("128", "129"))
    )
    for mode in ("train", "evaluate"):
        parse(tmp_path / "mine", run, "STEPS=2", **NARROW)
        deriving.bind_settings(is_training=mode == "train")
        assert config.value_of("own_data_settings.statistics") == recorded | {
            "height": 129,
            "width": 129,
        }
        assert config.value_of("RPN.anchor_sizes") == sizes
    # Other data are no part of that run, but may be evaluated.
    export_boxes(drawn, tmp_path / "other")
    shutil.rmtree(tmp_path / "other" / "train")
    (tmp_path / "other" / "valid").rename(tmp_path / "other" / "train")
    parse(tmp_path / "other", run, "STEPS=2", **NARROW)
    with pytest.raises(ValueError, match="take another MODEL_DIR"):
        deriving.bind_settings()
    deriving.bind_settings(is_training=False)


def test_one_split_is_divided_and_masks_are_taken(one_file, tmp_path, caplog):
    parse(one_file, tmp_path / "run", "RPN.anchor_sizes=((8,),(16,),(32,),(64,),(128,))")
    with caplog.at_level("INFO", logger="absl"):
        deriving.bind_settings()
    assert "The data have one split, labels: 2 of its 10 images are held out" in caplog.text
    assert "The keypoints of the data are not trained" in caplog.text
    assert config.value_of("run.train_split") == config.value_of("run.evaluation_split") == "labels"
    records = tmp_path / "run" / "records"
    assert config.value_of("run.data_dir") == str(records)
    assert config.value_of("MaskRCNN.mask_head") is not None
    assert config.value_of("RPN.anchor_sizes")[0] == (8,)  # as it was asked for
    pipeline = gin.get_configurable("Pipeline")()
    directory = str(records / "labels")
    trained, evaluated = pipeline.selected_index(directory), pipeline.evaluation_index(directory)
    assert (len(trained), len(evaluated)) == (8, 2)
    assert len(set(trained.image_id) | set(evaluated.image_id)) == 10
    # What was chosen is not divided again.
    assert len(pipeline.training_index(trained)) == 8
    assert len(pipeline.evaluation_index(evaluated)) == 2


def contents(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_records_are_made_once_beside_the_run_and_not_of_other_files(one_file, tmp_path):
    before = contents(one_file)
    prepared = preparing.prepare(one_file, tmp_path / "run")
    assert prepared.data_dir == str(tmp_path / "run" / "records")
    manifest = tmp_path / "run" / "records" / "labels" / "manifest.json"
    written = manifest.stat().st_mtime_ns
    assert preparing.prepare(one_file, tmp_path / "run") == prepared
    assert manifest.stat().st_mtime_ns == written
    # Another run takes them as its data, and the user's folder is as it was.
    assert preparing.prepare(prepared.data_dir, tmp_path / "other") == prepared
    assert [path.name for path in tmp_path.iterdir()] == ["mine", "run"]
    assert contents(one_file) == before
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["records"]
    labels = one_file / "labels.json"
    labels.write_text(labels.read_text() + "\n")
    other = r"began with other data than .*mine holds now \(labels.json differs\): take another M"
    with pytest.raises(ValueError, match=other):
        preparing.prepare(one_file, tmp_path / "run")
    evaluated = preparing.prepare(one_file, tmp_path / "run", is_training=False)
    assert evaluated.data_dir == str(tmp_path / "run" / "records-2")
    with pytest.raises(ValueError, match="is not on a local disk"):
        preparing.prepare("gs://bucket/data", tmp_path / "run")


def test_voc_with_its_own_lists_and_classes(shared_dir, tmp_path):
    prepared = preparing.prepare(shared_dir / "data" / "VOCdevkit", tmp_path / "run")
    assert (prepared.train_split, prepared.evaluation_split) == ("trainval", "val")
    manifest = json.loads(pathlib.Path(prepared.data_dir, "val", "manifest.json").read_text())
    assert manifest["num_images"] == 12 and len(manifest["categories"]) == 20
