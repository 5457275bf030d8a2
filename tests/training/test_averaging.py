"""The average of the weights: by hand, on replicas, in checkpoints, and given back to the bit."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from rethink_tf.layers.normalization import SyncBatchNormalization
from rethink_tf.training import averaging, checkpoint_files, checkpoints, saving
from rethink_tf.training.averaging import WeightAverage
from rethink_tf.training.optimizer import MomentumSGD


class Model(tf_keras.Model):
    """A layer in the given precision, SyncBN, and a counter."""

    def __init__(self, precision="float32"):
        super().__init__()
        self.dense = tf_keras.layers.Dense(3, dtype=tf_keras.mixed_precision.Policy(precision))
        self.norm = SyncBatchNormalization()
        self.counter = self.add_weight(
            "counter", [], tf.int32, initializer="zeros", trainable=False
        )

    def call(self, inputs, training=False):
        return self.norm(tf.cast(self.dense(inputs), tf.float32), training=training)


class Run:
    """A model that learns noise, with its average and its checkpoint."""

    def __init__(self, strategy=None, decay=0.5, precision="float32", **options):
        self.strategy = strategy or tf.distribute.get_strategy()
        tf_keras.utils.set_random_seed(1)
        with self.strategy.scope():
            self.model = Model(precision)
            self.model(tf.zeros([1, 2]))
            self.optimizer = MomentumSGD(0.1)
            self.optimizer.build(self.model.trainable_variables)
            self.average = decay and WeightAverage(self.model, decay, **options)
        self.checkpoint = checkpoints.make_checkpoint(self.model, self.optimizer, self.average)

    def train(self, num_steps):
        def on_one_replica(step):
            inputs = tf.random.stateless_normal([4, 2], [7, step])
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(self.model(inputs, training=True)[:, 0] * inputs[:, 1])
            variables = self.model.trainable_variables
            gradients = tape.gradient(loss, variables)
            self.optimizer.apply_gradients(
                zip(gradients, variables, strict=True), skip_gradients_aggregation=True
            )
            self.average.update(step + 1)

        run = tf.function(lambda step: self.strategy.run(on_one_replica, args=(step,)))
        weights = []
        for _ in range(num_steps):
            run(tf.cast(self.optimizer.iterations.read_value(), tf.int32))
            weights.append(self.weights())
        return weights

    def weights(self):
        """Trainable ones and moving statistics: 4 of the layers, then 2."""
        return [each.numpy() for each in self.model.variables if each.dtype.is_floating]

    def averages(self):
        return [each.numpy() for each in self.average.variables]


def assert_equal(found, expected):
    for value, target in zip(found, expected, strict=True):
        np.testing.assert_array_equal(value, target)


@pytest.mark.parametrize("warmup", [True, False])
def test_by_hand(warmup):
    run = Run(decay=0.25, warmup=warmup)
    run.average.start()
    expected = run.weights()
    assert len(expected) == 6  # kernel, bias, gamma, beta, moving mean and variance
    for step, weights in enumerate(run.train(3), start=1):
        # 2/11 and 3/12 are not above 0.25, 4/13 is.
        decay = [2 / 11, 3 / 12, 0.25][step - 1] if warmup else 0.25
        expected = [
            decay * old + (1 - decay) * new for old, new in zip(expected, weights, strict=True)
        ]
    for found, value in zip(run.averages(), expected, strict=True):
        np.testing.assert_allclose(found, value, rtol=1e-5, atol=1e-7)
    assert all(np.any(a != w) for a, w in zip(run.averages(), run.weights(), strict=True))


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
def test_the_weights_come_back_to_the_bit(precision):
    run = Run(precision=precision)
    run.average.start()
    run.train(2)
    weights, averages = run.weights(), run.averages()
    with run.average.in_use():
        assert_equal(run.weights(), averages)
    assert_equal(run.weights(), weights)
    with pytest.raises(RuntimeError), run.average.in_use():
        raise RuntimeError("an evaluation that fails")
    assert_equal(run.weights(), weights)
    assert_equal(run.averages(), averages)
    assert all(each.dtype == np.float32 for each in averages)
    # Nor did the two share memory: one more step moves both, each in its own way.
    run.train(1)
    assert all(np.any(a != w) for a, w in zip(run.averages(), run.weights(), strict=True))


def test_replicas_have_one_average(two_replicas, tmp_path):
    one, two = Run(), Run(two_replicas)
    for run in (one, two):
        run.average.start()
        run.train(2)
    for found, expected in zip(two.averages(), one.averages(), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)

    def on_each(variables):
        local = two_replicas.experimental_local_results
        return [[each.numpy() for each in local(variable)] for variable in variables]

    averages, weights = two.average.variables, averaging.averaged_variables(two.model)
    before = on_each(averages), on_each(weights)
    for first, second in before[0]:
        np.testing.assert_array_equal(first, second)
    with two.average.in_use():
        assert_equal(on_each(weights), before[0])
    assert_equal(on_each(averages), before[0])
    assert_equal(on_each(weights), before[1])

    # Saved from two replicas; read by one, and by two.
    path = two.checkpoint.write(str(tmp_path / "step-2"))
    for run in (Run(), Run(two_replicas)):
        run.checkpoint.read(path).assert_consumed()
        assert_equal(run.averages(), two.averages())


def save(run, folder):
    step = run.optimizer.iterations
    manager = saving.make_manager(run.checkpoint, str(folder), run.strategy, step)
    return manager.save(checkpoint_number=step)


def load(run, folder, init_checkpoint=None, required=False):
    checkpoints.load_weights(
        run.checkpoint,
        checkpoint_files.find_newest(str(folder)),
        str(folder),
        init_checkpoint,
        required=required,
        average=run.average,
    )


def test_a_run_that_was_killed_goes_on_to_the_bit(tmp_path):
    whole, first, second = Run(), Run(), Run()
    for run in (whole, first):
        load(run, tmp_path / "empty")
        assert_equal(run.averages(), run.weights())
    whole.train(4)
    first.train(2)
    save(first, tmp_path)
    load(second, tmp_path)
    second.train(2)
    assert_equal(second.averages(), whole.averages())
    assert_equal(second.weights(), whole.weights())


def test_a_run_starts_from_the_averages_of_another(tmp_path):
    other = Run()
    load(other, tmp_path / "empty")
    other.train(2)
    other.model.counter.assign(7)
    path = save(other, tmp_path)
    # Whether it has an average of its own or not.
    for run in (Run(), Run(decay=None)):
        load(run, tmp_path / "empty", path, required=True)
        assert_equal(run.weights(), other.averages())
        assert int(run.model.counter) == 7 and int(run.optimizer.iterations) == 0
        if run.average:
            assert_equal(run.averages(), other.averages())


def test_a_checkpoint_without_averages(tmp_path):
    other = Run(decay=None)
    path = save(other, tmp_path)
    with pytest.raises(ValueError, match=r"step-0 holds no averaged weights.*run\.weight_average"):
        load(Run(), tmp_path)
    # To start from, it is as good as any.
    run = Run()
    load(run, tmp_path / "empty", path)
    assert_equal(run.averages(), other.weights())


@pytest.mark.parametrize("decay", [-0.1, 1.0, 1.5])
def test_a_decay_out_of_range_is_refused(decay):
    with pytest.raises(ValueError, match=rf"decay must be in \(0, 1\), got {decay}"):
        Run(decay=decay)
