"""A 3x3 convolution whose kernel gradient is fast on CPUs.

oneDNN, which does TensorFlow's convolutions on CPUs, has no fast kernel for the gradient of the
weights outside of Intel's AMX: in bfloat16 it runs at a third of the rate of the convolution
itself. As nine matrix products, one for each place of the kernel, it runs at two thirds.
"""

import tensorflow as tf

# Below it, copying the shifted inputs costs more than the products save.
MIN_CHANNELS = 256
# In float32 the library's kernel is faster on the 7 x 7 cells of a RoI.
MIN_WIDTH_FLOAT32 = 14


def conv2d_3x3(inputs, kernel):
    """Convolves with stride 1, padded by zeros to the same size.

    Args:
        inputs: floating [B, H, W, C].
        kernel: [3, 3, C, K], the same dtype.

    Returns:
        [B, H, W, K]. The numbers and gradients are those of `tf.nn.conv2d`.
    """
    if not _products_are_faster(inputs, kernel):
        return tf.nn.conv2d(inputs, kernel, 1, "SAME")

    @tf.custom_gradient
    def convolve(inputs, kernel):
        def gradient(upstream):
            d_inputs = tf.nn.conv2d_transpose(upstream, kernel, tf.shape(inputs), 1, "SAME")
            return d_inputs, _kernel_gradient(inputs, upstream)

        return tf.nn.conv2d(inputs, kernel, 1, "SAME"), gradient

    return convolve(inputs, tf.convert_to_tensor(kernel))


def _products_are_faster(inputs, kernel):
    """Tells whether the kernel's gradient is to be taken by matrix products."""
    if tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("TPU"):
        return False
    if min(kernel.shape[2:]) < MIN_CHANNELS:
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
            # One after the other: nine copies of the inputs need not be held at once.
            with tf.control_dependencies(products[-1:]):
                shifted = padded[:, row : row + height, column : column + width]
            shifted = tf.reshape(shifted, [-1, channels])
            products.append(tf.matmul(shifted, upstream, transpose_a=True))
    return tf.reshape(tf.stack(products), [3, 3, channels, filters])
