"""VGG-16 against Keras' own, and the detector without FPN that it makes."""

import functools
import math

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from detector_steps import train_step, with_plan

from benchmarks import flops
from rethink_tf.models.box_head import BoxHead
from rethink_tf.models.detector import MaskRCNN
from rethink_tf.models.mask_head import MaskHead
from rethink_tf.models.resnet import ResNet
from rethink_tf.models.rpn import RPN
from rethink_tf.models.vgg import VGG16
from rethink_tf.weights import detectron2

NUM_CLASSES = 3
PARAMETERS = 14_714_688  # Keras' VGG16 without its top


def test_parameters_and_shapes():
    backbone = VGG16()
    features = backbone(tf.zeros([1, 64, 128, 3]))
    assert {level: tuple(each.shape) for level, each in features.items()} == {4: (1, 4, 8, 512)}
    assert sum(np.prod(v.shape) for v in backbone.trainable_variables) == PARAMETERS
    assert not backbone.non_trainable_variables
    kernels = [layer.conv.kernel.numpy() for stage in backbone.stages for layer in stage]
    assert len(kernels) == 13
    for kernel in kernels:
        expected = math.sqrt(2 / (9 * kernel.shape[-1]))
        assert np.std(kernel) == pytest.approx(expected, rel=0.1)
    assert all(not np.any(layer.conv.bias) for stage in backbone.stages for layer in stage)


def test_the_same_weights_give_keras_features():
    images = 50.0 * tf.random.stateless_normal([2, 64, 32, 3], [1, 2])
    backbone = VGG16()
    backbone(images)
    peer = tf_keras.applications.VGG16(include_top=False, weights=None)
    layers = [layer for stage in backbone.stages for layer in stage]
    copies = [layer for layer in peer.layers if layer.weights]
    for layer, copy in zip(layers, copies, strict=True):
        layer.conv.bias.assign(tf.random.stateless_normal(layer.conv.bias.shape, [3, 4]))
        copy.set_weights([layer.conv.kernel, layer.conv.bias])
    expected = tf_keras.Model(peer.input, peer.get_layer("block5_conv3").output)(images)
    assert np.max(expected) > 1.0
    for training in (False, True):
        found = backbone(images, training=training)[4]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.max(expected))


def test_with_group_normalization_there_is_no_bias():
    backbone = VGG16("gn")
    features = backbone(tf.random.stateless_normal([1, 32, 32, 3], [1, 2]), training=True)
    assert np.isfinite(features[4]).all()
    channels = sum(count * width for count, width in ((2, 64), (2, 128), (3, 256), (6, 512)))
    # A scale and a shift in place of each bias.
    assert sum(np.prod(v.shape) for v in backbone.trainable_variables) == PARAMETERS + channels


def make_detector(mask_head=True):
    """VGG-16 and one level, with few RoIs; it reports whatever scores above 0."""
    tf_keras.utils.set_random_seed(3)
    counts = dict(train_pre_nms=64, train_proposals=32, test_pre_nms=32, test_proposals=16)
    detector = MaskRCNN(
        NUM_CLASSES,
        VGG16,
        None,
        functools.partial(
            RPN, 32, 4, ((16, 32, 64),), num_samples=32, negative_below=0.4, **counts
        ),
        functools.partial(
            BoxHead,
            num_convs=0,
            num_fcs=2,
            fc_channels=64,
            num_samples=16,
            score_threshold=0.0,
            max_detections=20,
        ),
        functools.partial(MaskHead, num_convs=1, channels=32) if mask_head else None,
    )
    detector.create_variables()
    return detector


@pytest.fixture(scope="module")
def detector():
    return make_detector()


@pytest.mark.parametrize("mask_head", [True, False])
def test_without_fpn_every_variable_has_a_gradient(tiny_batch, detector, mask_head):
    model = detector if mask_head else make_detector(mask_head=False)
    created = len(model.variables)
    batch = dict(tiny_batch)
    if not mask_head:
        del batch["masks"]
    losses, gradients = train_step(model, batch)
    assert len(model.variables) == created
    assert ("mask" in losses) == mask_head
    assert all(np.isfinite(loss) and loss > 0 for loss in losses.values())
    for variable, gradient in zip(model.trainable_variables, gradients, strict=True):
        assert gradient is not None, variable.name
        assert np.isfinite(tf.norm(tf.convert_to_tensor(gradient))), variable.name
        # Also of the only level of the backbone: the heads' and the RPN's losses reach it.
        assert "vgg16" not in variable.name or np.any(gradient), variable.name


