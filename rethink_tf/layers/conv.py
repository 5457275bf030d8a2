"""Convolution with normalization and activation, and the initializers of Detectron."""

import tensorflow as tf
import tf_keras

from rethink_tf.layers import normalization
from rethink_tf.ops import convolution


def msra():
    """Returns He initialization by the fan out, normal: Detectron's MSRAFill.

    Source: He et al. 2015, arXiv:1502.01852, equation 14.
    """
    return tf_keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal")


def xavier():
    """Returns uniform initialization of variance 1 / fan in: Caffe2's XavierFill."""
    return tf_keras.initializers.VarianceScaling(1.0, "fan_in", "uniform")


def normal(stddev):
    """Returns normal initialization of the given standard deviation."""
    return tf_keras.initializers.RandomNormal(stddev=stddev)


class Conv2D(tf_keras.layers.Conv2D):
    """A convolution padded by (kernel - 1) / 2 on every side, whatever its stride.

    TensorFlow's "same" pads a strided convolution on the bottom and right only, which shifts the
    features by half a cell against those of PyTorch and Caffe2.
    """

    def __init__(self, filters, kernel_size, strides=1, **kwargs):
        """Makes the layer.

        Args:
            filters: int, output channels.
            kernel_size: odd int.
            strides: int.
            **kwargs: of Keras' Conv2D.

        Raises:
            ValueError: if the kernel's size is even.
        """
        if kernel_size % 2 == 0:
            raise ValueError(f"Conv2D: the kernel size must be odd, got {kernel_size}.")
        self._margin = (kernel_size - 1) // 2 if strides > 1 else 0
        padding = "same" if strides == 1 else "valid"
        super().__init__(filters, kernel_size, strides, padding=padding, **kwargs)

    def call(self, inputs):
        if self._margin:
            margin = [self._margin, self._margin]
            inputs = tf.pad(inputs, [[0, 0], margin, margin, [0, 0]])
        return super().call(inputs)

    def convolution_op(self, inputs, kernel):
        if self.kernel_size == (3, 3) and self.strides == (1, 1):
            return convolution.conv2d_3x3(inputs, tf.convert_to_tensor(kernel))
        return super().convolution_op(inputs, kernel)


class ConvNorm(tf_keras.layers.Layer):
    """Convolution, normalization if any, and ReLU if asked; a bias only without normalization."""

    def __init__(
        self,
        filters,
        kernel_size,
        strides=1,
        normalizer="gn",
        relu=True,
        initializer=None,
        **kwargs,
    ):
        """Makes the layers.

        Args:
            filters: int, output channels.
            kernel_size: odd int.
            strides: int.
            normalizer: one of `normalization.NORMALIZERS`.
            relu: bool.
            initializer: of the kernel; None for `msra()`.
            **kwargs: of the Keras layer.
        """
        super().__init__(**kwargs)
        self.norm = normalization.make_normalization(normalizer, "norm")
        self.conv = Conv2D(
            filters,
            kernel_size,
            strides,
            use_bias=self.norm is None,
            kernel_initializer=initializer or msra(),
            name="conv",
        )
        self.relu = relu

    def call(self, inputs, training=False):
        outputs = self.conv(inputs)
        if self.norm is not None:
            outputs = self.norm(outputs, training=training)
        return tf.nn.relu(outputs) if self.relu else outputs
