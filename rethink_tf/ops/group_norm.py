"""Group normalization with a gradient of its own.

A layer built from `tf.nn.moments` keeps several copies of the feature map for the backward pass and
reads it many times. Here the statistics come from two sums over the places of each channel, the
output is one multiply and add per value, and the gradient is the same again.

Letters: B images, C channels, G groups.
"""

import copy

import numpy as np
import tensorflow as tf

from rethink_tf.ops import convolution, ordering


def group_norm(inputs, gamma, beta, num_groups, epsilon):
    """Normalizes each image's groups of channels to mean 0 and variance 1, then scales and shifts.

    Statistics and the gradients of gamma and beta are float32 whatever the inputs are.

    Args:
        inputs: floating [B, ..., C]; C a multiple of num_groups.
        gamma: float32 [C], the scale.
        beta: float32 [C], the shift.
        num_groups: int > 0.
        epsilon: float > 0, added to the variance.

    Returns:
        The inputs' dtype and shape.

    Raises:
        ValueError: if C is not a multiple of num_groups.

    Source: Wu and He 2018, arXiv:1803.08494, equations 1 to 6.
    """

    @tf.custom_gradient
    def normalize(inputs, gamma, beta):
        norm = _Normalization(inputs, gamma, beta, num_groups, epsilon)
        return norm.apply(), norm.gradients

    # As tensors: custom_gradient does not take the variables of every distribution strategy.
    return normalize(inputs, tf.convert_to_tensor(gamma), tf.convert_to_tensor(beta))


def group_norm_relu_convolve(inputs, gamma, beta, kernel, strides, num_groups, epsilon):
    """Group normalization, ReLU and the convolution that follows, in less memory.

    The activation between them is not kept for the backward pass, which computes it again from the
    inputs by one multiply and add: half of what such a layer keeps.

    Args:
        inputs: floating [B, H, W, C]; C a multiple of num_groups.
        gamma: float32 [C].
        beta: float32 [C].
        kernel: [S, S, C / G, K], the inputs' dtype; see `convolution.convolve`.
        strides: int, of the convolution.
        num_groups: int > 0.
        epsilon: float > 0.

    Returns:
        [B, H', W', K]: `convolve(relu(group_norm(inputs)), kernel, strides)`.

    Raises:
        ValueError: if C is not a multiple of num_groups.
    """

    @tf.custom_gradient
    def compute(inputs, gamma, beta, kernel):
        activation = _Activation(_Normalization(inputs, gamma, beta, num_groups, epsilon))

        def gradient(upstream):
            again = activation.again(upstream)
            d_activation, d_kernel = convolution.gradients(again, kernel, strides, upstream)
            return *activation.gradients(again, d_activation), d_kernel

        return convolution.convolve(activation.values, kernel, strides), gradient

    return compute(inputs, *map(tf.convert_to_tensor, (gamma, beta, kernel)))


def convolve_group_norm(inputs, kernel, gamma, beta, strides, num_groups, epsilon, before=None):
    """A convolution and the group normalization that follows, in less memory.

    The convolution's outputs are not kept for the backward pass, which convolves again. That is for
    convolutions that widen: the last of a bottleneck costs an eighth of the block and makes half of
    what the block would keep.

    Args:
        inputs: floating [B, H, W, C].
        kernel: [S, S, C, K], the inputs' dtype; K a multiple of num_groups.
        gamma: float32 [K].
        beta: float32 [K].
        strides: int, of the convolution.
        num_groups: int > 0.
        epsilon: float > 0.
        before: (gamma, beta), each float32 [C], of a group normalization with ReLU that comes
            before the convolution and is not kept either; None for none.

    Returns:
        [B, H', W', K].

    Raises:
        ValueError: if K, or C with `before`, is not a multiple of num_groups.
    """

    @tf.custom_gradient
    def compute(inputs, kernel, gamma, beta, *before):
        activation = (
            _Activation(_Normalization(inputs, *before, num_groups, epsilon)) if before else None
        )
        values = activation.values if before else inputs
        outputs = convolution.convolve(values, kernel, strides)
        norm = _Normalization(outputs, gamma, beta, num_groups, epsilon)

        def gradient(upstream):
            again = activation.again(upstream) if before else ordering.late(inputs, upstream)
            outputs = convolution.convolve(again, kernel, strides)
            d_outputs, d_gamma, d_beta = norm.of(outputs).gradients(upstream)
            d_values, d_kernel = convolution.gradients(again, kernel, strides, d_outputs)
            d_before = []
            if before:
                d_values, *d_before = activation.gradients(again, d_values)
            return d_values, d_kernel, d_gamma, d_beta, *d_before

        return norm.apply(), gradient

    return compute(inputs, *map(tf.convert_to_tensor, (kernel, gamma, beta, *(before or ()))))


