"""Layers with weights, convolutional and fully connected, and their initializers.

Their `operations` are TensorFlow's own, until a plan gives them others
(`execution.ExecutionPlan.give_to`).
"""

import tensorflow as tf
import tf_keras

from rethink_tf.layers import normalization
from rethink_tf.ops import recomputation
from rethink_tf.ops.operations import Convolution, Operations


def msra():
    """Returns He initialization by the fan out, normal: Caffe2's MSRAFill.

    In ResNet it is Detectron2's; Detectron leaves Caffe2's default there, which is `xavier`.

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

    TensorFlow's "same" pads a strided convolution by one cell less on the top and left, and by one
    more on the bottom and right, which shifts the features by half a cell against those of PyTorch
    and Caffe2. Weights that were trained with it need it.
    """

    operations = Operations()

    def __init__(self, filters, kernel_size, strides=1, same_padding=False, **kwargs):
        """Makes the layer.

        Args:
            filters: int, output channels.
            kernel_size: odd int.
            strides: int.
            same_padding: bool, whether a convolution of stride 2 pads inputs of even sides as
                TensorFlow's "same".
            **kwargs: of Keras' Conv2D, `groups` among them.

        Raises:
            ValueError: if the kernel's size is even, or the groups do not divide the filters (or,
                when the layer is built, the channels).
        """
        if kernel_size % 2 == 0:
            raise ValueError(f"Conv2D: the kernel size must be odd, got {kernel_size}.")
        # Keras' own padding is never used: `convolution_op` pads.
        super().__init__(filters, kernel_size, strides, padding="same", **kwargs)
        self.same_padding = same_padding

    def _placed(self, kernel):
        """Returns the kernel that does with equal padding what this one does with the layer's."""
        if not self.same_padding or self.strides == (1, 1) or self.kernel_size == (1, 1):
            return kernel
        # With stride 2, "same" pads by (k - 3) / 2 on the top and left. A kernel of k + 2 is padded
        # by (k + 1) / 2 on every side, and its two first rows and columns, zeros, see two of these.
        return tf.pad(kernel, [[2, 0], [2, 0], [0, 0], [0, 0]])

    def convolution_op(self, inputs, kernel):
        """Convolves [B, H, W, C] by a kernel [k, k, C / groups, filters]; see `ops.convolution`."""
        kernel = self._placed(kernel)
        return self.operations.convolve(inputs, kernel, self.strides[0])

    def _jit_compiled_convolution_op(self, inputs, kernel):
        # Keras' own compiles grouped convolutions by XLA, which on CPUs takes many times as long.
        return self.convolution_op(inputs, kernel)

    def part(self, dtype):
        """Returns the convolution without its bias as a part of a chain, in a type."""
        kernel = self._placed(tf.cast(self.kernel, dtype))
        return Convolution(self.operations, kernel, self.strides[0])

    def add_bias(self, outputs):
        """Returns what the part returns, with the bias if there is one."""
        if not self.use_bias:
            return outputs
        return tf.nn.bias_add(outputs, tf.cast(self.bias, outputs.dtype))


