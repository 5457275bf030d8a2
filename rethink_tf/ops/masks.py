"""Training targets of the mask head."""

import tensorflow as tf

# Samples along each side of a target's bin; a bin of the target covers several of the crop's.
SAMPLES_PER_BIN = 4


def crop_targets(masks, mask_boxes, boxes, size):
    """Resamples objects' masks inside other boxes.

    A mask is stored as a crop of its own object's box, so no full-size mask is ever made. Two small
    interpolation matrices a box do the work, with static shapes.

    Args:
        masks: uint8 [P, S, S], 0 to 255: the object's mask in its own box.
        mask_boxes: float32 [P, 4], the objects' boxes, pixels.
        boxes: float32 [P, 4], the boxes to crop, pixels.
        size: int, side of the target.

    Returns:
        float32 [P, size, size], 0 or 1. Outside the object's own box the target is 0.
    """
    crop_size = masks.shape[-1]

    def weights(axis):
        """Returns [P, size, S]: what each pixel of the crop adds to each bin of the target."""
        low, high = boxes[:, axis, tf.newaxis], boxes[:, axis + 2, tf.newaxis]
        start = mask_boxes[:, axis, tf.newaxis]
        # Padding rows have boxes of no extent.
        extent = tf.maximum(mask_boxes[:, axis + 2, tf.newaxis] - start, 1e-6)
        num_samples = size * SAMPLES_PER_BIN
        fractions = (tf.range(num_samples, dtype=tf.float32) + 0.5) / num_samples
        position = (low + fractions * (high - low) - start) / extent * crop_size - 0.5
        # Beyond the object's box there is no object, though the last sample would be repeated.
        inside = (position >= -0.5) & (position <= crop_size - 0.5)
        position = tf.clip_by_value(position, 0.0, crop_size - 1.0)[..., tf.newaxis]
        hat = tf.nn.relu(1.0 - tf.abs(position - tf.range(crop_size, dtype=tf.float32)))
        hat = tf.where(inside[..., tf.newaxis], hat, 0.0)
        return tf.reduce_mean(tf.reshape(hat, [-1, size, SAMPLES_PER_BIN, crop_size]), axis=2)

    rows, columns = weights(0), weights(1)
    soft = tf.matmul(tf.matmul(rows, tf.cast(masks, tf.float32)), columns, transpose_b=True)
    # Half of 255; >= as in Detectron2.
    return tf.cast(soft >= 127.5, tf.float32)