def test_static_shapes_give_the_same_losses(tiny_batch, detector):
    expected, _ = train_step(detector, tiny_batch)
    with with_plan(detector, static_shapes=True):
        found, _ = train_step(detector, tiny_batch)
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4)


def test_predictions(tiny_batch, detector):
    found = detector({key: tiny_batch[key] for key in ("image", "image_size")})
    assert found["boxes"].shape == (2, 20, 4) and found["masks"].shape == (2, 20, 28, 28)
    for image, limit in enumerate(([64, 64, 64, 64], [50, 40, 50, 40])):
        boxes = found["boxes"][image].numpy()
        assert (found["classes"][image].numpy() > 0).any()
        assert (boxes >= 0).all() and (boxes <= limit).all()


def test_the_only_level_is_pooled_for_boxes_of_every_size(detector):
    """Level 4 is the coarsest, and stays."""
    column = tf.range(8, dtype=tf.float32) * 16 + 8  # the centre of each cell, pixels
    features = {4: tf.tile(column[tf.newaxis, tf.newaxis, :, tf.newaxis], [1, 8, 1, 1])}
    boxes = tf.constant([[[40, 40, 44, 44], [16, 32, 80, 96], [8, 8, 120, 120]]], tf.float32)
    pooled = detector._roi_align(features)(boxes, 1)
    np.testing.assert_allclose(pooled[0, :, 0, 0, 0], [42, 64, 64], rtol=1e-5)


def test_mixed_precision(tiny_batch):
    tf_keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        half = make_detector()
        losses, gradients = train_step(half, tiny_batch)
    finally:
        tf_keras.mixed_precision.set_global_policy("float32")
    expected, _ = train_step(make_detector(), tiny_batch)
    for name in losses:
        assert losses[name].dtype == tf.float32
        assert float(losses[name]) == pytest.approx(float(expected[name]), rel=0.1), name
    assert all(np.isfinite(tf.norm(tf.convert_to_tensor(each))) for each in gradients)
    assert {variable.dtype for variable in half.variables} == {tf.float32}


def test_levels_of_different_channels_need_an_fpn():
    detector = MaskRCNN(3, functools.partial(ResNet, 18), None)
    with pytest.raises(ValueError, match=r"different channels.*2: 64, .*5: 512.*fpn = @FPN"):
        detector.create_variables()


def test_anchors_on_levels_that_are_not_there():
    with pytest.raises(ValueError, match=r"no features of level 2, only of \[4\]"):
        MaskRCNN(3, VGG16, None).create_variables()


def test_detectron2_has_no_such_checkpoint(detector):
    with pytest.raises(ValueError, match="ResNet with FPN; this one has VGG16 without FPN"):
        detectron2.parameters(detector)


def test_operations_are_counted_without_fpn_and_mask_head(detector):
    forward = flops.forward(detector, 1, 64, 128)
    # Multiplications and additions of the convolutions, by hand; biases are less than 1%.
    cells, inputs, trunk = 64 * 128, 3, 0
    for stage, (count, channels) in enumerate(((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))):
        for _ in range(count):
            trunk += 2 * 9 * inputs * channels * cells // 4**stage
            inputs = channels
    trunk += 2 * cells // 4**4 * (9 * 512 * 32 + 32 * 9 * 5)  # the RPN, 9 anchors a cell
    assert forward.trunk == pytest.approx(trunk, rel=0.01) and forward.trunk >= trunk
    roi = 2 * (7 * 7 * 512 * 64 + 64 * 64 + 64 * (4 + 12))
    assert forward.roi == pytest.approx(roi, rel=0.01) and forward.roi >= roi
    assert forward.mask > 0
    assert flops.forward(make_detector(mask_head=False), 1, 64, 64).mask == 0
