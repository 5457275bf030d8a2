"""Mask head: one class a RoI, doubled by a deconvolution."""

import numpy as np
import pytest
import tensorflow as tf

from rethink_tf.models.mask_head import MaskHead


def copying_head():
    """No convolutions; a deconvolution that repeats each cell; masks c = channel sums times c."""
    head = MaskHead(3, num_convs=0, channels=2, roi_size=2)
    head(tf.zeros([1, 2, 2, 2]), tf.constant([1]))
    head.upsample_kernel.assign(np.broadcast_to(np.eye(2), (2, 2, 2, 2)))
    head.kernel.assign([[1.0, 1.0], [2.0, 2.0], [3.0, 0.0]])
    head.bias.assign([0.0, 10.0, 0.0])
    return head


def test_each_roi_has_the_mask_of_its_class():
    rois = np.random.default_rng(0).normal(size=(4, 2, 2, 2)).astype(np.float32)
    logits = copying_head()(rois, tf.constant([1, 2, 3, 0]))
    assert logits.shape == (4, 4, 4) and logits.dtype == tf.float32
    positive = np.maximum(rois, 0).repeat(2, axis=1).repeat(2, axis=2)  # ReLU after the doubling
    total = positive.sum(axis=-1)
    np.testing.assert_allclose(logits[0], total[0], rtol=1e-5)
    np.testing.assert_allclose(logits[1], 2 * total[1] + 10, rtol=1e-5)
    np.testing.assert_allclose(logits[2], 3 * positive[2, ..., 0], rtol=1e-5)
    np.testing.assert_allclose(logits[3], total[3], rtol=1e-5)  # padding is taken as class 1


def test_only_the_class_of_a_roi_learns_from_it():
    head = copying_head()
    with tf.GradientTape() as tape:
        logits = head(tf.ones([2, 2, 2, 2]), tf.constant([2, 2]))
        total = tf.reduce_sum(logits)
    kernel, bias = tape.gradient(total, [head.kernel, head.bias])
    # 2 RoIs of 16 places, every one of the value 1.
    np.testing.assert_allclose(tf.convert_to_tensor(kernel), [[0, 0], [32, 32], [0, 0]])
    np.testing.assert_allclose(tf.convert_to_tensor(bias), [0, 32, 0])


@pytest.mark.parametrize("normalizer", ["gn", "none"])
def test_convolutions_and_no_rois(normalizer):
    head = MaskHead(3, num_convs=2, channels=32, normalizer=normalizer, roi_size=14)
    logits = head(tf.zeros([0, 14, 14, 32]), tf.zeros([0], tf.int32), training=True)
    assert logits.shape == (0, 28, 28)
    assert head.kernel.shape == (3, 32) and head.bias.shape == (3,)
