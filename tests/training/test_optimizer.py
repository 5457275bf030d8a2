"""SGD with momentum by hand, and which parameters decay."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from rethink_tf.training.optimizer import MomentumSGD, decays, is_bias


class _Halving(tf_keras.optimizers.schedules.LearningRateSchedule):
    """Rate 1 for the first update, 0.5 for the second, ..."""

    def __call__(self, step):
        return 0.5 ** tf.cast(step, tf.float32)


def test_two_updates_by_hand():
    weight = tf.Variable([1.0], name="layer/kernel")
    bias = tf.Variable([1.0], name="layer/bias")
    optimizer = MomentumSGD(0.1, momentum=0.9, bias_rate=2.0)
    optimizer.build([weight, bias])
    for _ in range(2):
        optimizer.apply_gradients([(tf.constant([1.0]), weight), (tf.constant([1.0]), bias)])
    # Velocities 1 and 1.9: 1 - 0.1 * (1 + 1.9); the bias moves twice as far.
    np.testing.assert_allclose(weight, [0.71], rtol=1e-6)
    np.testing.assert_allclose(bias, [0.42], rtol=1e-6)
    assert int(optimizer.iterations) == 2


def test_biases_move_alike_on_every_replica(two_replicas):
    with two_replicas.scope():
        bias = tf.Variable([1.0], name="layer/bias", aggregation=tf.VariableAggregation.MEAN)
        optimizer = MomentumSGD(0.1, bias_rate=2.0)
        optimizer.build([bias])

    def update():
        gradient = tf.constant([1.0])
        optimizer.apply_gradients([(gradient, bias)], skip_gradients_aggregation=True)

    two_replicas.run(update)
    values = [each.numpy()[0] for each in two_replicas.experimental_local_results(bias)]
    np.testing.assert_allclose(values, [0.8, 0.8], rtol=1e-6)


def test_a_drop_of_the_rate_acts_on_all_of_the_velocity():
    weight = tf.Variable([0.0], name="kernel")
    optimizer = MomentumSGD(_Halving(), momentum=0.5)
    optimizer.build([weight])
    for _ in range(2):
        optimizer.apply_gradients([(tf.constant([1.0]), weight)])
    # 1 * 1 + 0.5 * (0.5 * 1 + 1); with the rate inside of the velocity it would be 2.
    np.testing.assert_allclose(weight, [-1.75], rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "decaying", "bias"),
    [
        ("conv/kernel", True, False),
        ("conv/bias", False, True),
        ("norm/gamma", False, False),
        ("norm/beta", False, False),
        ("mask_head/predictor/kernel", True, False),
    ],
)
def test_decay_and_biases_by_name(name, decaying, bias):
    variable = tf.Variable(0.0, name=name)
    assert decays(variable) is decaying
    assert is_bias(variable) is bias


def test_numbers_out_of_range_are_refused():
    with pytest.raises(ValueError, match="momentum must be in"):
        MomentumSGD(0.1, momentum=1.0)
    with pytest.raises(ValueError, match="bias_rate"):
        MomentumSGD(0.1, bias_rate=0.0)
