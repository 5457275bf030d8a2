"""Convolutions with gradients that save time and memory on CPUs, where oneDNN computes them.

Those of RoIs go by `fourier`, in half the time. Else:

The gradient of the inputs. With stride 1 it is a convolution itself, with the kernel turned and its
channels exchanged, and as such up to twice as fast as by oneDNN's own backward kernel.

The gradient of the kernel. Where oneDNN has no fast kernel for it, nine matrix products, one for
each place of a 3x3 kernel, run at twice its rate. Where it has none at all, as for bfloat16 on
processors without AVX-512, float32 does.

Groups. oneDNN computes grouped convolutions and their gradients many times as fast as the dense
convolution of as many channels. TensorFlow's kernels without oneDNN have no such gradients; there
each group is a convolution of its own.

Copies of the inputs (padded, shifted) are made anew for the backward pass and only when it gets
there. TensorFlow would make them as soon as the inputs exist, and hold them all the while; that is
what `ordering.run_after` prevents.
"""

import functools
import pathlib

import tensorflow as tf

from rethink_tf.ops import devices, fourier, ordering

# Below it, copying the shifted inputs costs more than the products save.
MIN_CHANNELS = 256
# In float32 the library's kernel is faster on the 7 x 7 cells of a RoI.
MIN_WIDTH_FLOAT32 = 14
# Of the maps that `fourier` takes: those of RoIs.
MAX_FOURIER_SIDE = 14
# Of these there must be enough for the kernel's transform not to count.
MIN_FOURIER_MAPS = 64
MIN_FOURIER_CHANNELS = 128
# Features of x86 and ARM processors on which oneDNN has kernels for gradients in bfloat16; its
# reference, which it takes elsewhere, runs at a twentieth of the rate of float32.
BFLOAT16_FEATURES = {"avx512bw", "bf16"}


def convolve(inputs, kernel, strides=1):
    """Convolves, padded by (size - 1) / 2 on every side.

    Args:
        inputs: floating [B, H, W, C].
        kernel: [S, S, C / G, K], the same dtype; S odd and static. With G > 1 groups, each K / G
            filters in turn see the C / G channels of their own group alone.
        strides: int.

    Returns:
        [B, ceil(H / strides), ceil(W / strides), K].
    """

    @tf.custom_gradient
    def convolution(inputs, kernel):
        def gradient(upstream):
            return gradients(inputs, kernel, strides, upstream)

        if _spectra_are_faster(inputs, kernel, strides):
            return fourier.convolve(inputs, kernel), gradient
        padded = _pad(inputs, kernel, strides)
        return tf.nn.conv2d(padded, kernel, strides, _padding(strides)), gradient

    return convolution(inputs, tf.convert_to_tensor(kernel))


def gradients(inputs, kernel, strides, upstream):
    """Returns the gradients of `convolve` with respect to the inputs and the kernel.

    Args:
        inputs: floating [B, H, W, C].
        kernel: [S, S, C / G, K].
        strides: int.
        upstream: gradient of the outputs.

    Returns:
        [B, H, W, C] and [S, S, C / G, K].
    """
    groups = _groups(inputs, kernel)
    if groups > 1 and _on_cpu() and not _has_grouped_gradients(_gradient_dtype(upstream.dtype)):
        return _gradients_by_group(inputs, kernel, strides, upstream, groups)
    inputs = ordering.run_after(inputs, upstream)
    if _spectra_are_faster(inputs, kernel, strides):
        return fourier.gradients(inputs, kernel, upstream)
    padded = _pad(inputs, kernel, strides)
    if strides == 1 and _products_are_faster(inputs, kernel):
        d_kernel = _kernel_gradient(padded, upstream)
    else:
        d_kernel = _backward(tf.raw_ops.Conv2DBackpropFilter, strides, upstream)(
            input=padded, filter_sizes=tf.shape(kernel)
        )
    # Before the backward pass goes on: it may run ahead, and all that this needs would be held.
    upstream = ordering.run_after(upstream, d_kernel)
    if strides == 1 and groups == 1 and _on_cpu():
        turned = tf.transpose(
            tf.reverse(ordering.run_after(kernel, upstream), [0, 1]), [0, 1, 3, 2]
        )
        d_inputs = tf.nn.conv2d(upstream, turned, 1, "SAME")
    else:
        d_inputs = _backward(tf.raw_ops.Conv2DBackpropInput, strides, upstream)(
            input_sizes=tf.shape(padded), filter=kernel
        )
        margin = _margin(kernel, strides)
        if margin:
            height, width = tf.unstack(tf.shape(inputs)[1:3])
            d_inputs = d_inputs[:, margin : margin + height, margin : margin + width]
    return tf.ensure_shape(d_inputs, inputs.shape), tf.ensure_shape(d_kernel, kernel.shape)


@tf.custom_gradient
def multiply(inputs, kernel):
    """Multiplies; the inputs are let go before their own gradient, which is as large, is made.

    Args:
        inputs: floating [N, C].
        kernel: [C, K], the same dtype.

    Returns:
        [N, K].
    """

    def gradient(upstream):
        d_kernel = tf.matmul(inputs, upstream, transpose_a=True)
        upstream = ordering.run_after(upstream, d_kernel)
        return tf.matmul(upstream, kernel, transpose_b=True), d_kernel

    return tf.matmul(inputs, kernel), gradient


