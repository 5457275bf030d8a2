"""Counts the arithmetic of our detector by TensorFlow's own profiler.

An operation is a multiplication or an addition of a convolution, a matrix product or a bias; the
rest of a detector is not arithmetic that counts.
"""

import contextlib
import functools
import io
from typing import NamedTuple

import tensorflow as tf

from rethink_tf.models.detector import MaskRCNN
from rethink_tf.models.resnet import ResNet


def count(function, *shapes):
    """Counts the operations of a function of float32 tensors.

    Args:
        function: callable.
        *shapes: lists of int, of its arguments.

    Returns:
        int.
    """
    specs = [tf.TensorSpec(shape, tf.float32) for shape in shapes]
    graph = tf.function(function, autograph=False).get_concrete_function(*specs).graph
    options = tf.compat.v1.profiler.ProfileOptionBuilder.float_operation()
    options["output"] = "none"
    with contextlib.redirect_stdout(io.StringIO()):
        profile = tf.compat.v1.profiler.profile(graph, options=options)
    return profile.total_float_ops


class Forward(NamedTuple):
    """Operations of the trunk (backbone, FPN, RPN), and of a RoI in the box and the mask head."""

    trunk: int
    roi: int
    mask: int


def forward(depth, num_images, height, width, num_classes):
    """Counts the operations of the forward pass of Mask R-CNN with ResNet and FPN.

    Args:
        depth: int, of the ResNet.
        num_images: int, through backbone, FPN and RPN.
        height: int, pixels.
        width: int, pixels.
        num_classes: int, without background.

    Returns:
        `Forward`.
    """
    detector = MaskRCNN(num_classes, backbone=functools.partial(ResNet, depth))
    detector.create_variables()
    box, mask, channels = detector.box_head, detector.mask_head, detector.fpn.channels

    def trunk(images):
        features = detector.fpn(detector.backbone(images))
        return detector.rpn(features)[:2]

    per_mask = count(
        lambda pooled: mask(pooled, tf.ones([1], tf.int32)),
        [1, mask.roi_size, mask.roi_size, channels],
    )
    per_roi = count(lambda pooled: box(pooled), [1, 1, box.roi_size, box.roi_size, channels])
    return Forward(count(trunk, [num_images, height, width, 3]), per_roi, per_mask)
