"""Micro-batches, clipping and the average in the training step.

A model of two numbers is checked against NumPy in every setting, and the small detector against
itself with all images at once.
"""

import functools

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from small_detector import Run, make_batch

from rethink_tf.execution import ExecutionPlan
from rethink_tf.training.averaging import WeightAverage
from rethink_tf.training.optimizer import MomentumSGD
from rethink_tf.training.step import TrainStep

RATE, MOMENTUM, WEIGHT_DECAY, CLIP, DECAY, SWITCH = 0.1, 0.9, 0.5, 2.0, 0.6, 1
IMAGES = np.array([[1, 2], [3, -1], [0.5, 0], [-2, 1]], np.float32)


class Line(tf_keras.Model):
    """A detector that predicts x * kernel, and x * (kernel + late) once its later stage trains."""

    num_samples = 1

    def __init__(self, jit_compile=False):
        super().__init__()
        self.plan = ExecutionPlan(jit_compile=jit_compile)
        self.kernel = tf.Variable([3.0, -2.0], name="kernel")
        self.late = tf.Variable([1.0, 1.0], name="late")

    @property
    def rpn(self):
        return self

    def variables_of_stages(self, num_stages=None):
        return [self.kernel] if num_stages else [self.kernel, self.late]

    def call(self, batch, training, seed, num_stages, padded):
        late = 0.0 if num_stages else tf.convert_to_tensor(self.late)
        values = tf.linalg.matvec(batch["image"], self.kernel + late)
        ones = tf.ones([tf.size(values), 1], tf.int32)
        return {"values": values, "class_targets": ones, "rpn_labels": ones}


class Squares:
    """The mean square of the predictions, as `DetectionLosses` gives its losses."""

    @staticmethod
    def counts(outputs, num_samples):
        return {"images": tf.cast(tf.size(outputs["values"]), tf.float32)}

    def __call__(self, outputs, counts):
        return {"square": tf.reduce_sum(outputs["values"] ** 2) / counts["images"]}


def expected_steps(num_steps):
    """The same in NumPy on all images: losses and norms by step, then weights and averages."""
    weights = [np.array([3.0, -2.0]), np.array([1.0, 1.0])]
    averages = [each.copy() for each in weights]
    velocities = [np.zeros(2), np.zeros(2)]
    history = []
    for step in range(num_steps):
        trained = 1 if step < SWITCH else 2
        values = IMAGES @ sum(weights[:trained])
        gradient = 2 * values @ IMAGES / len(IMAGES)
        norm = np.sqrt(trained) * np.linalg.norm(gradient)
        decay_loss = WEIGHT_DECAY / 2 * np.sum(weights[0] ** 2)
        history.append((np.mean(values**2), decay_loss, norm))
        gradient = gradient * min(1.0, CLIP / norm)
        for place in range(trained):
            decay = WEIGHT_DECAY * weights[place] if place == 0 else 0.0
            velocities[place] = MOMENTUM * velocities[place] + gradient + decay
            weights[place] = weights[place] - RATE * velocities[place]
        decay = min(DECAY, (2 + step) / (11 + step))
        averages = [
            decay * old + (1 - decay) * new for old, new in zip(averages, weights, strict=True)
        ]
    return history, weights, averages


@pytest.fixture(scope="module")
def one_device():
    return tf.distribute.OneDeviceStrategy("CPU:0")


