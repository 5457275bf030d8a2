"""What COCO's metrics compare: which objects with which detections, and precision over recall.

Letters: I images.
"""

import contextlib
import dataclasses
import io

import numpy as np
from absl import logging

from rethink_tf.evaluation import unmasked


def kept_images(truth, image_ids=None):
    """Returns bool [I], which images count.

    Args:
        truth: `coco_columns.GroundTruth`.
        image_ids: their ids, None for all.

    Raises:
        ValueError: if one is not in the ground truth.
    """
    if image_ids is None:
        return np.ones(len(truth.images), bool)
    missing = sorted(set(image_ids) - set(truth.images))
    if missing:
        raise ValueError(f"image_ids {missing[:10]} are not in the ground truth")
    kept = np.zeros(len(truth.images), bool)
    kept[[truth.image_positions[image_id] for image_id in image_ids]] = True
    return kept


def measure_kind(measure, iou_type, truth, found, kept):
    """Measures the categories that have objects among the images.

    The others have no numbers: with many categories most of the work and memory would be theirs.

    Args:
        measure: of `coco_engines.choose`.
        iou_type, truth, found, kept: as of `compared_instances`.

    Returns:
        pycocotools' evaluator with its summary, None where there is nothing to measure; and the
        ids of its categories, in order.
    """
    compared = compared_instances(iou_type, truth, found, kept)
    if compared is None:
        return None, []
    objects, detections, present = compared
    evaluator = measure(iou_type, objects, detections, len(truth.images), len(present))
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator.summarize()
    ids = sorted(truth.category_positions)
    return evaluator, [ids[position] for position in present.tolist()]


def compared_instances(iou_type, truth, found, kept):
    """Returns what is matched: the categories that have objects, counted from 0.

    Args:
        iou_type: "bbox", "segm" or "keypoints".
        truth: `coco_columns.GroundTruth`.
        found: `coco_columns.Results`.
        kept: bool [I], the images that count.

    Returns:
        (objects, detections, present): `coco_columns.Instances` whose categories count into
        `present`, int64, positions of categories; or None where there is nothing to compare, with
        a warning where no object has a mask or keypoints.
    """
    objects = truth.instances(iou_type, kept)
    if objects is None:
        kind = {"segm": "mask"}.get(iou_type, "keypoint")
        logging.warning("The ground truth has no %ss: all %s metrics are -1", kind, kind)
        return None
    present = np.unique(objects.categories)
    detections = counted_detections(iou_type, truth, found, kept, present)
    if not len(present):
        return None
    objects, detections = (
        dataclasses.replace(each, categories=np.searchsorted(present, each.categories))
        for each in (objects, detections)
    )
    return objects, detections, present


def counted_detections(iou_type, truth, found, kept, categories):
    """Returns the detections of some categories that are compared; see `unmasked`.

    Args:
        iou_type, truth, found, kept: as of `compared_instances`.
        categories: int64, positions of categories.

    Returns:
        `coco_columns.Instances`.
    """
    detections = found.instances(iou_type, kept, categories)
    if iou_type == "segm" and not truth.have("segmentation", kept).all():
        is_counted = unmasked.counted(truth, found, kept, categories)
        detections = detections.take(np.flatnonzero(is_counted))
    return detections


def precision_curves(evaluator, names):
    """Returns the highest precision at or beyond each of 101 recalls, for objects of any size.

    Args:
        evaluator: of `measure_kind`, None for no curves.
        names: of its categories.

    Returns:
        {name: {"IoU 0.5", "0.75" and "0.5 to 0.95" (the mean): float64 [101]}} of the categories
        with objects that are no crowd regions.
    """
    if evaluator is None:
        return {}
    # [IoU thresholds, recalls, classes, areas, numbers of detections].
    precision, curves = evaluator.eval["precision"][..., 0, -1], {}
    for index, name in enumerate(names):
        own = precision[:, :, index]
        if (own > -1).any():
            curves[name] = {"IoU 0.5": own[0], "0.75": own[5], "0.5 to 0.95": own.mean(0)}
    return curves
