"""The normalizers: hand values, what trains, and what changes in training."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from rethink_tf.layers import normalization


@pytest.fixture(params=["mixed_bfloat16", "mixed_float16"])
def mixed_precision(request):
    before = tf_keras.mixed_precision.global_policy()
    tf_keras.mixed_precision.set_global_policy(request.param)
    yield request.param.removeprefix("mixed_")
    tf_keras.mixed_precision.set_global_policy(before)


def test_group_normalization_has_mean_0_and_variance_1_a_group():
    layer = normalization.GroupNormalization()
    inputs = 3.0 + 5.0 * np.random.default_rng(0).normal(size=(2, 6, 4, 64))
    outputs = layer(inputs.astype(np.float32)).numpy().reshape(2, -1, 32, 2)
    np.testing.assert_allclose(outputs.mean(axis=(1, 3)), 0.0, atol=1e-5)
    np.testing.assert_allclose(outputs.std(axis=(1, 3)), 1.0, atol=1e-4)
    assert [v.name.split("/")[-1] for v in layer.trainable_variables] == ["gamma:0", "beta:0"]
    assert not layer.non_trainable_variables


def test_group_normalization_scales_and_shifts():
    layer = normalization.GroupNormalization(num_groups=1, epsilon=1e-8)
    layer.build([None, 2])
    layer.gamma.assign([2.0, 3.0])
    layer.beta.assign([10.0, 20.0])
    # Mean 4, deviation 1.
    np.testing.assert_allclose(layer(tf.constant([[3.0, 5.0]])), [[8.0, 23.0]], rtol=1e-5)


def test_frozen_batch_normalization_by_hand():
    layer = normalization.FrozenBatchNormalization(epsilon=1.0)
    layer.build([None, 2])
    for variable, value in [
        (layer.gamma, [2.0, 1.0]),
        (layer.beta, [5.0, 0.0]),
        (layer.moving_mean, [1.0, 0.0]),
        (layer.moving_variance, [3.0, 0.0]),
    ]:
        variable.assign(value)
    inputs = tf.constant([[[[4.0, 7.0]]]])
    # 2 * (4 - 1) / sqrt(3 + 1) + 5 = 8 and 7 / sqrt(0 + 1) = 7, in training too.
    for training in (False, True):
        np.testing.assert_allclose(layer(inputs, training=training), [[[[8.0, 7.0]]]])
    assert not layer.trainable_variables and len(layer.non_trainable_variables) == 4
    np.testing.assert_array_equal(layer.moving_mean, [1.0, 0.0])


def test_synchronised_batch_normalization_follows_the_batches():
    layer = normalization.make_normalization("syncbn", "norm")
    inputs = tf.constant([[1.0], [3.0]])  # mean 2, variance 1
    outputs = layer(inputs, training=True)
    np.testing.assert_allclose(outputs, [[-1.0], [1.0]], rtol=1e-4)
    np.testing.assert_allclose(layer.moving_mean, [0.9 * 0 + 0.1 * 2], rtol=1e-5)
    np.testing.assert_allclose(layer.moving_variance, [0.9 * 1 + 0.1 * 1], rtol=1e-5)
    outputs = layer(inputs, training=False)
    np.testing.assert_allclose(outputs, [[0.8], [2.8]], rtol=1e-4)


def normalize_on(strategy, shares, upstreams):
    """Normalizes a share on each replica in training.

    Returns:
        The outputs and the gradients of the inputs of each replica, and the moving averages there.
    """
    with strategy.scope():
        layer = normalization.make_normalization("syncbn", "norm")
        layer.build([None, shares[0].shape[-1]])
        layer.gamma.assign([1.5, 0.5, 2.0])

    def one_replica():
        place = tf.distribute.get_replica_context().replica_id_in_sync_group
        # Shares differ in size, which a gather would not allow.
        inputs, upstream = (
            tf.switch_case(place, [lambda each=each: tf.constant(each) for each in values])
            for values in (shares, upstreams)
        )
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = layer(inputs, training=True)
        gradient = tape.gradient(outputs, inputs, upstream)
        moving = layer.moving_mean.read_value(), layer.moving_variance.read_value()
        return outputs, gradient, *moving

    results = tf.function(lambda: strategy.run(one_replica))()
    return [strategy.experimental_local_results(each) for each in results]


def test_batch_statistics_are_those_of_all_replicas(two_replicas):
    """One image on one replica and three on the other, under a mean that is large."""
    generator = np.random.default_rng(1)
    inputs = (10.0 + generator.normal(size=(4, 3, 5, 3))).astype(np.float32)
    upstream = generator.normal(size=inputs.shape).astype(np.float32)
    one = tf.distribute.OneDeviceStrategy("CPU:0")
    outputs, gradient, mean, variance = normalize_on(one, [inputs], [upstream])
    np.testing.assert_allclose(np.mean(outputs[0], (0, 1, 2)), 0.0, atol=1e-2)
    exact = inputs.astype(np.float64)
    np.testing.assert_allclose(mean[0], 0.1 * exact.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(variance[0], 0.9 + 0.1 * exact.var((0, 1, 2)), rtol=1e-5)

    shares = normalize_on(two_replicas, [inputs[:1], inputs[1:]], [upstream[:1], upstream[1:]])
    np.testing.assert_allclose(np.concatenate(shares[0]), outputs[0], atol=1e-4)
    np.testing.assert_allclose(np.concatenate(shares[1]), gradient[0], atol=1e-5)
    for moving, expected in zip(shares[2:], (mean, variance), strict=True):
        np.testing.assert_array_equal(moving[0], moving[1])
        np.testing.assert_allclose(moving[0], expected[0], rtol=1e-6)


@pytest.mark.parametrize("kind", ["gn", "syncbn", "frozen_bn"])
def test_made_by_name(kind):
    layer = normalization.make_normalization(kind, "norm")
    layer(tf.zeros([1, 2, 2, 32]), training=True)
    assert layer.name == "norm"
    assert len(layer.trainable_variables) == (0 if kind == "frozen_bn" else 2)


def test_none_is_no_layer():
    assert normalization.make_normalization("none", "norm") is None


def test_an_unknown_kind_is_an_error_that_lists_the_known():
    with pytest.raises(
        ValueError,
        match="'bn'.*gn, layer_norm, instance_norm, syncbn, batch_renorm, frozen_bn, none",
    ):
        normalization.make_normalization("bn", "norm")


@pytest.mark.parametrize("kind", ["gn", "syncbn", "frozen_bn"])
def test_mixed_precision_keeps_float32_parameters(mixed_precision, kind):
    layer = normalization.make_normalization(kind, "norm")
    outputs = layer(tf.ones([1, 2, 2, 32], mixed_precision), training=True)
    assert outputs.dtype == mixed_precision
    assert {variable.dtype for variable in layer.variables} == {tf.float32}


@pytest.mark.parametrize(
    "layer",
    [
        normalization.GroupNormalization(num_groups=4, epsilon=0.5, name="a"),
        normalization.FrozenBatchNormalization(epsilon=0.5, name="b"),
        normalization.SyncBatchNormalization(momentum=0.5, epsilon=0.5, name="c"),
    ],
)
def test_config_round_trip(layer):
    copy = type(layer).from_config(layer.get_config())
    assert copy.get_config() == layer.get_config()
    inputs = tf.constant(np.random.default_rng(0).normal(size=(2, 3, 3, 8)), tf.float32)
    np.testing.assert_array_equal(copy(inputs), layer(inputs))
