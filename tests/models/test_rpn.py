"""RPN on two tiny levels: the order of its outputs, the proposals, the sample."""

import numpy as np
import pytest
import tensorflow as tf

from rethink_tf.models.rpn import RPN
from rethink_tf.ops.content import Content
from rethink_tf.ops.nms import NO_SCORE

# Level 2 (stride 4): 4 x 4 cells, level 3 (stride 8): 2 x 2 cells; one square anchor a cell.
NUM_FINE, NUM_COARSE = 16, 4
SIZE = np.array([[16, 16]], np.int32)
FEATURES = {2: np.zeros([1, 4, 4, 2], np.float32), 3: np.zeros([1, 2, 2, 2], np.float32)}


def make_rpn(**options):
    defaults = dict(
        channels=2,
        anchor_sizes=((4,), (8,)),
        aspect_ratios=(1.0,),
        train_pre_nms=8,
        train_proposals=6,
        test_pre_nms=8,
        test_proposals=6,
    )
    return RPN(**(defaults | options))


def head(rpn, fine=-9.0, coarse=-9.0):
    """Returns (logits, deltas, anchors) of one image with the given logits and no deltas."""
    logits, deltas, anchors = rpn(FEATURES)
    logits = {2: tf.fill([1, NUM_FINE], fine), 3: tf.fill([1, NUM_COARSE], coarse)}
    return logits, {level: tf.zeros_like(value) for level, value in deltas.items()}, anchors


def put(values, place, value):
    return tf.tensor_scatter_nd_update(values, [[0, place]], [value])


def test_outputs_stand_in_the_order_of_their_anchors():
    """A cell that differs is found at the logits and deltas of the anchors centred on it."""
    rpn = RPN(2, anchor_sizes=((4, 6), (8, 12)), aspect_ratios=(1.0, 4.0))
    feature = np.zeros((1, 4, 4, 2), np.float32)
    feature[0, 2, 1] = 1.0
    features = {2: tf.constant(feature), 3: tf.zeros([1, 2, 2, 2])}
    rpn(features)
    kernel = np.zeros(rpn.conv.kernel.shape)
    kernel[1, 1] = np.eye(2)
    rpn.conv.kernel.assign(kernel)
    rpn.objectness.kernel.assign(np.tile(np.arange(1.0, 5.0) / 2, (2, 1))[None, None])
    rpn.deltas.kernel.assign(np.tile(np.arange(1.0, 17.0) / 2, (2, 1))[None, None])
    logits, deltas, anchors = rpn(features)
    assert logits[2].shape == (1, 64) and deltas[2].shape == (1, 64, 4)
    assert logits[3].shape == (1, 16) and anchors[3].shape == (16, 4)
    rows = np.flatnonzero(logits[2][0])
    np.testing.assert_allclose(logits[2].numpy()[0, rows], [1, 2, 3, 4])
    np.testing.assert_allclose(deltas[2].numpy()[0, rows], np.arange(1, 17).reshape(4, 4))
    found = anchors[2].numpy()[rows]
    np.testing.assert_allclose((found[:, :2] + found[:, 2:]) / 2, [[8, 4]] * 4, atol=1e-6)
    sides = found[:, 2:] - found[:, :2]
    np.testing.assert_allclose(sides, [[4, 4], [8, 2], [6, 6], [12, 3]], rtol=1e-5)


def test_proposals_come_from_all_levels_best_first_and_clipped():
    rpn = make_rpn()
    logits, deltas, anchors = head(rpn)
    logits[2] = put(put(logits[2], 5, 1.0), 0, 3.0)  # cells (1, 1) and (0, 0)
    logits[3] = put(logits[3], 3, 2.0)  # cell (1, 1)
    boxes, valid = rpn.propose(logits, deltas, anchors, SIZE, training=False)
    assert boxes.shape == (1, 6, 4) and valid.shape == (1, 6)
    np.testing.assert_allclose(boxes[0, :3], [[0, 0, 2, 2], [4, 4, 12, 12], [2, 2, 6, 6]])
    assert valid.numpy().all()