class _Activation:
    """A normalization with ReLU whose values are computed again for the backward pass."""

    def __init__(self, norm):
        self._norm = norm
        self.values = tf.nn.relu(norm.apply())

    def again(self, upstream):
        """Computes the values anew, once the upstream gradient is there."""
        return tf.nn.relu(self._norm.of(ordering.late(self._norm.inputs, upstream)).apply())

    def gradients(self, values, upstream):
        """Returns the gradients of the inputs, gamma and beta, given the values and theirs."""
        return self._norm.gradients(tf.raw_ops.ReluGrad(gradients=upstream, features=values))


class _Normalization:
    """The statistics of some inputs, the normalization by them, and its gradients."""

    def __init__(self, inputs, gamma, beta, num_groups, epsilon):
        """Computes the statistics; arguments as of `group_norm`."""
        channels, rank = inputs.shape[-1], inputs.shape.rank
        if channels % num_groups:
            raise ValueError(
                f"GroupNorm: {channels} channels cannot be split into {num_groups} equal groups."
            )
        self.inputs, self._axes = inputs, list(range(1, rank - 1))
        self._channel_shape = [-1, *[1] * len(self._axes), channels]
        self._group_shape = [-1, num_groups, channels // num_groups]
        self._places = inputs.shape[1:-1].num_elements()
        places = self._places
        if places is None:
            places = tf.reduce_prod(tf.shape(inputs)[1:-1])
        self._count = tf.cast(places * (channels // num_groups), tf.float32)
        self._gamma = tf.reshape(gamma, self._group_shape[1:])

        exact = tf.cast(inputs, tf.float32)
        self._mean = self._sum_groups(self._sum_channels(exact)) / self._count
        # The mean square minus the squared mean would lose all digits under a large mean.
        deviation = tf.math.squared_difference(exact, self._to_channels(self._mean, tf.float32))
        variance = self._sum_groups(self._sum_channels(deviation)) / self._count
        self._inverse = tf.math.rsqrt(variance + epsilon)
        scale = self._inverse * self._gamma
        shift = tf.reshape(beta, self._group_shape[1:]) - self._mean * scale
        self._scale = self._to_channels(scale, inputs.dtype)
        self._shift = self._to_channels(shift, inputs.dtype)

    def of(self, inputs):
        """Returns the same normalization of the same inputs, which were computed again."""
        other = copy.copy(self)
        other.inputs = inputs
        return other

    def apply(self):
        """Returns the normalized, scaled and shifted inputs."""
        return self.inputs * self._scale + self._shift

    def gradients(self, upstream):
        """Returns the gradients of the inputs, gamma and beta, given that of the output."""
        # With x' = (x - mean) * inverse and u the upstream gradient, per group of m values:
        # dx = inverse * (gamma u - mean(gamma u) - x' mean(gamma u x')), which is
        # u * scale + x * slope + offset with one slope and offset a channel.
        inputs, inverse, gamma = self.inputs, self._inverse, self._gamma
        sum_u, sum_ux = self._sum_gradients(upstream), self._sum_gradients(upstream * inputs)
        sum_u_normalized = (sum_ux - self._mean * sum_u) * inverse
        slope = -self._sum_groups(gamma * sum_u_normalized) * tf.square(inverse) / self._count
        offset = -slope * self._mean - self._sum_groups(gamma * sum_u) * inverse / self._count
        d_inputs = upstream * self._scale
        d_inputs += inputs * self._to_channels(slope, inputs.dtype)
        d_inputs += self._to_channels(offset, inputs.dtype)
        d_gamma, d_beta = (tf.reduce_sum(each, 0) for each in (sum_u_normalized, sum_u))
        return d_inputs, tf.reshape(d_gamma, [-1]), tf.reshape(d_beta, [-1])

    def _to_channels(self, values, dtype):
        """Brings [B, G, 1] or [B, G, C / G] to a number a channel, [B, 1, ..., C]."""
        if values.shape[1:] != self._group_shape[1:]:
            values += np.zeros(self._group_shape[1:], np.float32)
        return tf.cast(tf.reshape(values, self._channel_shape), dtype)

    def _sum_channels(self, values):
        """Returns the sums over all places, float32 [B, G, C / G]."""
        sums = tf.reduce_sum(tf.cast(values, tf.float32), self._axes)
        return tf.reshape(sums, self._group_shape)

    def _sum_gradients(self, values):
        """As `_sum_channels`; bfloat16 is summed in rows, which spares a copy in float32.

        The kernels add in float32 and round each row's sum to bfloat16 once: 2 ** -9 of it at
        random, which over all rows and channels is far below the rounding of the gradient itself.
        """
        if values.dtype != tf.bfloat16:
            return self._sum_channels(values)
        num_axes = 2 if self._places is not None and self._places <= 256 else 1
        rows = tf.cast(tf.reduce_sum(values, self._axes[-num_axes:]), tf.float32)
        return tf.reshape(tf.reduce_sum(rows, self._axes[:-num_axes]), self._group_shape)

    @staticmethod
    def _sum_groups(values):
        """Sums [B, G, C / G] over the channels of each group: [B, G, 1]."""
        return tf.reduce_sum(values, axis=-1, keepdims=True)
