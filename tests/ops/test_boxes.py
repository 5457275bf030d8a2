"""Box arithmetic: hand values, the round trip as a law, clipping, padding rows."""

import math

import hypothesis
import hypothesis.extra.numpy as hypothesis_numpy
import hypothesis.strategies as st
import numpy as np
import pytest
import tensorflow as tf

from rethink_tf.ops import boxes as box_ops

WEIGHTS = (10.0, 10.0, 5.0, 5.0)
ONES = (1.0, 1.0, 1.0, 1.0)


@st.composite
def boxes_strategy(draw, rows=6):
    """Float32 [rows, 4] with sides of 1 to 800 pixels."""

    def array(low, high):
        floats = st.floats(low, high, width=32)
        return draw(hypothesis_numpy.arrays(np.float32, (rows, 2), elements=floats))

    corners, sides = array(0.0, 1000.0), array(1.0, 800.0)
    return np.concatenate([corners, corners + sides], axis=1)


@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(boxes_strategy(), boxes_strategy(), st.sampled_from([ONES, WEIGHTS]))
def test_decode_inverts_encode(boxes, anchors, weights):
    deltas = box_ops.encode_boxes(boxes, anchors, weights)
    # Only below the cap: a box at most 1000 / 16 times its anchor.
    below = np.all(deltas[:, 2:] < box_ops.MAX_LOG_SCALE * np.array(weights[2:]), axis=1)
    decoded = box_ops.decode_boxes(deltas, tf.constant(anchors), weights).numpy()
    np.testing.assert_allclose(decoded[below], boxes[below], rtol=1e-4, atol=2e-3)


@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(boxes_strategy(), boxes_strategy(rows=4))
def test_iou_is_symmetric_bounded_and_one_for_itself(a, b):
    iou = box_ops.pairwise_iou(tf.constant(a), tf.constant(b)).numpy()
    assert iou.shape == (6, 4)
    assert (iou >= 0.0).all() and (iou <= 1.0 + 1e-6).all()
    np.testing.assert_array_equal(iou, box_ops.pairwise_iou(b, a).numpy().T)
    np.testing.assert_allclose(np.diag(box_ops.pairwise_iou(a, a)), 1.0, rtol=1e-5)


def test_iou_by_hand():
    a = tf.constant([[0.0, 0, 10, 10], [5, 5, 5, 9], [9, 9, 3, 3]])  # the last two have no area
    b = tf.constant([[0.0, 0, 10, 5], [5, 5, 15, 15], [10, 0, 20, 10], [0, 0, 0, 0]])
    expected = [[50 / 100, 25 / 175, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    np.testing.assert_allclose(box_ops.pairwise_iou(a, b), expected, rtol=1e-6)
    np.testing.assert_array_equal(box_ops.area(a), [100, 0, 0])


def test_iou_of_a_batch():
    a = tf.constant([[[0.0, 0, 2, 2]], [[0.0, 0, 4, 4]]])
    b = tf.constant([[[0.0, 0, 2, 4], [0, 0, 2, 2]], [[0.0, 0, 2, 2], [2, 2, 4, 4]]])
    np.testing.assert_allclose(box_ops.pairwise_iou(a, b), [[[0.5, 1.0]], [[0.25, 0.25]]])


def test_deltas_by_hand():
    anchor = [[10.0, 20.0, 30.0, 60.0]]  # 20 x 40, centre (20, 40)
    box = [[15.0, 0.0, 55.0, 40.0]]  # 40 x 40, centre (35, 20)
    deltas = box_ops.encode_boxes(tf.constant(box), tf.constant(anchor), WEIGHTS)
    expected = [[10 * 15 / 20, 10 * -20 / 40, 5 * math.log(2.0), 0.0]]
    np.testing.assert_allclose(deltas, expected, rtol=1e-6, atol=1e-6)


def test_encoding_of_degenerate_rows_is_zero_and_has_finite_gradients():
    good, zero, inverted = [0.0, 0, 8, 8], [0.0, 0, 0, 0], [8.0, 8, 0, 0]
    boxes = tf.constant([good, zero, inverted, good, good])
    anchors = tf.constant([good, good, good, zero, inverted])
    with tf.GradientTape() as tape:
        tape.watch([boxes, anchors])
        deltas = box_ops.encode_boxes(boxes, anchors, WEIGHTS)
        total = tf.reduce_sum(deltas)
    np.testing.assert_array_equal(deltas, np.zeros([5, 4]))
    for gradient in tape.gradient(total, [boxes, anchors]):
        assert np.isfinite(gradient).all()
        np.testing.assert_array_equal(gradient[1:3], np.zeros([2, 4]))


def test_decoding_caps_the_scale_and_keeps_padding_rows_zero():
    anchors = tf.constant([[0.0, 0, 16, 32], [0, 0, 0, 0]])
    deltas = tf.constant([[0.0, 0, 100, 1e30], [3, -3, 100, 100]])
    boxes = box_ops.decode_boxes(deltas, anchors, ONES).numpy()
    height, width = 16 * 1000 / 16, 32 * 1000 / 16
    expected = [8 - height / 2, 16 - width / 2, 8 + height / 2, 16 + width / 2]
    np.testing.assert_allclose(boxes[0], expected, rtol=1e-5)
    np.testing.assert_array_equal(boxes[1], np.zeros(4))
    # A lower cap of one's own, after the division by the weights.
    boxes = box_ops.decode_boxes(deltas[:1] / 10, anchors[:1], (1, 1, 5, 5), math.log(2.0)).numpy()
    np.testing.assert_allclose(boxes[0], [8 - 16, 16 - 32, 8 + 16, 16 + 32], rtol=1e-6)


@pytest.mark.parametrize("dtype", [tf.int32, tf.float32])
def test_clipping_to_each_images_content(dtype):
    box = [-5.0, 10.0, 50.0, 200.0]
    boxes = tf.constant([[box, [60.0, 60, 70, 70]], [box, [1.0, 2, 3, 4]]])
    clipped = box_ops.clip_boxes(boxes, tf.constant([[40, 60], [30, 300]], dtype)).numpy()
    expected = [[[0, 10, 40, 60], [40, 60, 40, 60]], [[0, 10, 30, 200], [1, 2, 3, 4]]]
    np.testing.assert_array_equal(clipped, expected)
    assert box_ops.area(clipped)[0, 1] == 0.0  # it lay outside


def test_clipping_takes_boxes_of_any_rank():
    boxes = tf.constant([[[[-1.0, -1, 9, 9]], [[2, 2, 9, 9]]]])  # [1, 2, 1, 4]
    clipped = box_ops.clip_boxes(boxes, tf.constant([[4, 5]]))
    np.testing.assert_array_equal(clipped, [[[[0, 0, 4, 5]], [[2, 2, 4, 5]]]])
