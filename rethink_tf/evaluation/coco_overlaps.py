"""How much detections and objects of the same image and class overlap, by pycocotools.

Letters: Q pairs of an image and a class that have both detections and objects.
"""

import numpy as np
from pycocotools import mask as coco_mask

from rethink_tf.evaluation import coco_columns


def of_boxes(found, truth, spans):
    """Returns the overlap of boxes: intersection over union, over the detection's area for a crowd.

    Args:
        found: `coco_columns.Instances`, detections by box.
        truth: `coco_columns.Instances`, objects by box.
        spans: int64 [Q, 4], rows (begin, end) of a pair's detections and (begin, end) of its
            objects.

    Returns:
        Q nested lists [detections][objects].
    """
    return [
        coco_mask.iou(
            found.shapes[begin:end], truth.shapes[first:last], truth.crowds[first:last]
        ).tolist()
        for begin, end, first, last in spans.tolist()
    ]


def of_masks(found, truth, spans, least):
    """Returns the overlap of masks, as `of_boxes`, but zero where it is below a threshold.

    Two masks share at most the pixels that their boxes share, and at most those of the smaller
    mask. Where that is too little for the threshold, the masks are not compared: with many classes
    most detections of an image lie elsewhere than its objects, or are much larger or smaller.

    Args:
        found: `coco_columns.Instances`, detections by mask.
        truth: `coco_columns.Instances`, objects by mask.
        spans: int64 [Q, 4], as for `of_boxes`.
        least: float, the overlap from which on a detection can match.

    Returns:
        Q nested lists [detections][objects].
    """
    begin, end, first, last = spans.T
    num_found, num_objects = end - begin, last - first
    # All detections of these pairs, all objects, and for each object the detections of its pair.
    found_rows, object_rows = _ranges(begin, num_found), _ranges(first, num_objects)
    pair = np.repeat(np.arange(len(spans)), num_objects)
    count = num_found[pair]
    left = _ranges((np.cumsum(num_found) - num_found)[pair], count)
    right = np.repeat(np.arange(len(object_rows)), count)

    found_masks = [found.shapes[row] for row in found_rows.tolist()]
    object_masks = [truth.shapes[row] for row in object_rows.tolist()]
    crowds = truth.crowds[object_rows]
    found_boxes, object_boxes = map(coco_columns.mask_boxes, (found_masks, object_masks))
    # pycocotools' own count of an object's pixels; COCO's file may give it another area.
    object_areas = coco_columns.mask_areas(object_masks)
    shared = _shared(found_boxes[left], object_boxes[right])
    shared = np.minimum(shared, np.minimum(found.areas[found_rows][left], object_areas[right]))
    union = found.areas[found_rows][left] + np.where(
        crowds[right] > 0, 0, object_areas[right] - shared
    )
    compared = np.flatnonzero(shared >= (least - 1e-9) * union)

    overlaps = np.zeros(len(left))
    cuts = np.searchsorted(compared, np.append(0, np.cumsum(count))).tolist()
    rows = left[compared].tolist()
    values = [
        coco_mask.iou([found_masks[row] for row in rows[i:j]], [mask], [crowd]).reshape(-1)
        for i, j, mask, crowd in zip(
            cuts[:-1], cuts[1:], object_masks, crowds.tolist(), strict=True
        )
        if i < j
    ]
    overlaps[compared] = np.concatenate([np.zeros(0), *values])
    ends = np.cumsum(num_found * num_objects)
    return [
        overlaps[end - rows * columns : end].reshape([columns, rows]).T.tolist()
        for end, rows, columns in zip(ends, num_found, num_objects, strict=True)
    ]


def _ranges(starts, counts):
    """Returns int64, the numbers start, start + 1, ... of each start, count of them, in a row."""
    offsets = np.repeat(starts - (np.cumsum(counts) - counts), counts)
    return offsets + np.arange(len(offsets))


def _shared(left, right):
    """Returns the area that boxes (x, y, width, height) float64 [N, 4] share with each other."""
    low = np.maximum(left[:, :2], right[:, :2])
    high = np.minimum(left[:, :2] + left[:, 2:], right[:, :2] + right[:, 2:])
    return np.prod(np.maximum(high - low, 0), axis=1)
