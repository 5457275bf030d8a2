"""N replicas of m images compute the step of one replica of N * m images, in every head."""

import functools
import os
import pathlib
import pickle
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from detector_steps import machine_plan
from experiment_runs import REPOSITORY
from small_detector import Backbone, make_batch

from rethink_tf.losses import DetectionLosses
from rethink_tf.models.box_head import BoxHead
from rethink_tf.models.cascade import CascadeBoxHead
from rethink_tf.models.detector import MaskRCNN
from rethink_tf.models.fpn import FPN
from rethink_tf.models.keypoint_head import KeypointHead
from rethink_tf.models.mask_head import MaskHead
from rethink_tf.models.rpn import RPN
from rethink_tf.training.optimizer import MomentumSGD
from rethink_tf.training.step import TrainStep

NUM_IMAGES, NUM_KEYPOINTS = 4, 3
NORMALIZERS = ("gn", "syncbn")
WEIGHTS = ((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0))


def make_images():
    """Returns images with 3, 1, 0 and 2 objects, with masks and keypoints."""
    batch, rng = make_batch(NUM_IMAGES, with_masks=True), np.random.default_rng(11)
    keep = np.arange(3) < np.array([[3], [1], [0], [2]])
    corners = batch["boxes"][..., np.newaxis, :2]
    sizes = batch["boxes"][..., np.newaxis, 2:] - corners
    points = corners + sizes * rng.uniform(0.1, 0.9, [NUM_IMAGES, 3, NUM_KEYPOINTS, 2])
    flags = rng.integers(0, 3, [NUM_IMAGES, 3, NUM_KEYPOINTS, 1])
    keypoints = np.concatenate([points, flags], -1).astype(np.float32)
    return batch | {
        "boxes": batch["boxes"] * keep[..., np.newaxis],
        "classes": batch["classes"] * keep,
        "keypoints": keypoints * keep[..., np.newaxis, np.newaxis],
    }


def with_one_object(batch):
    """Returns the batch with the one object of its second image alone: fewer than replicas."""
    keep = np.arange(NUM_IMAGES) == 1
    keys = {"boxes": (1, 1), "classes": (1,), "keypoints": (1, 1, 1)}
    return batch | {key: batch[key] * keep.reshape(-1, *ones) for key, ones in keys.items()}


def run_steps(strategy, normalizer, **plan):
    """Runs two steps of a cascade with a mask and a keypoint head, the second with one object.

    Returns:
        The values of each step by name, and after the first one two lists of (name of the variable,
        array): the gradient of each weight, that of the decay included, and the moving statistics.
    """
    # Every RoI enters the losses: a draw among them goes by their place, and rounding may let two
    # proposals change places.
    few = {"train_pre_nms": 40, "train_proposals": 40, "num_samples": 32}
    stage = functools.partial(
        BoxHead,
        num_convs=1,
        conv_channels=32,
        fc_channels=16,
        num_samples=48,
        positive_fraction=1.0,
        normalizer=normalizer,
    )
    small = {"num_convs": 1, "channels": 32, "normalizer": normalizer}
    tf_keras.utils.set_random_seed(3)
    with strategy.scope():
        model = MaskRCNN(
            2,
            num_keypoints=NUM_KEYPOINTS,
            backbone=functools.partial(Backbone, normalizer=normalizer),
            fpn=functools.partial(FPN, 32, normalizer=normalizer),
            rpn=functools.partial(RPN, 32, **few),
            box_head=functools.partial(
                CascadeBoxHead, stage=stage, positive_from=(0.5, 0.6), box_weights=WEIGHTS
            ),
            mask_head=functools.partial(MaskHead, **small),
            keypoint_head=functools.partial(KeypointHead, **small),
            plan=machine_plan(**plan),
        )
        model.create_variables()
        optimizer = MomentumSGD(0.01)
        optimizer.build(model.trainable_variables)
    step = TrainStep(model, DetectionLosses(), optimizer, strategy, seed=5)
    share = NUM_IMAGES // strategy.num_replicas_in_sync

    def run(images):
        def local(context):
            start = context.replica_id_in_sync_group * share
            return {key: value[start : start + share] for key, value in images.items()}

        values = step(strategy.experimental_distribute_values_from_function(local))
        return {name: float(value) for name, value in values.items()}

    first = run(make_images())
    pairs = zip(model.trainable_variables, optimizer.velocities, strict=True)
    gradients = [(variable.name, velocity.numpy()) for variable, velocity in pairs]
    statistics = [(each.name, each.numpy()) for each in model.variables if "moving" in each.name]
    return first, run(with_one_object(make_images())), gradients, statistics


# One strategy a process: see `two_replicas`.
ON_FOUR = """
import pickle, sys
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 4)
from test_replicas import NORMALIZERS, run_steps
strategy = tf.distribute.MirroredStrategy([f"CPU:{index}" for index in range(4)])
found = {each: run_steps(strategy, each, static_shapes=each == "gn") for each in NORMALIZERS}
pickle.dump(found, open(sys.argv[1], "wb"))
"""


def test_replicas_compute_the_step_of_one(two_replicas, tmp_path):
    places = [
        str(each) for each in (pathlib.Path(__file__).parent, REPOSITORY / "tests", REPOSITORY)
    ]
    command = [sys.executable, "-c", ON_FOUR, str(tmp_path / "found.pkl")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(places)}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        one_device = tf.distribute.OneDeviceStrategy("CPU:0")
        one = {each: run_steps(one_device, each) for each in NORMALIZERS}
        # The shapes of one of the two are static, as on accelerators.
        two = {each: run_steps(two_replicas, each, static_shapes=each == "syncbn") for each in one}
        _, errors = process.communicate()
    assert process.returncode == 0, errors
    four = pickle.loads((tmp_path / "found.pkl").read_bytes())
    for normalizer, (values, second, *arrays) in one.items():
        assert {"mask", "keypoint", "box_class_stage2"} <= values.keys()
        assert values["mask"] > 0 and values["keypoint"] > 0
        assert len(arrays[1]) == (0 if normalizer == "gn" else 2 * 16)
        parts = {name for name in values if "positives" not in name}
        parts = {name for name in parts if not name.startswith("gradient_norm")}
        parts -= {"total", "learning_rate"}
        assert values["total"] == pytest.approx(sum(values[name] for name in parts), rel=1e-5)
        for found, their_second, *theirs in (two[normalizer], four[normalizer]):
            assert found == pytest.approx(values, rel=1e-5)
            # By weights that the first step has changed, and with fewer masks than replicas.
            assert their_second == pytest.approx(second, rel=1e-3)
            for mine, others in zip(arrays, theirs, strict=True):
                for (name, expected), (_, array) in zip(mine, others, strict=True):
                    error = np.linalg.norm(array - expected)
                    assert error <= 1e-5 * np.linalg.norm(expected) + 1e-7, (name, error)