def test_suppression_is_within_a_level_only():
    rpn = make_rpn(anchor_sizes=((8,), (8,)))
    logits, deltas, anchors = head(rpn, -9.0, float("-inf"))
    logits[2] = put(put(logits[2], 10, 5.0), 9, 4.0)  # centres (8, 8) and (8, 4)
    deltas[2] = put(deltas[2], 9, [0.0, 0.5, 0.0, 0.0])  # moves by half of 8: the same box
    logits[3] = put(logits[3], 3, 3.0)  # centre (8, 8), the same box again
    boxes, _ = rpn.propose(logits, deltas, anchors, SIZE, training=False)
    same = np.all(np.isclose(boxes[0], [4, 4, 12, 12]), axis=-1)
    assert same.tolist()[:2] == [True, True] and same.sum() == 2


def test_counts_of_training_and_test_differ():
    rpn = make_rpn(train_pre_nms=2, train_proposals=5, test_pre_nms=8, test_proposals=3)
    shapes = [rpn.propose(*head(rpn), SIZE, training)[0].shape for training in (True, False)]
    # Two of each level at most; the fifth place stays empty.
    assert shapes == [(1, 5, 4), (1, 3, 4)]
    _, valid = rpn.propose(*head(rpn), SIZE, training=True)
    assert valid.numpy().tolist() == [[True] * 4 + [False]]


def test_anchors_of_cells_beyond_the_content_are_not_proposed():
    rpn = make_rpn(test_pre_nms=16, test_proposals=20)
    size = tf.constant([[5, 16]])
    logits, deltas, anchors = rpn(FEATURES, Content.of_images(size, 8))
    logits = {level: tf.where(each > NO_SCORE, -9.0, each) for level, each in logits.items()}
    deltas = {level: tf.zeros_like(each) for level, each in deltas.items()}
    boxes, valid = rpn.propose(logits, deltas, anchors, size, training=False)
    # Rows 0 and 4 of the fine level (8 cells), row 0 of the coarse one (2 cells).
    assert valid.numpy().sum() == 8 + 2
    assert boxes.numpy()[0, :, 2].max() <= 5.0
    assert not boxes[0, 10:].numpy().any()


def test_numbers_that_are_not_finite_are_not_proposed():
    rpn = make_rpn(test_pre_nms=16, test_proposals=20)
    logits, deltas, anchors = head(rpn)
    for place, value in enumerate([float("nan"), float("inf"), float("-inf")]):
        logits[2] = put(logits[2], place, value)
    deltas[2] = put(deltas[2], 3, [0.0, float("nan"), 0.0, 0.0])
    boxes, valid = rpn.propose(logits, deltas, anchors, SIZE, training=False)
    assert valid.numpy().sum() == NUM_FINE + NUM_COARSE - 4
    assert np.isfinite(boxes).all()


def test_no_gradient_flows_through_proposals():
    rpn = make_rpn()
    with tf.GradientTape() as tape:
        logits, deltas, anchors = head(rpn)
        tape.watch([deltas, logits])
        boxes, _ = rpn.propose(logits, deltas, anchors, SIZE, training=True)
    assert all(g is None for g in tape.gradient(boxes, [deltas[2], logits[2]]))


def sample(rpn, objects, size=None):
    # Every cell's feature is its own row among the anchors, and so is its logit.
    features = {
        2: tf.tile(tf.reshape(tf.range(16.0), [1, 4, 4, 1]), [1, 1, 1, 2]),
        3: tf.tile(tf.reshape(tf.range(16.0, 20.0), [1, 2, 2, 1]), [1, 1, 1, 2]),
    }
    _, _, anchors = rpn(features)
    center = np.zeros(rpn.conv.kernel.shape)
    center[1, 1] = np.eye(2)
    rpn.conv.kernel.assign(center)
    rpn.objectness.kernel.assign([[[[1.0], [0.0]]]])
    objects = tf.constant([objects])
    valid = tf.reduce_any(objects > 0, axis=-1)

    def draw(count):
        return tf.linspace([0.9], [0.0], count, axis=1)

    content = None if size is None else Content.of_images(size, 8)
    sampled = rpn.sample(features, anchors, objects, valid, draw, content)
    return {key: value[0].numpy() for key, value in sampled.items()}


