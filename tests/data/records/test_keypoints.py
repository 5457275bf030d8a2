"""Keypoints from COCO's file through records to batches, and what is wrong with them."""

import io
import itertools

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from pycocotools.coco import COCO
from record_features import read_features

from rethink_tf.data import schema
from rethink_tf.data.input.pipeline import Pipeline
from rethink_tf.data.records import splits, store, tfrecord_files
from rethink_tf.data.records.keypoints import KeypointLayout
from rethink_tf.data.sources import coco

NAMES = ["nose", "left_eye", "right_eye"]
LAYOUT = KeypointLayout.from_names(NAMES)
PIPELINE = {
    "min_side": 40,
    "max_side": 60,
    "buckets": ((40, 60),),
    "include_masks": False,
    "include_keypoints": True,
    "max_objects": 3,
    "parallel_records": 2,
}


def add_keypoints(source):
    """Names three keypoints of ants and labels those of annotation 11 (image 1)."""
    source.dataset["categories"][1]["keypoints"] = list(NAMES)
    source.dataset["annotations"][0]["keypoints"] = [4, 5, 2, 10, 3, 1, 0, 0, 0]


def take(source, pipeline, count, layout=LAYOUT, category_ids=(3, 20)):
    """{image id: its row of each key} of some training batches."""
    dataset = pipeline.training(source, category_ids, 1, seed=1, keypoints=layout)
    found = {}
    for batch in itertools.islice(dataset, count):
        schema.check_batch(batch, dataset.element_spec, num_classes=2)
        batch.pop("padding")
        found[int(batch["image_id"][0])] = {key: value[0].numpy() for key, value in batch.items()}
    return found


def test_flip_pairs_follow_from_the_names():
    assert LAYOUT.flip_pairs == ((1, 2),) and LAYOUT.flip_order == [0, 2, 1]
    coco_names = [
        "nose",
        "left_eye",
        "right_eye",
        "left_ear",
        "right_ear",
        "tail_left",
        "tail_right",
    ]
    assert KeypointLayout.from_names(coco_names).flip_order == [0, 2, 1, 4, 3, 6, 5]
    assert KeypointLayout.from_manifest({"keypoints": LAYOUT.as_dict()}) == LAYOUT
    assert KeypointLayout.from_manifest({}) is None
    with pytest.raises(ValueError, match="'left_ear' has no 'right_ear' beside it"):
        KeypointLayout.from_names(["nose", "left_ear"])
    with pytest.raises(ValueError, match="not distinct"):
        KeypointLayout.from_names(["nose", "nose"])


def test_records_and_manifest(coco_source):
    add_keypoints(coco_source)
    directory, manifest = coco_source.convert()
    assert manifest["num_keypoints"] == 2
    assert manifest["keypoints"] == {"names": NAMES, "flip_pairs": [[1, 2]]}
    features = read_features(directory)[1]
    stored = {
        name: features[f"image/object/keypoint/{name}"].float_list.value for name in ("y", "x")
    }
    # Half a pixel is added; the crowd of the image has none labelled.
    np.testing.assert_allclose(stored["y"], np.array([5.5, 3.5, 0, 0, 0, 0]) / 20, rtol=1e-6)
    np.testing.assert_allclose(stored["x"], np.array([4.5, 10.5, 0, 0, 0, 0]) / 30, rtol=1e-6)
    visibility = features["image/object/keypoint/visibility"].int64_list.value
    assert list(visibility) == [2, 1, 0, 0, 0, 0]
    assert list(features["image/object/keypoint/num"].int64_list.value) == [2, 0]
    index = store.load_index(directory)
    assert index.num_keypoints.tolist() == [2, 0, 0, 0]
    # Found again by reading the records themselves.
    for name in (store.INDEX_FILE, store.MANIFEST_FILE):
        tf.io.gfile.remove(f"{directory}/{name}")
    assert store.load_index(directory).num_keypoints.tolist() == [2, 0, 0, 0]


