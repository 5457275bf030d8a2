"""PASCAL VOC's mean average precision, in NumPy, by the rule of 2007 or that of 2010 and later.

The devkit adds 1 to each side of a box, for its pixels are counted from 1 and the last one belongs
to the box. In continuous coordinates as `sources.voc` makes them (x1 - 1, y1 - 1, x2, y2) the same
numbers are the plain sides, and its overlap is the plain IoU.

Letters: D detections, G objects of one class, I images, K categories.

Source: VOCevaldet.m and VOCap.m of the VOC2012 devkit; VOCevaldet.m of the VOC2007 devkit for the
11 points.
"""

import gin
import numpy as np
from absl import logging

from rethink_tf.evaluation import box_pairs, coco_columns, coco_metrics

AREA, ELEVEN_POINTS = "area", "11_points"
HEADLINE = "voc/mAP"
_PER_CLASS = "voc/AP_per_class/"


@gin.register
class VocMetrics:
    """PASCAL VOC's mAP, for the evaluator.

    Attributes:
        headline: name of the number that the best checkpoint is chosen by.
    """

    headline = HEADLINE

    def __init__(self, ground_truth, fields=(), rule=AREA, iou_threshold=0.5):
        """Takes the ground truth.

        Args:
            ground_truth: dict in COCO form; see `evaluate`.
            fields: strs, what detections have beside boxes, which VOC's mAP is of alone.
            rule: "area" or "11_points"; see `average_precision`.
            iou_threshold: float, the least IoU of a match.

        Raises:
            ValueError: if the rule or the threshold is none, or the ground truth not in COCO form.
        """
        del fields
        _check(rule, iou_threshold)
        self._truth = coco_columns.GroundTruth(ground_truth)
        self._rule, self._iou_threshold = rule, iou_threshold

    def evaluate(self, results):
        """Returns {metric: float}; see the function `evaluate`."""
        return evaluate(self._truth, results, self._rule, self._iou_threshold)

    def format_table(self, metrics):
        """Lays out the mAP, then AP by class, for a log; "-" stands for -1, no ground truth."""
        numbers = {"mAP": metrics[HEADLINE]}
        numbers |= {k.removeprefix(_PER_CLASS): v for k, v in metrics.items() if _PER_CLASS in k}
        width = max(map(len, numbers))
        return "\n".join(
            f"{name:<{width}} {'-' if value < 0 else format(value, '.3f'):>6}"
            for name, value in numbers.items()
        )


def evaluate(ground_truth, results, rule=AREA, iou_threshold=0.5):
    """Computes the AP of every class and their mean.

    From the highest score on (of equal ones, the first in `results`), each detection is assigned to
    the object of its image and class that it overlaps most. With an IoU of at least the threshold
    it is a true positive if it is the object's first, and a false positive if not, also where
    another object is near enough and free. Matches of difficult objects and of crowd regions count
    neither way, and these are not among the objects to be found.

    Args:
        ground_truth: dict in COCO form whose annotations may have "difficult", 0 or 1; or
            `coco_columns.GroundTruth`. Not changed.
        results: list of dicts in COCO's result form, for these images. Not changed.
        rule: "area" or "11_points"; see `average_precision`.
        iou_threshold: float in 0..1, the least IoU of a match.

    Returns:
        {metric: float}: `voc/mAP`, then `voc/AP_per_class/<name>` by category id. Fractions of 1. A
        class without an object to be found has -1 and is left out of the mean; without any class
        the mean is -1.

    Raises:
        ValueError: if a result names an image or a category that the ground truth lacks, or has a
            score or box that is not finite; if the ground truth is not in COCO form; if the rule or
            the threshold is none.
    """
    _check(rule, iou_threshold)
    truth = ground_truth
    if not isinstance(truth, coco_columns.GroundTruth):
        truth = coco_columns.GroundTruth(ground_truth)
    kept = np.ones(len(truth.images), bool)
    objects = truth.instances("bbox", kept)
    ignored = objects.crowds.astype(bool) | truth.flags("difficult", kept)
    found = coco_columns.Results(results, truth).instances(
        "bbox", kept, np.arange(len(truth.category_positions))
    )
    ids = sorted(truth.category_positions)
    names = coco_metrics.unique_names(truth.categories)
    averages = {}
    for position, category_id in enumerate(ids):
        of_class = np.flatnonzero(objects.categories == position)
        detections = found.take(np.flatnonzero(found.categories == position))
        hits = match(detections, objects.take(of_class), ignored[of_class], iou_threshold)
        num_objects = np.count_nonzero(~ignored[of_class])
        average = average_precision(hits, num_objects, rule) if num_objects else -1.0
        averages[names[category_id]] = average
    present = [value for value in averages.values() if value >= 0]
    logging.debug("VOC metrics of %d detections in %d images", len(found.scores), len(truth.images))
    mean = float(np.mean(present)) if present else -1.0
    return {HEADLINE: mean} | {f"{_PER_CLASS}{name}": value for name, value in averages.items()}


