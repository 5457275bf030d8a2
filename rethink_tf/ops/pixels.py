"""Pixels as a network takes them."""

import tensorflow as tf

from rethink_tf.ops.content import Content


def normalize(image, image_size, mean, std):
    """Subtracts the mean, divides by the deviation, and makes the padding zero.

    Args:
        image: uint8 [B, H, W, 3], RGB.
        image_size: int32 [B, 2], (height, width) of the content; the rest is padding.
        mean: three floats, of 0 to 255.
        std: three floats, of 0 to 255.

    Returns:
        float32 [B, H, W, 3].
    """
    pixels = (tf.cast(image, tf.float32) - mean) / std
    return Content(image_size).keep(pixels)
