"""How CPUs compute what layers say: the same numbers in less time and memory.

`CpuOperations` takes the place of `ops.operations.Operations` where a plan has a CPU. Each way is
here for a measured reason, which stands beside it; docs/performance.md has the figures.
"""

import ctypes

import tensorflow as tf

from rethink_tf.ops import ordering
from rethink_tf.ops.cpu.convolution import Convolutions
from rethink_tf.ops.group_norm import MAX_ROI_PLACES
from rethink_tf.ops.operations import Operations


class CpuOperations(Operations):
    """Operations for a CPU, whose convolutions are oneDNN's."""

    def __init__(
        self, recomputes, is_ordered=True, has_bfloat16_kernels=True, has_grouped_gradients=True
    ):
        """Takes the plan's choices.

        Args:
            recomputes: bool, as of `Operations`.
            is_ordered: bool, as of `Operations`.
            has_bfloat16_kernels: bool, see `Convolutions`.
            has_grouped_gradients: bool, see `Convolutions`.
        """
        super().__init__(recomputes, is_ordered)
        self._convolutions = Convolutions(has_bfloat16_kernels, has_grouped_gradients)

    def convolve(self, inputs, kernel, strides=1):
        """Convolves; see `Convolutions.convolve`."""
        return self._convolutions.convolve(inputs, kernel, strides)

    def convolution_gradients(self, inputs, kernel, strides, upstream):
        """Returns the gradients of `convolve`; see `Convolutions.gradients`."""
        return self._convolutions.gradients(inputs, kernel, strides, upstream)

    def multiply(self, inputs, kernel):
        """Multiplies [N, C] by [C, K].

        The inputs are let go before their own gradient, which is as large, is made: for 1,024 RoIs
        the box head's are 49 MiB, at the peak of the step.
        """

        @tf.custom_gradient
        def product(inputs, kernel):
            def gradient(upstream):
                d_kernel = tf.matmul(inputs, upstream, transpose_a=True)
                upstream = ordering.run_after(upstream, d_kernel)
                return tf.matmul(upstream, kernel, transpose_b=True), d_kernel

            return tf.matmul(inputs, kernel), gradient

        return product(inputs, tf.convert_to_tensor(kernel))

    def sum_over_places(self, maps, mask=None):
        """Sums by the product of a row of ones and a matrix of places and channels.

        That takes a third of the time of TensorFlow's sum, but for the few places of a RoI, where
        it is slower. Arguments and result are those of `Operations.sum_over_places`.
        """
        places = maps.shape[1:-1].num_elements()
        if mask is None and places is not None and places <= MAX_ROI_PLACES:
            return super().sum_over_places(maps)
        shape = tf.shape(maps)
        if mask is None:
            weights = tf.ones([shape[0], 1, tf.reduce_prod(shape[1:-1])])
        else:
            weights = tf.cast(tf.reshape(mask, [shape[0], 1, -1]), tf.float32)

        def add(values):
            values = tf.reshape(values, [tf.shape(values)[0], -1, values.shape[-1]])
            return tf.matmul(weights, values)

        return add

    def repeat_cells(self, maps):
        """Doubles both sides; the gradient is a pooling, many times as fast as a sum over two axes.

        Argument and result are those of `Operations.repeat_cells`.
        """

        @tf.custom_gradient
        def repeat(maps):
            return (
                super(CpuOperations, self).repeat_cells(maps),
                lambda upstream: 4.0 * tf.nn.avg_pool2d(upstream, 2, 2, "VALID"),
            )

        return repeat(maps)

    def return_memory(self):
        """Gives back what making a graph had needed; the C library keeps it: 160 MB for R50-FPN."""
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
        if trim:
            trim(0)
