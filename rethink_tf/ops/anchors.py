"""Anchors: the reference boxes of the RPN, one set a pyramid level."""

import math

import numpy as np
import tensorflow as tf


def cell_anchors(sizes, aspect_ratios):
    """Returns the anchors of one cell, centred on the origin.

    Args:
        sizes: floats > 0, pixels: an anchor's area is size * size.
        aspect_ratios: floats > 0, height / width.

    Returns:
        float32 NumPy array [len(sizes) * len(aspect_ratios), 4], sizes outermost.
    """
    rows = []
    for size in sizes:
        for ratio in aspect_ratios:
            width = math.sqrt(size * size / ratio)
            height = ratio * width
            rows.append([-height / 2, -width / 2, height / 2, width / 2])
    return np.asarray(rows, np.float32)


def level_anchors(height, width, stride, sizes, aspect_ratios):
    """Returns all anchors of one level.

    The cell (i, j) is centred at (i * stride, j * stride): Detectron2's offset of 0. Detectron's
    anchors are centred half a stride further on, and it rounds their sides.

    Args:
        height: int or scalar int32 tensor, rows of the level's feature map.
        width: the same for columns.
        stride: int, pixels of the input image from one cell to the next.
        sizes: floats, pixels.
        aspect_ratios: floats, height / width.

    Returns:
        float32 [height * width * A, 4], pixels; rows outermost, the A anchors of a cell innermost.
    """
    base = tf.constant(cell_anchors(sizes, aspect_ratios))
    rows = tf.cast(tf.range(height), tf.float32) * float(stride)
    columns = tf.cast(tf.range(width), tf.float32) * float(stride)
    rows, columns = tf.meshgrid(rows, columns, indexing="ij")
    centers = tf.reshape(tf.stack([rows, columns, rows, columns], axis=-1), [-1, 1, 4])
    return tf.reshape(centers + base, [-1, 4])


def centers_inside(anchors, image_size):
    """Tells which anchors are centred inside the image's content.

    Batches are padded to a fixed shape, often far beyond the content; anchors out there would be
    easy negatives that dilute the sample, so they are neither sampled nor proposed.

    Args:
        anchors: float32 [N, 4], pixels.
        image_size: [B, 2], (height, width), pixels.

    Returns:
        bool [B, N].
    """
    size = tf.cast(image_size, tf.float32)[:, tf.newaxis, :]
    center = 0.5 * (anchors[:, :2] + anchors[:, 2:])[tf.newaxis]
    return tf.reduce_all(center < size, axis=-1)
