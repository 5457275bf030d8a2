"""Tests of rethink_tf/exporting/sizes.py."""

import numpy as np
import pytest
import tensorflow as tf

from rethink_tf.data.input import batch_shapes, order
from rethink_tf.exporting.sizes import SizeRule


@pytest.mark.parametrize("buckets", [None, ((128, 128),), ((480, 640), (640, 480))])
def test_sizes_are_the_evaluations(buckets):
    stored = np.random.default_rng(0).integers(1, 3000, [5000, 2])
    stored[:3] = [[1, 1], [480, 640], [3, 3000]]

    expected = order.resized_shapes(stored[:, 0], stored[:, 1], 400, 667)
    expected = batch_shapes.BatchShapes(buckets).limit(expected)

    found = SizeRule(400, 667, buckets).resized(tf.constant(stored, tf.int32))

    np.testing.assert_array_equal(found, expected)
