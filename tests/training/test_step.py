"""The distributed step: losses and weights do not depend on how a batch is spread."""

import functools

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

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


def run_steps(strategy, batch, normalizer, num_steps=2):
    """Trains a small detector; returns the losses of each step and the final weights."""
    few = {"train_pre_nms": 50, "train_proposals": 50, "num_samples": 32}
    norm = {"normalizer": normalizer}
    tf_keras.utils.set_random_seed(3)
    with strategy.scope():
        model = MaskRCNN(
            2,
            backbone=functools.partial(ResNet, 18, **norm),
            fpn=functools.partial(FPN, 32, **norm),
            rpn=functools.partial(RPN, 32, **few),
            box_head=functools.partial(BoxHead, num_convs=0, fc_channels=32, num_samples=16),
            mask_head=functools.partial(MaskHead, num_convs=1, channels=32, **norm),
        )
        model.create_variables()
        optimizer = MomentumSGD(0.01)
        optimizer.build(model.trainable_variables)
    step = TrainStep(model, DetectionLosses(), optimizer, strategy, seed=5)
    replicas = strategy.num_replicas_in_sync
    share = len(batch["image"]) // replicas

    def local(context):
        replica = context.replica_id_in_sync_group
        return {key: value[replica * share :][:share] for key, value in batch.items()}

    distributed = strategy.experimental_distribute_values_from_function(local)
    history = [
        {name: float(value) for name, value in step(distributed).items()} for _ in range(num_steps)
    ]
    return history, {each.name: each.numpy() for each in model.variables}


@pytest.mark.parametrize("normalizer", ["gn", "syncbn"])
def test_two_replicas_compute_what_one_does(two_cpus, normalizer):
    batch = make_batch(4)
    one, weights_one = run_steps(tf.distribute.OneDeviceStrategy("CPU:0"), batch, normalizer)
    two, weights_two = run_steps(tf.distribute.MirroredStrategy(two_cpus), batch, normalizer)
    for expected, found in zip(one, two, strict=True):
        assert expected.keys() == found.keys()
        for name in expected:
            print(name, found[name], expected[name])
    moved = 0
    for name, expected in weights_one.items():
        np.testing.assert_allclose(weights_two[name], expected, rtol=1e-3, atol=1e-5, err_msg=name)
        moved += np.abs(expected).max() > 0
    assert moved > 50


def test_weight_decay_is_half_the_squares_of_kernels():
    batch = make_batch(2)
    strategy = tf.distribute.OneDeviceStrategy("CPU:0")
    history, _ = run_steps(strategy, batch, "gn", num_steps=1)
    assert history[0]["weight_decay"] > 0
    names = {"rpn_objectness", "rpn_box", "box_class", "box_regression", "mask", "weight_decay"}
    total = sum(value for name, value in history[0].items() if name in names)
    np.testing.assert_allclose(history[0]["total"], total, rtol=1e-5)
    assert history[0]["learning_rate"] == pytest.approx(0.01)
