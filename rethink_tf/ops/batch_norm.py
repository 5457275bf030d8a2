"""Batch normalization whose statistics may be those of several replicas, with its own gradient.

Deviations are taken from the mean that all replicas have in common, which is known before them. As
a difference of two sums, which needs one message less, the variance and the gradients lose digits
wherever the mean is large against the deviation, and come out different on one replica and on many.

Letters: B images, C channels.
"""

import tensorflow as tf


def batch_norm(inputs, gamma, beta, epsilon, total):
    """Normalizes each channel to mean 0 and variance 1, then scales and shifts.

    The arithmetic is float32 whatever the inputs are. Nothing but the inputs is kept for the
    backward pass.

    Args:
        inputs: floating [B, ..., C]; B may differ between replicas.
        gamma: float32 [C], the scale.
        beta: float32 [C], the shift.
        epsilon: float > 0, added to the variance.
        total: callable that sums a float32 tensor over the replicas.

    Returns:
        The outputs, of the inputs' dtype and shape, and the mean and the variance (divided by the
        count), float32 [C], through which no gradient flows.

    Source: Ioffe and Szegedy 2015, arXiv:1502.03167, algorithm 1; Peng et al. 2018,
    arXiv:1711.07240, for the sums over replicas.
    """
    axes = list(range(inputs.shape.rank - 1))

    @tf.custom_gradient
    def normalize(inputs, gamma, beta):
        exact = tf.cast(inputs, tf.float32)
        count = total(tf.cast(tf.reduce_prod(tf.shape(inputs)[:-1]), tf.float32))
        mean = total(tf.reduce_sum(exact, axes)) / count
        variance = total(tf.reduce_sum(tf.math.squared_difference(exact, mean), axes)) / count
        inverse = tf.math.rsqrt(variance + epsilon)

        def gradient(upstream, *_):
            upstream = tf.cast(upstream, tf.float32)
            normalized = (tf.cast(inputs, tf.float32) - mean) * inverse
            d_gamma = tf.reduce_sum(upstream * normalized, axes)
            d_beta = tf.reduce_sum(upstream, axes)
            # The statistics made every replica's outputs depend on every replica's inputs.
            along, constant = tf.unstack(total(tf.stack([d_gamma, d_beta])) / count)
            d_inputs = gamma * inverse * (upstream - constant - normalized * along)
            return tf.cast(d_inputs, inputs.dtype), d_gamma, d_beta

        outputs = (exact - mean) * (inverse * gamma) + beta
        return (tf.cast(outputs, inputs.dtype), mean, variance), gradient

    # As tensors: custom_gradient does not take the variables of every distribution strategy.
    return normalize(inputs, tf.convert_to_tensor(gamma), tf.convert_to_tensor(beta))
