"""The switch of a run to its cascade: what stands still before it, and what goes on after it."""

import functools

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from rethink_tf.layers import conv
from rethink_tf.losses import DetectionLosses
from rethink_tf.models.box_head import BoxHead
from rethink_tf.models.cascade import CascadeBoxHead
from rethink_tf.models.detector import MaskRCNN
from rethink_tf.models.fpn import FPN
from rethink_tf.models.rpn import RPN
from rethink_tf.training.optimizer import MomentumSGD
from rethink_tf.training.schedules import StepwiseSchedule
from rethink_tf.training.step import TrainStep

SWITCH, STEPS = 2, 4
LATER = {f"{name}_stage{n}" for name in ("box_class", "box_regression") for n in (2, 3)}


def make_batch(num_images):
    """Returns images with three objects each, without masks."""
    rng = np.random.default_rng(7)
    corners = rng.uniform(0, 60, [num_images, 3, 2])
    boxes = np.concatenate([corners, corners + rng.uniform(20, 60, [num_images, 3, 2])], axis=-1)
    return {
        "image": rng.integers(0, 256, [num_images, 128, 128, 3]).astype(np.uint8),
        "image_size": np.full([num_images, 2], 128, np.int32),
        "image_id": np.arange(num_images, dtype=np.int64) + 100,
        "boxes": boxes.astype(np.float32),
        "classes": rng.integers(1, 3, [num_images, 3]).astype(np.int32),
    }


class Backbone(tf_keras.layers.Layer):
    """A convolution a level: what the switch does not look at is quick."""

    def __init__(self):
        super().__init__()
        self.convs = [conv.ConvNorm(32, 3, stride) for stride in (4, 2, 2, 2)]

    def call(self, images, training=False):
        features = {}
        for level, layer in enumerate(self.convs, start=2):
            images = features[level] = layer(images, training=training)
        return features


class Run:
    """A small cascade without masks, with its optimizer, under a strategy."""

    def __init__(self, strategy, cascade_from):
        few = {"train_pre_nms": 50, "train_proposals": 50, "num_samples": 32}
        stage = functools.partial(
            BoxHead, num_convs=0, fc_channels=32, num_samples=64, positive_fraction=1.0
        )
        tf_keras.utils.set_random_seed(3)
        with strategy.scope():
            self.model = MaskRCNN(
                2,
                backbone=Backbone,
                fpn=functools.partial(FPN, 32),
                rpn=functools.partial(RPN, 32, **few),
                box_head=functools.partial(CascadeBoxHead, stage=stage),
                mask_head=None,
            )
            self.model.create_variables()
            self.optimizer = MomentumSGD(
                StepwiseSchedule(STEPS, 0.01, drop_steps=[SWITCH + 1], warmup_steps=0)
            )
            self.optimizer.build(self.model.trainable_variables)
        self.step = TrainStep(
            self.model,
            DetectionLosses(),
            self.optimizer,
            strategy,
            seed=5,
            cascade_from=cascade_from,
        )
        self._strategy, self.history = strategy, []

    def train(self, num_steps):
        """Trains on the same images at every step and keeps the losses."""
        batch = make_batch(4)
        share = 4 // self._strategy.num_replicas_in_sync

        def local(context):
            start = context.replica_id_in_sync_group * share
            return {key: value[start : start + share] for key, value in batch.items()}

        distributed = self._strategy.experimental_distribute_values_from_function(local)
        for _ in range(num_steps):
            values = self.step(distributed)
            self.history.append({name: float(value) for name, value in values.items()})

    def state(self, layers):
        """Returns weights and velocities of layers as arrays."""
        variables = [each for layer in layers for each in layer.trainable_variables]
        wanted = {each.ref() for each in variables}
        pairs = zip(self.model.trainable_variables, self.optimizer.velocities, strict=True)
        velocities = [velocity for variable, velocity in pairs if variable.ref() in wanted]
        return [each.numpy() for each in [*variables, *velocities]]


