"""Mask targets: hand-made places, and a second form in NumPy."""

import numpy as np
import pytest
import tensorflow as tf

from rethink_tf.ops import masks as mask_ops

BOX = [10.0, 20.0, 50.0, 100.0]  # 40 x 80 pixels


def crop(mask, box, proposal, size):
    """Runs `crop_targets` for one proposal; the mask is 0 or 1."""
    masks = tf.constant(mask[np.newaxis] * 255, tf.uint8)
    targets = mask_ops.crop_targets(masks, tf.constant([box]), tf.constant([proposal]), size)
    assert targets.dtype == tf.float32 and targets.shape == (1, size, size)
    return targets[0].numpy()


def random_mask(side, seed=0):
    return np.random.default_rng(seed).integers(0, 2, (side, side))


@pytest.mark.parametrize("seed", range(3))
def test_the_objects_own_box_gives_its_mask_back(seed):
    mask = random_mask(14, seed)
    np.testing.assert_array_equal(crop(mask, BOX, BOX, 14), mask)


def test_the_finer_crop_is_reduced():
    mask = random_mask(7)
    fine = np.kron(mask, np.ones((4, 4), int))
    np.testing.assert_array_equal(crop(fine, BOX, BOX, 7), mask)


def test_a_quarter_of_the_box():
    mask = random_mask(8)
    quarter = [10.0, 60.0, 30.0, 100.0]  # the upper right one
    expected = np.kron(mask[:4, 4:], np.ones((2, 2)))
    np.testing.assert_array_equal(
        crop(np.kron(mask, np.ones((4, 4), int)), BOX, quarter, 8), expected
    )


def test_a_shifted_box_sees_the_mask_shifted_and_zeros_beyond_it():
    mask = random_mask(8)
    # Two of the eight rows (5 pixels each) down and three columns (10 pixels) to the left.
    target = crop(mask, BOX, [20.0, -10.0, 60.0, 70.0], 8)
    np.testing.assert_array_equal(target[:6, 3:], mask[2:, :5])
    assert not target[6:].any() and not target[:, :3].any()


def test_a_larger_box_has_the_object_in_its_middle():
    target = crop(np.ones((28, 28), int), BOX, [-10.0, -20.0, 70.0, 140.0], 28)
    expected = np.zeros((28, 28))
    expected[7:21, 7:21] = 1
    np.testing.assert_array_equal(target, expected)


def test_a_box_outside_the_object_sees_nothing():
    assert not crop(np.ones((8, 8), int), BOX, [60.0, 20.0, 90.0, 100.0], 4).any()
    assert not crop(np.ones((8, 8), int), BOX, [10.0, 100.5, 50.0, 120.0], 4).any()


def test_degenerate_rows_are_finite():
    mask = np.ones((8, 8), int)
    zero = [0.0, 0.0, 0.0, 0.0]
    for box, proposal in [(zero, zero), (zero, BOX), (BOX, zero)]:
        assert set(np.unique(crop(mask, box, proposal, 4))) <= {0.0, 1.0}
    # A proposal without area inside the object takes the one value that is there.
    assert crop(mask, BOX, [30.0, 50.0, 30.0, 50.0], 4).all()


def test_half_covered_bins_belong_to_the_mask():
    """Two columns in one bin, one of each kind: 127.5 of 255, which is enough."""
    mask = np.array([[1, 0], [1, 0]])
    np.testing.assert_array_equal(crop(mask, BOX, BOX, 1), [[1]])


def test_no_rows():
    targets = mask_ops.crop_targets(
        tf.zeros([0, 8, 8], tf.uint8), tf.zeros([0, 4]), tf.zeros([0, 4]), 28
    )
    assert targets.shape == (0, 28, 28)


def slow_soft_crop(mask, box, proposal, size, per_bin=4):
    """Samples the mask bilinearly at per_bin x per_bin points of each bin; 0 outside its box."""
    side = mask.shape[0]
    soft = np.zeros((size, size))
    for row, column, i, j in np.ndindex(size, size, per_bin, per_bin):
        place = []
        for axis, cell, sub in ((0, row, i), (1, column, j)):
            extent = proposal[axis + 2] - proposal[axis]
            pixel = proposal[axis] + (cell + (sub + 0.5) / per_bin) / size * extent
            place.append((pixel - box[axis]) / (box[axis + 2] - box[axis]))
        if not all(0.0 <= p <= 1.0 for p in place):
            continue
        y, x = (np.clip(p * side - 0.5, 0, side - 1) for p in place)
        top, left = int(y), int(x)
        for r, c in np.ndindex(2, 2):
            weight = (1 - abs(y - top - r)) * (1 - abs(x - left - c))
            soft[row, column] += weight * mask[min(top + r, side - 1), min(left + c, side - 1)]
    return soft / per_bin**2


def test_same_as_the_slow_form():
    generator = np.random.default_rng(4)
    count, side, size = 12, 10, 6
    masks = generator.integers(0, 256, (count, side, side)).astype(np.uint8)
    corners = generator.uniform(0, 50, (2, count, 2))
    ends = corners + generator.uniform(5, 60, (2, count, 2))
    boxes, proposals = np.concatenate([corners, ends], -1).astype(np.float32)
    targets = mask_ops.crop_targets(
        tf.constant(masks), tf.constant(boxes), tf.constant(proposals), size
    ).numpy()
    assert 0.1 < targets.mean() < 0.9
    for row in range(count):
        soft = slow_soft_crop(masks[row].astype(float), boxes[row], proposals[row], size)
        clear = np.abs(soft - 127.5) > 1e-2  # rounding decides the others
        np.testing.assert_array_equal(targets[row][clear], (soft >= 127.5)[clear])
