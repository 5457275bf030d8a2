"""Group normalization against Keras' layer and a float64 form in NumPy."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from rethink_tf.ops.cpu import CpuOperations
from rethink_tf.ops.group_norm import Norm, group_norm
from rethink_tf.ops.operations import Operations

EPSILON = 1e-5
CHANNELS, GROUPS = 16, 4


def exact(inputs, gamma, beta, groups=GROUPS):
    """The definition, in float64."""
    inputs = np.asarray(inputs, np.float64)
    images, channels = inputs.shape[0], inputs.shape[-1]
    grouped = inputs.reshape(images, -1, groups, channels // groups)
    mean = grouped.mean(axis=(1, 3), keepdims=True)
    variance = grouped.var(axis=(1, 3), keepdims=True)
    normalized = ((grouped - mean) / np.sqrt(variance + EPSILON)).reshape(inputs.shape)
    return normalized * gamma + beta


def make(shape, mean=0.0, seed=0):
    generator = np.random.default_rng(seed)
    inputs = generator.normal(size=shape) * generator.uniform(0.5, 2, shape[-1]) + mean
    gamma, beta = generator.normal(1, 0.3, shape[-1]), generator.normal(0, 0.3, shape[-1])
    return [tf.constant(value, tf.float32) for value in (inputs, gamma, beta)]


def forward_and_gradients(function, values, upstream):
    with tf.GradientTape() as tape:
        tape.watch(values)
        outputs = function(*values)
        total = tf.reduce_sum(tf.cast(outputs, tf.float32) * upstream)
    return outputs, tape.gradient(total, values)


@pytest.fixture(
    scope="module",
    params=[Operations(), Operations(is_fused=True), CpuOperations(recomputes=True)],
)
def ours(request):
    """Group normalization by the operations of every device."""
    return lambda inputs, gamma, beta: group_norm(
        inputs, Norm(gamma, beta, GROUPS, EPSILON), request.param
    )


def upstream_for(shape):
    return tf.constant(np.random.default_rng(9).normal(size=shape), tf.float32)


@pytest.mark.parametrize("shape", [(3, 5, 7, CHANNELS), (3, 11, CHANNELS), (4, CHANNELS)])
def test_same_as_keras(ours, shape):
    values, upstream = make(shape, mean=0.5), upstream_for(shape)
    layer = tf_keras.layers.GroupNormalization(GROUPS, epsilon=EPSILON)
    layer.build(shape)
    layer.gamma.assign(values[1])
    layer.beta.assign(values[2])
    with tf.GradientTape() as tape:
        tape.watch(values[0])
        expected = layer(values[0])
        total = tf.reduce_sum(expected * upstream)
    expected_gradients = tape.gradient(total, [values[0], layer.gamma, layer.beta])
    outputs, gradients = forward_and_gradients(ours, values, upstream)
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5)
    for gradient, other in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(gradient, other, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("shape", [(2, 6, 5, CHANNELS), (4, CHANNELS)])
def test_same_as_the_definition(ours, shape):
    values = make(shape)
    np.testing.assert_allclose(ours(*values), exact(*values), rtol=1e-4, atol=1e-5)


def test_gradients_by_finite_differences(ours):
    """Central differences of the float64 definition."""
    shape, step = (2, 3, 2, 8), 1e-5
    values, upstream = make(shape, mean=1.0), upstream_for(shape)
    _, gradients = forward_and_gradients(ours, values, upstream)
    arrays = [np.asarray(value, np.float64) for value in values]
    for position, gradient in enumerate(gradients):
        numeric = np.zeros(arrays[position].shape)
        for place in np.ndindex(numeric.shape):
            totals = []
            for sign in (1, -1):
                moved = [array.copy() for array in arrays]
                moved[position][place] += sign * step
                totals.append(np.sum(exact(*moved) * upstream.numpy()))
            numeric[place] = (totals[0] - totals[1]) / (2 * step)
        np.testing.assert_allclose(gradient, numeric, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("mean", "tolerance"), [(10.0, 1e-5), (1e3, 1e-3)])
def test_a_mean_far_above_the_deviation(ours, mean, tolerance):
    """The error may grow with mean / deviation (rounding of the input), not with its square."""
    shape = (2, 64, 64, CHANNELS)
    values, upstream = make(shape, mean), upstream_for(shape)
    outputs, gradients = forward_and_gradients(ours, values, upstream)
    np.testing.assert_allclose(outputs, exact(*values), atol=5 * tolerance)
    # Moving all inputs by one number changes nothing; nor then does it change the gradients.
    near = [values[0] - mean, *values[1:]]
    _, expected = forward_and_gradients(ours, near, upstream)
    for gradient, other in zip(gradients, expected, strict=True):
        assert np.linalg.norm(gradient - other) < 5 * tolerance * np.linalg.norm(other)


def test_constant_inputs_give_beta(ours):
    _, gamma, beta = make((1, CHANNELS))
    outputs = ours(tf.fill([2, 8, 8, CHANNELS], 3.0), gamma, beta)
    np.testing.assert_allclose(outputs, np.broadcast_to(beta, outputs.shape), atol=1e-3)


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 0.05), ("float16", 0.005)])
def test_half_precision_has_float32_statistics(ours, dtype, tolerance):
    # 64 x 64 places: a sum in half precision would stop growing after a few hundred.
    shape = (2, 64, 64, CHANNELS)
    values, upstream = make(shape, mean=1.0), upstream_for(shape)
    values[0] = tf.cast(values[0], dtype)
    outputs, gradients = forward_and_gradients(ours, values, upstream)
    assert outputs.dtype == gradients[0].dtype == dtype
    assert gradients[1].dtype == gradients[2].dtype == tf.float32
    outputs = tf.cast(outputs, tf.float32).numpy()
    np.testing.assert_allclose(outputs, exact(*values), rtol=2 * tolerance, atol=tolerance)
    grouped = (outputs - values[2]) / values[1]
    grouped = grouped.numpy().reshape(2, -1, GROUPS, CHANNELS // GROUPS)
    np.testing.assert_allclose(grouped.std(axis=(1, 3)), 1.0, atol=tolerance)
    # The same inputs in float32: the sums behind gamma's and beta's gradients are not rounded.
    same = [tf.cast(values[0], tf.float32), *values[1:]]
    _, expected = forward_and_gradients(ours, same, upstream)
    if dtype == "float16":  # the upstream gradient is rounded to the inputs' dtype
        np.testing.assert_allclose(gradients[1], expected[1], rtol=0.01, atol=0.1)
    np.testing.assert_allclose(gradients[2], expected[2], rtol=0.02, atol=1.0)


def test_images_are_independent(ours):
    values = make((3, 4, 4, CHANNELS))
    alone = ours(values[0][1:2], *values[1:])
    np.testing.assert_allclose(ours(*values)[1:2], alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(0, 5, 5, CHANNELS), (0, CHANNELS)])
def test_no_images(ours, shape):
    values = [tf.zeros(shape), tf.ones([CHANNELS]), tf.zeros([CHANNELS])]
    outputs, gradients = forward_and_gradients(ours, values, tf.zeros(shape))
    assert outputs.shape == gradients[0].shape == shape
    for gradient in gradients[1:]:
        np.testing.assert_array_equal(gradient, np.zeros(CHANNELS))


def test_the_compiled_function_gives_the_same(ours):
    shape = (2, 9, 6, CHANNELS)
    values, upstream = make(shape), upstream_for(shape)
    outputs, gradients = forward_and_gradients(ours, values, upstream)

    @tf.function(jit_compile=True)
    def compiled(*values):
        return forward_and_gradients(ours, list(values), upstream)

    compiled_outputs, compiled_gradients = compiled(*values)
    np.testing.assert_allclose(compiled_outputs, outputs, rtol=1e-5, atol=1e-6)
    for gradient, other in zip(compiled_gradients, gradients, strict=True):
        np.testing.assert_allclose(gradient, other, rtol=1e-4, atol=1e-5)


def test_groups_that_do_not_divide_the_channels_are_an_error():
    norm = Norm(tf.ones([48]), tf.zeros([48]), 32, EPSILON)
    with pytest.raises(ValueError, match="48 channels.*32"):
        group_norm(tf.zeros([1, 2, 2, 48]), norm, Operations())


@pytest.mark.parametrize("dtype", [tf.bfloat16, tf.float16])
@pytest.mark.parametrize("mean", [0.0, 20.0])
def test_one_reading_of_halves_is_as_exact_as_two(dtype, mean):
    """Against float64 of the same rounded inputs, at means up to 20 deviations."""
    inputs, gamma, beta = make((2, 24, 24, CHANNELS), mean)
    inputs, upstream = tf.cast(inputs, dtype), upstream_for((2, 24, 24, CHANNELS))
    rounded = tf.cast(inputs, tf.float64).numpy()
    normalized = exact(rounded, 1.0, 0.0)
    expected = [
        exact(rounded, gamma.numpy(), beta.numpy()),
        (upstream.numpy() * normalized).sum((0, 1, 2)),  # of gamma
    ]
    errors = []
    for operations in (Operations(), Operations(is_fused=True)):
        outputs, (_, d_gamma, _) = forward_and_gradients(
            lambda *values, by=operations: group_norm(
                values[0], Norm(values[1], values[2], GROUPS, EPSILON), by
            ),
            [inputs, gamma, beta],
            upstream,
        )
        found = [tf.cast(each, tf.float64).numpy() for each in (outputs, d_gamma)]
        errors.append([np.abs(a - b).max() for a, b in zip(found, expected, strict=True)])
    for two, one in zip(*errors, strict=True):
        assert one <= 1.01 * two + 1e-3
