"""Boxes of detections and objects, compared image by image. Letters: N and M boxes."""

import numpy as np


def rows_of(key, keys, order):
    """Returns the rows that have a key.

    Args:
        key: int.
        keys: int64 [N].
        order: int64 [N], sorts the keys.
    """
    sides = (np.searchsorted(keys, key, side, sorter=order) for side in ("left", "right"))
    return order[slice(*sides)]


def iou(first, second):
    """IoU float64 [N, M] of boxes (x, y, width, height) [N, 4], [M, 4]; 0 where both are empty."""
    first, second = first[:, np.newaxis], second[np.newaxis]
    low = np.maximum(first[..., :2], second[..., :2])
    high = np.minimum(first[..., :2] + first[..., 2:], second[..., :2] + second[..., 2:])
    intersection = np.maximum(high - low, 0).prod(-1)
    union = first[..., 2:].prod(-1) + second[..., 2:].prod(-1) - intersection
    return np.divide(intersection, union, out=np.zeros_like(union), where=union > 0)