def match(detections, objects, ignored, iou_threshold):
    """Tells the true from the false positives of one class.

    Args:
        detections: `coco_columns.Instances`, D detections with scores, in any order.
        objects: `coco_columns.Instances`, G objects.
        ignored: bool [G], difficult objects and crowds.
        iou_threshold: float.

    Returns:
        bool, one each of the detections that count, from the highest score on: whether it is a
        true positive.
    """
    detections = detections.take(np.argsort(-detections.scores, kind="stable"))
    best, overlap = _best_objects(detections, objects)
    matched = overlap >= iou_threshold
    # The object of a detection does not depend on the others; the first of each object is right.
    firsts = np.zeros(len(best), bool)
    rows = np.flatnonzero(matched)
    firsts[rows[np.unique(best[rows], return_index=True)[1]]] = True
    is_ignored = np.zeros(len(best), bool)
    is_ignored[rows] = ignored[best[rows]]
    return firsts[~is_ignored]


def average_precision(hits, num_objects, rule):
    """Returns the average precision of one class.

    "area" (2010 and later) is the area under the precision by recall, where the precision at a
    recall is the highest at this or any higher recall. "11_points" (2007) is the mean of that
    precision at the recalls 0, 0.1, ..., 1, with 0 for those that are not reached.

    Args:
        hits: bool [D], from the highest score on; true positives, the others are false ones.
        num_objects: int > 0, objects to be found.
        rule: "area" or "11_points".
    """
    found = np.cumsum(hits)
    precision = found / np.arange(1, len(hits) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    if rule == AREA:
        # Recall rises by 1 / num_objects at each true positive, and at nothing else.
        return float(envelope[hits].sum() / num_objects)
    # Recall >= k / 10 in whole numbers, else 3 of 10 would fall below the float 3 * 0.1.
    reached = [np.searchsorted(10 * found, k * num_objects) for k in range(11)]
    return float(sum(envelope[first] for first in reached if first < len(hits)) / 11)


def _best_objects(detections, objects):
    """Returns for each detection the object of its image with the highest IoU, and that IoU.

    Both are int64 and float64 [D]; where an image has no object, the IoU is 0. Of equal overlaps
    the first object counts.
    """
    best = np.zeros(len(detections.images), np.int64)
    overlap = np.zeros(len(detections.images))
    by_image = np.argsort(detections.images, kind="stable")
    objects_by_image = np.argsort(objects.images, kind="stable")
    for image in np.intersect1d(detections.images, objects.images):
        rows = box_pairs.rows_of(image, detections.images, by_image)
        columns = box_pairs.rows_of(image, objects.images, objects_by_image)
        ious = box_pairs.iou(detections.shapes[rows], objects.shapes[columns])
        best[rows], overlap[rows] = columns[ious.argmax(1)], ious.max(1)
    return best, overlap


def _check(rule, iou_threshold):
    if rule not in (AREA, ELEVEN_POINTS):
        raise ValueError(f"rule is {rule!r}; it must be {AREA!r} or {ELEVEN_POINTS!r}")
    if not 0 < iou_threshold <= 1:
        raise ValueError(f"iou_threshold is {iou_threshold}; it must be above 0 and at most 1")
