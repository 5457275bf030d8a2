"""Non-maximum suppression with fixed output shapes.

The same TensorFlow kernel runs on CPU, on GPU and under XLA: it pads its output, so that every
shape is static. Letters: B images, N boxes, K kept.
"""

import tensorflow as tf

# Scores at or below it are never kept: the mark of padding rows.
NO_SCORE = -1e30


def suppress(boxes, scores, max_output, iou_threshold):
    """Keeps boxes by falling score, dropping those that overlap a kept one too much.

    Args:
        boxes: float32 [B, N, 4]; B and N are static.
        scores: float32 [B, N]; NO_SCORE marks padding rows.
        max_output: int K > 0.
        iou_threshold: float in [0, 1]; a box of higher IoU with a kept one is dropped.

    Returns:
        indices: int32 [B, K], rows of the kept boxes by falling score.
        valid: bool [B, K]; False where fewer than K were kept.
    """
    # XLA refuses more outputs than there are boxes.
    num_outputs = min(max_output, scores.shape[1])
    empty = [[0, max_output - num_outputs]]
    all_indices, all_valid = [], []
    for image_boxes, image_scores in zip(tf.unstack(boxes), tf.unstack(scores), strict=True):
        indices, count = tf.raw_ops.NonMaxSuppressionV4(
            boxes=image_boxes,
            scores=image_scores,
            max_output_size=num_outputs,
            iou_threshold=float(iou_threshold),
            score_threshold=NO_SCORE,
            pad_to_max_output_size=True,
        )
        all_indices.append(tf.pad(tf.ensure_shape(indices, [num_outputs]), empty))
        all_valid.append(tf.range(max_output) < count)
    return tf.stack(all_indices), tf.stack(all_valid)


def suppress_per_class(boxes, scores, classes, max_output, iou_threshold):
    """As `suppress`, but boxes of different classes never suppress each other.

    Args:
        boxes: float32 [B, N, 4], pixels, not negative.
        scores: float32 [B, N].
        classes: int32 [B, N].
        max_output: int K.
        iou_threshold: float.

    Returns:
        indices int32 [B, K] and valid bool [B, K], as of `suppress`.
    """
    # Each class is moved to a place of its own, beyond the reach of every other.
    span = tf.reduce_max(boxes, axis=[1, 2], keepdims=True) + 1.0
    offset = tf.cast(classes, boxes.dtype)[..., tf.newaxis] * span
    return suppress(boxes + offset, scores, max_output, iou_threshold)
