"""Non-maximum suppression with fixed output shapes, and the vote of the suppressed boxes.

The same TensorFlow kernel runs on CPU, on GPU and under XLA: it pads its output, so that every
shape is static. Letters: B images, N boxes, K kept.
"""

import tensorflow as tf

from rethink_tf.ops.boxes import pairwise_iou

# Scores at or below it are never kept: the mark of padding rows.
NO_SCORE = -1e30


def top_scores(scores, count):
    """Returns the highest scores, filled up with NO_SCORE where there are fewer.

    Args:
        scores: float32 [B, N]; N need not be static.
        count: int K.

    Returns:
        scores: float32 [B, K], falling.
        indices: int32 [B, K], of the N; 0 for what is filled up.
    """
    total = scores.shape[1]
    found = tf.minimum(count, tf.shape(scores)[1]) if total is None else min(count, total)
    scores, indices = tf.math.top_k(scores, found)
    missing = [[0, 0], [0, count - found]]
    scores = tf.pad(scores, missing, constant_values=NO_SCORE)
    indices = tf.pad(indices, missing)
    return tuple(tf.ensure_shape(each, [each.shape[0], count]) for each in (scores, indices))


def suppress(boxes, scores, max_output, iou_threshold):
    """Keeps boxes by falling score, dropping those that overlap a kept one too much.

    Args:
        boxes: float32 [B, N, 4]; N is static.
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

    def suppress_image(inputs):
        indices, count = tf.raw_ops.NonMaxSuppressionV4(
            boxes=inputs[0],
            scores=inputs[1],
            max_output_size=num_outputs,
            iou_threshold=float(iou_threshold),
            score_threshold=NO_SCORE,
            pad_to_max_output_size=True,
        )
        indices = tf.pad(tf.ensure_shape(indices, [num_outputs]), empty)
        return indices, tf.range(max_output) < count

    # The kernel takes one image; unrolled, the images of a batch run side by side.
    if boxes.shape[0] is None:
        shapes = tf.TensorSpec([max_output], tf.int32), tf.TensorSpec([max_output], tf.bool)
        return tf.map_fn(suppress_image, (boxes, scores), fn_output_signature=shapes)
    images = zip(tf.unstack(boxes), tf.unstack(scores), strict=True)
    indices, valid = zip(*map(suppress_image, images), strict=True)
    return tf.stack(indices), tf.stack(valid)


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
    # Boxes of each class are moved apart, so that boxes of two classes do not overlap.
    span = tf.reduce_max(boxes, axis=[1, 2], keepdims=True) + 1.0
    offset = tf.cast(classes, boxes.dtype)[..., tf.newaxis] * span
    return suppress(boxes + offset, scores, max_output, iou_threshold)


def vote(kept_boxes, kept_classes, boxes, scores, classes, iou_threshold):
    """Moves each kept box to the mean of all boxes that agree with it, weighted by their scores.

    Those are the boxes of its class with an IoU of at least the threshold, itself among them.

    Args:
        kept_boxes: float32 [B, K, 4].
        kept_classes: int32 [B, K], 0 is padding.
        boxes: float32 [B, N, 4], those that the kept ones were chosen from.
        scores: float32 [B, N], above 0; NO_SCORE marks padding rows.
        classes: int32 [B, N].
        iou_threshold: float in (0, 1].

    Returns:
        float32 [B, K, 4]; padding rows stay as they are.

    Source: Gidaris and Komodakis 2015, arXiv:1505.01749, section 5; Detectron's `box_voting` with
    the scoring method "ID", by which the kept boxes' scores stay.
    """
    agree = pairwise_iou(kept_boxes, boxes) >= iou_threshold
    agree &= kept_classes[..., tf.newaxis] == classes[:, tf.newaxis]
    agree &= (scores > NO_SCORE)[:, tf.newaxis] & (kept_classes > 0)[..., tf.newaxis]
    weights = tf.where(agree, scores[:, tf.newaxis], 0.0)
    total = tf.reduce_sum(weights, axis=-1, keepdims=True)
    # As a shift, and not as a matrix product: that has 10 bits on some GPUs, which is a pixel.
    shifts = boxes[:, tf.newaxis] - kept_boxes[..., tf.newaxis, :]
    shift = tf.reduce_sum(weights[..., tf.newaxis] * shifts, axis=2)
    return kept_boxes + tf.math.divide_no_nan(shift, total)
