"""A small detector for the weights of classifiers."""

import functools

from rethink_tf.models.box_head import BoxHead
from rethink_tf.models.detector import MaskRCNN
from rethink_tf.models.fpn import FPN
from rethink_tf.models.mask_head import MaskHead
from rethink_tf.models.resnet import ResNet
from rethink_tf.models.rpn import RPN

SHALLOW = dict(depth=50, blocks_per_stage=(2, 1, 1, 1))


def make_detector(normalizer="gn", backbone=None, fpn_backbone=None, **kwargs):
    """Makes one of a shallow ResNet or another backbone with FPN, or of `backbone` without it."""
    partial = functools.partial
    detector = MaskRCNN(
        3,
        backbone or fpn_backbone or partial(ResNet, normalizer=normalizer, **SHALLOW),
        None if backbone else partial(FPN, 32),
        partial(RPN, 32, 4, ((32,),)) if backbone else partial(RPN, 32),
        partial(BoxHead, num_convs=0, num_fcs=2, fc_channels=16),
        None if backbone else partial(MaskHead, num_convs=0, channels=32),
        **kwargs,
    )
    detector.create_variables()
    return detector
