"""Counts the arithmetic of our detector by TensorFlow's own profiler.

An operation is a multiplication or an addition of a convolution, a matrix product or a bias; the
rest of a detector is not arithmetic that counts.
"""

import contextlib
import io
from typing import NamedTuple

import tensorflow as tf


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
    """Operations of the trunk (backbone, FPN, RPN), and of a RoI in each head.

    A RoI goes through all stages of a cascade.
    """

    trunk: int
    roi: int
    mask: int
    keypoints: int


def forward(detector, num_images, height, width):
    """Counts the operations of a detector's forward pass.

    Args:
        detector: `MaskRCNN` whose variables exist.
        num_images: int, through the trunk.
        height: int, pixels.
        width: int, pixels.

    Returns:
        `Forward`; 0 for a head that is not there.
    """
    mask, keypoints = detector.mask_head, detector.keypoint_head

    def trunk(images):
        return detector.rpn(detector.pyramid(images))[:2]

    # A blank image that every stride divides tells the channels.
    features = detector.pyramid(tf.zeros([1, 64, 64, 3]))
    channels = features[max(features)].shape[-1]
    per_roi = sum(
        count(lambda pooled, stage=stage: stage(pooled), [1, 1, *[stage.roi_size] * 2, channels])
        for stage in detector.box_head.stages
    )
    per_mask = 0
    if mask:
        per_mask = count(
            lambda pooled: mask(pooled, tf.ones([1], tf.int32)),
            [1, mask.roi_size, mask.roi_size, channels],
        )
    per_pose = 0
    if keypoints:
        side = keypoints.roi_size
        per_pose = count(lambda pooled: keypoints(pooled), [1, side, side, channels])
    return Forward(count(trunk, [num_images, height, width, 3]), per_roi, per_mask, per_pose)
