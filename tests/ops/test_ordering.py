"""Order changes when things run, not what they are."""

import numpy as np
import pytest
import tensorflow as tf

from rethink_tf.ops import ordering


def test_parts_in_turn_keep_their_values_and_gradients():
    first, second = tf.constant(2.0), tf.constant(5.0)
    with tf.GradientTape() as tape:
        tape.watch([first, second])
        one, two = ordering.order_backward(3.0 * first, second)
        total = one + 7.0 * two
    assert float(total) == 41.0
    assert [float(each) for each in tape.gradient(total, [first, second])] == [3.0, 7.0]


@pytest.mark.parametrize("num_rows", [1, 3, 6, 7, 10])
def test_parts_of_rows_give_what_all_of_them_do(num_rows):
    first, second = tf.reshape(tf.range(14.0), [7, 2]), tf.ones([7, 2])
    found = ordering.in_parts(lambda a, b: tf.square(a) + b, num_rows, first, second)
    np.testing.assert_array_equal(found, np.square(first) + 1.0)
