"""Convolutions with gradients that save time and memory, where oneDNN computes them.

Those of RoIs go by `fourier`, in half the time. Else:

The gradient of the inputs. With stride 1 it is a convolution itself, with the kernel turned and its
channels exchanged, and as such up to twice as fast as by oneDNN's own backward kernel.

The gradient of the kernel. Where oneDNN has no fast kernel for it, nine matrix products, one for
each place of a 3x3 kernel, run at twice its rate.

bfloat16 on processors without AVX-512. float32 takes its place in gradients, which have no kernels,
and in spectra: as fast, and with a tenth of the error (0.17 % in place of 1.7).

Groups. oneDNN computes grouped convolutions and their gradients many times as fast as the dense
convolution of as many channels. TensorFlow's kernels without oneDNN have no such gradients; there
each group is a convolution of its own.

Copies of the inputs (padded, shifted) are made anew for the backward pass and only when it gets
there. TensorFlow would make them as soon as the inputs exist, and hold them all the while; that is
what `ordering.run_after` prevents.

Arguments and results are those of `ops.convolution`.
"""

import dataclasses

import tensorflow as tf

from rethink_tf.ops import convolution, ordering
from rethink_tf.ops.cpu import fourier

# Below it, copying the shifted inputs costs more than the products save.
MIN_CHANNELS = 256
# In float32 the library's kernel is faster on the 7 x 7 cells of a RoI.
MIN_WIDTH_FLOAT32 = 14
# Largest side of the maps that `fourier` transforms: those of RoIs.
MAX_FOURIER_SIDE = 14
# With fewer maps, the transform of the kernel costs more than the spectra save.
MIN_FOURIER_MAPS = 64
MIN_FOURIER_CHANNELS = 128
# With fewer, oneDNN's gradients of a 1x1 kernel with stride 2 write beyond their arrays (TensorFlow
# 2.20): the process dies, there or later. Seen with 2 and 8 channels, not with 16, 24 and 32.
MIN_STRIDED_CHANNELS = 16


