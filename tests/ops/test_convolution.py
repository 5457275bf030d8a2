"""The 3x3 convolution of many channels against TensorFlow's own."""

import numpy as np
import pytest
import tensorflow as tf

from rethink_tf.ops import convolution


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((2, 14, 16, 256), "float32"),
        ((5, 7, 7, 256), "bfloat16"),
        ((0, 7, 7, 256), "bfloat16"),
        ((2, 5, 3, 8), "float32"),
    ],
)
def test_outputs_and_gradients_are_those_of_tensorflow(shape, dtype):
    generator = np.random.default_rng(3)
    inputs, upstream = (
        tf.cast(tf.constant(generator.normal(size=shape), tf.float32), dtype) for _ in range(2)
    )
    kernel = tf.constant(generator.normal(size=[3, 3, shape[3], shape[3]]), tf.float32)
    kernel = tf.cast(kernel, dtype)

    @tf.function
    def outputs_and_gradients(inputs, kernel, plain):
        with tf.GradientTape() as tape:
            tape.watch([inputs, kernel])
            if plain:
                outputs = tf.nn.conv2d(inputs, kernel, 1, "SAME")
            else:
                outputs = convolution.conv2d_3x3(inputs, kernel)
        return [outputs, *tape.gradient(outputs, [inputs, kernel], upstream)]

    ours = outputs_and_gradients(inputs, kernel, False)
    for found, expected in zip(ours, outputs_and_gradients(inputs, kernel, True), strict=True):
        assert found.dtype == dtype and found.shape == expected.shape
        found, expected = (tf.cast(each, tf.float32).numpy() for each in (found, expected))
        # Both add in float32; the result is rounded once.
        tolerance = 1e-2 if dtype == "bfloat16" else 1e-5
        scale = np.abs(expected).max(initial=0)
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance * scale)


def test_the_size_of_the_inputs_may_be_unknown():
    inputs = tf.random.stateless_normal([1, 15, 17, 256], [1, 2])
    kernel = tf.random.stateless_normal([3, 3, 256, 256], [3, 4])

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 256])])
    def gradient(inputs):
        with tf.GradientTape() as tape:
            tape.watch(kernel)
            outputs = convolution.conv2d_3x3(inputs, kernel)
        return tape.gradient(outputs, kernel)

    with tf.GradientTape() as tape:
        tape.watch(kernel)
        outputs = tf.nn.conv2d(inputs, kernel, 1, "SAME")
    expected = tape.gradient(outputs, kernel)
    np.testing.assert_allclose(gradient(inputs), expected, rtol=1e-4, atol=1e-3)
