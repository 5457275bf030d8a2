"""Group normalization with a gradient of its own.

A layer built from `tf.nn.moments` keeps several copies of the feature map for the backward pass and
reads it many times. Here the statistics come from two sums over the places of each channel, the
output is one multiply and add per value, and the gradient is the same again.
"""

import tensorflow as tf


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
    channels = inputs.shape[-1]
    if channels % num_groups:
        raise ValueError(
            f"GroupNorm: {channels} channels cannot be split into {num_groups} equal groups."
        )
    places = list(range(1, inputs.shape.rank - 1))
    channel_shape = [-1] + [1] * len(places) + [channels]

    def sum_places(values):
        return tf.reduce_sum(values, places)

    def over_group(values):
        """Sums [B, C] over each group and repeats the sum for every channel of it."""
        grouped = tf.reshape(values, [-1, num_groups, channels // num_groups])
        summed = tf.reduce_sum(grouped, axis=-1, keepdims=True)
        return tf.reshape(tf.broadcast_to(summed, tf.shape(grouped)), [-1, channels])

    def scale_and_shift(values, scale, shift):
        """Returns values * scale + shift for scale and shift [B, C], in the dtype of the inputs."""
        scaled = values * tf.cast(tf.reshape(scale, channel_shape), values.dtype)
        return scaled + tf.cast(tf.reshape(shift, channel_shape), values.dtype)

    @tf.custom_gradient
    def normalize(inputs, gamma, beta):
        size = tf.cast(tf.reduce_prod(tf.shape(inputs)[1:]) // num_groups, tf.float32)
        exact = tf.cast(inputs, tf.float32)
        mean = over_group(sum_places(exact)) / size
        # The mean square minus the squared mean would lose all digits under a large mean.
        deviation = tf.math.squared_difference(exact, tf.reshape(mean, channel_shape))
        variance = over_group(sum_places(deviation)) / size
        inverse = tf.math.rsqrt(variance + epsilon)
        scale = inverse * gamma
        outputs = scale_and_shift(inputs, scale, beta - mean * scale)

        def gradient(upstream):
            # With x' = (x - mean) * inverse and u the upstream gradient, per group of m values:
            # dx = inverse * (gamma u - mean(gamma u) - x' mean(gamma u x')), which is
            # u * scale + x * slope + offset with one slope and offset a channel.
            exact_upstream = tf.cast(upstream, tf.float32)
            sum_u = sum_places(exact_upstream)
            sum_ux = sum_places(exact_upstream * tf.cast(inputs, tf.float32))
            sum_u_normalized = (sum_ux - mean * sum_u) * inverse
            slope = -over_group(gamma * sum_u_normalized) * tf.square(inverse) / size
            offset = -slope * mean - over_group(gamma * sum_u) * inverse / size
            d_inputs = scale_and_shift(upstream, scale, offset) + scale_and_shift(
                inputs, slope, tf.zeros_like(slope)
            )
            return d_inputs, tf.reduce_sum(sum_u_normalized, 0), tf.reduce_sum(sum_u, 0)

        return outputs, gradient

    # As tensors: custom_gradient does not take the variables of every distribution strategy.
    return normalize(inputs, tf.convert_to_tensor(gamma), tf.convert_to_tensor(beta))
