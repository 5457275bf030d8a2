"""Mask metrics beside objects that have a box and no mask.

Such an object is neither found nor missed by a mask: it is not among the objects to be found, and
detections of it are left out of the comparison. A detection is of it if the boxes say so: their IoU
is at least 0.5, COCO's lowest threshold, and no object with a mask is overlapped more. (To ignore
it as a crowd region would not do: a good mask that leaves the box by a tenth would count as wrong
at the high thresholds.) A crowd region without a mask is the region of its box.

Letters: D detections, N objects of one image and category.
"""

import numpy as np

from rethink_tf.evaluation import box_pairs

_MIN_IOU = 0.5


def counted(truth, found, kept, categories):
    """Tells which detections are compared by their masks.

    Args:
        truth: `coco_columns.GroundTruth`.
        found: `coco_columns.Results`.
        kept: bool [I], the images.
        categories: int64, the categories.

    Returns:
        bool [D], in the order of `found.instances`.
    """
    has_mask = truth.have("segmentation", kept)
    objects, detections = truth.instances("bbox", kept), found.instances("bbox", kept, categories)
    lacks_mask = ~has_mask & (objects.crowds == 0)
    is_counted = np.ones(len(detections.images), bool)
    num_categories = len(truth.category_positions)
    keys = [each.images * num_categories + each.categories for each in (detections, objects)]
    orders = [np.argsort(each, kind="stable") for each in keys]
    for key in np.intersect1d(keys[0], keys[1][lacks_mask]):
        rows, columns = (box_pairs.rows_of(key, *each) for each in zip(keys, orders, strict=True))
        overlaps = box_pairs.iou(detections.shapes[rows], objects.shapes[columns])
        lacks = lacks_mask[columns]
        of_unmasked = overlaps[:, lacks].max(1)
        of_others = np.where(lacks | (objects.crowds[columns] > 0), 0.0, overlaps).max(1)
        is_counted[rows] = (of_unmasked < _MIN_IOU) | (of_others > of_unmasked)
    return is_counted
