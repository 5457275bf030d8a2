"""Small detectors that find things, as a loaded run has them, and commands to export them."""

import functools
from typing import Any, NamedTuple

import tf_keras
from detector_steps import machine_plan
from small_detector import Backbone

from rethink_tf.data.input.pipeline import Pipeline
from rethink_tf.models.box_head import BoxHead
from rethink_tf.models.cascade import CascadeBoxHead
from rethink_tf.models.detector import MaskRCNN
from rethink_tf.models.fpn import FPN
from rethink_tf.models.keypoint_head import KeypointHead
from rethink_tf.models.mask_head import MaskHead
from rethink_tf.models.rpn import RPN

# Of the regression targets of two stages.
WEIGHTS = ((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0))
CATEGORIES = [{"id": 3, "name": "apple"}, {"id": 7, "name": "äpple, half"}]


class Trained(NamedTuple):
    """What an export takes of a `loading.LoadedDetector`."""

    detector: Any
    categories: Any
    pipeline: Any
    checkpoint: str = "/runs/mine/checkpoints/step-20"


def make(normalizer="gn", cascade=False, masks=True, keypoints=False, further_heads=()):
    """Returns a detector of random weights, whose scores differ."""
    tf_keras.utils.set_random_seed(3)
    stage = functools.partial(
        BoxHead,
        num_convs=1,
        conv_channels=32,
        fc_channels=32,
        normalizer=normalizer,
        score_threshold=0.2,
        max_detections=20,
    )
    head = {"num_convs": 1, "channels": 32, "normalizer": normalizer}
    model = MaskRCNN(
        len(CATEGORIES),
        backbone=functools.partial(Backbone, normalizer),
        fpn=functools.partial(FPN, 32),
        rpn=functools.partial(
            RPN, 32, 3, ((32,), (64,), (128,)), test_pre_nms=60, test_proposals=40
        ),
        box_head=functools.partial(
            CascadeBoxHead, stage=stage, positive_from=(0.5, 0.6), box_weights=WEIGHTS
        )
        if cascade
        else stage,
        mask_head=functools.partial(MaskHead, **head) if masks else None,
        keypoint_head=functools.partial(KeypointHead, **head) if keypoints else None,
        num_keypoints=4,
        further_heads=further_heads,
        plan=machine_plan(),
    )
    model.create_variables()
    for each in model.box_head.stages:
        each.class_logits.kernel.assign(each.class_logits.kernel * 50)
    model.rpn.objectness.kernel.assign(model.rpn.objectness.kernel * 10)
    if masks:
        model.mask_head.kernel.assign(model.mask_head.kernel * 1000)
    return Trained(model, CATEGORIES, Pipeline(min_side=96, max_side=128))


def command(output_format, **changes):
    """Returns the command of an export."""
    known = {"model_dir": "/runs/mine", "checkpoint": None, "format": output_format}
    further = {"part": "auto", "size": None, "opset": 17, "whole_masks": False}
    return known | further | changes
