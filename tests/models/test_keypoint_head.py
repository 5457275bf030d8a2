"""Keypoint head and its place in the detector: hand values, both forms, what must not matter."""

import functools

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from detector_steps import run_step, with_parts_of, with_plan

from rethink_tf.models.detector import MaskRCNN
from rethink_tf.models.keypoint_head import KeypointHead
from rethink_tf.ops import keypoints as keypoint_ops

NUM_KEYPOINTS = 4


def test_deconvolution_and_bilinear_doubling_by_hand():
    head = KeypointHead(2, num_convs=0, roi_size=2)
    head(tf.zeros([1, 2, 2, 1]))
    kernel = np.zeros((4, 4, 2, 1), np.float32)
    # The middle four places of the kernel double each cell: PyTorch's padding of 1.
    kernel[1:3, 1:3] = np.reshape([1.0, 10.0], (2, 1))
    head.deconv.kernel.assign(kernel)
    head.deconv.bias.assign([0.0, 5.0])
    rois = np.array([[0.0, 4.0], [8.0, 12.0]], np.float32).reshape(1, 2, 2, 1)
    logits = head(tf.constant(rois))
    assert logits.shape == (1, 2, 8, 8) and logits.dtype == tf.float32
    coarse = rois[0, ..., 0].repeat(2, axis=0).repeat(2, axis=1)
    expected = tf.image.resize(coarse[..., np.newaxis], (8, 8))[..., 0].numpy()
    np.testing.assert_allclose(expected[0], [0, 0, 0, 1, 3, 4, 4, 4], atol=1e-6)
    np.testing.assert_allclose(logits[0, 0], expected, atol=1e-5)
    np.testing.assert_allclose(logits[0, 1], 10 * expected + 5, atol=1e-4)


@pytest.mark.parametrize("normalizer", ["gn", "none"])
def test_convolutions_of_the_paper(normalizer):
    head = KeypointHead(17, normalizer=normalizer)
    logits = head(tf.zeros([1, 14, 14, 64]))
    assert logits.shape == (1, 17, 56, 56)
    assert [layer.conv.filters for layer in head.convs] == [512] * 8
    assert head.deconv.kernel.shape == (4, 4, 17, 512)
    # MSRA by the deconvolution's fan in of a cell: 16 places of 512 channels.
    assert np.std(head.deconv.kernel) == pytest.approx(np.sqrt(2 / (16 * 512)), rel=0.02)


def test_heatmaps_are_float32_whatever_the_precision():
    tf_keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        head = KeypointHead(2, num_convs=1, channels=32, roi_size=7)
    finally:
        tf_keras.mixed_precision.set_global_policy("float32")
    rois = tf.random.stateless_normal([3, 7, 7, 32], (1, 2))
    logits = head(tf.cast(rois, tf.bfloat16))
    assert head.convs[0].compute_dtype == "bfloat16" and logits.dtype == tf.float32
    # Not rounded to the 8 bits of bfloat16.
    assert np.any(logits != tf.cast(tf.cast(logits, tf.bfloat16), tf.float32))


@pytest.fixture(scope="module")
def detector(tiny_detector):
    """The tiny detector with a keypoint head in place of its mask head."""
    tf_keras.utils.set_random_seed(5)
    return with_parts_of(
        tiny_detector,
        mask_head=None,
        keypoint_head=functools.partial(KeypointHead, num_convs=1, channels=64, roi_size=7),
        num_keypoints=NUM_KEYPOINTS,
    )


@pytest.fixture(scope="module")
def batch(tiny_batch):
    """The tiny batch with keypoints: some outside of their box, hidden, or not labelled."""
    keypoints = np.zeros((2, 4, NUM_KEYPOINTS, 3), np.float32)
    keypoints[0, 0] = [[20, 30, 2], [40, 50, 1], [0, 0, 0], [2, 2, 2]]
    keypoints[1, 0] = [[25, 20, 2], [0, 0, 0], [30, 10, 2], [6, 4, 1]]
    batch = {key: value for key, value in tiny_batch.items() if key != "masks"}
    return batch | {"keypoints": tf.constant(keypoints)}


def train_step(detector, batch, static_shapes=False):
    """Returns the training outputs, the losses by name and the gradients of their sum."""
    with with_plan(detector, static_shapes=static_shapes):
        return run_step(detector, batch)