@pytest.mark.parametrize("num_convs", [1, 3])
def test_the_head_at_the_sampled_anchors_is_the_whole_head(num_convs):
    """Outputs and gradients are those of the convolutions on every cell, gathered."""
    rpn = RPN(8, anchor_sizes=((4, 6), (8, 12)), num_samples=24, num_convs=num_convs)
    features = {2: tf.random.normal([2, 4, 4, 5]), 3: tf.random.normal([2, 2, 2, 5])}
    rpn(features)
    for layer in (*rpn.convs, rpn.objectness, rpn.deltas):
        layer.kernel.assign(tf.random.normal(layer.kernel.shape) / num_convs)
        layer.bias.assign(tf.random.normal(layer.bias.shape))
    # Corners, borders, the inside and both levels; the same anchor twice.
    indices = tf.constant([[0, 5, 33, 33, 94, 97, 119], [90, 40, 18, 60, 100, 110, 23]])
    inputs = [*features.values(), *rpn.trainable_variables]

    def outputs_and_gradients(compute):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            logits, deltas = compute()
            value = tf.reduce_sum(tf.sin(logits)) + tf.reduce_sum(tf.sin(deltas))
        return [logits, deltas, *tape.gradient(value, inputs)]

    def whole():
        logits, deltas, _ = rpn(features)
        return tuple(
            tf.gather(tf.concat([each[2], each[3]], 1), indices, batch_dims=1)
            for each in (logits, deltas)
        )

    ours = outputs_and_gradients(lambda: rpn._at_anchors(features, indices))
    for found, expected in zip(ours, outputs_and_gradients(whole), strict=True):
        found, expected = tf.convert_to_tensor(found), tf.convert_to_tensor(expected)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_sample_by_hand():
    # The anchor of cell (1, 2) moved by a quarter of its side; on the coarse level IoU is lower.
    sampled = sample(make_rpn(num_samples=4), [[2.0, 7.0, 6.0, 11.0], [0.0, 0.0, 0.0, 0.0]])
    assert sampled["rpn_labels"].tolist() == [1, 0, 0, 0]
    assert sampled["rpn_logits"].tolist() == [6.0, 0.0, 1.0, 2.0]
    np.testing.assert_allclose(sampled["rpn_delta_targets"][0], [0.0, 0.25, 0.0, 0.0], atol=1e-6)
    assert sampled["rpn_deltas"].shape == (4, 4)


def test_sample_leaves_the_padding_alone():
    sampled = sample(make_rpn(num_samples=20), [[0.0, 0.0, 4.0, 4.0]], tf.constant([[16, 5]]))
    used = sampled["rpn_labels"] >= 0
    # Columns 0 and 4 of the fine level, column 0 of the coarse one.
    rows = set(sampled["rpn_logits"][used].astype(int))
    assert rows <= {0, 1, 4, 5, 8, 9, 12, 13, 16, 18}
    assert (sampled["rpn_labels"] == -1).sum() == 20 - len(rows)


def test_sample_without_objects_is_background():
    sampled = sample(make_rpn(num_samples=6), [[0.0, 0.0, 0.0, 0.0]])
    assert sampled["rpn_labels"].tolist() == [0] * 6
    assert not sampled["rpn_delta_targets"].any()


def test_a_missing_level_is_an_error():
    with pytest.raises(ValueError, match=r"level 3.*\[2\]"):
        make_rpn()({2: tf.zeros([1, 4, 4, 2])})


def test_uneven_numbers_of_anchors_are_an_error():
    with pytest.raises(ValueError, match="as many anchor sizes"):
        RPN(anchor_sizes=((32,), (64, 128)))


def test_variables_of_one_convolution_and_of_more():
    def names(**options):
        rpn = RPN(2, anchor_sizes=((4,),), name="rpn", **options)
        rpn({2: tf.zeros([1, 4, 4, 2])})
        return [variable.name.removeprefix("rpn/") for variable in rpn.variables]

    heads = [
        f"{layer}/{each}:0" for layer in ("objectness", "deltas") for each in ("kernel", "bias")
    ]
    assert sorted(names()) == sorted(["conv/kernel:0", "conv/bias:0", *heads])
    assert set(names(num_convs=2)) == {*names(), "conv1/kernel:0", "conv1/bias:0"}
    with pytest.raises(ValueError, match="num_convs must be at least 1, got 0"):
        names(num_convs=0)