@pytest.fixture(scope="module")
def one_device():
    return tf.distribute.OneDeviceStrategy("CPU:0")


@pytest.fixture(scope="module")
def without(one_device):
    """The run that never switches."""
    run = Run(one_device, cascade_from=STEPS)
    run.train(SWITCH + 1)
    return run


@pytest.fixture(scope="module")
def switched(one_device):
    """The run that switches, and the state of the later stages at the start and at the switch."""
    run = Run(one_device, cascade_from=SWITCH)
    later = run.model.box_head.stages[1:]
    run.states = [run.state(later)]
    run.train(SWITCH)
    run.states.append(run.state(later))
    run.trained_before = int(run.model.box_head.stages_trained.numpy())
    run.train(1)
    run.states.append(run.state(later))
    run.rpn_after = run.state([run.model.rpn])
    run.train(1)
    return run


def test_until_the_switch_the_later_stages_stand_still(switched):
    start, before, after = switched.states
    for first, second in zip(start, before, strict=True):
        np.testing.assert_array_equal(first, second)
    # Neither decayed nor pushed by an old velocity: their first step is their own.
    assert all(np.any(second != third) for second, third in zip(before, after, strict=True))
    assert switched.trained_before == 1
    assert int(switched.model.box_head.stages_trained) == 3
    for step, values in enumerate(switched.history):
        assert LATER <= values.keys() if step >= SWITCH else not LATER & values.keys()
        names = {"rpn_objectness", "rpn_box", "box_class", "box_regression", "weight_decay"}
        total = sum(values[name] for name in names | (LATER & values.keys()))
        assert values["total"] == pytest.approx(total, rel=1e-5)


def test_what_was_trained_continues_and_so_does_the_schedule(switched, without):
    # At the first step of the cascade the losses of everything else are those of the run without
    # it, for it is the same run up to there.
    for step in range(SWITCH + 1):
        for name in ("rpn_objectness", "rpn_box", "box_class", "box_regression", "learning_rate"):
            expected = without.history[step][name]
            assert switched.history[step][name] == pytest.approx(expected, rel=1e-6), name
    # The RPN's own losses do not see the cascade: if rate and velocity go on, so do its weights.
    for found, expected in zip(switched.rpn_after, without.state([without.model.rpn]), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)
    rates = [values["learning_rate"] for values in switched.history]
    np.testing.assert_allclose(rates, [0.01, 0.01, 0.01, 0.001], rtol=1e-6)
    assert int(switched.optimizer.iterations) == STEPS


def test_a_run_that_starts_again_at_the_switch_goes_on_alike(tmp_path, one_device, switched):
    first = Run(one_device, cascade_from=SWITCH)
    first.train(SWITCH)
    saved = tf.train.Checkpoint(model=first.model, optimizer=first.optimizer)
    path = saved.write(str(tmp_path / "checkpoint"))

    second = Run(one_device, cascade_from=SWITCH)
    checkpoint = tf.train.Checkpoint(model=second.model, optimizer=second.optimizer)
    checkpoint.read(path).assert_consumed()
    # As a new process would: the step is made once the weights are there.
    assert int(second.model.box_head.stages_trained) == 1
    second.step = TrainStep(
        second.model,
        DetectionLosses(),
        second.optimizer,
        one_device,
        seed=5,
        cascade_from=SWITCH,
    )
    second.train(STEPS - SWITCH)
    for found, expected in zip(second.history, switched.history[SWITCH:], strict=True):
        assert found == pytest.approx(expected, rel=1e-5)


def test_two_replicas_switch_as_one_does(two_replicas, switched):
    run = Run(two_replicas, cascade_from=SWITCH)
    run.train(STEPS)
    assert int(run.model.box_head.stages_trained.numpy()) == 3
    for found, expected in zip(run.history, switched.history, strict=True):
        assert found == pytest.approx(expected, rel=2e-2)
