"""Convolutions padded alike on all sides, by TensorFlow's own operations.

Letters: B images, H x W cells, S side of the kernel, C channels, G groups, K filters.
"""

import tensorflow as tf


def convolve(inputs, kernel, strides=1):
    """Convolves, padded by (S - 1) / 2 on every side.

    Args:
        inputs: floating [B, H, W, C].
        kernel: [S, S, C / G, K], the same dtype; S odd and static. With G > 1 groups, each K / G
            filters in turn see the C / G channels of their own group alone.
        strides: int.

    Returns:
        [B, ceil(H / strides), ceil(W / strides), K].
    """
    return tf.nn.conv2d(pad(inputs, kernel, strides), kernel, strides, _padding(strides))


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
    d_inputs = input_gradient(tf.shape(inputs), kernel, strides, upstream)
    d_kernel = kernel_gradient(pad(inputs, kernel, strides), kernel, strides, upstream)
    return tf.ensure_shape(d_inputs, inputs.shape), tf.ensure_shape(d_kernel, kernel.shape)


def input_gradient(shape, kernel, strides, upstream):
    """Returns the gradient of inputs of a shape int32 [4]; the rest as of `gradients`."""
    margin = _margin(kernel, strides)
    d_inputs = tf.raw_ops.Conv2DBackpropInput(
        input_sizes=shape + 2 * margin * tf.constant([0, 1, 1, 0]),
        filter=kernel,
        out_backprop=upstream,
        strides=[1, strides, strides, 1],
        padding=_padding(strides),
    )
    if margin:
        height, width = tf.unstack(shape[1:3])
        d_inputs = d_inputs[:, margin : margin + height, margin : margin + width]
    return d_inputs


def kernel_gradient(padded, kernel, strides, upstream):
    """Returns the gradient of the kernel, [S, S, C / G, K], given the inputs as `pad` returns."""
    return tf.raw_ops.Conv2DBackpropFilter(
        input=padded,
        filter_sizes=tf.shape(kernel),
        out_backprop=upstream,
        strides=[1, strides, strides, 1],
        padding=_padding(strides),
    )


def pad(inputs, kernel, strides):
    """Pads the inputs where TensorFlow's own padding is not ours.

    With stride 1 they are the same. With a larger one, "SAME" pads at the bottom and right only,
    which would shift the features by half a cell against those of PyTorch and Caffe2.
    """
    margin = [_margin(kernel, strides)] * 2
    return tf.pad(inputs, [[0, 0], margin, margin, [0, 0]]) if any(margin) else inputs


def _margin(kernel, strides):
    return (kernel.shape[0] - 1) // 2 if strides > 1 else 0


def _padding(strides):
    return "SAME" if strides == 1 else "VALID"


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
