"""Chains of parts have the values and gradients of the functions, and keep nothing between them."""

import numpy as np
import pytest
import tensorflow as tf

from rethink_tf.ops import recomputation
from rethink_tf.ops.operations import Operations


def scale(x, factor):
    return tf.sin(x * factor)


def add(x, first, second):
    return x * first + second**2


def outputs_and_gradients(function, values):
    with tf.GradientTape() as tape:
        tape.watch(values)
        outputs = function(*values)
        total = tf.reduce_sum(outputs**2)
    return [outputs, *tape.gradient(total, values)]


@pytest.mark.parametrize("recomputes", [False, True])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_chain_has_the_values_and_gradients_of_its_functions(recomputes, compiled):
    values = [tf.constant([1.0, 2.0, -3.0]), *map(tf.constant, (0.5, [4.0, 2.0, 1.0], 3.0))]

    def plain(x, factor, first, second):
        return scale(add(scale(x, factor), first, second), factor)

    def chained(x, factor, first, second):
        one = recomputation.Function(scale, factor)
        two = recomputation.Function(add, first, second)
        three = recomputation.Function(scale, factor)
        return Operations(recomputes).chain([one, two, three], x)

    compute = tf.function(outputs_and_gradients) if compiled else outputs_and_gradients
    for found, expected in zip(
        compute(chained, values), outputs_and_gradients(plain, values), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_what_lies_between_is_computed_again():
    """And only where it is asked for."""
    calls = []

    def count(x):
        calls.append(x)
        return tf.exp(x)

    def run(recomputes):
        calls.clear()
        parts = [recomputation.Function(count), recomputation.Function(tf.sin)]
        outputs_and_gradients(lambda x: Operations(recomputes).chain(parts, x), [tf.ones([3])])
        return len(calls)

    # Once forward, once again, and once under the tape of its own gradient.
    assert (run(False), run(True)) == (1, 3)


def test_variables_of_replicas_are_taken(two_replicas):
    with two_replicas.scope():
        factor = tf.Variable(2.0)

    @tf.function
    def gradient():
        def on_one_replica():
            with tf.GradientTape() as tape:
                part = recomputation.Function(scale, factor)
                value = Operations(recomputes=True).chain([part], tf.constant(0.25))
            return tape.gradient(value, factor)

        return two_replicas.run(on_one_replica)

    for found in two_replicas.experimental_local_results(gradient()):
        assert float(found) == pytest.approx(0.25 * np.cos(0.5))
