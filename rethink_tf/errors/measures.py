"""All numbers of an analysis: AP as COCO's evaluation has it, and the errors behind it."""

import dataclasses

import numpy as np
from absl import logging

from rethink_tf.errors import inputs, tide
from rethink_tf.evaluation import coco_columns, coco_engines, coco_metrics, comparing, matches

SIZES = {"APs": "small", "APm": "medium", "APl": "large"}


@dataclasses.dataclass(frozen=True)
class Measured:
    """What was measured by one kind of comparison.

    Attributes:
        name: "box", "mask" or "keypoints".
        metrics: {name: value}, COCO's summary, -1 where there is nothing to measure.
        curves: as of `comparing.precision_curves`, by the names of the categories.
        errors: `tide.Errors`, None for keypoints.
        lost: `tide.Lost`, likewise.
        objects: `coco_columns.Instances`, likewise.
        detections: the same.
    """

    name: str
    metrics: dict[str, float]
    curves: dict[str, dict[str, np.ndarray]]
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
    kept = comparing.kept_images(case.truth)
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
    evaluator, present = comparing.measure_kind(run_engine, iou_type, case.truth, case.found, kept)
    if evaluator is None:
        return None
    values = dict(zip(coco_metrics.metric_names(iou_type), evaluator.stats.tolist(), strict=True))
    names = coco_metrics.unique_names(case.truth.categories)
    curves = comparing.precision_curves(evaluator, [names[each] for each in present])
    measured = Measured(name, values, curves)
    if iou_type == "keypoints":
        return measured
    logging.info("%s: errors.", name.capitalize())
    num_categories = len(case.truth.categories)
    objects = case.truth.instances(iou_type, kept)
    detections = comparing.counted_detections(
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
