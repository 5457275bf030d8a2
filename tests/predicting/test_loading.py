"""A trained detector for use: the evaluation's own detections, in threads, beside other state."""

import concurrent.futures
import json
import pathlib
import subprocess
import sys

import gin
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from loaded_run import train

import rethink_tf
from rethink_tf import config
from rethink_tf.data.input import decode
from rethink_tf.data.sources import coco_names

pytestmark = pytest.mark.usefixtures("fresh_tensorflow_settings")


@pytest.fixture(scope="module")
def data_dir(loaded_folder):
    return loaded_folder / "shapes"


@pytest.fixture(scope="module")
def images(data_dir):
    """{id: pixels} of the evaluated images."""
    found = {}
    features = {
        "image/encoded": tf.io.FixedLenFeature([], tf.string),
        "image/source_id": tf.io.FixedLenFeature([], tf.string),
    }
    for path in sorted((data_dir / "val").glob("*.tfrecord")):
        for record in tf.data.TFRecordDataset(str(path)):
            parsed = tf.io.parse_single_example(record, features)
            pixels = decode.decode_pixels(parsed["image/encoded"]).numpy()
            found[int(parsed["image/source_id"].numpy())] = pixels
    assert found
    return found


@pytest.fixture(scope="module")
def detector(run_dir):
    return rethink_tf.load(run_dir)


def test_detections_are_those_of_the_evaluation(run_dir, images, detector):
    (path,) = pathlib.Path(run_dir, "results").glob("detections-*.json")
    expected = json.loads(path.read_text())
    assert expected
    for image_id, found in zip(images, detector(list(images.values())), strict=True):
        found = sorted(found.to_coco(image_id), key=lambda each: -each["score"])
        wanted = [each for each in expected if each["image_id"] == image_id]
        wanted.sort(key=lambda each: -each["score"])
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            assert one["score"] == pytest.approx(other["score"], abs=1e-5)
            np.testing.assert_allclose(one["bbox"], other["bbox"], atol=1e-3)
            assert one["category_id"] == other["category_id"]


def test_what_a_detection_says(images, detector):
    image = next(iter(images.values()))
    found = detector(image)
    count = len(found)
    assert found.size == image.shape[:2] and count
    assert found.boxes.shape == (count, 4) and found.boxes.dtype == np.float32
    assert found.masks.shape == (count, *image.shape[:2]) and found.masks.dtype == bool
    names = dict(enumerate(detector.class_names, start=1))
    assert found.class_names == [names[each] for each in found.category_ids.tolist()]
    assert found.keypoints is None
    y1, x1, y2, x2 = found.boxes.T
    assert (y1 <= y2).all() and (x2 <= image.shape[1]).all() and (found.boxes >= 0).all()
    half = found.above(float(np.median(found.scores)))
    assert 0 < len(half) < count and len(half.masks) == len(half.class_names) == len(half)


def test_sizes_and_lists(images, detector):
    image = next(iter(images.values()))
    # Twice as large: the network sees the same, and the boxes are in pixels of the given image.
    large = image.repeat(2, 0).repeat(2, 1)
    small, (again, found), none = detector(image), detector([image, large]), detector([])
    assert none == [] and found.size == large.shape[:2]
    np.testing.assert_allclose(again.scores, small.scores, atol=1e-5)
    np.testing.assert_allclose(again.boxes, small.boxes, atol=1e-3)
    assert found.boxes.max() > 1.2 * small.boxes.max()
    for wrong in (image.astype(np.float32), image[..., 0], image[:0]):
        with pytest.raises(ValueError, match=r"give uint8 \[H, W, 3\], RGB"):
            detector(wrong)


def test_threads_find_what_one_finds(run_dir, images):
    fresh = rethink_tf.load(run_dir)  # whose program is not traced yet
    pixels = list(images.values())[:4] * 3
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        found = list(threads.map(fresh, pixels))
    for image, each in zip(pixels, found, strict=True):
        expected = fresh(image)
        np.testing.assert_array_equal(each.boxes, expected.boxes)
        np.testing.assert_array_equal(each.scores, expected.scores)


def test_nothing_of_a_load_is_left_behind(tmp_path, data_dir, detector, images):
    params = ["NORMALIZER='syncbn'", "run.precision='mixed_bfloat16'"]
    other = train(tmp_path / "other", data_dir, *params, mode="train")
    tf_keras.mixed_precision.set_global_policy("float32")
    image = next(iter(images.values()))
    alone = detector(image)
    config.parse(["quickstart.gin"], ["STEPS=77"])
    before, used = gin.config_str(), gin.operative_config_str()
    second = rethink_tf.load(other)
    assert (gin.config_str(), gin.operative_config_str()) == (before, used)
    assert tf_keras.mixed_precision.global_policy().name == "float32"
    with pytest.raises(RuntimeError, match="locked"):
        gin.bind_parameter("run.seed", 1)  # as `config.parse` leaves it
    gin.clear_config()
    # Neither changes the other.
    assert len(second(image)) and second.detector.compute_dtype == tf.bfloat16
    np.testing.assert_array_equal(detector(image).boxes, alone.boxes)


def test_a_folder_that_holds_no_run_is_named(tmp_path, run_dir):
    with pytest.raises(ValueError, match=r"config.gin is not there: give the folder of a run"):
        rethink_tf.load(str(tmp_path))
    with pytest.raises(ValueError, match="/nothing cannot be read|no checkpoint"):
        rethink_tf.load(run_dir, str(tmp_path / "nothing"))


def test_detectron2_in_one_step(shared_dir, tmp_path, images):
    parity, pkl = shared_dir / "parity", tmp_path / "model_final.pkl"
    command = [sys.executable, parity / "weights.py", parity / "r50_fpn_gn.spec.json", pkl]
    subprocess.run(command, check=True)
    params = ["Pipeline.min_side=128", "Pipeline.max_side=128", "BoxHead.score_threshold=0.0"]
    detector = rethink_tf.load_weights(str(pkl), ["scratch_r50.gin"], params)
    assert detector.categories == coco_names.CATEGORIES
    assert [detector.categories[row]["name"] for row in (0, 11, 79)] == [
        "person", "stop sign", "toothbrush"]  # fmt: skip
    found = detector(next(iter(images.values())))
    assert len(found) and set(found.category_ids) <= {each["id"] for each in detector.categories}
    with pytest.raises(ValueError, match="There are 2 names, and the weights have 80"):
        rethink_tf.load_weights(str(pkl), ["scratch_r50.gin"], params, names=["a", "b"])