class Dense(tf_keras.layers.Dense):
    """Keras' layer on [N, C]."""

    operations = Operations()

    def call(self, inputs):
        """Returns [N, units] of inputs [N, C]."""
        outputs = self.operations.multiply(inputs, tf.cast(self.kernel, inputs.dtype))
        return self.activation(tf.nn.bias_add(outputs, self.bias))


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
        groups=1,
        same_padding=False,
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
            groups: int, of the channels; each group is convolved on its own.
            same_padding: bool, as of `Conv2D`.
            **kwargs: of the Keras layer.
        """
        super().__init__(**kwargs)
        self.norm = normalization.make_normalization(normalizer, "norm")
        self.conv = Conv2D(
            filters,
            kernel_size,
            strides,
            same_padding,
            groups=groups,
            use_bias=self.norm is None,
            kernel_initializer=initializer or msra(),
            name="conv",
        )
        self.relu = relu

    def call(self, inputs, training=False, content=None):
        """Applies the layers.

        Args:
            inputs: floating [B, H, W, C], 0 beyond the content.
            training: bool.
            content: of the inputs, `ops.content`; None where all of the maps is content.

        Returns:
            [B, H', W', filters], 0 beyond the content.
        """
        return self.activate(self.conv(inputs), training, self.after(content))

    def after(self, content):
        """Returns the content of the outputs, given that of the inputs."""
        return content and content.after(self.conv.strides[0])

    def activate(self, outputs, training, content=None):
        """Normalizes the convolution's outputs, whose content is given, with the ReLU."""
        if self.norm is not None:
            outputs = self.norm(outputs, training=training, content=content)
        outputs = tf.nn.relu(outputs) if self.relu else outputs
        # The outputs reach beyond the content by half a kernel, and the bias everywhere.
        return content.keep(outputs) if content and self.norm is None else outputs

    @property
    def is_group_normalized(self):
        """Whether what follows the convolution is cheap to compute again."""
        return isinstance(self.norm, normalization.GroupNormalization)


def freeze(name, parts, freeze_at):
    """Leaves the weights of a backbone's first parts out of training.

    They have no gradient, no weight decay and no slots of the optimizer. The backbone runs these
    parts as at test and stops the gradient behind them, so that nothing is kept for a backward pass
    and batch normalization neither takes statistics of the batch nor moves its own.

    Args:
        name: str, the backbone's, for the error.
        parts: list of lists of layers, in the order they are run in.
        freeze_at: int, how many of the parts.

    Raises:
        ValueError: if there are not as many parts.
    """
    if not 0 <= freeze_at <= len(parts):
        raise ValueError(
            f"{name}: freeze_at = {freeze_at}: give the number of parts to freeze, from 0 for none "
            f"to {len(parts)} for all."
        )
    for layer in [layer for part in parts[:freeze_at] for layer in part]:
        layer.trainable = False


def run(layers, inputs, training=False, content=None, then=None):
    """Applies `ConvNorm` layers one after the other, and then a function.

    In training, what is kept for the backward pass are the convolutions' outputs alone where group
    normalization follows, and not even those of a last convolution of 1x1: it ends a bottleneck,
    costs an eighth of the block and makes half of what the block would keep. The numbers are the
    same.

    Args:
        layers: list of `ConvNorm`; without any the outputs are the inputs.
        inputs: floating [B, H, W, C], 0 beyond the content.
        training: bool.
        content: of the inputs, `ops.content`; None where all of the maps is content.
        then: callable of the last layer's outputs, without variables, such as a pooling; or None.

    Returns:
        [B, H', W', filters of the last layer], 0 beyond the content, or what `then` returns of it.
    """
    # The first call of all goes layer by layer, which creates the variables.
    if not (training and layers and all(layer.built for layer in layers)):
        for layer in layers:
            inputs, content = layer(inputs, training, content), layer.after(content)
        return then(inputs) if then else inputs
    outputs, parts = inputs, []  # The parts are still to be applied to the outputs.
    for layer in layers:
        content, is_end = layer.after(content), layer is layers[-1] and not then
        parts.append(layer.conv.part(outputs.dtype))
        if not (is_end and layer.conv.kernel_size == (1, 1) and layer.is_group_normalized):
            outputs, parts = layer.conv.add_bias(layer.conv.operations.chain(parts, outputs)), []
        if layer.is_group_normalized:
            parts.append(layer.norm.part(content, relu=layer.relu and not is_end))
        else:
            outputs = layer.activate(outputs, training, content)
    if then:
        parts.append(recomputation.Function(then))
    outputs = layers[-1].conv.operations.chain(parts, outputs)
    is_linear = then or not (layers[-1].is_group_normalized and layers[-1].relu)
    return outputs if is_linear else tf.nn.relu(outputs)