def test_an_index_from_before_there_were_keypoints(coco_source):
    directory, manifest = coco_source.convert()
    assert manifest["keypoints"] is None
    path = f"{directory}/{store.INDEX_FILE}"
    arrays = {name: value for name, value in np.load(path).items() if name != "num_keypoints"}
    np.savez(path, **arrays)
    assert store.load_index(directory).num_keypoints.tolist() == [0] * 4


def test_keypoints_of_nobody_are_left_out(coco_source):
    """Names without keypoints, and keypoints without names."""
    coco_source.dataset["categories"][1]["keypoints"] = list(NAMES)
    assert coco_source.convert("names")[1]["keypoints"] is None
    del coco_source.dataset["categories"][1]["keypoints"]
    coco_source.dataset["annotations"][0]["keypoints"] = [4, 5, 2]
    directory, manifest = coco_source.convert("no_names")
    assert manifest["keypoints"] is None and manifest["num_keypoints"] == 0
    assert "image/object/keypoint/x" not in read_features(directory)[1]


@pytest.mark.parametrize(
    ("keypoints", "detail"),
    [
        ([1, 2, 2], "a list of 3, not a list of 3 x 3 numbers"),
        ("none", "a str, not a list of 3 x 3"),
        ([1, 2, 2] * 2 + [1, "a", 2], "has 'a', which is not a number"),
        ([1, 2, 2] * 2 + [1, 1e9, 2], "no place in an image"),
        ([1, 2, 2] * 2 + [1, 1, 3], "visibility is 3, not 0, 1 or 2"),
    ],
)
def test_bad_keypoints_are_skipped_and_named(coco_source, keypoints, detail):
    add_keypoints(coco_source)
    coco_source.add(keypoints=keypoints)
    _, manifest = coco_source.convert()
    (skipped,) = manifest["skipped_entries"]
    assert skipped["reason"] == "keypoints_malformed"
    assert "annotation 99 of image 1" in skipped["entry"] and detail in skipped["entry"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["nose", "left_eye", "left_eye"], "not distinct"),
        (["nose", "left_eye", "ear"], "'left_eye' has no 'right_eye'"),
        ("nose", "category 20: keypoints is 'nose', not a list of names"),
        (["nose"], "categories 20 and 3 have different keypoints"),
    ],
)
def test_bad_names_stop_the_conversion(coco_source, names, message):
    add_keypoints(coco_source)
    coco_source.dataset["categories"][0]["keypoints"] = names
    if message.startswith(("not", "'left")):
        coco_source.dataset["categories"][1]["keypoints"] = names
    with pytest.raises(ValueError, match=message):
        coco_source.convert()


def test_batches_by_hand(coco_source):
    add_keypoints(coco_source)
    coco_source.add(id=98, keypoints=None, bbox=[0, 0, 5, 5])
    directory, _ = coco_source.convert()
    # 20 x 30 becomes 40 x 60. Only image 1 has a keypoint; its crowd is no object.
    straight = take(directory, Pipeline(**PIPELINE, flip_probability=0), 3)
    assert set(straight) == {1}
    expected = [[11, 9, 2], [7, 21, 1], [0, 0, 0]]
    np.testing.assert_allclose(straight[1]["keypoints"][0], expected, rtol=1e-5)
    assert straight[1]["classes"].tolist() == [1, 1, 0]
    assert not straight[1]["keypoints"][1:].any()
    flipped = take(directory, Pipeline(**PIPELINE, flip_probability=1), 1)
    # The left eye is where the right one is looked for, and the other way round.
    expected = [[11, 51, 2], [0, 0, 0], [7, 39, 1]]
    np.testing.assert_allclose(flipped[1]["keypoints"][0], expected, rtol=1e-5)
    without = PIPELINE | {"include_keypoints": False}
    assert "keypoints" not in take(directory, Pipeline(**without), 1).popitem()[1]


def test_subsets_are_chosen_from_images_with_keypoints(coco_source):
    add_keypoints(coco_source)
    directory, _ = coco_source.convert()
    pipeline = Pipeline(**PIPELINE, num_images=1, evaluation_num_images=1)
    assert pipeline.training_index(directory).image_id.tolist() == [1]
    assert pipeline.evaluation_index(directory).image_id.tolist() == [1]
    assert len(Pipeline(**PIPELINE).evaluation_index(directory)) == 4
    with pytest.raises(ValueError, match="images with keypoints: .* of 2 images .* has 1"):
        Pipeline(**PIPELINE, num_images=2).training_index(directory)