def test_targets_are_the_cells_of_the_positives(detector, batch):
    created = len(detector.variables)
    outputs, losses, gradients = train_step(detector, batch)
    assert len(detector.variables) == created
    assert set(losses) == {"rpn_objectness", "rpn_box", "box_class", "box_regression", "keypoint"}
    valid = outputs["keypoint_valid"].numpy()
    assert valid.any(axis=1).all() and outputs["keypoint_logits"].shape[1:] == (4, 28, 28)
    # Every labelled keypoint inside of a positive, the object of which has keypoints.
    expected = []
    for image, row in np.argwhere(outputs["class_targets"].numpy() > 0):
        roi = outputs["rois"][image, row]
        of_object = batch["keypoints"][image, outputs["roi_matches"][image, row]]
        cells, inside = keypoint_ops.encode(of_object[tf.newaxis], roi[tf.newaxis], 28)
        if np.any(inside):
            expected.append((cells[0].numpy().tolist(), inside[0].numpy().tolist()))
    found = zip(outputs["keypoint_targets"].numpy().tolist(), valid.tolist(), strict=True)
    assert list(found) == expected and len(expected) >= 2
    # Untrained, every cell is about as likely as another.
    assert float(losses["keypoint"]) == pytest.approx(np.log(28 * 28), rel=0.1)
    assert all(gradient is not None for gradient in gradients)


def assert_close_gradients(found, wanted):
    for gradient, expected in zip(found, wanted, strict=True):
        error = tf.norm(tf.convert_to_tensor(gradient) - tf.convert_to_tensor(expected))
        assert error <= 1e-3 * tf.norm(tf.convert_to_tensor(expected)) + 1e-6


def test_static_shapes_give_the_same_step(detector, batch):
    _, losses, gradients = train_step(detector, batch)
    _, static_losses, static_gradients = train_step(detector, batch, static_shapes=True)
    for name, loss in losses.items():
        np.testing.assert_allclose(static_losses[name], loss, rtol=1e-4)
    assert_close_gradients(static_gradients, gradients)


def test_the_head_compiles_with_xla(detector):
    head = detector.keypoint_head
    rois = tf.random.stateless_normal([3, 7, 7, 32], (1, 2))
    cells = tf.constant([[5, 0, 783, 400]] * 3)

    def step(rois):
        with tf.GradientTape() as tape:
            logits = head(rois, training=True)
            loss = tf.nn.sparse_softmax_cross_entropy_with_logits(
                cells, tf.reshape(logits, [3, NUM_KEYPOINTS, -1])
            )
        return logits, tape.gradient(loss, head.trainable_variables)

    logits, gradients = step(rois)
    compiled_logits, compiled_gradients = tf.function(step, jit_compile=True)(rois)
    np.testing.assert_allclose(compiled_logits, logits, rtol=1e-3, atol=1e-5)
    assert_close_gradients(compiled_gradients, gradients)


@pytest.mark.parametrize("static_shapes", [False, True])
def test_without_a_keypoint_there_is_no_loss(detector, batch, static_shapes):
    without = batch | {"keypoints": tf.zeros_like(batch["keypoints"])}
    outputs, losses, gradients = train_step(detector, without, static_shapes)
    assert not np.any(outputs["keypoint_valid"])
    assert losses["keypoint"] == 0.0 and losses["box_class"] > 0.0
    for gradient in gradients:
        assert gradient is None or np.isfinite(tf.norm(tf.convert_to_tensor(gradient)))


def test_predictions(detector, batch):
    inputs = {key: batch[key] for key in ("image", "image_size")}
    found = detector(inputs)
    assert found["keypoints"].shape == (2, 20, NUM_KEYPOINTS, 3)
    keypoints, boxes = found["keypoints"].numpy(), found["boxes"].numpy()
    used = found["classes"].numpy() > 0
    assert used.any(axis=1).all() and not keypoints[~used].any()
    y, x, score = np.moveaxis(keypoints[used], -1, 0)
    y1, x1, y2, x2 = boxes[used].T[..., np.newaxis]
    assert ((y1 <= y) & (y <= y2) & (x1 <= x) & (x <= x2)).all()
    assert (0 < score).all() and (score <= 1).all()
    with with_plan(detector, static_shapes=True):
        np.testing.assert_allclose(detector(inputs)["keypoints"], keypoints, rtol=1e-3, atol=1e-3)
    empty = detector(inputs | {"image_size": tf.zeros([2, 2], tf.int32)})
    assert not empty["keypoints"].numpy().any()


def test_data_without_keypoints_are_refused():
    with pytest.raises(ValueError, match="a keypoint head, and the data no keypoints"):
        MaskRCNN(3, keypoint_head=KeypointHead, num_keypoints=0)
