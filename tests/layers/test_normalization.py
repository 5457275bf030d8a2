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
    assert layer.synchronized


@pytest.mark.parametrize("kind", ["gn", "syncbn", "frozen_bn"])
def test_made_by_name(kind):
    layer = normalization.make_normalization(kind, "norm")
    layer(tf.zeros([1, 2, 2, 32]), training=True)
    assert layer.name == "norm"
    assert len(layer.trainable_variables) == (0 if kind == "frozen_bn" else 2)


def test_none_is_no_layer():
    assert normalization.make_normalization("none", "norm") is None


def test_an_unknown_kind_is_an_error_that_lists_the_known():
    with pytest.raises(ValueError, match="'bn'.*gn, syncbn, frozen_bn, none"):
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
    ],
)
def test_config_round_trip(layer):
    copy = type(layer).from_config(layer.get_config())
    assert copy.get_config() == layer.get_config()
    inputs = tf.constant(np.random.default_rng(0).normal(size=(2, 3, 3, 8)), tf.float32)
    np.testing.assert_array_equal(copy(inputs), layer(inputs))
