"""The maximum for XLA: TensorFlow's own values and gradients, to the bit, ties included."""

import numpy as np
import pytest
import tensorflow as tf

from rethink_tf.ops import pooling
from rethink_tf.ops.operations import Operations


@pytest.mark.parametrize("shape", [(2, 9, 11, 3), (1, 10, 12, 4)])
@pytest.mark.parametrize("jit_compile", [None, True])
def test_values_and_gradients_are_tensorflows(shape, jit_compile):
    generator = np.random.default_rng(0)
    maps = tf.constant(generator.integers(-2, 2, shape), tf.float32)  # many are equal
    fused = tf.function(Operations(is_fused=True).max_pool, jit_compile=jit_compile)
    results = []
    for function in (fused, Operations().max_pool):
        with tf.GradientTape() as tape:
            tape.watch(maps)
            pooled = function(maps)
            upstream = tf.reshape(tf.range(tf.size(pooled), dtype=tf.float32), tf.shape(pooled))
            total = tf.reduce_sum(pooled * upstream)
        results.append((pooled, tape.gradient(total, maps)))
    for found, expected in zip(*results, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_halves_keep_their_type():
    maps = tf.cast(tf.random.stateless_normal([1, 5, 5, 2], [1, 2]), tf.bfloat16)
    with tf.GradientTape() as tape:
        tape.watch(maps)
        pooled = pooling.max_pool(maps)
    assert pooled.dtype == tape.gradient(pooled, maps).dtype == tf.bfloat16
