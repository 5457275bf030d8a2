"""Tests of rethink_tf/data/sources/coco.py."""

import io
import os
import pathlib
import subprocess
import sys
import types

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from pycocotools.coco import COCO
from record_features import read_features

from rethink_tf.data import coco as command
from rethink_tf.data import command_line, schema
from rethink_tf.data.input.pipeline import Pipeline
from rethink_tf.data.records import splits, store, subsets
from rethink_tf.data.sources import coco, writing
from rethink_tf.evaluation import coco_metrics

ROOT = pathlib.Path(__file__).resolve().parents[3]


def test_manifest_counts_and_truth_is_what_was_given(coco_source):
    output, manifest = coco_source.convert()

    assert manifest == store.load_manifest(output)
    assert (manifest["num_images"], manifest["num_objects"], manifest["num_crowds"]) == (4, 3, 1)
    assert manifest["categories"] == [
        {"id": 3, "name": "ant", "num_objects": 2},
        {"id": 20, "name": "cat", "num_objects": 1},
    ]
    assert manifest["skipped"] == {} and manifest["num_clipped"] == 0 and manifest["has_masks"]
    assert manifest["source"] == {"images": "images", "annotations": "instances.json"}
    truth = COCO(os.path.join(output, store.GROUND_TRUTH_FILE))
    assert sorted(truth.imgs) == [1, 2, 3, 4]
    for annotation in coco_source.dataset["annotations"]:
        assert truth.anns[annotation["id"]].items() >= annotation.items()
    # Annotation 13 states no area: that of its mask.
    assert truth.anns[13]["area"] == coco_source.blob.sum()


def test_index_follows_the_image_ids(coco_source):
    index = store.load_index(coco_source.convert()[0])

    assert index.image_id.tolist() == [1, 2, 3, 4]
    assert index.shard.tolist() == [0, 0, 1, 1]
    assert index.num_objects.tolist() == [1, 1, 0, 1]


def test_model_gardens_decoder_reads_the_records(coco_source):
    from official.vision.dataloaders import tf_example_decoder

    index = store.load_index(coco_source.convert()[0])
    decoder = tf_example_decoder.TfExampleDecoder(include_mask=True)

    decoded = {}
    for serialized in tf.data.TFRecordDataset(index.paths):
        entry = {key: value.numpy() for key, value in decoder.decode(serialized).items()}
        decoded[int(entry["source_id"])] = entry

    first = decoded[1]
    assert (first["image"] == coco_source.pixels(1)).all()
    assert (first["height"], first["width"]) == (coco_source.height, coco_source.width)
    assert first["groundtruth_classes"].tolist() == [3, 20]
    assert first["groundtruth_is_crowd"].tolist() == [False, True]
    assert first["groundtruth_area"].tolist() == [60.5, 59]
    corners = first["groundtruth_boxes"] * [
        coco_source.height,
        coco_source.width,
        coco_source.height,
        coco_source.width,
    ]
    assert np.allclose(corners, [[3, 2, 9, 12], [3, 4, 9, 14]], atol=1e-5)
    square = np.zeros((coco_source.height, coco_source.width))
    square[3:9, 2:12] = 1
    assert (first["groundtruth_instance_masks"] == [square, coco_source.blob]).all()
    assert (decoded[2]["groundtruth_instance_masks"] == [coco_source.blob]).all()
    assert decoded[3]["groundtruth_instance_masks"].shape == (
        0,
        coco_source.height,
        coco_source.width,
    )
    assert decoded[3]["groundtruth_boxes"].shape == (0, 4)


def test_killed_worker_is_an_error(monkeypatch):
    # The work of a child that ends at once, as one does that runs out of memory.
    monkeypatch.setattr(writing.coco_images, "prepare_image", os._exit)

    with pytest.raises(ChildProcessError, match="fewer --num_workers"):
        list(writing._prepare_all([(1,)], 1))


