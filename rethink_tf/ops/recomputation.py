"""Chains of differentiable parts that keep nothing between the parts for the backward pass.

A step holds activations from the forward to the backward pass: they are most of its memory. What is
cheap to compute again need not be held.
"""

import tensorflow as tf

from rethink_tf.ops import ordering


class Part:
    """A differentiable function of one tensor, without variables and state.

    Attributes:
        tensors: floating tensors that the function holds and has gradients for.
    """

    def __init__(self, *tensors):
        """Takes the tensors, or variables of their values."""
        # `custom_gradient` does not take the variables of every distribution strategy.
        self.tensors = [tf.convert_to_tensor(each) for each in tensors]

    def __call__(self, inputs):
        """Returns the value for an input, for a tape to differentiate."""
        return self.apply(inputs)

    def apply(self, inputs):
        """Returns the value for an input; may note what is small, such as statistics."""
        raise NotImplementedError

    def again(self, inputs):
        """Returns the value for the same input as before, which was computed again."""
        return self.apply(inputs)

    def gradients(self, inputs, outputs, upstream):
        """Returns the gradients of the input and of the tensors.

        Args:
            inputs: of `apply`.
            outputs: what it returned.
            upstream: gradient of these.
        """
        raise NotImplementedError


class Function(Part):
    """A part of which nothing is known: its gradients are those of a tape."""

    def __init__(self, function, *tensors):
        """Takes a callable of the input and the tensors, which returns one tensor."""
        super().__init__(*tensors)
        self._function = function

    def apply(self, inputs):
        """Returns the function's value."""
        return self._function(inputs, *self.tensors)

    def gradients(self, inputs, outputs, upstream):
        """Runs the function again, under a tape; arguments as of `Part.gradients`."""
        del outputs
        sources = [inputs, *self.tensors]
        with tf.GradientTape() as tape:
            tape.watch(sources)
            outputs = self._function(*sources)
        return tape.gradient(outputs, sources, upstream)


def run(parts, inputs):
    """Applies parts one after the other; of all that they compute the last value alone is kept.

    The backward pass computes the others again.

    Args:
        parts: list of `Part`.
        inputs: floating.

    Returns:
        The last part's value.
    """

    @tf.custom_gradient
    def compute(inputs, *_):
        outputs = inputs
        for part in parts:
            outputs = part.apply(outputs)

        def gradient(upstream):
            # Not before the backward pass gets here: the copies would be held from the start.
            values = [ordering.run_after(inputs, upstream)]
            for part in parts[:-1]:
                values.append(part.again(values[-1]))
            values.append(outputs)
            of_tensors = []
            for index in reversed(range(len(parts))):
                # From the last part to the first, as a tape would go.
                upstream, *own = parts[index].gradients(*values[index : index + 2], upstream)
                of_tensors[:0] = own
            return upstream, *of_tensors

        return outputs, gradient

    return compute(inputs, *(each for part in parts for each in part.tensors))
