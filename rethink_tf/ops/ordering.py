"""Sets the order in which parts of a graph run, to bound the memory of their buffers.

TensorFlow starts every operation as soon as its inputs are there, and holds the results until they
are used. Operations that could run in parallel are put one after the other here.
"""

import tensorflow as tf
from tensorflow.compiler.tf2xla.ops.gen_xla_ops import xla_optimization_barrier


def run_after(values, *before):
    """Returns the values once the other tensors are computed; copies nothing.

    Args:
        values: tensor.
        *before: tensors.

    Returns:
        The values.
    """
    with tf.control_dependencies(before):
        return tf.identity(values)


@tf.custom_gradient
def order_backward(outputs, inputs):
    """Runs a part of the model after another one, and its backward pass before the other's.

    In parallel, both would hold their temporary buffers at the same time.

    Args:
        outputs: tensor, of the part that comes first.
        inputs: tensor, of the part that comes second.

    Returns:
        The two.
    """

    def gradient(d_outputs, d_inputs):
        return run_after(d_outputs, d_inputs), d_inputs

    return (tf.identity(outputs), run_after(inputs, outputs)), gradient


@tf.custom_gradient
def gradient_once(values):
    """Returns the values, whose gradient XLA computes and writes once.

    XLA computes an element again in each of its uses where that looks cheap. A sum of several large
    gradients, each part of which goes elsewhere, is then read as often as there are parts.

    Args:
        values: tensor of a program that XLA compiles.
    """
    return tf.identity(values), lambda upstream: xla_optimization_barrier([upstream])[0]


def in_parts(function, num_rows, *inputs):
    """Applies a function to some rows at a time, one part after the other.

    Args:
        function: callable taking a part of each of the inputs, [r, ...], returns [r, ...].
        num_rows: int, of a part; the last may be smaller.
        *inputs: [R, ...]; where R is not static, all rows are one part.

    Returns:
        [R, ...], the results of all parts.
    """
    count = inputs[0].shape[0]
    if count is None or count <= num_rows:
        return function(*inputs)
    sizes = [min(num_rows, count - start) for start in range(0, count, num_rows)]
    outputs = []
    for parts in zip(*(tf.split(each, sizes) for each in inputs), strict=True):
        outputs.append(function(*(run_after(part, *outputs[-1:]) for part in parts)))
    return tf.concat(outputs, axis=0)
