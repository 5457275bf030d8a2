"""A tiny detector and its batch, shared by the tests of the models."""

import functools

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from detector_steps import machine_plan

from rethink_tf.models.box_head import BoxHead
from rethink_tf.models.detector import MaskRCNN
from rethink_tf.models.fpn import FPN
from rethink_tf.models.mask_head import MaskHead
from rethink_tf.models.resnet import ResNet
from rethink_tf.models.rpn import RPN

NUM_CLASSES = 3


@pytest.fixture(scope="package")
def tiny_detector():
    """ResNet-18, an FPN of 32 channels, few RoIs; it reports whatever scores above 0."""
    partial = functools.partial
    tf_keras.utils.set_random_seed(3)
    counts = dict(train_pre_nms=32, train_proposals=32, test_pre_nms=16, test_proposals=16)
    detector = MaskRCNN(
        NUM_CLASSES,
        partial(ResNet, 18),
        partial(FPN, 32),
        partial(RPN, 32, num_samples=32, **counts),
        partial(
            BoxHead,
            num_convs=1,
            conv_channels=32,
            fc_channels=32,
            num_samples=16,
            score_threshold=0.0,
            max_detections=20,
        ),
        partial(MaskHead, num_convs=1, channels=32),
        plan=machine_plan(),
    )
    detector.create_variables()
    # Initial weights this small give all RoIs the same scores; enlarged, they find all classes.
    for layer, factor in [(detector.box_head.class_logits, 50), (detector.rpn.objectness, 10)]:
        layer.kernel.assign(layer.kernel * factor)
    detector.mask_head.kernel.assign(detector.mask_head.kernel * 1000)
    return detector


@pytest.fixture(scope="package")
def tiny_batch():
    """Two images of 64 x 64, the second padded; two objects, one, and rows of padding."""
    generator = np.random.default_rng(0)
    boxes = np.zeros((2, 4, 4), np.float32)
    boxes[0, :2] = [[10, 10, 60, 60], [20, 30, 64, 64]]
    boxes[1, 0] = [5, 3, 45, 37]
    return {
        "image": tf.constant(generator.integers(0, 256, (2, 64, 64, 3)), tf.uint8),
        "image_size": tf.constant([[64, 64], [50, 40]]),
        "image_id": tf.constant([139, 285], tf.int64),
        "boxes": tf.constant(boxes),
        "classes": tf.constant([[1, 3, 0, 0], [2, 0, 0, 0]]),
        "masks": tf.constant(generator.integers(0, 256, (2, 4, 28, 28)), tf.uint8),
    }
