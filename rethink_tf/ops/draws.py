"""Uniform random numbers from integer hashing.

TensorFlow's stateless generators draw other numbers under XLA than in its own kernels. These are
the same on every device and compiler, so that a resumed, a recompiled and a differently distributed
run all sample the same anchors and RoIs.
"""

import tensorflow as tf


def _mix(words):
    """Scrambles uint32 words one to one.

    Source: C. Wellons, "lowbias32", the 2-round xorshift-multiply hash of least known bias.
    """
    words = tf.bitwise.bitwise_xor(words, tf.bitwise.right_shift(words, tf.constant(16, tf.uint32)))
    words *= tf.constant(0x7FEB352D, tf.uint32)
    words = tf.bitwise.bitwise_xor(words, tf.bitwise.right_shift(words, tf.constant(15, tf.uint32)))
    words *= tf.constant(0x846CA68B, tf.uint32)
    return tf.bitwise.bitwise_xor(words, tf.bitwise.right_shift(words, tf.constant(16, tf.uint32)))


def uniform(seed, purpose, image_id, count):
    """Returns uniform numbers that depend on the seed, the purpose and each image alone.

    They do not depend on the replica or the slot of the batch that an image lands on, and the
    first numbers of a longer draw are those of a shorter one.

    Args:
        seed: int32 [2], the run's seed and the step.
        purpose: int, what the numbers are for; different purposes are independent.
        image_id: int64 [B].
        count: int or int32 scalar N.

    Returns:
        float32 [B, N], multiples of 2 ** -24 in [0, 1).
    """
    # All 64 bits of the id count: some of VOC's are hashes above 2 ** 48.
    low = tf.bitwise.bitwise_and(image_id, tf.constant(0xFFFFFFFF, tf.int64))
    high = tf.bitwise.right_shift(image_id, tf.constant(32, tf.int64))
    key = _mix(tf.constant(purpose + 1, tf.uint32))
    for part in (seed[0], seed[1], low, high):
        key = _mix(tf.bitwise.bitwise_xor(key, tf.cast(part, tf.uint32)) + 0x9E3779B9)
    numbers = _mix(tf.cast(tf.range(count), tf.uint32) + tf.constant(0x9E3779B9, tf.uint32))
    words = _mix(tf.bitwise.bitwise_xor(numbers[tf.newaxis, :], key[:, tf.newaxis]))
    # The upper 24 bits: a float32 holds no more, and would round the largest up to 1.
    fraction = tf.bitwise.right_shift(words, tf.constant(8, tf.uint32))
    return tf.cast(fraction, tf.float32) * 2.0**-24
