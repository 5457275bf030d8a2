"""Convolution: symmetric padding, initializers, and where a bias is."""

import math

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from detector_steps import machine_plan

from rethink_tf.execution import ExecutionPlan
from rethink_tf.layers import conv


def slow_convolution(image, kernel, stride):
    """Pads (k - 1) / 2 on every side, in NumPy; image [H, W, I], kernel [k, k, I, O]."""
    size = kernel.shape[0]
    margin = (size - 1) // 2
    padded = np.pad(image, [(margin, margin), (margin, margin), (0, 0)])
    rows = range(0, padded.shape[0] - size + 1, stride)
    columns = range(0, padded.shape[1] - size + 1, stride)
    return np.array(
        [
            [np.tensordot(padded[r : r + size, c : c + size], kernel, 3) for c in columns]
            for r in rows
        ]
    )


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [1, 3, 7])
@pytest.mark.parametrize("side", [8, 9])
def test_padding_is_symmetric_for_every_stride(size, stride, side):
    generator = np.random.default_rng(0)
    image = generator.normal(size=(side, side + 3, 2)).astype(np.float32)
    layer = conv.Conv2D(3, size, stride, use_bias=False)
    outputs = layer(image[np.newaxis])
    expected = slow_convolution(image, layer.kernel.numpy(), stride)
    assert outputs.shape[1:] == expected.shape
    np.testing.assert_allclose(outputs[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [1, 3, 7])
@pytest.mark.parametrize("stride", [1, 2])
def test_same_padding_is_tensorflows(size, stride):
    # TensorFlow's own gradients are wrong for fewer channels; see `MIN_STRIDED_CHANNELS` of
    # `ops.cpu.convolution`.
    image = tf.random.stateless_normal([1, 8, 12, 16], [1, 2])
    layer = conv.ConvNorm(16, size, stride, "none", relu=False, same_padding=True)
    layer(image)
    kernel = layer.conv.kernel
    expected = tf.nn.conv2d(image, kernel, stride, "SAME")
    np.testing.assert_allclose(layer(image), expected, rtol=1e-4, atol=1e-5)
    # In training layers are run as a chain, whose gradients are written by hand.
    with tf.GradientTape(persistent=True) as tape:
        found = tf.reduce_sum(conv.run([layer], image, training=True) ** 2)
        wanted = tf.reduce_sum(tf.nn.conv2d(image, kernel, stride, "SAME") ** 2)
    gradients = [tape.gradient(value, kernel) for value in (found, wanted)]
    np.testing.assert_allclose(*gradients, rtol=1e-3, atol=1e-3)


def test_a_strided_convolution_by_hand():
    layer = conv.Conv2D(1, 3, 2, use_bias=False, kernel_initializer="ones")
    outputs = layer(tf.ones([1, 4, 4, 1]))[0, :, :, 0]
    # Padding above and to the left: the first window holds 2 x 2 ones. "same" would give 9 there.
    np.testing.assert_array_equal(outputs, [[4, 6], [6, 9]])


def test_even_kernels_are_an_error():
    with pytest.raises(ValueError, match="odd, got 4"):
        conv.Conv2D(8, 4)


def test_groups_must_divide_filters_and_channels():
    with pytest.raises(ValueError, match="filters must be .*divisible by the number of groups"):
        conv.Conv2D(9, 3, groups=2)
    with pytest.raises(ValueError, match="Received groups=4, but the input has 6 channels"):
        conv.ConvNorm(32, 3, groups=4)(tf.zeros([1, 4, 4, 6]))


def test_groups_see_their_own_channels_alone():
    layer = conv.ConvNorm(32, 3, normalizer="none", relu=False, groups=4)
    inputs = np.random.default_rng(0).normal(size=(1, 5, 6, 8)).astype(np.float32)
    outputs = layer(inputs)
    kernel = layer.conv.kernel.numpy()
    assert kernel.shape == (3, 3, 2, 32)
    for group in range(4):
        own = slice(8 * group, 8 * group + 8)
        part = inputs[0, :, :, 2 * group : 2 * group + 2]
        expected = slow_convolution(part, kernel[..., own], 1)
        np.testing.assert_allclose(outputs[0, :, :, own], expected, rtol=1e-4, atol=1e-5)


def test_initializers_have_detectrons_deviations():
    shape = [3, 3, 64, 128]

    def std(initializer):
        return float(np.std(initializer(shape)))

    assert std(conv.msra()) == pytest.approx(math.sqrt(2 / (3 * 3 * 128)), rel=0.02)
    assert std(conv.xavier()) == pytest.approx(math.sqrt(1 / (3 * 3 * 64)), rel=0.02)
    assert std(conv.normal(0.01)) == pytest.approx(0.01, rel=0.02)
    limit = math.sqrt(3 / (3 * 3 * 64))  # of the uniform one
    assert np.abs(conv.xavier()(shape)).max() == pytest.approx(limit, rel=0.01)
    # Not truncated: 73,728 normal numbers reach beyond four deviations.
    assert np.abs(conv.msra()(shape)).max() > 3.5 * math.sqrt(2 / (3 * 3 * 128))


@pytest.mark.parametrize("normalizer", ["gn", "syncbn", "frozen_bn", "none"])
def test_a_bias_only_without_normalization(normalizer):
    layer = conv.ConvNorm(32, 3, normalizer=normalizer)
    layer(tf.zeros([1, 4, 4, 3]))
    assert layer.conv.use_bias == (normalizer == "none")
    assert (layer.norm is None) == (normalizer == "none")
    assert layer.conv.kernel.shape == (3, 3, 3, 32)


def test_relu_comes_last_and_may_be_left_out():
    inputs = tf.constant(np.random.default_rng(0).normal(size=(2, 4, 4, 3)), tf.float32)
    tf_keras.utils.set_random_seed(0)
    linear = conv.ConvNorm(32, 3, relu=False)(inputs)
    tf_keras.utils.set_random_seed(0)
    rectified = conv.ConvNorm(32, 3)(inputs)
    assert np.min(linear) < 0.0
    np.testing.assert_array_equal(rectified, np.maximum(linear, 0.0))


def test_training_reaches_the_normalization():
    layer = conv.ConvNorm(4, 1, normalizer="syncbn", relu=False, initializer="ones")
    layer(tf.ones([2, 2, 2, 3]), training=True)  # every output is 3
    np.testing.assert_allclose(layer.norm.moving_mean, [0.3] * 4, rtol=1e-5)
    layer(tf.ones([2, 2, 2, 3]))
    np.testing.assert_allclose(layer.norm.moving_mean, [0.3] * 4, rtol=1e-5)


@pytest.mark.parametrize(
    ("normalizers", "last_size", "groups"),
    [
        (("gn", "gn", "gn"), 3, 1),
        (("gn", "gn", "gn"), 1, 1),
        (("gn", "gn", "gn"), 1, 16),
        (("gn",), 1, 1),
        (("gn", "none"), 1, 1),
        (("syncbn", "gn"), 1, 1),
        ((), 1, 1),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["cpu", "tensorflow", "computed again"])
def test_a_run_of_layers_is_one_after_the_other(normalizers, last_size, groups, dtype, kind):
    """Outputs and gradients, though activations may be computed again for the latter."""
    policy = "float32" if dtype == "float32" else "mixed_bfloat16"
    sizes = [3] * (len(normalizers) - 1) + [last_size]
    layers = [
        conv.ConvNorm(
            64,
            size,
            2 if place == 1 else 1,
            norm,
            groups=groups if place == 1 else 1,
            dtype=policy,
            name=f"conv{place}",
        )
        for place, (norm, size) in enumerate(zip(normalizers, sizes, strict=False))
    ]
    plan = {
        "cpu": machine_plan(precision=policy),
        "tensorflow": ExecutionPlan(),
        "computed again": ExecutionPlan(recomputes=True),
    }[kind]
    if kind != "cpu" and groups > 1 and not machine_plan(precision=policy).has_grouped_gradients:
        pytest.skip("TensorFlow has no grouped gradients of this type here")
    for layer in layers:
        plan.give_to(layer)
    inputs = tf.cast(tf.random.stateless_normal([2, 12, 16, 64], [1, 2]), dtype)
    conv.run(layers, inputs)
    variables = [each for layer in layers for each in layer.trainable_variables]
    for seed, variable in enumerate(variables):
        variable.assign_add(0.1 * tf.random.stateless_normal(variable.shape, [3, seed]))

    def one_by_one(layers, inputs, training):
        for layer in layers:
            inputs = layer(inputs, training=training)
        return inputs

    @tf.function
    def outputs_and_gradients(function):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = function(layers, inputs, training=True)
            value = tf.reduce_sum(tf.sin(tf.cast(outputs, tf.float32)))
        return [outputs, *tape.gradient(value, [inputs, *variables])]

    found, expected = (outputs_and_gradients(each) for each in (conv.run, one_by_one))
    tolerance = 1e-4 if dtype == "float32" else 0.2
    for ours, other in zip(found, expected, strict=True):
        ours, other = (tf.cast(each, tf.float32).numpy() for each in (ours, other))
        assert np.linalg.norm(ours - other) <= tolerance * np.linalg.norm(other)


@pytest.mark.parametrize("normalizer", ["gn", "syncbn", "none"])
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("size", [1, 3])
def test_a_pooled_layer_is_the_layer_and_then_the_pooling(normalizer, relu, size):
    layer = conv.ConvNorm(32, size, normalizer=normalizer, relu=relu)
    machine_plan().give_to(layer)
    inputs = tf.random.stateless_normal([2, 8, 6, 4], [1, 2])
    layer(inputs)
    results = []
    for compute in (
        lambda: conv.run([layer], inputs, training=True, then=pool),
        lambda: pool(layer(inputs, training=True)),
    ):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = compute()
            value = tf.reduce_sum(tf.square(outputs))
        results.append([outputs, *tape.gradient(value, [inputs, *layer.trainable_variables])])
    for found, expected in zip(*results, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def pool(outputs):
    return tf.nn.max_pool2d(outputs, 2, 2, "VALID")


@pytest.mark.parametrize("policy, tolerance", [("float32", 1e-5), ("mixed_bfloat16", 1e-2)])
def test_dense_is_keras_dense(policy, tolerance):
    generator = np.random.default_rng(0)
    inputs = tf.constant(generator.normal(size=[5, 7]), tf.float32)
    ours = conv.Dense(3, "relu", dtype=tf_keras.mixed_precision.Policy(policy))
    plain = tf_keras.layers.Dense(3, "relu")
    ours(inputs), plain(inputs)
    plain.set_weights([ours.kernel.numpy(), np.float32([0.5, -0.5, 0.25])])
    ours.set_weights(plain.get_weights())
    found, expected = [], []
    for layer, values in ((ours, found), (plain, expected)):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = tf.cast(layer(inputs), tf.float32)
            loss = tf.reduce_sum(outputs**2)
        values += [outputs, *tape.gradient(loss, [inputs, *layer.trainable_variables])]
    for value, target in zip(found, expected, strict=True):
        assert value.dtype == tf.float32
        difference = np.linalg.norm(value - target)
        assert difference <= tolerance * np.linalg.norm(target)
