"""Pixels as a network takes them."""

import tensorflow as tf


def normalize(image, image_size, mean, std):
    """Subtracts the mean, divides by the deviation, and makes the padding zero.

    Args:
        image: uint8 [B, H, W, 3], RGB; H and W are static.
        image_size: int32 [B, 2], (height, width) of the content; the rest is padding.
        mean: three floats, of 0 to 255.
        std: three floats, of 0 to 255.

    Returns:
        float32 [B, H, W, 3].
    """
    pixels = (tf.cast(image, tf.float32) - mean) / std
    rows = tf.range(image.shape[1])[tf.newaxis, :] < image_size[:, :1]
    columns = tf.range(image.shape[2])[tf.newaxis, :] < image_size[:, 1:]
    content = rows[:, :, tf.newaxis, tf.newaxis] & columns[:, tf.newaxis, :, tf.newaxis]
    return tf.where(content, pixels, 0.0)