@pytest.mark.parametrize(
    ("replicas", "accumulate_steps", "jit_compile"),
    [(1, 1, False), (1, 4, False), (2, 1, False), (2, 2, False), (1, 2, True)],
)
def test_every_setting_by_hand(one_device, two_replicas, replicas, accumulate_steps, jit_compile):
    strategy = one_device if replicas == 1 else two_replicas
    with strategy.scope():
        model = Line(jit_compile)
        optimizer = MomentumSGD(RATE, MOMENTUM)
        optimizer.build(model.trainable_variables)
        average = WeightAverage(model, DECAY)
    average.start()
    step = TrainStep(
        model,
        Squares(),
        optimizer,
        strategy,
        seed=1,
        weight_decay=WEIGHT_DECAY,
        cascade_from=SWITCH,
        accumulate_steps=accumulate_steps,
        clip_norm=CLIP,
        average=average,
    )
    parts = IMAGES.reshape(accumulate_steps, replicas, -1, 2)
    batches = [
        strategy.experimental_distribute_values_from_function(
            lambda context, part=part: {"image": part[context.replica_id_in_sync_group]}
        )
        for part in parts
    ]
    history, weights, averages = expected_steps(3)
    assert history[0][2] > CLIP  # the first step is clipped
    for loss, decay_loss, norm in history:
        values = step(*batches)
        found = [values[name] for name in ("square", "weight_decay", "gradient_norm", "total")]
        np.testing.assert_allclose(found, [loss, decay_loss, norm, loss + decay_loss], rtol=1e-5)
        assert float(values["roi_positives"]) == 1.0
        assert float(values["learning_rate"]) == pytest.approx(RATE)
    for variables, expected in ((model.variables, weights), (average.variables, averages)):
        for variable, value in zip(variables, expected, strict=True):
            np.testing.assert_allclose(variable.numpy(), value, rtol=1e-5, atol=1e-6)
    assert int(optimizer.iterations.numpy()) == 3


@pytest.fixture(scope="module")
def runs(one_device):
    """The small detector, its steps in one batch and in four micro-batches, both as at the start.

    With few proposals every image has as many RoIs as it has objects more.
    """
    options = {"proposals": 12, "cascade_from": 9, "with_masks": True}
    return [Run(one_device, **options), Run(one_device, accumulate_steps=4, **options)]


@pytest.fixture
def fresh_runs(runs):
    starts = [run.model.get_weights() for run in runs]
    yield runs
    for run, start in zip(runs, starts, strict=True):
        rewind(run, start)


def rewind(run, weights):
    run.model.set_weights(weights)
    run.history.clear()
    for variable in [run.optimizer.iterations, *run.optimizer.velocities]:
        variable.assign(tf.zeros_like(variable))


def gradients(run):
    """Those of the first step, decay included: what its velocities are."""
    return [each.numpy() for each in run.optimizer.velocities]


def assert_close(found, expected):
    for value, target in zip(found, expected, strict=True):
        assert np.linalg.norm(value - target) <= 1e-4 * np.linalg.norm(target) + 1e-8


def with_fewer_objects(batch):
    """The first image has none, the next one more each: other numbers of RoIs and masks."""
    for image in range(3):
        batch["classes"][image, image:] = 0
        batch["boxes"][image, image:] = 0
    return batch


def test_four_micro_batches_are_the_batch_at_once(fresh_runs):
    """Also where they have different numbers of RoIs and masks: means are over all of the step."""
    whole, parts = fresh_runs
    batch = with_fewer_objects(make_batch(4, with_masks=True))
    for run in fresh_runs:
        run.train(1, batch)
    assert parts.history[0]["mask"] > 0.1
    assert parts.history[0] == pytest.approx(whole.history[0], rel=1e-5)
    assert_close(gradients(parts), gradients(whole))
    assert_close(parts.model.get_weights(), whole.model.get_weights())


def test_a_step_takes_its_micro_batches(runs):
    with pytest.raises(ValueError, match="takes 4 batches, got 1"):
        runs[1].step(make_batch(1))


@pytest.mark.parametrize("clip_norm", [0.0, -1.0])
def test_a_norm_out_of_range_is_refused(one_device, clip_norm):
    make = functools.partial(TrainStep, Line(), Squares(), MomentumSGD(RATE), one_device, 1)
    with pytest.raises(ValueError, match=rf"clip_norm is {clip_norm}: it must be above 0"):
        make(clip_norm=clip_norm)