def test_killed_conversion_is_refused_and_can_be_repeated(coco_source):
    coco_source.write()
    output = coco_source.root / "records"
    script = f"""
import os
from rethink_tf.data.sources import coco, coco_images

prepare = coco_images.prepare_image
def die_at_the_last(folder, image, *rest):
    return os.kill(os.getpid(), 9) if image["id"] == 4 else prepare(folder, image, *rest)

coco_images.prepare_image = die_at_the_last
source = {str(coco_source.folder)!r}, {str(coco_source.path)!r}
coco.convert(*source, {str(output)!r}, 2, num_workers=0)
"""

    killed = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True)

    assert killed.returncode == -9
    with pytest.raises(ValueError, match="half-written"):
        store.load_index(output)
    coco_source.convert(strict=True)
    assert len(store.load_index(output)) == 4
    assert not [name for name in os.listdir(output) if name.endswith(".tmp")]


def test_boxes_alone_convert_without_masks(coco_source):
    for k, annotation in enumerate(coco_source.dataset["annotations"]):
        del annotation["segmentation"]
        if k % 2:
            annotation["segmentation"] = []

    output, manifest = coco_source.convert(strict=True)

    assert manifest["has_masks"] is False and manifest["num_objects"] == 3
    assert all("image/object/mask" not in feature for feature in read_features(output).values())


def test_bytes_do_not_depend_on_the_number_of_workers(coco_source):
    here, _ = coco_source.convert("here")
    there, _ = coco_source.convert("there", num_workers=2)

    assert sorted(os.listdir(here)) == sorted(os.listdir(there))
    for name in os.listdir(here):
        same = pathlib.Path(here, name).read_bytes() == pathlib.Path(there, name).read_bytes()
        assert same, name


def test_nothing_usable_is_an_error_and_leaves_no_records(coco_source):
    for path in coco_source.folder.iterdir():
        path.unlink()

    with pytest.raises(ValueError, match="no image could be used.*'image_missing': 4"):
        coco_source.convert()

    with pytest.raises(ValueError, match="half-written"):
        store.load_index(coco_source.root / "records")


@pytest.mark.parametrize("number", [0, 5])
def test_number_of_shards_must_fit(coco_source, number):
    with pytest.raises(ValueError, match=f"num_shards is {number}"):
        coco_source.convert(num_shards=number)


def test_finished_records_are_replaced_only_on_demand(coco_source):
    output, _ = coco_source.convert()
    with pytest.raises(FileExistsError, match="--overwrite"):
        coco_source.convert()

    coco_source.convert(num_shards=1, overwrite=True)

    assert len(store.load_index(output)) == 4
    assert sum(name.endswith(".tfrecord") for name in os.listdir(output)) == 1


def test_a_subset_is_what_reading_would_choose(coco_source):
    whole, manifest = coco_source.convert()
    assert manifest["subset"] is None
    output, manifest = coco_source.convert("part", num_images=3)

    assert manifest["subset"] == {"num_images": 3, "of": 4, "rule": subsets.RULE}
    assert manifest["num_images"] == 3 and manifest == store.load_manifest(output)
    ids = store.load_index(output).image_id.tolist()
    assert ids == subsets.select_image_ids([1, 2, 3, 4], 3)
    truth = COCO(os.path.join(output, store.GROUND_TRUTH_FILE))
    assert sorted(truth.imgs) == ids
    assert {a["image_id"] for a in truth.anns.values()} <= set(ids)
    # Two of the three are the two of the four.
    for source in (whole, output):
        chosen = Pipeline(num_images=2).selected_index(source).image_id.tolist()
        assert chosen == subsets.select_image_ids([1, 2, 3, 4], 2)


def test_a_subset_larger_than_the_data_is_one_clear_error(coco_source):
    with pytest.raises(ValueError, match="num_images, for .*json: a subset of 5 images .* has 4"):
        coco_source.convert(num_images=5)
    assert not (coco_source.root / "records").exists()


