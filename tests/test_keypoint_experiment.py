"""Keypoint R-CNN in whole runs: the shipped experiment, its overlays, and the data it refuses."""

import json

import gin
import numpy as np
import pytest
from experiment_runs import read_metrics, read_scalars, tiny

from rethink_tf import config, experiment
from rethink_tf.data.sources import coco, shapes

# Narrower than the experiment's, which the test of its build has at full size.
SMALL = ["STEPS=2", "run.log_every=2", "ResNet.depth=18"]


pytestmark = pytest.mark.usefixtures("fresh_tensorflow_settings")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """The drawn shapes of the tiny overlay."""
    output = tmp_path_factory.mktemp("keypoints") / "shapes"
    shapes.make_shapes(str(output), num_train=16, num_val=4, num_shards=2)
    return output


def convert(data_dir, output, change):
    """Writes the drawn validation images anew, after `change` was called with their annotations."""
    truth = json.loads((data_dir / "annotations" / "instances_val.json").read_text())
    change(truth)
    path = output.with_suffix(".json")
    path.write_text(json.dumps(truth))
    coco.convert(
        images=str(data_dir / "images" / "val"),
        annotations=str(path),
        output=str(output),
        num_shards=1,
        num_workers=0,
        progress=False,
    )


def run(params, gin_file="keypoints_r50.gin"):
    config.parse([gin_file, "overlays/tiny.gin"], params)
    return experiment.run()


def refused(tmp_path, data_dir, *params, gin_file="keypoints_r50.gin"):
    """Returns the message of the error that a run ends with, before it has trained."""
    params = tiny(tmp_path / "model", data_dir, "run.prepare_data=None", *SMALL, *params)
    with pytest.raises(ValueError) as error:
        run(params, gin_file)
    assert not (tmp_path / "model").exists()
    return str(error.value)


def test_keypoints_train_and_evaluate(tmp_path, data_dir):
    metrics = run(tiny(tmp_path, data_dir, *SMALL))
    (line,) = read_metrics(tmp_path)
    for name in ("AP", "AP50", "AP75", "APm", "APl", "AR", "AR50", "AR75", "ARm", "ARl"):
        assert line[f"keypoints/{name}"] == metrics[f"keypoints/{name}"]
    assert "box/AP" in metrics and "mask/AP" not in metrics
    results = json.loads((tmp_path / "results" / "detections-2.json").read_text())
    for result in results:
        assert set(result) == {"image_id", "category_id", "bbox", "score", "keypoints"}
        assert len(result["keypoints"]) == 3 * 4
    # Two steps do little: every cell is still about as likely as another.
    scalars = read_scalars(tmp_path)
    assert scalars["train/keypoint", 2] == pytest.approx(np.log(56 * 56), rel=0.3)
    best = json.loads((tmp_path / "best" / "best.json").read_text())
    assert (best["step"], best["score"]) == (2, metrics["keypoints/AP"])
    assert list((tmp_path / "pictures").iterdir())


def test_data_without_keypoints_are_refused(tmp_path, data_dir):
    def without(truth):
        for each in truth["annotations"]:
            del each["keypoints"]

    for split in ("train", "val"):
        convert(data_dir, tmp_path / split, without)
    message = refused(tmp_path, tmp_path)
    assert f"{tmp_path / 'train'} has no keypoints" in message
    assert "python -m rethink_tf.data.coco --annotations=person_keypoints" in message


def test_splits_of_different_keypoints_are_refused(tmp_path, data_dir):
    def of_three(truth):
        for each in truth["categories"]:
            each["keypoints"] = ["top_end", "middle", "bottom_end"]
        for each in truth["annotations"]:
            each["keypoints"] = each["keypoints"][:9]

    convert(data_dir, tmp_path / "train", lambda truth: None)
    convert(data_dir, tmp_path / "val", of_three)
    message = refused(tmp_path, tmp_path)
    assert f"{tmp_path / 'train'} and {tmp_path / 'val'} have different keypoints" in message


def test_keypoints_that_nothing_learns_are_refused(tmp_path, data_dir):
    params = ["Pipeline.include_keypoints=True"]
    message = refused(tmp_path, data_dir, *params, gin_file="scratch_r50.gin")
    assert "include_keypoints is True, and the detector has no keypoint head" in message


def test_a_head_without_keypoints_to_learn_is_refused(tmp_path, data_dir):
    message = refused(tmp_path, data_dir, "Pipeline.include_keypoints=False")
    assert "include_keypoints is False, and the detector has a keypoint head" in message


@pytest.mark.parametrize(("schedule", "num_steps"), [(None, 180_000), (3, 270_000)])
def test_the_shipped_experiment_is_the_papers(schedule, num_steps):
    params = [f"SCHEDULE={schedule}"] if schedule else []
    config.parse(["keypoints_r50.gin"], tiny("/nowhere", "/nowhere", *params))
    built = gin.get_configurable
    schedule = built("PaperSchedule")()
    assert schedule.num_steps == num_steps
    assert schedule.drop_steps == (num_steps - 60_000, num_steps - 20_000)
    pipeline = built("Pipeline")()
    sides, sampling = pipeline.shorter_side.sides, pipeline.shorter_side.sampling
    assert (sides, sampling) == ([640, 672, 704, 736, 768, 800], "choice")
    assert pipeline.evaluation_min_side == 800 and pipeline.max_side == 1333
    assert pipeline.include_keypoints and pipeline.mask_size is None
    detector = built("MaskRCNN")(num_classes=1, num_keypoints=17)
    assert detector.mask_head is None
    head, box_head = detector.keypoint_head, detector.box_head.stages[0]
    assert (len(head.convs), head.num_keypoints, head.size) == (8, 17, 56)
    assert (len(box_head.convs), len(box_head.fcs)) == (4, 1)


def test_the_overfit_overlay_evaluates_what_it_trains_on(data_dir):
    config.parse(["keypoints_r50.gin", "overlays/overfit.gin"], tiny("/nowhere", "/nowhere"))
    pipeline = gin.get_configurable("Pipeline")()
    assert gin.query_parameter("experiment.run.evaluation_split") == "train"
    train = str(data_dir / "train")
    trained, evaluated = pipeline.training_index(train), pipeline.evaluation_index(train)
    assert trained.image_id.tolist() == evaluated.image_id.tolist() and len(trained) == 8
