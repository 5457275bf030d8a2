"""Keypoints: cells of a RoI as training targets, heatmaps back to positions, and mirroring.

A keypoint head says, for each of K keypoints, in which of S x S equal cells of its RoI it lies.
Positions are continuous, in pixels: the centre of the first pixel is (0.5, 0.5).

Letters: P RoIs, K keypoints, S side of a heatmap.
"""

import numpy as np
import tensorflow as tf

# Positions that `decode` tries within the width of a cell. Of a RoI of 448 pixels and 56 cells that
# is one a pixel, which is what Detectron resizes its heatmaps to.
STEPS_PER_CELL = 8
# Of cubic interpolation: OpenCV's and PyTorch's, by which Detectron and Detectron2 resize.
CUBIC_COEFFICIENT = -0.75


def encode(keypoints, rois, size):
    """Finds the cell of its RoI that each keypoint lies in.

    A position on the RoI's bottom or right border belongs to the last cell.

    Args:
        keypoints: float32 [P, K, 3], (y, x, visibility), pixels; visibility 0 is not labelled,
            1 hidden, 2 visible.
        rois: float32 [P, 4], (y1, x1, y2, x2), pixels.
        size: int S.

    Returns:
        cells: int32 [P, K], row * S + column; 0 where it is not valid.
        valid: bool [P, K], whether the keypoint is labelled and inside the RoI.

    Source: He et al. 2017, arXiv:1703.06870, section 5; borders as in Detectron2's
    `_keypoints_to_heatmap`.
    """
    positions = keypoints[..., :2]
    low, high = rois[:, tf.newaxis, :2], rois[:, tf.newaxis, 2:]
    cells = tf.floor((positions - low) * (size / tf.maximum(high - low, 1e-6)))
    # Boxes around keypoints have them on their border.
    cells = tf.where(positions == high, size - 1.0, cells)
    inside = tf.reduce_all((cells >= 0.0) & (cells < size), axis=-1)
    valid = inside & (keypoints[..., 2] > 0.0)
    rows, columns = tf.unstack(tf.cast(tf.clip_by_value(cells, 0.0, size - 1.0), tf.int32), axis=-1)
    return tf.where(valid, rows * size + columns, 0), valid


def decode(logits, rois):
    """Places each keypoint at the peak of its heatmap, finer than by a cell. Static shapes.

    The heatmap is interpolated bicubically around its highest cell, up to a cell away, at
    `STEPS_PER_CELL` positions a cell, and the highest is taken. Detectron resizes whole heatmaps
    to the RoI's size in pixels by the same interpolation and takes the middle of the highest
    pixel, so that the two differ by the rounding of one or the other: half a pixel, or 1/16 of a
    cell. As there, a peak in a border cell goes to the border. The score is Detectron2's, the
    probability of the peak in a softmax over the cells, but not above 1, where interpolation
    overshoots.

    Args:
        logits: float32 [P, K, S, S].
        rois: float32 [P, 4], (y1, x1, y2, x2), pixels.

    Returns:
        float32 [P, K, 3], (y, x, score), pixels.

    Source: `heatmaps_to_keypoints` of Detectron and Detectron2.
    """
    num_keypoints, size = logits.shape[1:3]
    flat = tf.reshape(logits, [-1, num_keypoints, size * size])
    best = tf.argmax(flat, axis=-1, output_type=tf.int32)
    cells = tf.stack([best // size, best % size], axis=-1)
    offsets, weights = _fine_grid()
    reach = weights.shape[1] // 2
    # Beyond the border the last cell is repeated, as PyTorch does.
    around = tf.clip_by_value(cells[..., tf.newaxis] + tf.range(-reach, reach + 1), 0, size - 1)
    rows, columns = tf.unstack(around, axis=2)
    indices = rows[..., tf.newaxis] * size + columns[..., tf.newaxis, :]
    window = tf.gather(flat, indices, batch_dims=2)
    fine = tf.einsum("fi,pkij->pkfj", weights, window)
    fine = tf.einsum("pkfj,gj->pkfg", fine, weights)
    positions = tf.cast(cells, tf.float32)[..., tf.newaxis] + 0.5 + offsets
    inside = (positions >= 0.0) & (positions <= size)
    inside = inside[:, :, 0, :, tf.newaxis] & inside[:, :, 1, tf.newaxis, :]
    fine = tf.where(inside, fine, fine.dtype.min)
    fine = tf.reshape(fine, [-1, num_keypoints, offsets.size**2])
    peak = tf.argmax(fine, axis=-1, output_type=tf.int32)
    peaks = tf.stack([peak // offsets.size, peak % offsets.size], axis=-1)
    fractions = tf.gather(positions, peaks[..., tf.newaxis], batch_dims=3)[..., 0] / size
    low, high = rois[:, tf.newaxis, :2], rois[:, tf.newaxis, 2:]
    score = tf.exp(tf.reduce_max(fine, axis=-1) - tf.reduce_logsumexp(flat, axis=-1))
    # Cubic interpolation overshoots the cells.
    score = tf.minimum(score, 1.0)
    return tf.concat([low + fractions * (high - low), score[..., tf.newaxis]], axis=-1)


def decode_detections(heatmaps, boxes, classes):
    """Decodes the heatmaps of detections.

    Args:
        heatmaps: float32 [B, D, K, S, S], logits.
        boxes: float32 [B, D, 4], pixels.
        classes: int32 [B, D], 0 is padding.

    Returns:
        float32 [B, D, K, 3], as of `decode`; padding rows are zero.
    """
    num_detections, num_keypoints, size = heatmaps.shape[1:4]
    flat = tf.reshape(heatmaps, [-1, num_keypoints, size, size])
    keypoints = decode(flat, tf.reshape(boxes, [-1, 4]))
    keypoints = tf.reshape(keypoints, [-1, num_detections, num_keypoints, 3])
    return tf.where(classes[..., tf.newaxis, tf.newaxis] > 0, keypoints, 0.0)


def mirror(keypoints, width, flip_order):
    """Mirrors keypoints left and right; what was the left eye becomes the right one.

    Args:
        keypoints: float32 [..., K, 3], (y, x, visibility or score), pixels; where the last is 0
            the position has no meaning and stays.
        width: float32 scalar, of the image, pixels.
        flip_order: K ints, the keypoint that each one becomes.

    Returns:
        float32 [..., K, 3].
    """
    swapped = tf.gather(keypoints, list(flip_order), axis=-2)
    y, x, last = tf.unstack(swapped, axis=-1)
    return tf.stack([y, tf.where(last > 0.0, width - x, x), last], axis=-1)


def mirror_heatmaps(heatmaps, flip_order):
    """Mirrors heatmaps left and right; what was the left eye's becomes the right one's.

    Args:
        heatmaps: float32 [..., K, S, S].
        flip_order: K ints, the keypoint that each one becomes.

    Returns:
        float32 [..., K, S, S].
    """
    return tf.gather(heatmaps, list(flip_order), axis=-3)[..., ::-1]


def _fine_grid():
    """Returns the positions to try, in cells from the middle of one, and how to interpolate there.

    Returns:
        float32 [F], and float32 [F, 5], the weights of the five cells around.
    """
    offsets = np.arange(-STEPS_PER_CELL, STEPS_PER_CELL + 1) / STEPS_PER_CELL
    distance = np.abs(offsets[:, np.newaxis] - np.arange(-2, 3))
    a = CUBIC_COEFFICIENT
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((distance - 5) * distance + 8) * distance * a - 4 * a
    weights = np.where(distance <= 1, near, np.where(distance < 2, far, 0))
    return offsets.astype(np.float32), weights.astype(np.float32)