@dataclasses.dataclass(frozen=True)
class Convolutions:
    """The convolutions of a processor.

    Attributes:
        has_bfloat16_kernels: bool, whether oneDNN has kernels of bfloat16. Its reference for
            gradients, which it takes elsewhere, runs at a twentieth of the rate of float32, and
            matrix products add in bfloat16.
        has_grouped_gradients: bool, whether TensorFlow's gradients take groups.
    """

    has_bfloat16_kernels: bool = True
    has_grouped_gradients: bool = True

    def convolve(self, inputs, kernel, strides=1):
        """Convolves; see `ops.convolution.convolve`."""

        @tf.custom_gradient
        def compute(inputs, kernel):
            def gradient(upstream):
                return self.gradients(inputs, kernel, strides, upstream)

            if _spectra_are_faster(inputs, kernel, strides):
                return self._exactly(fourier.convolve, inputs, kernel), gradient
            return convolution.convolve(inputs, kernel, strides), gradient

        return compute(inputs, tf.convert_to_tensor(kernel))

    def gradients(self, inputs, kernel, strides, upstream):
        """Returns the gradients of `convolve`; see `ops.convolution.gradients`."""
        groups = _groups(inputs, kernel)
        if groups > 1 and not self.has_grouped_gradients:
            return self._gradients_by_group(inputs, kernel, strides, upstream, groups)
        inputs = ordering.run_after(inputs, upstream)
        if strides > 1 and tuple(kernel.shape[:2]) == (1, 1):
            if min(kernel.shape[2:]) < MIN_STRIDED_CHANNELS:
                return self._gradients_of_seen_cells(inputs, kernel, strides, upstream)
        if _spectra_are_faster(inputs, kernel, strides):
            return self._exactly(fourier.gradients, inputs, kernel, upstream)
        padded = convolution.pad(inputs, kernel, strides)
        if strides == 1 and self._products_are_faster(inputs, kernel):
            d_kernel = _sum_of_products(padded, upstream)
        else:
            d_kernel = self._exactly(convolution.kernel_gradient, padded, kernel, strides, upstream)
        # Before the backward pass goes on: it may run ahead, and all that this needs would be held.
        upstream = ordering.run_after(upstream, d_kernel)
        if strides == 1 and groups == 1:
            kernel = ordering.run_after(kernel, upstream)
            turned = tf.transpose(tf.reverse(kernel, [0, 1]), [0, 1, 3, 2])
            d_inputs = tf.nn.conv2d(upstream, turned, 1, "SAME")
        else:
            shape = tf.shape(inputs)
            d_inputs = self._exactly(convolution.input_gradient, shape, kernel, strides, upstream)
        return tf.ensure_shape(d_inputs, inputs.shape), tf.ensure_shape(d_kernel, kernel.shape)

    def _gradients_of_seen_cells(self, inputs, kernel, strides, upstream):
        """As `gradients`, of a 1x1 kernel, from those with stride 1 of the cells that it sees."""
        seen = inputs[:, ::strides, ::strides]
        d_seen, d_kernel = self.gradients(seen, kernel, 1, upstream)
        d_inputs = tf.raw_ops.StridedSliceGrad(
            shape=tf.shape(inputs),
            begin=[0] * 4,
            end=[0] * 4,
            strides=[1, strides, strides, 1],
            dy=d_seen,
            begin_mask=0b1111,
            end_mask=0b1111,
        )
        return tf.ensure_shape(d_inputs, inputs.shape), d_kernel

    def _gradients_by_group(self, inputs, kernel, strides, upstream, groups):
        """As `gradients`, from those of each group's own convolution."""
        parts = (tf.split(each, groups, axis=-1) for each in (inputs, kernel, upstream))
        results = [
            self.gradients(part, part_kernel, strides, d_outputs)
            for part, part_kernel, d_outputs in zip(*parts, strict=True)
        ]
        d_inputs, d_kernel = zip(*results, strict=True)
        return tf.concat(d_inputs, axis=-1), tf.concat(d_kernel, axis=-1)

    def _exactly(self, function, *arguments):
        """Calls a function, with float32 in place of a half that has no kernels."""
        slow = [tf.float16] if self.has_bfloat16_kernels else [tf.float16, tf.bfloat16]
        halves = [tf.is_tensor(each) and each.dtype in slow for each in arguments]
        if not any(halves):
            return function(*arguments)
        dtype = arguments[halves.index(True)].dtype
        results = function(
            *(
                tf.cast(each, tf.float32) if is_half else each
                for each, is_half in zip(arguments, halves, strict=True)
            )
        )
        return tf.nest.map_structure(lambda each: tf.cast(each, dtype), results)

    def _products_are_faster(self, inputs, kernel):
        """Tells whether the kernel's gradient is to be taken by matrix products."""
        if tuple(kernel.shape[:2]) != (3, 3) or min(kernel.shape[2:]) < MIN_CHANNELS:
            return False
        if _groups(inputs, kernel) > 1:
            return False
        if inputs.dtype != tf.float32:
            return inputs.dtype == tf.bfloat16 and self.has_bfloat16_kernels
        return inputs.shape[2] is None or inputs.shape[2] >= MIN_WIDTH_FLOAT32


def _groups(inputs, kernel):
    return inputs.shape[-1] // kernel.shape[2]


def _spectra_are_faster(inputs, kernel, strides):
    """Tells whether the convolution and its gradients are to be taken by `fourier`."""
    if strides != 1 or tuple(kernel.shape[:2]) != (3, 3) or _groups(inputs, kernel) > 1:
        return False
    count, height, width, _ = inputs.shape
    return (
        height == width
        and (width or MAX_FOURIER_SIDE + 1) <= MAX_FOURIER_SIDE
        and (count or MIN_FOURIER_MAPS) >= MIN_FOURIER_MAPS
        and min(kernel.shape[2:]) >= MIN_FOURIER_CHANNELS
    )


def _sum_of_products(inputs, upstream):
    """Returns the sum over all cells of the products of shifted inputs and the upstream gradient.

    Args:
        inputs: [B, H, W, C].
        upstream: [B, H, W, K].

    Returns:
        [3, 3, C, K].
    """
    height, width = inputs.shape[1:3]
    if height is None or width is None:
        height, width = tf.unstack(tf.shape(inputs)[1:3])
    channels, filters = inputs.shape[-1], upstream.shape[-1]
    padded = tf.pad(inputs, [[0, 0], [1, 1], [1, 1], [0, 0]])
    upstream = tf.reshape(upstream, [-1, filters])
    products = []
    for row in range(3):
        for column in range(3):
            # One after the other, so that nine copies need not be held at once.
            with tf.control_dependencies(products[-1:]):
                shifted = tf.slice(padded, [0, row, column, 0], [-1, height, width, -1])
            shifted = tf.reshape(shifted, [-1, channels])
            products.append(tf.matmul(shifted, upstream, transpose_a=True))
    return tf.reshape(tf.stack(products), [3, 3, channels, filters])
