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
    rank, group_size = inputs.shape.rank, channels // num_groups
    axes = list(range(1, rank - 1))
    channel_shape = [-1, *[1] * len(axes), channels]
    group_shape = [-1, num_groups, group_size]
    places = inputs.shape[1:-1].num_elements()
    if places is None:
        places = tf.reduce_prod(tf.shape(inputs)[1:-1])
    count = tf.cast(places * group_size, tf.float32)

    def sum_channels(values):
        """Returns the sums over all places, float32 [B, G, C / G]."""
        return tf.reshape(tf.reduce_sum(tf.cast(values, tf.float32), axes), group_shape)

    def sum_gradients(values):
        """As `sum_channels`; bfloat16 is summed in rows, which spares a copy in float32.

        The kernels add in float32 and round each row's sum to bfloat16 once: 2 ** -9 of it at
        random, which over all rows and channels is far below the rounding of the gradient itself.
        """
        if values.dtype != tf.bfloat16 or not axes:
            return sum_channels(values)
        num_axes = 2 if isinstance(places, int) and places <= 256 else 1
        rows = tf.reduce_sum(values, axes[-num_axes:])
        return tf.reshape(tf.reduce_sum(tf.cast(rows, tf.float32), axes[:-num_axes]), group_shape)

    def sum_groups(values):
        """Sums [B, G, C / G] over the channels of each group: [B, G, 1]."""
        return tf.reduce_sum(values, axis=-1, keepdims=True)

    def to_channels(values, dtype):
        return tf.cast(tf.reshape(values, channel_shape), dtype)

    @tf.custom_gradient
    def normalize(inputs, gamma, beta):
        gamma, beta = (tf.reshape(each, group_shape[1:]) for each in (gamma, beta))
        exact = tf.cast(inputs, tf.float32)
        mean = sum_groups(sum_channels(exact)) / count
        # The mean square minus the squared mean would lose all digits under a large mean.
        mean_of_channels = to_channels(mean + tf.zeros_like(gamma), tf.float32)
        deviation = tf.math.squared_difference(exact, mean_of_channels)
        variance = sum_groups(sum_channels(deviation)) / count
        inverse = tf.math.rsqrt(variance + epsilon)
        scale = inverse * gamma
        shift = beta - mean * scale
        outputs = inputs * to_channels(scale, inputs.dtype) + to_channels(shift, inputs.dtype)

        def gradient(upstream):
            # With x' = (x - mean) * inverse and u the upstream gradient, per group of m values:
            # dx = inverse * (gamma u - mean(gamma u) - x' mean(gamma u x')), which is
            # u * scale + x * slope + offset with one slope and offset a channel.
            sum_u, sum_ux = sum_gradients(upstream), sum_gradients(upstream * inputs)
            sum_u_normalized = (sum_ux - mean * sum_u) * inverse
            slope = -sum_groups(gamma * sum_u_normalized) * tf.square(inverse) / count
            offset = -slope * mean - sum_groups(gamma * sum_u) * inverse / count
            slope, offset = (each + tf.zeros_like(gamma) for each in (slope, offset))
            d_inputs = upstream * to_channels(scale, inputs.dtype)
            d_inputs += inputs * to_channels(slope, inputs.dtype)
            d_inputs += to_channels(offset, inputs.dtype)
            d_gamma, d_beta = (tf.reduce_sum(each, 0) for each in (sum_u_normalized, sum_u))
            return d_inputs, tf.reshape(d_gamma, [channels]), tf.reshape(d_beta, [channels])

        return outputs, gradient

    # As tensors: custom_gradient does not take the variables of every distribution strategy.
    return normalize(inputs, tf.convert_to_tensor(gamma), tf.convert_to_tensor(beta))
