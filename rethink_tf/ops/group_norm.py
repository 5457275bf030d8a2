"""Group normalization with a gradient of its own.

A layer built from `tf.nn.moments` keeps several copies of the feature map for the backward pass and
reads it many times. Here the statistics come from two sums over the places of each channel, the
output is one multiply and add per value, and the gradient is the same again.

Where images end before the shape of their batch (`ops.content`), a mask says which places count.
The others are 0 in the outputs, and so are the gradients there, whatever comes in.

Letters: B images, C channels, G groups.
"""

import copy
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from rethink_tf.ops import convolution, devices, ordering

# Maps of at most so many places are those of RoIs, of which there are many.
MAX_ROI_PLACES = 256


class Norm(NamedTuple):
    """What a group normalization needs beside its inputs.

    Attributes:
        gamma: float32 [C], the scale.
        beta: float32 [C], the shift.
        num_groups: int > 0 that divides C.
        epsilon: float > 0, added to the variance.
        mask: callable of the inputs, floating [B, ..., C]: returns [B, ..., 1] of their dtype, 1
            for places that count and 0 for others; None where all count.
    """

    gamma: tf.Tensor
    beta: tf.Tensor
    num_groups: int
    epsilon: float
    mask: Callable | None = None

    def parameters(self):
        """Returns gamma and beta as tensors.

        `custom_gradient` does not take the variables of every distribution strategy.
        """
        return tf.convert_to_tensor(self.gamma), tf.convert_to_tensor(self.beta)


def group_norm(inputs, norm):
    """Normalizes each image's groups of channels to mean 0 and variance 1, then scales and shifts.

    Statistics and the gradients of gamma and beta are float32 whatever the inputs are.

    Args:
        inputs: floating [B, ..., C].
        norm: `Norm`.

    Returns:
        The inputs' dtype and shape; 0 where the mask is.

    Raises:
        ValueError: if C is not a multiple of num_groups.

    Source: Wu and He 2018, arXiv:1803.08494, equations 1 to 6.
    """

    @tf.custom_gradient
    def normalize(inputs, gamma, beta):
        normalization = _Normalization(inputs, norm._replace(gamma=gamma, beta=beta))
        return normalization.apply(), normalization.gradients

    return normalize(inputs, *norm.parameters())


def group_norm_relu_convolve(inputs, norm, kernel, strides):
    """Group normalization, ReLU and the convolution that follows, in less memory.

    The activation between them is not kept for the backward pass, which computes it again from the
    inputs by one multiply and add: half of what such a layer keeps.

    Args:
        inputs: floating [B, H, W, C].
        norm: `Norm`.
        kernel: [S, S, C / G, K], the inputs' dtype; see `convolution.convolve`.
        strides: int, of the convolution.

    Returns:
        [B, H', W', K]: `convolve(relu(group_norm(inputs)), kernel, strides)`.

    Raises:
        ValueError: if C is not a multiple of num_groups.
    """

    @tf.custom_gradient
    def compute(inputs, gamma, beta, kernel):
        activation = _Activation(_Normalization(inputs, norm._replace(gamma=gamma, beta=beta)))

        def gradient(upstream):
            again = activation.again(upstream)
            d_activation, d_kernel = convolution.gradients(again, kernel, strides, upstream)
            return *activation.gradients(again, d_activation), d_kernel

        return convolution.convolve(activation.values, kernel, strides), gradient

    return compute(inputs, *norm.parameters(), tf.convert_to_tensor(kernel))


def convolve_group_norm(inputs, kernel, strides, norm, before=None):
    """A convolution and the group normalization that follows, in less memory.

    The convolution's outputs are not kept for the backward pass, which convolves again. That is for
    convolutions that widen: the last of a bottleneck costs an eighth of the block and makes half of
    what the block would keep.

    Args:
        inputs: floating [B, H, W, C].
        kernel: [S, S, C, K], the inputs' dtype.
        strides: int, of the convolution.
        norm: `Norm` of the K channels.
        before: `Norm` of a group normalization with ReLU that comes before the convolution and is
            not kept either; None for none.

    Returns:
        [B, H', W', K].

    Raises:
        ValueError: if the channels are not a multiple of num_groups.
    """

    @tf.custom_gradient
    def compute(inputs, kernel, gamma, beta, *parameters):
        activation = None
        if before:
            gamma_before, beta_before = parameters
            activation = _Activation(
                _Normalization(inputs, before._replace(gamma=gamma_before, beta=beta_before))
            )
        values = activation.values if before else inputs
        outputs = convolution.convolve(values, kernel, strides)
        normalization = _Normalization(outputs, norm._replace(gamma=gamma, beta=beta))

        def gradient(upstream):
            again = activation.again(upstream) if before else ordering.run_after(inputs, upstream)
            outputs = convolution.convolve(again, kernel, strides)
            d_outputs, d_gamma, d_beta = normalization.of(outputs).gradients(upstream)
            d_values, d_kernel = convolution.gradients(again, kernel, strides, d_outputs)
            d_before = []
            if before:
                d_values, *d_before = activation.gradients(again, d_values)
            return d_values, d_kernel, d_gamma, d_beta, *d_before

        return normalization.apply(), gradient

    parameters = before.parameters() if before else ()
    return compute(inputs, tf.convert_to_tensor(kernel), *norm.parameters(), *parameters)


class _Activation:
    """A normalization with ReLU whose values are computed again for the backward pass."""

    def __init__(self, norm):
        self._norm = norm
        self.values = tf.nn.relu(norm.apply())

    def again(self, upstream):
        """Computes the values anew, once the upstream gradient is there."""
        return tf.nn.relu(self._norm.of(ordering.run_after(self._norm.inputs, upstream)).apply())

    def gradients(self, values, upstream):
        """Returns the gradients of the inputs, gamma and beta, given the values and theirs."""
        return self._norm.gradients(tf.raw_ops.ReluGrad(gradients=upstream, features=values))


