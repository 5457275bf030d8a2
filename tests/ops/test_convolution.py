"""Convolutions and their gradients, of every device's operations, against TensorFlow's own."""

import numpy as np
import pytest
import tensorflow as tf
from detector_steps import machine_plan

from rethink_tf.ops import convolution, recomputation
from rethink_tf.ops.cpu import CpuOperations
from rethink_tf.ops.operations import Convolution, Operations

OPERATIONS = {
    "tensorflow": Operations(),
    "cpu": CpuOperations(recomputes=True),
    "cpu without bfloat16": CpuOperations(recomputes=True, has_bfloat16_kernels=False),
}


def plain(inputs, kernel, strides):
    """TensorFlow's convolution, padded as Detectron pads."""
    margin = [(kernel.shape[0] - 1) // 2] * 2
    padded = tf.pad(inputs, [[0, 0], margin, margin, [0, 0]])
    return tf.nn.conv2d(padded, kernel, strides, "VALID")


def by_chain(operations):
    """Returns the convolution as a chain of one part, whose gradients it gives itself."""

    def convolve(inputs, kernel, strides):
        return recomputation.run([Convolution(operations, kernel, strides)], inputs)

    return convolve


def outputs_and_gradients(function, inputs, kernel, strides):
    with tf.GradientTape() as tape:
        tape.watch([inputs, kernel])
        outputs = function(inputs, kernel, strides)
        # A linear function's gradient alone would not tell a wrong upstream gradient.
        value = tf.reduce_sum(tf.square(tf.cast(outputs, tf.float32)))
    return [outputs, *tape.gradient(value, [inputs, kernel])]


@pytest.mark.parametrize(
    ("shape", "size", "filters", "strides", "dtype"),
    [
        ((2, 14, 16, 256), 3, 256, 1, "float32"),  # as products
        ((5, 7, 7, 256), 3, 256, 1, "float32"),
        ((5, 7, 7, 256), 3, 256, 1, "bfloat16"),  # as products
        ((2, 5, 3, 8), 3, 4, 1, "float32"),
        ((2, 5, 6, 8), 3, 4, 2, "float32"),
        ((2, 9, 8, 3), 7, 4, 2, "float32"),
        ((2, 6, 7, 16), 1, 32, 2, "float32"),
        ((2, 6, 7, 8), 1, 4, 1, "bfloat16"),
        ((2, 5, 6, 8), 3, 4, 2, "bfloat16"),
        ((2, 7, 6, 16), 3, 8, 2, "bfloat16"),
    ],
)
@pytest.mark.parametrize("kind", OPERATIONS)
def test_outputs_and_gradients_are_those_of_tensorflow(shape, size, filters, strides, dtype, kind):
    generator = np.random.default_rng(3)

    def draw(*shape):
        return tf.cast(tf.constant(generator.normal(size=shape), tf.float32), dtype)

    inputs, kernel = draw(*shape), draw(size, size, shape[-1], filters)
    compute = tf.function(outputs_and_gradients)
    # The peer is in float32 throughout.
    exact = (tf.cast(each, tf.float32) for each in (inputs, kernel))
    wanted = compute(plain, *exact, strides)
    functions = OPERATIONS[kind].convolve, by_chain(OPERATIONS[kind])
    ours = [each for function in functions for each in compute(function, inputs, kernel, strides)]
    for found, expected in zip(ours, [*wanted, *wanted], strict=True):
        assert found.dtype == dtype and found.shape == expected.shape
        found, expected = tf.cast(found, tf.float32).numpy(), expected.numpy()
        # On some processors TensorFlow's own gradients add bfloat16 in bfloat16.
        in_bfloat16 = 5e-2 if kind == "tensorflow" else 1e-2
        tolerance = in_bfloat16 if dtype == "bfloat16" else 1e-5
        scale = np.abs(expected).max(initial=0)
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize("kind", ["cpu", "cpu without bfloat16"])
@pytest.mark.parametrize("channels", [2, 8])
def test_gradients_of_few_channels_with_a_strided_1x1_kernel(channels, kind):
    """TensorFlow's own write beyond their arrays; the peer convolves the cells that are seen."""

    def plain_of_seen(inputs, kernel, strides):
        return tf.nn.conv2d(inputs[:, ::strides, ::strides], kernel, 1, "VALID")

    inputs = tf.random.stateless_normal([1, 8, 12, channels], [1, 2])
    kernel = tf.random.stateless_normal([1, 1, channels, 8], [3, 4])
    expected = outputs_and_gradients(plain_of_seen, inputs, kernel, 2)
    for function in (OPERATIONS[kind].convolve, by_chain(OPERATIONS[kind])):
        # Many times: what is written beyond an array kills the process now and then only.
        for _ in range(50):
            found = outputs_and_gradients(function, inputs, kernel, 2)
        for each, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(each, other, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("shape", "groups", "filters", "strides"),
    [
        ((2, 9, 8, 64), 16, 64, 1),
        ((2, 9, 8, 64), 16, 64, 2),
        ((2, 5, 6, 12), 3, 24, 2),
        ((70, 7, 7, 256), 2, 256, 1),  # would be taken as spectra, and without groups as products
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("by_group", [False, True])
@pytest.mark.parametrize("compiled", [False, True])
def test_groups_are_blocks_of_a_dense_kernel(
    shape, groups, filters, strides, dtype, by_group, compiled
):
    """With TensorFlow's gradients, and as where there are none, as without oneDNN."""
    plan = machine_plan(precision="mixed_bfloat16" if dtype == "bfloat16" else "float32")
    has_gradients = plan.has_grouped_gradients and not by_group
    operations = CpuOperations(True, True, plan.has_bfloat16_kernels, has_gradients)
    generator = np.random.default_rng(3)
    inputs = tf.constant(generator.normal(size=shape), dtype)
    kernel = tf.constant(generator.normal(size=(3, 3, shape[-1] // groups, filters)), dtype)
    blocks = np.zeros((3, 3, groups, shape[-1] // groups, groups, filters // groups), np.float32)
    parts = tf.cast(kernel, tf.float32).numpy().reshape(*blocks.shape[:2], *blocks.shape[3:])
    own = np.arange(groups)
    blocks[:, :, own, :, own] = np.einsum("rscgk->grsck", parts)
    dense = tf.reshape(blocks, [3, 3, shape[-1], filters])
    compute = tf.function(outputs_and_gradients) if compiled else outputs_and_gradients
    outputs, d_inputs, d_kernel = compute(operations.convolve, inputs, kernel, strides)
    exact = outputs_and_gradients(plain, tf.cast(inputs, tf.float32), dense, strides)
    d_dense = exact[2].numpy().reshape(blocks.shape)
    expected = np.einsum("grsck->rscgk", d_dense[:, :, own, :, own]).reshape(kernel.shape)
    for found, other in zip((outputs, d_inputs, d_kernel), (*exact[:2], expected), strict=True):
        assert found.dtype == dtype and found.shape == other.shape
        found, other = tf.cast(found, tf.float32).numpy(), np.asarray(other)
        tolerance = 2e-2 if dtype == "bfloat16" else 1e-5
        np.testing.assert_allclose(found, other, tolerance, tolerance * np.abs(other).max())


@pytest.mark.parametrize("kind", OPERATIONS)
@pytest.mark.parametrize("strides", [1, 2])
def test_the_size_of_the_inputs_may_be_unknown(strides, kind):
    inputs = tf.random.stateless_normal([1, 15, 17, 256], [1, 2])
    kernel = tf.random.stateless_normal([3, 3, 256, 256], [3, 4])
    compute = tf.function(
        lambda inputs: outputs_and_gradients(by_chain(OPERATIONS[kind]), inputs, kernel, strides),
        input_signature=[tf.TensorSpec([None, None, None, 256])],
    )
    expected = outputs_and_gradients(plain, inputs, kernel, strides)
    for found, other in zip(compute(inputs), expected, strict=True):
        np.testing.assert_allclose(found, other, rtol=1e-4, atol=1e-4 * np.abs(other).max())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_doubling_is_a_deconvolution(dtype):
    generator = np.random.default_rng(1)
    shapes = [2, 5, 4, 6], [2, 2, 3, 6], [3]
    drawn = (tf.cast(generator.normal(size=shape), dtype) for shape in shapes)
    inputs, kernel, bias = drawn

    def plain(inputs, kernel, bias):
        outputs = tf.nn.conv2d_transpose(inputs, kernel, [2, 10, 8, 3], 2, "VALID")
        return outputs + bias

    def ours(inputs, kernel, bias):
        cells = convolution.double(inputs, kernel, bias)
        return tf.nn.depth_to_space(tf.reshape(cells, [2, 5, 4, 12]), 2)

    results = []
    for compute in (ours, plain):
        with tf.GradientTape() as tape:
            tape.watch([inputs, kernel, bias])
            outputs = compute(inputs, kernel, bias)
            value = tf.reduce_sum(tf.square(tf.cast(outputs, tf.float32)))
        results.append([outputs, *tape.gradient(value, [inputs, kernel, bias])])
    for found, expected in zip(*results, strict=True):
        found, expected = (tf.cast(each, tf.float32).numpy() for each in (found, expected))
        tolerance = 1e-5 if dtype == "float32" else 2e-2
        np.testing.assert_allclose(found, expected, tolerance, tolerance * np.abs(expected).max())