def test_data_without_keypoints_are_refused(coco_source):
    directory, _ = coco_source.convert()
    folder, name = str(coco_source.root), "records"
    with pytest.raises(ValueError, match=f"{directory} has no keypoints, and Pipeline.include_key"):
        splits.open_split(folder, name, Pipeline(**PIPELINE), is_training=True)
    with pytest.raises(ValueError, match="no image has a labelled keypoint"):
        take(directory, Pipeline(**PIPELINE), 1)
    coco_source.dataset["annotations"][0]["keypoints"] = [4, 5, 2]
    coco_source.dataset["categories"][1]["keypoints"] = ["nose"]
    other, manifest = coco_source.convert("other")
    assert manifest["num_keypoints"] == 1
    with pytest.raises(ValueError, match="needs their layout"):
        take(other, Pipeline(**PIPELINE), 1, layout=None)
    both = [
        splits.open_split(folder, each, Pipeline(), is_training=False)
        for each in ("records", "other")
    ]
    splits.check_splits(both, needs_masks=True)
    with pytest.raises(ValueError, match=r"different keypoints, \(\) and \('nose',\)"):
        splits.check_splits(both, needs_masks=True, needs_keypoints=True)


def test_a_record_with_too_few_keypoints_is_named(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(buffer, "PNG")
    example = store.encode_example(
        image_id=5,
        filename="5.png",
        encoded=buffer.getvalue(),
        image_format="png",
        height=20,
        width=30,
        boxes=[[2, 2, 9, 9]],
        labels=[3],
        names=["ant"],
        is_crowd=[0],
        areas=[49.0],
        keypoints=np.full([1, 2, 3], 2),
    )
    tfrecord_files.write_shard(str(tmp_path / "records-00000-of-00001.tfrecord"), [example])
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"image 5\) has 2 keypoints, not as"):
        take(str(tmp_path), Pipeline(**PIPELINE), 1)


def test_photographs(shared_dir, tmp_path):
    folder = shared_dir / "data" / "coco_mini"
    path = folder / "annotations" / "person_keypoints_train2017.json"
    directory = str(tmp_path / "records")
    manifest = coco.convert(
        str(folder / "train2017"), str(path), directory, 2, num_workers=0, progress=False
    )
    truth = COCO(str(path))
    labelled = {
        image_id: sum(
            np.count_nonzero(np.array(a["keypoints"][2::3]))
            for a in truth.imgToAnns[image_id]
            if not a["iscrowd"]
        )
        for image_id in truth.imgs
    }
    assert manifest["num_keypoints"] == sum(labelled.values()) > 500
    assert manifest["keypoints"]["flip_pairs"] == [[i, i + 1] for i in range(1, 16, 2)]
    index = store.load_index(directory)
    found = dict(zip(index.image_id.tolist(), index.num_keypoints.tolist(), strict=True))
    assert found == labelled
    settings = {"include_masks": False, "include_keypoints": True, "flip_probability": 0}
    pipeline = Pipeline(min_side=200, max_side=333, **settings)
    kept = pipeline.training_index(directory).image_id
    assert set(kept) == {key for key, count in labelled.items() if count} and len(kept) < 80
    split = splits.open_split(str(tmp_path), "records", pipeline, is_training=True)
    for image_id, row in take(directory, pipeline, 8, split.keypoints, [1]).items():
        persons = [a for a in truth.imgToAnns[image_id] if not a["iscrowd"]]
        expected = np.array([a["keypoints"] for a in persons], float).reshape(-1, 17, 3)
        shown = expected[..., 2] > 0
        scale = row["image_scale"]
        found = row["keypoints"][: len(persons)] / [*scale, 1]
        np.testing.assert_array_equal(found[..., 2], expected[..., 2])
        pixels = found[..., 1::-1] - 0.5
        np.testing.assert_allclose(pixels[shown], expected[..., :2][shown], atol=1e-3)
