"""Convolutions with gradients that save time and memory.

The kernel's gradient. oneDNN, which does TensorFlow's convolutions on CPUs, has no fast kernel for
it outside of Intel's AMX: in bfloat16 it runs at a third of the rate of the convolution itself. As
nine matrix products, one for each place of a 3x3 kernel, it runs at two thirds.

Copies of the inputs (padded, shifted) are made anew for the backward pass and only when it gets
there. TensorFlow would make them as soon as the inputs exist, and hold them all the while; that is
what the control dependencies below prevent.
"""

import tensorflow as tf

# Below it, copying the shifted inputs costs more than the products save.
MIN_CHANNELS = 256
# In float32 the library's kernel is faster on the 7 x 7 cells of a RoI.
MIN_WIDTH_FLOAT32 = 14


def convolve(inputs, kernel, strides=1):
    """Convolves, padded by (size - 1) / 2 on every side.

    Args:
        inputs: floating [B, H, W, C].
        kernel: [S, S, C, K], the same dtype; S odd and static.
        strides: int.

    Returns:
        [B, ceil(H / strides), ceil(W / strides), K].
    """

    @tf.custom_gradient
    def convolution(inputs, kernel):
        def gradient(upstream):
            return gradients(inputs, kernel, strides, upstream)

        padded = _pad(inputs, kernel, strides)
        return tf.nn.conv2d(padded, kernel, strides, _padding(strides)), gradient

    return convolution(inputs, tf.convert_to_tensor(kernel))


def gradients(inputs, kernel, strides, upstream):
    """Returns the gradients of `convolve` with respect to the inputs and the kernel.

    Args:
        inputs: floating [B, H, W, C].
        kernel: [S, S, C, K].
        strides: int.
        upstream: gradient of the outputs.

    Returns:
        [B, H, W, C] and [S, S, C, K].
    """
    options = {"strides": [1, strides, strides, 1], "padding": _padding(strides)}
    # The identity waits for the upstream gradient; it copies nothing.
    with tf.control_dependencies([upstream]):
        late = tf.identity(inputs)
    padded = _pad(late, kernel, strides)
    d_padded = tf.raw_ops.Conv2DBackpropInput(
        input_sizes=tf.shape(padded), filter=kernel, out_backprop=upstream, **options
    )
    if strides == 1 and _products_are_faster(inputs, kernel):
        d_kernel = _kernel_gradient(padded, upstream)
    else:
        d_kernel = tf.raw_ops.Conv2DBackpropFilter(
            input=padded, filter_sizes=tf.shape(kernel), out_backprop=upstream, **options
        )
    margin = _margin(kernel, strides)
    height, width = tf.unstack(tf.shape(inputs)[1:3])
    d_inputs = (
        d_padded[:, margin : margin + height, margin : margin + width] if margin else d_padded
    )
    return tf.ensure_shape(d_inputs, inputs.shape), tf.ensure_shape(d_kernel, kernel.shape)


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


def _products_are_faster(inputs, kernel):
    """Tells whether the kernel's gradient is to be taken by matrix products."""
    if tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("TPU"):
        return False
    if tuple(kernel.shape[:2]) != (3, 3) or min(kernel.shape[2:]) < MIN_CHANNELS:
        return False
    width = inputs.shape[2]
    return inputs.dtype == tf.bfloat16 or width is None or width >= MIN_WIDTH_FLOAT32


def _kernel_gradient(inputs, upstream):
    """Returns the sum over all cells of the products of shifted inputs and the upstream gradient.

    Args:
        inputs: [B, H, W, C].
        upstream: [B, H, W, K].

    Returns:
        [3, 3, C, K].
    """
    height, width = tf.unstack(tf.shape(inputs)[1:3])
    channels, filters = inputs.shape[-1], upstream.shape[-1]
    padded = tf.pad(inputs, [[0, 0], [1, 1], [1, 1], [0, 0]])
    upstream = tf.reshape(upstream, [-1, filters])
    products = []
    for row in range(3):
        for column in range(3):
            # One after the other, so that nine copies need not be held at once.
            with tf.control_dependencies(products[-1:]):
                shifted = padded[:, row : row + height, column : column + width]
            shifted = tf.reshape(shifted, [-1, channels])
            products.append(tf.matmul(shifted, upstream, transpose_a=True))
    return tf.reshape(tf.stack(products), [3, 3, channels, filters])
