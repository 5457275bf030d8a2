"""Fits shapes of anchors to those of objects, by k-means on IoU.

Shapes are compared as if they had one centre. Pure NumPy. Letters: N objects, K anchors.

Source: Redmon and Farhadi 2016 (YOLO9000, arXiv:1612.08242), section 2, "Dimension Clusters"; the
centre of a cluster is its geometric mean here, which keeps shapes of one area at that area.
"""

import numpy as np

# What the RPN takes by default, height / width; `RPN.aspect_ratios`.
USUAL_RATIOS = (0.5, 1.0, 2.0)
# An anchor that is positive by its IoU has this one at least; see `RPN.positive_from`.
POSITIVE_FROM = 0.7
# Other ratios than the usual ones are taken where they serve so many more of the objects.
MIN_GAIN = 0.1
# So many objects tell the shapes of all; they are taken at equal distances of the list.
_MAX_FITTED = 5000
_ROUNDS = 100
_CANDIDATES = 300  # shapes of the data that it may start from
# A centre is moved by these factors of height and width, coarse to fine, while that helps.
_MOVES = (1.2, 1.1, 1.05, 1.02)


def shape_iou(shapes, anchors):
    """Returns float64 [N, K], the IoU of shapes around one centre.

    Args:
        shapes: float [N, 2], (height, width), above 0.
        anchors: float [K, 2], the same.
    """
    shapes, anchors = np.asarray(shapes, np.float64), np.asarray(anchors, np.float64)
    both = np.minimum(shapes[:, np.newaxis], anchors).prod(-1)
    return both / (shapes.prod(-1)[:, np.newaxis] + anchors.prod(-1) - both)


def mean_best_iou(shapes, anchors):
    """Returns the mean, over shapes [N, 2], of the IoU with the best of anchors [K, 2]."""
    return float(shape_iou(shapes, anchors).max(1).mean())


def k_means(shapes, num_anchors):
    """Finds the shapes of anchors whose mean best IoU with objects is high.

    Deterministic: it starts from shapes of the data. These, and what k-means ends at,
    are improved one side of one centre at a time; the better is returned.

    Args:
        shapes: float [N, 2], (height, width), above 0; N >= 1. Of many, some are taken.
        num_anchors: int K >= 1.

    Returns:
        float64 [K', 2], by area; K' is K, or less where there are fewer shapes.
    """
    shapes = _some(shapes)
    different = np.unique(shapes, axis=0)
    if len(different) <= num_anchors:
        centres = different
    else:
        start = _greedy(shapes, num_anchors)
        ends = [start, _lloyd(shapes, start.copy())]
        centres = max(
            (_improve(shapes, end) for end in ends), key=lambda c: mean_best_iou(shapes, c)
        )
    return centres[np.argsort(centres.prod(-1), kind="stable")]


def fit_ratios(shapes):
    """Returns the aspect ratios of anchors that objects ask for, or None where the usual ones do.

    Sizes are left aside: all shapes are brought to one area. An object whose ratio has an IoU below
    `POSITIVE_FROM` with every anchor's is no anchor's by its IoU, whatever their sizes. The usual
    ratios are kept unless the fitted ones have `MIN_GAIN` of the objects fewer of these.

    Args:
        shapes: float [N, 2], (height, width) of the objects, above 0.

    Returns:
        tuple of as many floats as `USUAL_RATIOS`, ascending, height / width; or None.
    """
    shapes = ratio_shapes(shapes[:, 0] / shapes[:, 1])
    fitted = k_means(shapes, len(USUAL_RATIOS))
    ratios = sorted(round(float(height / width), 2) for height, width in fitted)
    if len(set(ratios)) < len(USUAL_RATIOS) or ratios[0] <= 0:
        return None
    gain = _out_of_reach(shapes, USUAL_RATIOS) - _out_of_reach(shapes, ratios)
    return tuple(ratios) if gain >= MIN_GAIN else None


def ratio_shapes(ratios):
    """Returns float64 [N, 2], (height, width) of area 1, of ratios [N], height / width."""
    height = np.sqrt(np.asarray(ratios, np.float64))
    return np.stack([height, 1 / height], -1)


def _out_of_reach(shapes, ratios):
    """The share of shapes of area 1 whose IoU with the nearest ratio is below `POSITIVE_FROM`."""
    return float((shape_iou(shapes, ratio_shapes(ratios)).max(1) < POSITIVE_FROM).mean())


def _some(shapes):
    shapes = np.asarray(shapes, np.float64)
    if len(shapes) <= _MAX_FITTED:
        return shapes
    return shapes[np.linspace(0, len(shapes) - 1, _MAX_FITTED).astype(int)]


def _greedy(shapes, count):
    """Shapes of the data, each the one that raises the mean best IoU most beside those before."""
    candidates = shapes[np.linspace(0, len(shapes) - 1, min(len(shapes), _CANDIDATES)).astype(int)]
    iou = shape_iou(shapes, candidates)
    best, chosen = np.zeros(len(shapes)), []
    for _ in range(count):
        chosen.append(np.maximum(best[:, np.newaxis], iou).mean(0).argmax())
        best = np.maximum(best, iou[:, chosen[-1]])
    return candidates[chosen]


def _lloyd(shapes, centres):
    nearest = None
    for _ in range(_ROUNDS):
        found = shape_iou(shapes, centres).argmax(1)
        if nearest is not None and (found == nearest).all():
            break
        nearest = found
        logs = np.log(shapes)
        for number in np.unique(nearest):
            centres[number] = np.exp(logs[nearest == number].mean(0))
    return centres


def _improve(shapes, centres):
    """Moves one side of one centre at a time while the mean best IoU rises."""
    iou = shape_iou(shapes, centres)
    for factor in _MOVES:
        improved = True
        while improved:
            improved = False
            for number, axis in np.ndindex(*centres.shape):
                others = np.delete(iou, number, 1).max(1, initial=0.0)
                for each in (factor, 1 / factor):
                    moved = centres[number].copy()
                    moved[axis] *= each
                    own = shape_iou(shapes, moved[np.newaxis])[:, 0]
                    if np.maximum(others, own).mean() > iou.max(1).mean() + 1e-9:
                        centres[number], iou[:, number], improved = moved, own, True
    return centres
