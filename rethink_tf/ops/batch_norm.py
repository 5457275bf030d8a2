"""Batch normalization whose statistics may be those of several replicas, with its own gradient.

Deviations are taken from the mean that all replicas have in common, which is known before them. As
a difference of two sums, which needs one message less, the variance and the gradients lose digits
wherever the mean is large against the deviation, and come out different on one replica and on many.

Letters: B images, C channels.
"""

import tensorflow as tf


def batch_norm(inputs, gamma, beta, epsilon, total, mask=None, correct=None):
    """Normalizes each channel to mean 0 and variance 1, then scales and shifts.

    The arithmetic is float32 whatever the inputs are. Nothing but the inputs is kept for the
    backward pass.

    Args:
        inputs: floating [B, ..., C]; B may differ between replicas.
        gamma: float32 [C], the scale.
        beta: float32 [C], the shift.
        epsilon: float > 0, added to the variance.
        total: callable that sums a float32 tensor over the replicas.
        mask: floating, broadcast against [B, ..., 1]: 1 for places that count, 0 for others, whose
            outputs and gradients are then 0. None where all count.
        correct: callable of the batch's mean and variance, returns the scale and the shift float32
            [C] of the normalized values that batch renormalization puts before gamma and beta; no
            gradient flows through them. None for plain batch normalization.

    Returns:
        The outputs, of the inputs' dtype and shape, the mean and the variance (divided by the
        count), float32 [C], through which no gradient flows, and the count, a float32 scalar.

    Source: Ioffe and Szegedy 2015, arXiv:1502.03167, algorithm 1; Peng et al. 2018,
    arXiv:1711.07240, for the sums over replicas.
    """
    axes = list(range(inputs.shape.rank - 1))

    def keep(values):
        return values if mask is None else values * tf.cast(mask, values.dtype)

    @tf.custom_gradient
    def normalize(inputs, gamma, beta):
        exact = tf.cast(inputs, tf.float32)
        places = tf.cast(tf.reduce_prod(tf.shape(inputs)[:-1]), tf.float32)
        if mask is not None:
            # The mask of RoIs has one number a RoI: its mean is the share of RoIs that are there.
            places *= tf.reduce_mean(tf.cast(mask, tf.float32))
        found = total(places)
        count = tf.maximum(found, 1.0)
        mean = total(tf.reduce_sum(keep(exact), axes)) / count
        variance = total(tf.reduce_sum(keep(tf.math.squared_difference(exact, mean)), axes)) / count
        inverse = tf.math.rsqrt(variance + epsilon)
        factor, offset = correct(mean, variance) if correct else (1.0, 0.0)

        def gradient(upstream, *_):
            upstream = keep(tf.cast(upstream, tf.float32))
            normalized = (tf.cast(inputs, tf.float32) - mean) * inverse
            along = tf.reduce_sum(upstream * normalized, axes)
            d_beta = tf.reduce_sum(upstream, axes)
            d_gamma = along * factor + d_beta * offset
            # The statistics made every replica's outputs depend on every replica's inputs.
            along, constant = tf.unstack(total(tf.stack([along, d_beta])) / count)
            d_inputs = factor * gamma * inverse * (upstream - constant - normalized * along)
            return tf.cast(keep(d_inputs), inputs.dtype), d_gamma, d_beta

        outputs = (exact - mean) * (inverse * gamma * factor) + (beta + gamma * offset)
        return (tf.cast(keep(outputs), inputs.dtype), mean, variance, found), gradient

    # As tensors: custom_gradient does not take the variables of every distribution strategy.
    return normalize(inputs, tf.convert_to_tensor(gamma), tf.convert_to_tensor(beta))