class _Normalization:
    """The statistics of some inputs, the normalization by them, and its gradients."""

    def __init__(self, inputs, norm):
        """Computes the statistics; arguments as of `group_norm`."""
        channels, rank, num_groups = inputs.shape[-1], inputs.shape.rank, norm.num_groups
        if channels % num_groups:
            raise ValueError(
                f"GroupNorm: {channels} channels cannot be split into {num_groups} equal groups."
            )
        self.inputs, self._mask = inputs, norm.mask(inputs) if norm.mask else None
        self._axes, self._places = list(range(1, rank - 1)), inputs.shape[1:-1].num_elements()
        self._channel_shape = [-1, *[1] * (rank - 2), channels]
        self._group_shape = [-1, num_groups, channels // num_groups]
        self._gamma = tf.reshape(norm.gamma, self._group_shape[1:])
        self._on_cpu = devices.replica_device_type() == "CPU"
        self._weights = self._make_weights()
        self._count = self._count_places() * float(channels // num_groups)

        exact = tf.cast(inputs, tf.float32)
        self._mean = self._sum_groups(self._sum_channels(exact)) / self._count
        # The mean square minus the squared mean would lose all digits under a large mean.
        deviation = tf.math.squared_difference(exact, self._to_channels(self._mean, tf.float32))
        variance = self._sum_groups(self._sum_channels(deviation)) / self._count
        self._inverse = tf.math.rsqrt(variance + norm.epsilon)
        scale = self._inverse * self._gamma
        shift = tf.reshape(norm.beta, self._group_shape[1:]) - self._mean * scale
        self._scale = self._to_channels(scale, inputs.dtype)
        self._shift = self._to_channels(shift, inputs.dtype)

    def of(self, inputs):
        """Returns the same normalization of the same inputs, which were computed again."""
        other = copy.copy(self)
        other.inputs = inputs
        return other

    def apply(self):
        """Returns the normalized, scaled and shifted inputs."""
        return self._keep(self.inputs * self._scale + self._shift)

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
        d_inputs = self._keep(d_inputs + self._to_channels(offset, inputs.dtype))
        d_gamma, d_beta = (tf.reduce_sum(each, 0) for each in (sum_u_normalized, sum_u))
        return d_inputs, tf.reshape(d_gamma, [-1]), tf.reshape(d_beta, [-1])

    def _keep(self, values):
        """Returns values [B, ..., C] with zeros where the mask is zero."""
        return values if self._mask is None else values * tf.cast(self._mask, values.dtype)

    def _make_weights(self):
        """Returns float32 [B, 1, places], 1 for each place that counts, else 0; None if not needed.

        Without a mask they only serve the product of `_sum_channels`, which is slower than a sum
        for the few places of a RoI.
        """
        if self._mask is not None:
            flat = tf.reshape(self._mask, [tf.shape(self._mask)[0], 1, -1])
            return tf.cast(flat, tf.float32)
        if self._places is not None and self._places <= MAX_ROI_PLACES or not self._on_cpu:
            return None
        shape = tf.shape(self.inputs)
        return tf.ones([shape[0], 1, tf.reduce_prod(shape[1:-1])])

    def _count_places(self):
        """Returns the places of an image that count, float32 [B, 1, 1] or [], at least 1."""
        if self._mask is not None:
            return tf.maximum(tf.reduce_sum(self._weights, axis=-1, keepdims=True), 1.0)
        places = self._places
        if places is None:
            places = tf.reduce_prod(tf.shape(self.inputs)[1:-1])
        return tf.cast(places, tf.float32)

    def _to_channels(self, values, dtype):
        """Brings [B, G, 1] or [B, G, C / G] to a number a channel, [B, 1, ..., C]."""
        if values.shape[1:] != self._group_shape[1:]:
            values += np.zeros(self._group_shape[1:], np.float32)
        return tf.cast(tf.reshape(values, self._channel_shape), dtype)

    def _sum_channels(self, values):
        """Returns the sums over all places that count, float32 [B, G, C / G].

        On a CPU as the product of a row of weights and a matrix of places and channels, which takes
        a third of the time of TensorFlow's sum. On a GPU such a product may have 10 bits.
        """
        values = tf.cast(values, tf.float32)
        if self._weights is not None and self._on_cpu:
            shape = [tf.shape(values)[0], -1, values.shape[-1]]
            sums = tf.matmul(self._weights, tf.reshape(values, shape))
        else:
            sums = tf.reduce_sum(self._keep(values), self._axes)
        return tf.reshape(sums, self._group_shape)

    def _sum_gradients(self, values):
        """As `_sum_channels`; bfloat16 is summed in rows, which spares a copy in float32.

        The kernels add in float32 and round each row's sum to bfloat16 once: 2 ** -9 of it at
        random, which over all rows and channels is far below the rounding of the gradient itself.
        """
        if values.dtype != tf.bfloat16:
            return self._sum_channels(values)
        num_axes = 2 if self._places is not None and self._places <= MAX_ROI_PLACES else 1
        rows = tf.cast(tf.reduce_sum(self._keep(values), self._axes[-num_axes:]), tf.float32)
        return tf.reshape(tf.reduce_sum(rows, self._axes[:-num_axes]), self._group_shape)

    @staticmethod
    def _sum_groups(values):
        """Sums [B, G, C / G] over the channels of each group: [B, G, 1]."""
        return tf.reduce_sum(values, axis=-1, keepdims=True)
