"""The pyramid: shapes, and the merging of levels by hand."""

import numpy as np
import pytest
import tensorflow as tf

from rethink_tf.models.fpn import FPN


def identity_fpn(levels, channels):
    """An FPN whose lateral and output convolutions copy their input."""
    fpn = FPN(channels, "none", levels)
    fpn({level: tf.zeros([1, 2 ** (6 - level), 2 ** (6 - level), channels]) for level in levels})
    for layer in (*fpn.laterals, *fpn.outputs):
        kernel = np.zeros(layer.conv.kernel.shape, np.float32)
        center = kernel.shape[0] // 2
        kernel[center, center] = np.eye(channels)
        layer.conv.kernel.assign(kernel)
    return fpn


@pytest.mark.parametrize("normalizer", ["gn", "none"])
def test_shapes(normalizer):
    fpn = FPN(32, normalizer)
    sides = {2: (24, 16), 3: (12, 8), 4: (6, 4), 5: (3, 2)}
    features = {level: tf.ones([2, *sides[level], 8 * level]) for level in sides}
    pyramid = fpn(features, training=True)
    assert {level: tuple(feature.shape) for level, feature in pyramid.items()} == {
        level: (2, *side, 32) for level, side in (sides | {6: (2, 1)}).items()
    }


def test_coarse_levels_are_doubled_and_added():
    generator = np.random.default_rng(0)
    fine, middle, coarse = (generator.normal(size=(1, side, side, 2)) for side in (8, 4, 2))
    features = {3: fine, 4: middle, 5: coarse}
    features = {level: tf.constant(value, tf.float32) for level, value in features.items()}
    pyramid = identity_fpn((3, 4, 5), 2)(features)

    def double(feature):
        return feature.repeat(2, axis=1).repeat(2, axis=2)

    np.testing.assert_allclose(pyramid[5], coarse, rtol=1e-5)
    np.testing.assert_allclose(pyramid[4], middle + double(coarse), rtol=1e-5, atol=1e-6)
    expected = fine + double(middle + double(coarse))
    np.testing.assert_allclose(pyramid[3], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(pyramid[6], pyramid[5][:, ::2, ::2])


def test_no_activation_follows():
    pyramid = identity_fpn((4, 5), 1)({4: -tf.ones([1, 4, 4, 1]), 5: -tf.ones([1, 2, 2, 1])})
    np.testing.assert_array_equal(pyramid[4], np.full((1, 4, 4, 1), -2.0))
