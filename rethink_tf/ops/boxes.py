"""Box arithmetic.

Boxes are float32 (y1, x1, y2, x2) in pixels of the network's input image, continuous, y2 and x2
exclusive; a padding row is zero. Letters: B images, N and M boxes.
"""

import math

import tensorflow as tf

# Detectron's cap of the predicted log-scale: a box grows by at most 1000/16 in one step.
MAX_LOG_SCALE = math.log(1000.0 / 16.0)


def area(boxes):
    """Returns the areas of boxes, in square pixels; 0 for a box that is inside out.

    Args:
        boxes: float32 [..., 4].

    Returns:
        float32 [...].
    """
    height = tf.maximum(boxes[..., 2] - boxes[..., 0], 0.0)
    width = tf.maximum(boxes[..., 3] - boxes[..., 1], 0.0)
    return height * width


def pairwise_iou(boxes_a, boxes_b):
    """Returns the intersection over union of every pair.

    Args:
        boxes_a: float32 [..., N, 4].
        boxes_b: float32 [..., M, 4].

    Returns:
        float32 [..., N, M]; 0 where either box has no area.
    """
    a = boxes_a[..., :, tf.newaxis, :]
    b = boxes_b[..., tf.newaxis, :, :]
    height = tf.minimum(a[..., 2], b[..., 2]) - tf.maximum(a[..., 0], b[..., 0])
    width = tf.minimum(a[..., 3], b[..., 3]) - tf.maximum(a[..., 1], b[..., 1])
    # Two negative sides would make a positive area.
    intersection = tf.maximum(height, 0.0) * tf.maximum(width, 0.0)
    union = area(boxes_a)[..., :, tf.newaxis] + area(boxes_b)[..., tf.newaxis, :] - intersection
    return tf.math.divide_no_nan(intersection, union)


def encode_boxes(boxes, anchors, weights):
    """Returns the deltas that move anchors onto boxes.

    Args:
        boxes: float32 [..., 4], pixels; the targets.
        anchors: float32 [..., 4], pixels; same shape.
        weights: four floats > 0, multiplied into (dy, dx, dh, dw).

    Returns:
        float32 [..., 4], (dy, dx, dh, dw), unitless. Rows whose box or anchor has no area are 0.

    Source: Girshick et al. 2014, arXiv:1311.2524, appendix C.
    """
    anchor_h, anchor_w = anchors[..., 2] - anchors[..., 0], anchors[..., 3] - anchors[..., 1]
    box_h, box_w = boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]
    valid = (anchor_h > 0) & (anchor_w > 0) & (box_h > 0) & (box_w > 0)
    # Degenerate rows are computed as 1x1 boxes and zeroed, so that no NaN reaches a gradient.
    anchor_h, anchor_w, box_h, box_w = (
        tf.where(valid, side, 1.0) for side in (anchor_h, anchor_w, box_h, box_w)
    )
    dy = (boxes[..., 0] + 0.5 * box_h - anchors[..., 0] - 0.5 * anchor_h) / anchor_h
    dx = (boxes[..., 1] + 0.5 * box_w - anchors[..., 1] - 0.5 * anchor_w) / anchor_w
    deltas = tf.stack([dy, dx, tf.math.log(box_h / anchor_h), tf.math.log(box_w / anchor_w)], -1)
    deltas *= tf.constant(weights, deltas.dtype)
    return tf.where(valid[..., tf.newaxis], deltas, 0.0)


def decode_boxes(deltas, anchors, weights, max_log_scale=MAX_LOG_SCALE):
    """Applies regression deltas to anchors.

    Inverse of `encode_boxes` while dh, dw <= max_log_scale.

    Args:
        deltas: float32 [..., 4], (dy, dx, dh, dw), unitless.
        anchors: float32 [..., 4], pixels; broadcast against deltas. Padding rows are zero.
        weights: four floats > 0; the deltas are divided by them.
        max_log_scale: float, nats; caps dh and dw before exp.

    Returns:
        float32 [..., 4], pixels, not clipped to the image. Padding rows stay zero.

    Source: Girshick et al. 2014, arXiv:1311.2524, appendix C; the cap is Detectron's.
    """
    deltas = deltas / tf.constant(weights, deltas.dtype)
    anchor_h, anchor_w = anchors[..., 2] - anchors[..., 0], anchors[..., 3] - anchors[..., 1]
    center_y = deltas[..., 0] * anchor_h + anchors[..., 0] + 0.5 * anchor_h
    center_x = deltas[..., 1] * anchor_w + anchors[..., 1] + 0.5 * anchor_w
    height = tf.exp(tf.minimum(deltas[..., 2], max_log_scale)) * anchor_h
    width = tf.exp(tf.minimum(deltas[..., 3], max_log_scale)) * anchor_w
    return tf.stack(
        [
            center_y - 0.5 * height,
            center_x - 0.5 * width,
            center_y + 0.5 * height,
            center_x + 0.5 * width,
        ],
        axis=-1,
    )


def clip_boxes(boxes, image_size):
    """Clips boxes to their image.

    Args:
        boxes: float32 [B, ..., 4], pixels.
        image_size: [B, 2], (height, width) of the image's content, pixels.

    Returns:
        float32 [B, ..., 4]; a box that lies outside has no area afterwards.
    """
    size = tf.cast(image_size, boxes.dtype)
    limits = tf.concat([size, size], axis=-1)
    limits = tf.reshape(limits, [-1] + [1] * (boxes.shape.rank - 2) + [4])
    return tf.clip_by_value(boxes, 0.0, limits)
