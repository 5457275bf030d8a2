"""What layers compute with: TensorFlow's own operations, unless the run's plan says otherwise.

A layer says what it computes and holds an `Operations`; `execution.ExecutionPlan` gives the one
that suits the device to every layer of a detector. The numbers are the same but for rounding.
`ops.cpu` has the ways of CPUs.

Letters: B images, H x W cells, C channels.
"""

import tensorflow as tf

from rethink_tf.ops import convolution, ordering, pooling, recomputation


class Operations:
    """TensorFlow's own, which XLA and GPUs have kernels for."""

    def __init__(self, recomputes=False, is_ordered=False, is_fused=False):
        """Takes the plan's choices.

        Args:
            recomputes: bool, whether what is cheap is computed again for the backward pass, and not
                kept.
            is_ordered: bool, whether parts of the model that could run side by side run one after
                the other, so that their temporary buffers are not there at the same time.
            is_fused: bool, whether XLA compiles them, which reads an array once for all that is
                computed of it, element by element or as sums.
        """
        self._recomputes, self._is_ordered = recomputes, is_ordered
        self.is_fused = is_fused

    def convolve(self, inputs, kernel, strides=1):
        """Convolves; see `convolution.convolve`."""
        return convolution.convolve(inputs, kernel, strides)

    def convolution_gradients(self, inputs, kernel, strides, upstream):
        """Returns the gradients of `convolve`; see `convolution.gradients`."""
        return convolution.gradients(inputs, kernel, strides, upstream)

    def multiply(self, inputs, kernel):
        """Returns the product [N, K] of [N, C] and [C, K]."""
        return tf.matmul(inputs, kernel)

    def sum_over_places(self, maps, mask=None):
        """Returns a function that sums each channel over the places of an image.

        Args:
            maps: floating [B, ..., C], of the shape that will be summed.
            mask: floating [B, ..., 1], 1 for places that count, 0 for others; None where all count.

        Returns:
            callable, float32 [B, ..., C] -> float32 [B, C] or [B, 1, C].
        """
        axes = list(range(1, maps.shape.rank - 1))
        if mask is None:
            return lambda values: tf.reduce_sum(values, axes)
        return lambda values: tf.reduce_sum(values * tf.cast(mask, values.dtype), axes)

    def max_pool(self, maps):
        """Returns the maximum of 3x3 cells, every second one; see `pooling`."""
        return pooling.max_pool(maps) if self.is_fused else tf.nn.max_pool2d(maps, 3, 2, "VALID")

    def weigh_channels(self, maps, weights):
        """Returns the sums over channels of [N, ..., C] weighted by [N, C]: [N, ...]."""
        if not self.is_fused:
            return tf.einsum("n...c,nc->n...", maps, weights)
        # A product of matrices would have the maps turned in memory, and written.
        shape = [tf.shape(maps)[0], *[1] * (maps.shape.rank - 2), maps.shape[-1]]
        products = tf.cast(maps * tf.reshape(weights, shape), tf.float32)
        return tf.cast(tf.reduce_sum(products, axis=-1), maps.dtype)

    def repeat_cells(self, maps):
        """Doubles both sides of [B, H, W, C] by repeating each cell: [B, 2 H, 2 W, C]."""
        batch, height, width, channels = tf.unstack(tf.shape(maps))
        # By reshaping: TensorFlow Lite has no slice of six axes, which new axes are.
        cells = tf.reshape(maps, [batch, height, 1, width, 1, channels])
        cells = tf.broadcast_to(cells, [batch, height, 2, width, 2, channels])
        static = maps.shape
        sides = [None if side is None else 2 * side for side in static[1:3]]
        cells = tf.reshape(cells, [batch, 2 * height, 2 * width, channels])
        return tf.ensure_shape(cells, [static[0], *sides, static[3]])

    def chain(self, parts, inputs):
        """Applies `recomputation.Part`s one after the other.

        The plan says whether what lies between them is kept for the backward pass.
        """
        if self._recomputes:
            return recomputation.run(parts, inputs)
        for part in parts:
            inputs = part(inputs)
        return inputs

    def one_at_a_time(self, outputs, inputs):
        """Returns the outputs of one part of the model and the inputs of another.

        Where the plan orders them, the other runs after the one, and back before it; see
        `ordering.order_backward`.
        """
        return ordering.order_backward(outputs, inputs) if self._is_ordered else (outputs, inputs)

    def return_memory(self):
        """Gives back to the system what is free in this process, where it is worth it."""


class Convolution(recomputation.Part):
    """A convolution as a part of a chain."""

    def __init__(self, operations, kernel, strides=1):
        """Takes the `Operations` and the arguments of `convolution.convolve`."""
        super().__init__(kernel)
        (self._kernel,) = self.tensors
        self._operations, self._strides = operations, strides

    def apply(self, inputs):
        """Returns the convolution's outputs."""
        return self._operations.convolve(inputs, self._kernel, self._strides)

    def gradients(self, inputs, outputs, upstream):
        """Returns the gradients of the inputs and the kernel."""
        del outputs
        return self._operations.convolution_gradients(inputs, self._kernel, self._strides, upstream)
