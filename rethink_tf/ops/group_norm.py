"""Group normalization with a gradient of its own.

A layer built from `tf.nn.moments` keeps several copies of the feature map for the backward pass and
reads it many times. Here the statistics come from two sums over the places of each channel, the
output is one multiply and add per value, and the gradient is the same again.

Where images end before the shape of their batch (`ops.content`), a mask says which places count.
The others are 0 in the outputs, and so are the gradients there, whatever comes in.

Letters: B images, C channels, G groups.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from rethink_tf.ops import recomputation

# Maps of at most so many places are those of RoIs: all of them are summed at once.
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


def group_norm(inputs, norm, operations):
    """Normalizes each image's groups of channels to mean 0 and variance 1, then scales and shifts.

    Statistics and the gradients of gamma and beta are float32 whatever the inputs are.

    Args:
        inputs: floating [B, ..., C].
        norm: `Norm`.
        operations: `ops.operations.Operations`.

    Returns:
        The inputs' dtype and shape; 0 where the mask is.

    Raises:
        ValueError: if C is not a multiple of num_groups.

    Source: Wu and He 2018, arXiv:1803.08494, equations 1 to 6.
    """
    return GroupNorm(operations, norm)(inputs)


class GroupNorm(recomputation.Part):
    """A group normalization, with ReLU if asked, as a part of a chain.

    To compute its value again takes one multiply and add: it keeps the statistics.
    """

    def __init__(self, operations, norm, relu=False):
        """Takes the `Operations`, the `Norm`, and whether ReLU follows."""
        super().__init__(norm.gamma, norm.beta)
        gamma, beta = self.tensors
        self._norm = norm._replace(gamma=gamma, beta=beta)
        self._operations, self._relu = operations, relu

    def __call__(self, inputs):
        """Returns the normalized inputs, with the gradient of this file."""
        return recomputation.run([self], inputs)

    def apply(self, inputs):
        """Returns the normalized inputs, and notes their statistics."""
        self._statistics = _Statistics(self._operations, inputs, self._norm)
        return self.again(inputs)

    def again(self, inputs):
        """Returns the normalized inputs by the statistics that are there."""
        outputs = self._statistics.apply(inputs)
        return tf.nn.relu(outputs) if self._relu else outputs

    def gradients(self, inputs, outputs, upstream):
        """Returns the gradients of the inputs, gamma and beta."""
        if self._relu:
            upstream = tf.raw_ops.ReluGrad(gradients=upstream, features=outputs)
        return self._statistics.gradients(inputs, upstream)


class _Statistics:
    """The statistics of some inputs, the normalization by them, and its gradients."""

    def __init__(self, operations, inputs, norm):
        """Computes the statistics; arguments as of `group_norm`."""
        channels, rank, num_groups = inputs.shape[-1], inputs.shape.rank, norm.num_groups
        if channels % num_groups:
            raise ValueError(
                f"GroupNorm: {channels} channels cannot be split into {num_groups} equal groups."
            )
        self._mask = norm.mask(inputs) if norm.mask else None
        self._sum = operations.sum_over_places(inputs, self._mask)
        self._axes, self._places = list(range(1, rank - 1)), inputs.shape[1:-1].num_elements()
        self._channel_shape = [-1, *[1] * (rank - 2), channels]
        self._group_shape = [-1, num_groups, channels // num_groups]
        self._gamma = tf.reshape(norm.gamma, self._group_shape[1:])
        self._count = self._count_places(inputs) * float(channels // num_groups)

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

    def apply(self, inputs):
        """Returns the normalized, scaled and shifted inputs."""
        return self._keep(inputs * self._scale + self._shift)

    def gradients(self, inputs, upstream):
        """Returns the gradients of the inputs, gamma and beta, given that of the output."""
        # With x' = (x - mean) * inverse and u the upstream gradient, per group of m values:
        # dx = inverse * (gamma u - mean(gamma u) - x' mean(gamma u x')), which is
        # u * scale + x * slope + offset with one slope and offset a channel.
        inverse, gamma = self._inverse, self._gamma
        sum_u = self._sum_gradients(upstream)
        exact = upstream
        if inputs.dtype == tf.float16:  # Their products lie beyond its range.
            exact = tf.cast(upstream, tf.float32)
        sum_ux = self._sum_gradients(exact * tf.cast(inputs, exact.dtype))
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

    def _count_places(self, inputs):
        """Returns the places of an image that count, float32 [B, 1, 1] or [], at least 1."""
        if self._mask is not None:
            flat = tf.reshape(self._mask, [tf.shape(self._mask)[0], 1, -1])
            count = tf.reduce_sum(tf.cast(flat, tf.float32), axis=-1, keepdims=True)
            return tf.maximum(count, 1.0)
        places = self._places
        if places is None:
            places = tf.reduce_prod(tf.shape(inputs)[1:-1])
        return tf.cast(places, tf.float32)

    def _to_channels(self, values, dtype):
        """Brings [B, G, 1] or [B, G, C / G] to a number a channel, [B, 1, ..., C]."""
        if values.shape[1:] != self._group_shape[1:]:
            values += np.zeros(self._group_shape[1:], np.float32)
        return tf.cast(tf.reshape(values, self._channel_shape), dtype)

    def _sum_channels(self, values):
        """Returns the sums over all places that count, float32 [B, G, C / G]."""
        return tf.reshape(self._sum(tf.cast(values, tf.float32)), self._group_shape)

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