def double(inputs, kernel, bias):
    """Doubles both sides by a 2x2 deconvolution of stride 2.

    Its windows do not overlap, so that it is one matrix product. The four outputs of a cell stay
    beside each other: what follows may be less to lay out than they are.

    Args:
        inputs: floating [B, H, W, C]; H, W and C static.
        kernel: [2, 2, K, C], the same dtype.
        bias: [K], the same dtype.

    Returns:
        [B, H, W, 4, K]: `tf.nn.depth_to_space(outputs, 2)`, the last two axes joined, is what
        Keras' Conv2DTranspose returns, [B, 2 H, 2 W, K].
    """
    height, width, channels = inputs.shape[1:]
    kernel = tf.reshape(tf.transpose(kernel, [3, 0, 1, 2]), [channels, -1])
    outputs = tf.matmul(tf.reshape(inputs, [-1, channels]), kernel)
    return tf.reshape(outputs, [-1, height, width, 4, bias.shape[0]]) + bias


def _gradients_by_group(inputs, kernel, strides, upstream, groups):
    """As `gradients`, from those of each group's own convolution."""
    parts = (tf.split(each, groups, axis=-1) for each in (inputs, kernel, upstream))
    results = [
        gradients(part, part_kernel, strides, d_outputs)
        for part, part_kernel, d_outputs in zip(*parts, strict=True)
    ]
    d_inputs, d_kernel = zip(*results, strict=True)
    return tf.concat(d_inputs, axis=-1), tf.concat(d_kernel, axis=-1)


def _backward(operation, strides, upstream):
    """Returns one of TensorFlow's own gradients of a convolution, to be called with the rest."""
    dtype = upstream.dtype
    exact = _gradient_dtype(dtype)

    def cast(value, to):
        return tf.cast(value, to) if value.dtype.is_floating else value

    def compute(**arguments):
        arguments = {key: cast(value, exact) for key, value in arguments.items()}
        result = operation(
            out_backprop=cast(upstream, exact),
            strides=[1, strides, strides, 1],
            padding=_padding(strides),
            **arguments,
        )
        return cast(result, dtype)

    return compute


def _gradient_dtype(dtype):
    """Returns the type that TensorFlow's own gradients of a convolution are computed in."""
    if dtype == tf.bfloat16 and _on_cpu() and not _has_bfloat16_gradients():
        return tf.float32
    return dtype


def _on_cpu():
    return devices.replica_device_type() == "CPU"


@functools.cache
def _has_bfloat16_gradients():
    """Tells whether oneDNN computes gradients in bfloat16 here by more than its reference."""
    try:
        described = pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:  # Not Linux.
        return False
    return not BFLOAT16_FEATURES.isdisjoint(described.split())


@functools.cache
def _has_grouped_gradients(dtype):
    """Tells whether TensorFlow's gradients of a convolution take groups on this CPU."""
    with tf.init_scope():
        try:
            tf.raw_ops.Conv2DBackpropInput(
                input_sizes=[1, 3, 3, 2],
                filter=tf.ones([3, 3, 1, 2], dtype),
                out_backprop=tf.ones([1, 3, 3, 2], dtype),
                strides=[1, 1, 1, 1],
                padding="SAME",
            )
        except (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError):
            return False
    return True


def _groups(inputs, kernel):
    return inputs.shape[-1] // kernel.shape[2]


def _margin(kernel, strides):
    """Returns the zeros to add on each side; with stride 1 TensorFlow's own padding is the same.

    With a larger stride, "SAME" pads at the bottom and right only, which would shift the features
    by half a cell against those of PyTorch and Caffe2.
    """
    return (kernel.shape[0] - 1) // 2 if strides > 1 else 0


def _padding(strides):
    return "SAME" if strides == 1 else "VALID"


def _pad(inputs, kernel, strides):
    margin = [_margin(kernel, strides)] * 2
    return tf.pad(inputs, [[0, 0], margin, margin, [0, 0]]) if any(margin) else inputs


def _spectra_are_faster(inputs, kernel, strides):
    """Tells whether the convolution and its gradients are to be taken by `fourier`."""
    if strides != 1 or tuple(kernel.shape[:2]) != (3, 3) or not _on_cpu():
        return False
    if _groups(inputs, kernel) > 1:
        return False
    count, height, width, _ = inputs.shape
    return (
        height == width
        and (width or MAX_FOURIER_SIDE + 1) <= MAX_FOURIER_SIDE
        and (count or MIN_FOURIER_MAPS) >= MIN_FOURIER_MAPS
        and min(kernel.shape[2:]) >= MIN_FOURIER_CHANNELS
    )


def _products_are_faster(inputs, kernel):
    """Tells whether the kernel's gradient is to be taken by matrix products."""
    if tuple(kernel.shape[:2]) != (3, 3) or min(kernel.shape[2:]) < MIN_CHANNELS or not _on_cpu():
        return False
    if _groups(inputs, kernel) > 1:
        return False
    if inputs.dtype == tf.bfloat16:
        return _has_bfloat16_gradients()
    return inputs.shape[2] is None or inputs.shape[2] >= MIN_WIDTH_FLOAT32


def _kernel_gradient(inputs, upstream):
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


def keep_one_row(rows):
    """Returns which maps to convolve: the given ones, or the first where there is none.

    oneDNN returns a wrong shape for an empty batch where a convolution changes the number of
    channels, and from the gradient of a deconvolution, which fails the step. Keep at least one row.

    Args:
        rows: bool [P].

    Returns:
        bool [P].
    """
    return rows | (~tf.reduce_any(rows) & (tf.range(tf.size(rows)) == 0))
