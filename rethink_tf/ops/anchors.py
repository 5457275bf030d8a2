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


def positions(sizes, maps, anchors_per_cell):
    """Numbers the anchors of each image's own content, fine to coarse, rows outermost.

    An image has the same numbers in every shape of a batch that holds it.

    Args:
        sizes: list of int32 [B, 2], (rows, columns) of the content on each level.
        maps: list of (rows, columns), ints or int32 scalars, of each level's feature map.
        anchors_per_cell: int A.

    Returns:
        int32 [B, N], N all anchors of the feature maps; -1 for those whose cell is not content.
    """
    numbers, start = [], 0
    for size, (height, width) in zip(sizes, maps, strict=True):
        size = size[..., tf.newaxis, tf.newaxis, tf.newaxis]
        own_rows, own_columns = tf.unstack(size, axis=1)
        rows = tf.reshape(tf.range(height), [1, -1, 1, 1])
        columns = tf.reshape(tf.range(width), [1, 1, -1, 1])
        cells = (rows * own_columns + columns) * anchors_per_cell + tf.range(anchors_per_cell)
        inside = (rows < own_rows) & (columns < own_columns)
        cells = tf.where(inside, start + cells, -1)
        numbers.append(tf.reshape(cells, [tf.shape(size)[0], -1]))
        start += own_rows * own_columns * anchors_per_cell
    return tf.concat(numbers, axis=1)
