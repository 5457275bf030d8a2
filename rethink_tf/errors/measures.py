"""All numbers of an analysis: AP as COCO's evaluation has it, and the errors behind it.

Letters: K categories, R recalls.
"""

import dataclasses

import numpy as np
from absl import logging

from rethink_tf.errors import inputs, tide
from rethink_tf.evaluation import coco_columns, coco_engines, coco_metrics, matches

# Places in COCO's precision: IoU 0.5 and 0.75 of its thresholds.
_AT_50, _AT_75 = 0, 5
SIZES = {"APs": "small", "APm": "medium", "APl": "large"}


@dataclasses.dataclass(frozen=True)
class Measured:
    """What was measured by one kind of comparison.

    Attributes:
        name: "box", "mask" or "keypoints".
        metrics: {name: value}, COCO's summary, -1 where there is nothing to measure.
        curves: {category id: {"IoU 0.5", "0.75" and "0.5 to 0.95": precision [R]}} of the
            categories with objects.
        ap: {category id: AP}.
        errors: `tide.Errors`, None for keypoints.
        lost: `tide.Lost`, likewise.
        objects: `coco_columns.Instances`, likewise.
        detections: the same.
    """

    name: str
    metrics: dict[str, float]
    curves: dict[int, dict[str, np.ndarray]]
    ap: dict[int, float]
    errors: tide.Errors | None = None
    lost: tide.Lost | None = None
    objects: coco_columns.Instances | None = None
    detections: coco_columns.Instances | None = None


def measure(case: inputs.Case) -> tuple[list[Measured], np.ndarray]:
    """Measures all that can be compared.

    Args:
        case: what is analysed.

    Returns:
        One `Measured` each, and the confusion matrix of `evaluation.matches`.
    """
    kept = np.ones(len(case.truth.images), bool)
    found = [_measure_kind(case, each, kept) for each in case.iou_types]
    every = np.arange(len(case.truth.categories))
    confusion = matches.confusion(
        case.truth.instances("bbox", kept), case.found.instances("bbox", kept, every), len(every)
    )
    return [each for each in found if each], confusion


def _measure_kind(case, iou_type, kept):
    engine, run_engine = coco_engines.choose()
    name = coco_metrics.METRIC_PREFIXES[iou_type]
    logging.info("%s: AP by %s.", name.capitalize(), engine)
    evaluator, present = coco_metrics.measure_kind(
        run_engine, iou_type, case.truth, case.found, kept
    )
    if evaluator is None:
        return None
    values = dict(zip(coco_metrics.metric_names(iou_type), evaluator.stats.tolist(), strict=True))
    # [IoU thresholds, recalls, categories, sizes, numbers of detections].
    precision = evaluator.eval["precision"][:, :, :, 0, -1]
    curves, averages = {}, {}
    for position, category_id in enumerate(present):
        own = precision[:, :, position]
        # A category of crowd regions alone has nothing to find.
        if (own > -1).any():
            curves[category_id] = {
                "IoU 0.5": own[_AT_50], "0.75": own[_AT_75], "0.5 to 0.95": own.mean(0)
            }  # fmt: skip
            averages[category_id] = float(own.mean())
    measured = Measured(name, values, curves, averages)
    if iou_type == "keypoints":
        return measured
    logging.info("%s: errors.", name.capitalize())
    num_categories = len(case.truth.categories)
    objects = case.truth.instances(iou_type, kept)
    detections = coco_metrics.counted_detections(
        iou_type, case.truth, case.found, kept, np.arange(num_categories)
    )
    errors = tide.find(objects, detections, num_categories)
    return dataclasses.replace(
        measured,
        errors=errors,
        lost=tide.lost(errors),
        objects=objects,
        detections=detections,
    )
