"""Matching of anchors or proposals to objects, and the random sampling of both.

Letters: B images, N anchors or proposals, M objects (padded rows have class 0), K samples.
"""

import tensorflow as tf

from rethink_tf.ops import boxes as box_ops

NEGATIVE, IGNORED, POSITIVE = 0, -1, 1


def match(
    candidates,
    objects,
    object_valid,
    negative_below,
    positive_from,
    keep_best=False,
    candidate_valid=None,
):
    """Labels candidates by their overlap with the objects.

    Args:
        candidates: float32 [B, N, 4], pixels.
        objects: float32 [B, M, 4], pixels; M >= 1.
        object_valid: bool [B, M]; False marks padding rows.
        negative_below: float; a candidate whose best IoU is below is negative.
        positive_from: float >= negative_below; from this IoU on it is positive; between, ignored.
        keep_best: whether the candidates of the highest IoU with an object (all, on a tie) are
            positive however low that is, unless it is 0.
        candidate_valid: bool [B, N]; the others are ignored, and best of no object. None for all.

    Returns:
        labels: int32 [B, N], 1 positive, 0 negative, -1 ignored.
        matches: int32 [B, N], row of the object of highest IoU (0 where there is none).

    Raises:
        ValueError: if the thresholds are not in order.

    Source: Ren et al. 2015, arXiv:1506.01497, section 3.1.2; ties as in Detectron2's Matcher.
    """
    if not 0.0 <= negative_below <= positive_from <= 1.0:
        raise ValueError(
            "IoU thresholds must satisfy 0 <= negative_below <= positive_from <= 1, got "
            f"{negative_below} and {positive_from}."
        )
    iou = box_ops.pairwise_iou(candidates, objects)
    iou = tf.where(object_valid[:, tf.newaxis, :], iou, -1.0)
    if candidate_valid is not None:
        iou = tf.where(candidate_valid[..., tf.newaxis], iou, -1.0)
    # Without an object the maximum is -1 and every candidate is negative.
    best = tf.reduce_max(iou, axis=2)
    matches = tf.argmax(iou, axis=2, output_type=tf.int32)
    positive = best >= positive_from
    if keep_best:
        # An object that no anchor fits well would have no positive, and never be learned.
        best_of_object = tf.reduce_max(iou, axis=1, keepdims=True)
        is_best = (iou == best_of_object) & (best_of_object > 0.0)
        positive |= tf.reduce_any(is_best, axis=2)
    negative = best < negative_below
    if candidate_valid is not None:
        negative &= candidate_valid
    labels = tf.where(negative, NEGATIVE, IGNORED)
    return tf.where(positive, POSITIVE, labels), matches


def sample(labels, draws, num_samples, positive_fraction):
    """Draws a fixed number of positives and negatives from each image.

    At most `num_samples * positive_fraction` positives, the rest negatives; fewer where there are
    not enough of them.

    Args:
        labels: int32 [B, N], as of `match`.
        draws: float32 [B, N], uniform in [0, 1); the candidates with the highest draws are taken.
        num_samples: int K > 0.
        positive_fraction: float in [0, 1].

    Returns:
        indices: int32 [B, K'], K' = min(K, N): the sampled candidates, positives first.
        labels: int32 [B, K']: 1, 0, or -1 for a slot that is left empty.
    """
    total = tf.shape(labels)[1]
    # A short list has fewer candidates than samples.
    num_slots = tf.minimum(num_samples, total)
    max_positives = tf.minimum(int(num_samples * positive_fraction), total)
    # The best draws of each kind; a score below 0 marks a candidate of another kind.
    positive_score, positive_index = tf.math.top_k(
        tf.where(labels == POSITIVE, draws, -1.0), num_slots
    )
    negative_score, negative_index = tf.math.top_k(
        tf.where(labels == NEGATIVE, draws, -1.0), num_slots
    )
    num_positives = tf.reduce_sum(tf.cast(positive_score >= 0.0, tf.int32), axis=1, keepdims=True)
    num_positives = tf.minimum(num_positives, max_positives)
    # Slot p holds the p-th positive; after the positives come the negatives in their order.
    slot = tf.range(num_slots)[tf.newaxis, :]
    is_positive = slot < num_positives
    negative_slot = tf.maximum(slot - num_positives, 0)
    indices = tf.where(
        is_positive, positive_index, tf.gather(negative_index, negative_slot, batch_dims=1)
    )
    is_negative = tf.gather(negative_score, negative_slot, batch_dims=1) >= 0.0
    sampled = tf.where(is_positive, POSITIVE, tf.where(is_negative, NEGATIVE, IGNORED))
    return indices, sampled