def test_any_id_of_63_bits_is_trained_on_and_evaluated(coco_source):
    """Some tools count down from -1; hashes lie above 2**53, where float64 has gaps."""
    new = {1: -1, 2: 2**53 + 1, 3: 2**63 - 1, 4: -(2**63) + 1}
    for image in coco_source.dataset["images"]:
        image["id"] = new[image["id"]]
    for annotation in coco_source.dataset["annotations"]:
        annotation["image_id"] = new[annotation["image_id"]]
    output, _ = coco_source.convert(strict=True)
    pipeline = Pipeline(min_side=20, max_side=30, parallel_records=2)

    batches = [batch["image_id"].numpy() for batch in pipeline.evaluation(output, 3)]
    ids = np.concatenate(batches).tolist()
    assert sorted(ids) == sorted([*new.values(), schema.PADDING_IMAGE_ID, schema.PADDING_IMAGE_ID])
    trained = pipeline.training(output, [3, 20], 4, seed=1).take(1)
    assert sorted(next(iter(trained))["image_id"].numpy().tolist()) == sorted(new.values())
    truth = splits.load_ground_truth(output, new.values())
    found = [
        {
            "image_id": a["image_id"],
            "category_id": a["category_id"],
            "bbox": a["bbox"],
            "score": 0.9,
        }
        for a in truth["annotations"]
        if not a["iscrowd"]
    ]
    assert coco_metrics.evaluate(truth, found, ("bbox",))["box/AP"] == pytest.approx(1.0)


def test_difficult_is_kept_where_coco_files_have_it(coco_source):
    coco_source.dataset["annotations"][0]["difficult"] = 1
    coco_source.add(difficult="hard")

    output, manifest = coco_source.convert(strict=True)

    assert manifest["num_difficult"] == 1
    features = read_features(output)
    assert list(features[1]["image/object/difficult"].int64_list.value) == [1, 0, 0]
    assert "image/object/difficult" not in features[2]


def test_command_line_converts_and_names_what_it_skips(coco_source):
    coco_source.add(category_id=5)
    coco_source.write()
    folder, path = coco_source.folder, coco_source.path
    output = coco_source.root / "records"
    arguments = [f"--images={folder}", f"--annotations={path}", f"--output={output}"]
    command = [sys.executable, "-m", "rethink_tf.data.coco", *arguments]

    done = subprocess.run(
        [*command, "--num_shards=2", "--num_workers=1"], cwd=ROOT, capture_output=True, text=True
    )

    assert done.returncode == 0, done.stderr
    assert "4 images, 3 objects, 1 crowds in 2 shards" in done.stdout
    assert "annotation 99 of image 1: there is no category 5" in done.stderr
    assert "4/4" in done.stderr  # the progress bar
    assert len(store.load_index(output)) == 4


def test_command_line_ends_with_one_clear_line(coco_source, monkeypatch):
    coco_source.add(category_id=5)
    coco_source.write()
    folder, path = coco_source.folder, coco_source.path
    output = coco_source.root / "records"
    values = {"images": str(folder), "annotations": str(path), "output": str(output)}
    values |= {"num_shards": 2, "num_workers": 0, "strict": True, "overwrite": False}
    values |= {"num_images": None, "flip_pairs": None, "exif": "apply", "sixteen_bit": None}
    monkeypatch.setattr(command_line.flags, "FLAGS", types.SimpleNamespace(**values))

    with pytest.raises(SystemExit, match="error: unknown_category: annotation 99 of image 1"):
        command.main(["coco"])

    assert not output.exists()  # found before anything was written


@pytest.mark.parametrize(
    ("images", "annotations", "objects", "crowds"),
    [
        ("coco_tiny/val2017", "coco_tiny/annotations/instances_val2017.json", 109, 1),
        ("fruits_nuts/images", "fruits_nuts/trainval.json", 165, 0),
    ],
)
def test_real_photographs_keep_every_mask(
    coco_source, shared_dir, tmp_path, images, annotations, objects, crowds
):
    data = shared_dir / "data"
    output = str(tmp_path / "records")

    manifest = coco.convert(
        str(data / images), str(data / annotations), output, 2, num_workers=0, strict=True
    )

    truth = COCO(str(data / annotations))
    assert (manifest["num_objects"], manifest["num_crowds"]) == (objects, crowds)
    features = read_features(output)
    assert sorted(features) == sorted(truth.imgs)
    for image_id, feature in features.items():
        pngs = feature["image/object/mask"].bytes_list.value
        masks = [np.asarray(Image.open(io.BytesIO(png))) for png in pngs]
        assert len(masks) == len(truth.imgToAnns[image_id])
        for mask, annotation in zip(masks, truth.imgToAnns[image_id], strict=True):
            assert (mask == truth.annToMask(annotation)).all()
