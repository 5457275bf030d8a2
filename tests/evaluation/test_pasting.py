"""Pasting of masks against hand values and a plain per-pixel implementation."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from rethink_tf.evaluation import overlap, pasting
from rethink_tf.evaluation.pasting import encode_mask, paste_and_encode, paste_mask


def paste_slowly(mask, box, height, width, threshold=0.5):
    """grid_sample pixel by pixel: four neighbours, each zero where it lies outside of the mask."""
    size = len(mask)
    y1, x1, y2, x2 = box
    probability = np.zeros((height, width))
    if y2 <= y1 or x2 <= x1:
        return probability, np.zeros((height, width), np.uint8)
    for y in range(height):
        for x in range(width):
            v = (y + 0.5 - y1) / (y2 - y1) * size - 0.5
            u = (x + 0.5 - x1) / (x2 - x1) * size - 0.5
            for j in (math.floor(v), math.floor(v) + 1):
                for i in (math.floor(u), math.floor(u) + 1):
                    if 0 <= j < size and 0 <= i < size:
                        probability[y, x] += (1 - abs(v - j)) * (1 - abs(u - i)) * mask[j][i]
    return probability, (probability >= threshold).astype(np.uint8)


def assert_same(mask, box, height, width, threshold=0.5):
    probability, expected = paste_slowly(mask, box, height, width, threshold)
    found = paste_mask(mask, box, height, width, threshold)
    assert found.shape == (height, width) and found.dtype == np.uint8
    # A probability within rounding of the threshold may fall on either side.
    clear = np.abs(probability - threshold) > 1e-9
    np.testing.assert_array_equal(found[clear], expected[clear])


def test_whole_pixels_by_hand():
    mask = np.array([[1.0, 0.0], [0.0, 1.0]])
    found = paste_mask(mask, [1, 2, 3, 4], height=4, width=5)
    np.testing.assert_array_equal(
        found, [[0, 0, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 0, 0]]
    )


def test_enlarged_mask_by_hand():
    # One row of two cells, 1 and 0, over four pixels: centres at j = -0.25, 0.25, 0.75, 1.25, thus
    # 0.75, 0.75, 0.25 and 0 before the rows' own weight, which is 0.75, 1, 1, 0.75 for equal rows.
    mask = np.array([[1.0, 0.0], [1.0, 0.0]])
    found = paste_mask(mask, [0, 0, 4, 4], 4, 4, threshold=0.5)
    np.testing.assert_array_equal(found, [[1, 1, 0, 0]] * 4)
    found = paste_mask(mask, [0, 0, 4, 4], 4, 4, threshold=0.6)
    np.testing.assert_array_equal(found, [[0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]])


def test_threshold_is_inclusive():
    # The centres of pixels 0 and 2 lie on the edges of the box: half of a cell, exactly 0.5.
    found = paste_mask(np.ones((4, 4)), [-2.0, 0.5, 4.0, 2.5], 2, 3)
    np.testing.assert_array_equal(found, [[1, 1, 1], [1, 1, 1]])
    found = paste_mask(np.ones((4, 4)), [-2.0, 0.5, 4.0, 2.5], 2, 3, threshold=0.51)
    np.testing.assert_array_equal(found, [[0, 1, 0], [0, 1, 0]])


@pytest.mark.parametrize(
    "box",
    [
        [3.2, 4.7, 15.9, 22.1],
        [-7.5, -3.25, 9.0, 12.0],  # beyond the upper left corner
        [10.0, 20.0, 40.0, 60.0],  # beyond the lower right corner
        [-50.0, -50.0, 80.0, 90.0],  # the image lies inside of the box
        [5.3, 0.0, 6.1, 30.0],  # less than a pixel high
        [5.1, 7.1, 5.2, 7.2],  # smaller than a pixel, between centres
        [5.45, 7.45, 5.55, 7.55],  # smaller than a pixel, around a centre
        [2.0, 3.0, 2.0, 9.0],  # no height
        [9.0, 9.0, 4.0, 12.0],  # inverted
        [100.0, 100.0, 120.0, 120.0],  # outside
    ],
)
@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.9])
def test_same_as_slow_implementation(box, threshold):
    mask = np.random.default_rng(3).random((7, 7))
    assert_same(mask, box, 20, 31, threshold)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1000),
    size=st.integers(1, 9),
    height=st.integers(1, 17),
    width=st.integers(1, 17),
    y1=st.floats(-20, 20),
    x1=st.floats(-20, 20),
    box_height=st.floats(0, 40),
    box_width=st.floats(0, 40),
)
def test_same_as_slow_implementation_anywhere(
    seed, size, height, width, y1, x1, box_height, box_width
):
    mask = np.random.default_rng(seed).random((size, size))
    box = [y1, x1, y1 + box_height, x1 + box_width]
    if 0 < box[2] - box[0] < 1e-3 or 0 < box[3] - box[1] < 1e-3:
        box = [y1, x1, y1 + 1e-2, x1 + 1e-2]  # finer boxes only compare rounding
    assert_same(mask, box, height, width, 0.4)


def test_enormous_box_stays_in_the_image():
    assert paste_mask(np.ones((28, 28)), [-1e12, -1e12, 1e12, 1e12], 6, 5).sum() == 30


@pytest.mark.parametrize("box", [[1.0, 2.0, 1.0, 5.0], [4.0, 4.0, 2.0, 8.0], [50, 50, 60, 60]])
def test_box_without_pixels_is_empty(box):
    assert paste_mask(np.ones((28, 28)), box, 10, 12).sum() == 0


@pytest.mark.parametrize(
    "arguments",
    [
        (np.ones((3, 4)), [0, 0, 1, 1], 5, 5, 0.5),
        (np.ones((0, 0)), [0, 0, 1, 1], 5, 5, 0.5),
        (np.ones((3, 3)), [0, 0, float("nan"), 1], 5, 5, 0.5),
        (np.ones((3, 3)), [0, 0, 1], 5, 5, 0.5),
        (np.ones((3, 3)), [0, 0, 1, 1], 0, 5, 0.5),
        (np.ones((3, 3)), [0, 0, 1, 1], 5, 5, 0.0),
    ],
)
def test_bad_arguments_are_refused(arguments):
    with pytest.raises(ValueError, match="must be"):
        paste_mask(*arguments)


def draw(seed, count, size=28, height=120, width=90):
    """Returns smooth masks and boxes, some of them beyond the image."""
    generator = np.random.default_rng(seed)
    axis = (np.arange(size) + 0.5) / size * 2 - 1
    distance = np.hypot(axis[:, np.newaxis], axis)
    slope = generator.uniform(1, 20, [count, 1, 1])
    masks = 1 / (1 + np.exp(slope * (distance - generator.uniform(0.2, 1.3, [count, 1, 1]))))
    masks = np.clip(masks + generator.normal(0, 0.05, masks.shape), 0, 1).astype(np.float32)
    corner = generator.uniform(-0.3, 1, [count, 2]) * [height, width]
    side = np.exp(generator.uniform(np.log(0.02), np.log(1.2), [count, 2])) * [height, width]
    return masks, np.concatenate([corner, corner + side], -1).astype(np.float32)


def paste_densely(mask, box, height, width, threshold=0.5):
    """Every pixel of the image, as the product of two matrices of bilinear weights."""

    def weights(low, high, length):
        position = (np.arange(length) + 0.5 - low) / (high - low) * len(mask) - 0.5
        return np.maximum(1 - np.abs(position[:, np.newaxis] - np.arange(len(mask))), 0)

    y1, x1, y2, x2 = np.asarray(box, np.float64)
    rows, columns = weights(y1, y2, height), weights(x1, x2, width)
    return (rows @ np.asarray(mask, np.float64) @ columns.T >= threshold).astype(np.uint8)


@pytest.mark.parametrize("seed", range(3))
def test_encoded_masks_are_pycocotools_encoding_of_dense_ones(seed):
    masks, boxes = draw(seed, 60)
    found = paste_and_encode(masks, boxes, 120, 90)
    for mask, box, encoded in zip(masks, boxes, found, strict=True):
        dense = paste_densely(mask, box, 120, 90)
        assert encoded == encode_mask(dense)
        np.testing.assert_array_equal(paste_mask(mask, box, 120, 90), dense)


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 1000),
    count=st.integers(0, 4),
    size=st.integers(1, 6),
    height=st.integers(1, 13),
    width=st.integers(1, 13),
    saturated=st.booleans(),
    threshold=st.sampled_from([0.25, 0.5, 1.0]),
)
def test_encoded_masks_are_the_encoding_of_pasted_ones(
    seed, count, size, height, width, saturated, threshold
):
    generator = np.random.default_rng(seed)
    masks = generator.random([count, size, size])
    if saturated:  # with exact ones and zeros, edges and thresholds that meet
        masks = masks.round()
    boxes = generator.integers(-8, 40, [count, 4]) / 2
    found = paste_and_encode(masks, boxes, height, width, threshold)
    pasted = [paste_mask(m, b, height, width, threshold) for m, b in zip(masks, boxes, strict=True)]
    # pycocotools' own encoding too: no empty runs, and those across columns are one.
    assert found == [encode_mask(mask) for mask in pasted]
    for encoded, mask in zip(found, pasted, strict=True):
        np.testing.assert_array_equal(coco_mask.decode(encoded), mask)


def test_runs_across_columns_are_one():
    (encoded,) = paste_and_encode(np.ones([1, 3, 3]), [[-30, 2, 40, 5]], 10, 8)
    assert encoded == encode_mask(np.tile([0, 0, 1, 1, 1, 0, 0, 0], [10, 1]))
    lengths = coco_mask.frPyObjects({"size": [10, 8], "counts": [20, 30, 30]}, 10, 8)
    assert encoded["counts"] == lengths["counts"].decode()
    # To the last pixel: no empty run at the end, as pycocotools has none.
    (encoded,) = paste_and_encode(np.ones([1, 3, 3]), [[-30, -30, 40, 40]], 10, 8)
    assert encoded == encode_mask(np.ones([10, 8], np.uint8))


def test_parts_of_any_size_give_the_same(monkeypatch):
    masks, boxes = draw(7, 30)
    whole = paste_and_encode(masks, boxes, 120, 90)
    for columns in (1, 100):
        monkeypatch.setattr(pasting, "_COLUMNS_AT_ONCE", columns)
        assert paste_and_encode(masks, boxes, 120, 90) == whole


def test_threads_give_the_same():
    drawn = [draw(seed, 20) for seed in range(6)]
    expected = [paste_and_encode(*each, 120, 90) for each in drawn]
    with overlap.InOrder(paste_and_encode, num_workers=3) as background:
        found = [encoded for each in drawn for encoded in background.put(*each, 120, 90)]
        found += background.finish()
    assert found == expected


def test_no_masks():
    assert paste_and_encode(np.zeros([0, 28, 28]), np.zeros([0, 4]), 10, 12) == []
    assert (
        paste_and_encode(np.zeros([2, 28, 28]), [[0, 0, 5, 5]] * 2, 10, 12)
        == [encode_mask(np.zeros([10, 12]))] * 2
    )


def test_bad_stacks_are_refused():
    with pytest.raises(ValueError, match=r"boxes must be \[N, 4\] for 2 masks, found .*\[3, 4\]"):
        paste_and_encode(np.ones([2, 3, 3]), np.ones([3, 4]), 5, 5)
    with pytest.raises(ValueError, match="box 1 must be finite, found .*inf"):
        paste_and_encode(np.ones([2, 3, 3]), [[0, 0, 1, 1], [0, 0, 1, np.inf]], 5, 5)
    masks = np.ones([3, 3, 3])
    masks[2, 1, 1] = np.nan
    with pytest.raises(ValueError, match="mask 2 must be finite"):
        paste_and_encode(masks, np.ones([3, 4]), 5, 5)


def test_encode_round_trip_is_json_ready():
    mask = np.random.default_rng(0).random((13, 21)) > 0.5
    encoded = json.loads(json.dumps(encode_mask(mask)))
    assert encoded["size"] == [13, 21]
    np.testing.assert_array_equal(coco_mask.decode(encoded), mask)
    np.testing.assert_array_equal(coco_mask.decode(encode_mask(mask * 255)), mask)


def test_encode_empty_mask():
    assert coco_mask.area(encode_mask(np.zeros((4, 5), np.uint8))) == 0


def test_encode_refuses_a_stack():
    with pytest.raises(ValueError, match="H, W"):
        encode_mask(np.zeros((2, 4, 5), np.uint8))
