"""When parts of a graph run.

TensorFlow starts everything that has its inputs, and holds the results until they are needed.
"""

import tensorflow as tf


def late(values, *before):
    """Returns the values, but not before the other tensors are there; copies nothing.

    Args:
        values: tensor.
        *before: tensors.

    Returns:
        The values.
    """
    with tf.control_dependencies(before):
        return tf.identity(values)


@tf.custom_gradient
def in_turn(outputs, inputs):
    """Runs a part of the model after another one, and its backward pass before the other's.

    Side by side, both would hold what they need for a while only.

    Args:
        outputs: tensor, of the part that comes first.
        inputs: tensor, of the part that comes second.

    Returns:
        The two.
    """

    def gradient(d_outputs, d_inputs):
        return late(d_outputs, d_inputs), d_inputs

    return (tf.identity(outputs), tf.identity(inputs)), gradient
