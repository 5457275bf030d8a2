"""Masks pasted into their images, inside an exported program.

`evaluation.pasting` does the same on the host, exactly and without the pixels; this is its
definition, as two matrix products. Letters: B images, D detections, S side of a mask.
"""

import tensorflow as tf

THRESHOLD = 0.5


def paste(masks, boxes, size):
    """Pastes masks into images.

    Args:
        masks: float32 [B, D, S, S], probabilities.
        boxes: float32 [B, D, 4], (y1, x1, y2, x2), pixels.
        size: int32 [2], height and width of the images, pixels.

    Returns:
        uint8 [B, D, height, width], 1 inside of the object, else 0.
    """
    rows = _weights(boxes[..., 0], boxes[..., 2], size[0], masks.shape[-2])
    columns = _weights(boxes[..., 1], boxes[..., 3], size[1], masks.shape[-1])
    pixels = tf.matmul(tf.matmul(rows, masks), columns, transpose_b=True)
    return tf.cast(pixels >= THRESHOLD, tf.uint8)


def _weights(low, high, length, num_cells):
    """Returns what each pixel takes of each cell along an axis, float32 [B, D, length, S].

    A cell's value stands at its centre; between centres it is linear, and beyond the outermost ones
    it falls to zero within a cell.
    """
    step = tf.maximum((high - low) / num_cells, 1e-6)[..., tf.newaxis]
    centers = tf.range(length, dtype=tf.float32) + 0.5
    position = (centers - low[..., tf.newaxis]) / step - 0.5
    cells = tf.range(num_cells, dtype=tf.float32)
    return tf.nn.relu(1.0 - tf.abs(position[..., tf.newaxis] - cells))
