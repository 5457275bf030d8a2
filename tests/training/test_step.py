"""The distributed step: losses and weights do not depend on how a batch is spread."""

import functools

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from detector_steps import machine_plan

from rethink_tf.losses import DetectionLosses
from rethink_tf.models.box_head import BoxHead
from rethink_tf.models.detector import MaskRCNN
from rethink_tf.models.fpn import FPN
from rethink_tf.models.mask_head import MaskHead
from rethink_tf.models.resnet import ResNet
from rethink_tf.models.rpn import RPN
from rethink_tf.training.optimizer import MomentumSGD
from rethink_tf.training.step import TrainStep

OBJECTS = 3
LOSSES = ("rpn_objectness", "rpn_box", "box_class", "box_regression", "mask", "weight_decay")


def make_batch(num_images):
    """Returns images with 0, 1, 2, 3, ... objects, so that the images' counts differ."""
    rng = np.random.default_rng(7)
    boxes = np.zeros([num_images, OBJECTS, 4], np.float32)
    classes = np.zeros([num_images, OBJECTS], np.int32)
    for image in range(num_images):
        for row in range(image % (OBJECTS + 1)):
            corner, size = rng.uniform(0, 60, 2), rng.uniform(20, 60, 2)
            boxes[image, row] = [*corner, *(corner + size)]
            classes[image, row] = rng.integers(1, 3)
    return {
        "image": rng.integers(0, 256, [num_images, 128, 128, 3]).astype(np.uint8),
        "image_size": np.full([num_images, 2], 128, np.int32),
        "original_size": np.full([num_images, 2], 128, np.int32),
        "image_scale": np.ones([num_images, 2], np.float32),
        "image_id": np.arange(num_images, dtype=np.int64) + 100,
        "boxes": boxes,
        "classes": classes,
        "masks": rng.integers(0, 256, [num_images, OBJECTS, 28, 28]).astype(np.uint8),
    }


def with_one_object(batch):
    """Returns the batch with the one object of its second image alone: fewer than replicas."""
    keep = np.arange(len(batch["image"])) == 1
    return batch | {
        "boxes": batch["boxes"] * keep[:, np.newaxis, np.newaxis],
        "classes": batch["classes"] * keep[:, np.newaxis],
    }


def run_steps(strategy, batches, initial=None):
    """Trains a small detector from the given weights: SyncBN in its backbone, GN elsewhere.

    A step a batch.

    Returns:
        The losses of each step, and the weights before and after, all in the model's order.
    """
    few = {"train_pre_nms": 50, "train_proposals": 50, "num_samples": 32}
    # Every RoI enters the losses: a draw among them goes by their place, so that two proposals
    # whose scores change places by rounding would change which RoIs are drawn.
    all_rois = {"num_samples": 64, "positive_fraction": 1.0}
    tf_keras.utils.set_random_seed(3)
    with strategy.scope():
        model = MaskRCNN(
            2,
            backbone=functools.partial(ResNet, 18, normalizer="syncbn"),
            fpn=functools.partial(FPN, 32),
            rpn=functools.partial(RPN, 32, **few),
            box_head=functools.partial(BoxHead, num_convs=0, fc_channels=32, **all_rois),
            mask_head=functools.partial(MaskHead, num_convs=1, channels=32),
            plan=machine_plan(),
        )
        model.create_variables()
        if initial is not None:
            model.set_weights(initial)
        initial = model.get_weights()
        optimizer = MomentumSGD(0.01)
        optimizer.build(model.trainable_variables)
    step = TrainStep(model, DetectionLosses(), optimizer, strategy, seed=5)
    history = []
    for batch in batches:
        share = len(batch["image"]) // strategy.num_replicas_in_sync

        def local(context, batch=batch, share=share):
            replica = context.replica_id_in_sync_group
            return {key: value[replica * share :][:share] for key, value in batch.items()}

        distributed = strategy.experimental_distribute_values_from_function(local)
        history.append({name: float(value) for name, value in step(distributed).items()})
    return history, initial, model.get_weights()


def test_two_replicas_compute_what_one_does(two_replicas):
    # First, for at random weights no proposal is as near to the object as to be a positive RoI.
    batches = [with_one_object(make_batch(4)), make_batch(4)]
    one_device = tf.distribute.OneDeviceStrategy("CPU:0")
    one, initial, weights_one = run_steps(one_device, batches)
    two, _, weights_two = run_steps(two_replicas, batches, initial=initial)
    for expected, found in zip(one, two, strict=True):
        assert expected.keys() == found.keys()
        for name in expected:
            assert found[name] == pytest.approx(expected[name], rel=1e-3), name
        assert found["total"] == pytest.approx(sum(found[name] for name in LOSSES), rel=1e-5)
    for before, expected, found in zip(initial, weights_one, weights_two, strict=True):
        # Compared by how far they moved, moving averages of SyncBN included. A replica that is
        # left out, or a gradient that is halved, makes half of the way.
        moved = np.linalg.norm(expected - before)
        assert np.linalg.norm(found - expected) <= 0.05 * moved + 1e-6
