"""Tests of rethink_tf/exporting/whole_masks.py."""

import numpy as np
import tensorflow as tf

from rethink_tf.evaluation import pasting
from rethink_tf.exporting import whole_masks


def test_masks_are_pasted_as_in_the_evaluation():
    rng = np.random.default_rng(0)
    masks = rng.uniform(0, 1, [1, 6, 7, 7]).astype(np.float32)
    boxes = np.array(
        [
            [[10, 20, 50, 90], [0, 0, 60, 100], [3.3, 4.4, 9.9, 8.8]]
            + [[20.5, 0, 20.9, 100], [0, 0, 0, 0], [55, 95, 60, 100]]
        ],
        np.float32,
    )

    found = whole_masks.paste(tf.constant(masks), tf.constant(boxes), tf.constant([60, 100]))

    assert found.dtype == tf.uint8
    for row in range(6):
        expected = pasting.paste_mask(masks[0, row], boxes[0, row], 60, 100)
        np.testing.assert_array_equal(found[0, row], expected, err_msg=str(row))
