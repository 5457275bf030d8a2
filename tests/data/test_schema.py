"""Tests of rethink_tf/data/schema.py."""

import numpy as np
import pytest

from rethink_tf.data import schema

SPEC = schema.training_spec(1, (8, 12), max_objects=2, mask_size=4)


def good_batch():
    batch = {key: np.zeros(spec.shape, spec.dtype.as_numpy_dtype) for key, spec in SPEC.items()}
    batch["image"][0, :6, :9] = 100
    batch["image_size"][:] = [6, 9]
    batch["original_size"][:] = [3, 3]
    batch["image_scale"][:] = [2, 3]
    batch["image_id"][:] = 17
    batch["boxes"][0, 0] = [1, 2, 6, 9]
    batch["classes"][0, 0] = 3
    batch["masks"][0, 0] = 255
    batch["has_mask"][0, 0] = True
    return batch


def test_good_batch_passes():
    schema.check_batch(good_batch(), SPEC, num_classes=3)
    schema.check_batch(good_batch(), schema.training_spec(None, None, 2, 4))


def test_evaluation_spec_is_the_image_part():
    spec = schema.evaluation_spec(1, (8, 12))

    assert spec == {key: SPEC[key] for key in spec}
    assert "masks" not in schema.training_spec(1, mask_size=None)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("boxes", np.zeros([1, 3, 4], np.float32), r"\(1, 3, 4\), the contract says float32"),
        ("classes", np.zeros([1, 2], np.int64), "is int64"),
        ("image_size", np.array([[9, 9]], np.int32), r"exceeds the padded image; images \[17\]"),
        ("classes", np.array([[4, 0]], np.int32), "exceeds 3"),
        ("classes", np.array([[0, 0]], np.int32), "boxes.*not zero where classes is 0"),
        ("boxes", np.array([[[1, 2, 1, 9], [0, 0, 0, 0]]], np.float32), "no area"),
        ("boxes", np.array([[[1, 2, 6, 10], [0, 0, 0, 0]]], np.float32), "leaves the image"),
        ("masks", np.full([1, 2, 4, 4], 9, np.uint8), "masks.*not zero where"),
        ("has_mask", np.array([[True, True]]), "has_mask.*is true where classes is 0"),
        ("has_mask", np.array([[False, False]]), "masks.*not zero where there is no mask"),
        ("image", np.full([1, 8, 12, 3], 9, np.uint8), "content beyond"),
    ],
)
def test_bad_batch_is_named(key, value, message):
    with pytest.raises(ValueError, match=message):
        schema.check_batch(good_batch() | {key: value}, SPEC, num_classes=3)


def test_the_size_in_evaluation_is_that_of_the_whole_image():
    spec = schema.evaluation_spec(1, (8, 12))
    batch = {key: value for key, value in good_batch().items() if key in spec}
    schema.check_batch(batch, spec)
    larger = batch["image_size"] + [[1, 0]]
    with pytest.raises(ValueError, match="image_size.*is not image_scale"):
        schema.check_batch(batch | {"image_size": larger.astype(np.int32)}, spec)


def test_missing_and_extra_keys_are_named():
    batch = good_batch()
    batch["keypoints"] = batch.pop("masks")

    with pytest.raises(ValueError, match=r"lacks the keys \['masks'\] and has \['keypoints'\]"):
        schema.check_batch(batch, SPEC)
