"""The scale of the loss in float16: by hand, with overflows, on replicas, in checkpoints."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from rethink_tf import execution
from rethink_tf.training import checkpoints, saving
from rethink_tf.training.loss_scale import LossScale
from rethink_tf.training.optimizer import MomentumSGD, scale_loss
from rethink_tf.training.schedules import StepwiseSchedule
from rethink_tf.training.update import WeightUpdate

RATE, DECAY = 0.1, 0.01


class Run:
    """A dense layer whose gradient overflows at the steps that are told."""

    def __init__(self, strategy=None, scale=None, clip_norm=None, jit_compile=None):
        self.strategy = strategy or tf.distribute.get_strategy()
        tf_keras.utils.set_random_seed(1)
        with self.strategy.scope():
            self.model = tf_keras.Sequential([tf_keras.layers.Dense(3, input_shape=(2,))])
            self.optimizer = MomentumSGD(RATE)
            self.optimizer.build(self.model.trainable_variables)
            if scale:
                self.optimizer.loss_scale = LossScale(scale, growth_steps=2)
        self.update = WeightUpdate(self.optimizer, DECAY, clip_norm)
        self.checkpoint = checkpoints.make_checkpoint(self.model, self.optimizer)
        self._step = tf.function(self._run, jit_compile=jit_compile)

    def _run(self, inputs, overflows):
        replicas = self.strategy.num_replicas_in_sync

        def on_one_replica():
            variables = self.model.trainable_variables
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(self.model(inputs)[:, 0] * inputs[:, 1]) / replicas
                scaled = self.update.scaled(loss)
            gradients = tape.gradient(scaled, variables)
            gradients[0] = tf.where(overflows, np.inf, gradients[0])
            return self.update(gradients, variables, replicas)

        values = self.strategy.run(on_one_replica)
        return {
            name: self.strategy.reduce("SUM", value, axis=None) for name, value in values.items()
        }

    def train(self, *overflows):
        """Returns what each step reports."""
        found = []
        for each in overflows:
            generator = np.random.default_rng(int(self.optimizer.iterations.numpy()))
            inputs = generator.normal(size=[4, 2]).astype(np.float32)
            values = self._step(tf.constant(inputs), tf.constant(each))
            found.append({name: float(value) for name, value in values.items()})
        return found

    def state(self):
        return [each.numpy() for each in (*self.model.variables, *self.optimizer.velocities)]


def assert_equal(found, expected, **tolerance):
    for value, target in zip(found, expected, strict=True):
        np.testing.assert_allclose(value, target, **(tolerance or {"rtol": 0}))


def test_the_scale_follows_the_gradients():
    scale = LossScale(8.0, growth_steps=2)
    steps = [(1.0, True), (np.inf, False), (2.0, True), (3.0, True), (np.nan, False)]
    found = []
    for norm, applies in steps:
        assert bool(scale.follow(tf.constant(norm))) == applies
        found.append(float(scale.scale))
    # Finite, halved, one finite, the second doubles, halved.
    assert found == [8, 4, 4, 8, 4] and int(scale.num_skipped) == 2
    assert [each.numpy() for each in scale.unscale([tf.constant([6.0])])] == [[1.5]]
    for _ in range(2):
        assert not scale.follow(tf.constant(np.inf))
    # At 1 the gradient is the run's own fault: it is used, and the health check finds it.
    assert float(scale.scale) == 1 and scale.follow(tf.constant(np.inf))
    assert float(scale.scale) == 1 and int(scale.num_skipped) == 4


@pytest.mark.parametrize("clip_norm", [None, 0.05])
def test_an_overflow_changes_nothing_but_the_step_and_the_scale(clip_norm):
    plain, scaled = Run(clip_norm=clip_norm), Run(scale=16.0, clip_norm=clip_norm)
    expected, found = plain.train(False), scaled.train(False)
    # Powers of two: not a bit is lost. The norm is that before the scale, and so is the clipping.
    assert_equal(scaled.state(), plain.state())
    assert found[0]["gradient_norm"] == expected[0]["gradient_norm"] > 0.05
    assert (found[0]["loss_scale"], found[0]["skipped_updates"]) == (16, 0)
    before = scaled.state()
    (values,) = scaled.train(True)
    assert_equal(scaled.state(), before)
    assert (values["gradient_norm"], values["skipped_updates"]) == (0, 1)
    # The step counts: the schedule and the draws go by it.
    assert int(scaled.optimizer.iterations) == 2 and float(scaled.optimizer.loss_scale.scale) == 8
    plain.optimizer.iterations.assign(2)
    plain.train(False)
    scaled.train(False)
    assert_equal(scaled.state(), plain.state())


def test_replicas_and_xla_have_the_same(two_replicas):
    steps = (False, True, False, False)
    one, two, compiled = (Run(scale=4.0), Run(two_replicas, scale=4.0),
                          Run(scale=4.0, jit_compile=True))  # fmt: skip
    values = [run.train(*steps) for run in (one, two, compiled)]
    for run in (two, compiled):
        assert_equal(run.state(), one.state(), rtol=1e-5, atol=1e-6)
    for each in values:
        assert [step["loss_scale"] for step in each] == [4, 4, 2, 2]
        assert each[-1]["skipped_updates"] == 1
    scales = two_replicas.experimental_local_results(two.optimizer.loss_scale.scale)
    assert [float(each) for each in scales] == [4, 4]


def test_a_checkpoint_has_the_scale(tmp_path):
    first, second, plain = Run(scale=16.0), Run(scale=16.0), Run()
    first.train(True, False)
    paths = {}
    for run, name in ((first, "scaled"), (plain, "plain")):
        folder, step = str(tmp_path / name), run.optimizer.iterations
        manager = saving.make_manager(run.checkpoint, folder, run.strategy, step)
        paths[name] = manager.save(checkpoint_number=2)
    checkpoints.restore(second.checkpoint, paths["scaled"])
    assert_equal(second.train(False, True)[-1].values(), first.train(False, True)[-1].values())
    assert_equal(second.state(), first.state())
    with pytest.raises(ValueError, match="holds no loss scale"):
        checkpoints.restore(second.checkpoint, paths["plain"])


def test_what_has_no_float16_is_refused():
    strategy = tf.distribute.get_strategy()
    with pytest.raises(ValueError, match="one of float32, mixed_bfloat16, mixed_float16"):
        execution.make_plan(strategy, "float16")
    schedule = StepwiseSchedule(num_steps=1, peak_learning_rate=0.1, warmup_steps=0)
    with pytest.raises(ValueError, match="Adam cannot leave out an update"):
        scale_loss(tf_keras.optimizers.Adam(schedule), "mixed_float16")
