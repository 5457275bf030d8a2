"""COCO's box, mask and keypoint metrics, and the files and tables that hold them.

Boxes are converted here from (y1, x1, y2, x2) to COCO's (x, y, width, height); class indices have
been mapped to the data set's category ids by the caller. Letters: N detections of one image.
"""

import contextlib
import gc
import json
import time
from collections import Counter

import gin
import numpy as np
from absl import logging

from rethink_tf import files
from rethink_tf.evaluation import coco_columns, coco_engines, comparing, matches

# The order of pycocotools' `COCOeval.stats`. AP is over IoU 0.50:0.05:0.95; s, m and l are objects
# below 32^2, below 96^2 and from 96^2 pixels on; AR1, AR10, AR100 allow that many detections.
METRIC_NAMES = tuple("AP AP50 AP75 APs APm APl AR1 AR10 AR100 ARs ARm ARl".split())
# The same for keypoints, whose similarity takes the place of IoU; there are no small objects, and
# 20 detections are allowed.
KEYPOINT_METRIC_NAMES = tuple("AP AP50 AP75 APm APl AR AR50 AR75 ARm ARl".split())
# pycocotools' names of what is compared, and ours.
METRIC_PREFIXES = {"bbox": "box", "segm": "mask", "keypoints": "keypoints"}
# What is compared of the heads' fields, the last one the headline.
IOU_TYPES = {"masks": "segm", "keypoints": "keypoints"}
_PER_CLASS = "AP_per_class"
_TABLE_COLUMNS = 3
_LABEL_WIDTH = 9


@gin.register
class CocoMetrics:
    """COCO's metrics, for the evaluator.

    Attributes:
        headline: name of the number that the best checkpoint is chosen by: the AP of what the
            detector finds last, keypoints, else masks, else boxes.
        curves: {"box" and so on: as of `comparing.precision_curves`} of the last evaluation.
    """

    def __init__(self, ground_truth, fields=()):
        """Takes the ground truth.

        Args:
            ground_truth: dict in COCO form, of exactly the images to evaluate.
            fields: strs, what detections have beside boxes; of these masks and keypoints count.

        Raises:
            ValueError: if the ground truth is not in COCO form.
        """
        self._truth = coco_columns.GroundTruth(ground_truth)
        self._iou_types = ["bbox", *(IOU_TYPES[field] for field in IOU_TYPES if field in fields)]
        self.headline = f"{METRIC_PREFIXES[self._iou_types[-1]]}/{METRIC_NAMES[0]}"
        self.curves = {}

    def evaluate(self, results):
        """Returns {metric: float}; see the function `evaluate`."""
        metrics, self.curves = _evaluate(self._truth, results, self._iou_types, None, None)
        return metrics

    def matches(self, results):
        """Returns {name: array} of a file of matches; see the module `matches`.

        Args:
            results: list of dicts, as of the function `evaluate`.
        """
        found, kept = (
            coco_columns.Results(results, self._truth),
            comparing.kept_images(self._truth, None),
        )
        compared = {
            each: (
                METRIC_PREFIXES[each],
                comparing.compared_instances(each, self._truth, found, kept),
            )
            for each in self._iou_types
        }
        everything = np.arange(len(self._truth.categories))
        return matches.collect(
            self._truth,
            unique_names(self._truth.categories),
            compared,
            self._truth.instances("bbox", kept),
            found.instances("bbox", kept, everything),
        )

    def format_table(self, metrics):
        """Lays out metrics for a log; see the function `format_table`."""
        return format_table(metrics)


def metric_names(iou_type):
    """Returns the names of the summary of "bbox", "segm" or "keypoints", in pycocotools' order."""
    return KEYPOINT_METRIC_NAMES if iou_type == "keypoints" else METRIC_NAMES


def detections_to_coco(image_id, boxes, scores, category_ids, **further):
    """Converts one image's detections to COCO's result form.

    Args:
        image_id: int, the image's id in the data set.
        boxes: float [N, 4], (y1, x1, y2, x2), pixels of the original image. N may be 0.
        scores: float [N], 0 to 1.
        category_ids: int [N], the data set's own category ids.
        **further: N values each of what else results have, as of `forms`: segmentation, keypoints.

    Returns:
        A list of N dicts of plain Python values, ready for JSON.

    Raises:
        ValueError: if the lengths differ.
    """
    boxes = np.asarray(boxes, np.float64).reshape([-1, 4])
    scores = np.asarray(scores, np.float64).reshape([-1])
    category_ids = np.asarray(category_ids).reshape([-1])
    lengths = [len(boxes), len(scores), len(category_ids)]
    lengths += [len(values) for values in further.values()]
    if len(set(lengths)) > 1:
        raise ValueError(
            f"image {image_id}: boxes, scores, category ids and {list(further)} must have one "
            f"length, found {lengths}"
        )
    results = []
    for row, (y1, x1, y2, x2) in enumerate(boxes.tolist()):
        result = {
            "image_id": int(image_id),
            "category_id": int(category_ids[row]),
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "score": float(scores[row]),
        }
        results.append(result | {key: values[row] for key, values in further.items()})
    return results


def evaluate(ground_truth, results, iou_types=("bbox", "segm"), image_ids=None, class_names=None):
    """Computes COCO's metrics, by faster-coco-eval where it is installed.

    Crowd regions are ignored as COCO does: a detection inside of one counts neither as right nor as
    wrong; for keypoints, so are objects without a labelled one. A metric without any ground truth
    is -1. Where the ground truth has no masks at all, all mask metrics are -1, with a warning, and
    so with keypoints. Where some objects have none, these are neither found nor missed by a mask;
    see `unmasked`.

    Args:
        ground_truth: dict in COCO's form, or the path of its JSON file, or
            `coco_columns.GroundTruth`, whose masks are made once for all calls. Not changed.
        results: list of dicts in COCO's result form, for these images. Not changed. For "bbox" a
            result without "bbox" gets the box around its mask.
        iou_types: of "bbox", "segm" and "keypoints".
        image_ids: ids of the images to count, None for all of the ground truth.
        class_names: {category id: name}, None for the names in the ground truth.

    Returns:
        {metric: float}: for "bbox" `box/AP`, `box/AP50`, ... in the order of `METRIC_NAMES`, then
        `box/AP_per_class/<name>`; for "segm" the same under `mask/`; for "keypoints" under
        `keypoints/`, with the names of `KEYPOINT_METRIC_NAMES`. Fractions of 1.

    Raises:
        ValueError: if a result names an image or a category that the ground truth lacks, has a
            score or box that is not finite, no mask (for "segm") of the image's size, or not the
            ground truth's number of keypoints (for "keypoints"); if an entry of `image_ids` or
            `iou_types` is unknown; if the ground truth is not in COCO form.
    """
    return _evaluate(ground_truth, results, iou_types, image_ids, class_names)[0]


def _evaluate(ground_truth, results, iou_types, image_ids, class_names):
    """Returns the metrics and the curves; arguments as of `evaluate`."""
    unknown = [iou_type for iou_type in iou_types if iou_type not in METRIC_PREFIXES]
    if unknown:
        raise ValueError(f"iou_types must be of {list(METRIC_PREFIXES)}, found {unknown}")
    with _without_collections():
        started = time.monotonic()
        truth = ground_truth
        if not isinstance(truth, coco_columns.GroundTruth):
            truth = coco_columns.GroundTruth(ground_truth)
        names = unique_names(truth.categories, class_names)
        found = coco_columns.Results(results, truth)
        kept = comparing.kept_images(truth, image_ids)
        name, measure = coco_engines.choose()
        metrics, curves = {}, {}
        for iou_type in iou_types:
            evaluator, present = comparing.measure_kind(measure, iou_type, truth, found, kept)
            metrics.update(_collect(evaluator, present, iou_type, names))
            found_curves = comparing.precision_curves(evaluator, [names[each] for each in present])
            curves[METRIC_PREFIXES[iou_type]] = found_curves
    logging.debug(
        "COCO metrics of %d detections in %d images by %s took %.1f s",
        np.count_nonzero(kept[found.images]),
        np.count_nonzero(kept),
        name,
        time.monotonic() - started,
    )
    return metrics, curves


@contextlib.contextmanager
def _without_collections():
    """Stops Python's search for cycles: it would walk all results again whenever lists grow."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _collect(evaluator, present, iou_type, names):
    """Returns the summary and the per-class AP of an evaluator, -1 where there is nothing."""
    metrics, prefix = {}, METRIC_PREFIXES[iou_type]
    for index, name in enumerate(metric_names(iou_type)):
        metrics[f"{prefix}/{name}"] = -1.0 if evaluator is None else float(evaluator.stats[index])
    averages = {}
    for index, category_id in enumerate(present):
        # [IoU thresholds, recalls, classes, areas, numbers of detections]; all areas, the most
        # detections.
        precision = evaluator.eval["precision"][:, :, index, 0, -1]
        if (precision > -1).any():
            averages[category_id] = float(precision[precision > -1].mean())
    for category_id, name in names.items():
        metrics[f"{prefix}/{_PER_CLASS}/{name}"] = averages.get(category_id, -1.0)
    return metrics


def unique_names(categories, class_names=None):
    """Returns {category id: name} by id, with the id added to a name that several have.

    Args:
        categories: list of dicts in COCO's form.
        class_names: {category id: name} in place of theirs, or None.
    """
    names = {entry["id"]: str(entry.get("name", entry["id"])) for entry in categories}
    names.update({key: name for key, name in (class_names or {}).items() if key in names})
    count = Counter(names.values())
    return {
        key: name if count[name] == 1 else f"{name} (id {key})"
        for key, name in sorted(names.items())
    }


def write_results(path, results):
    """Writes COCO results as JSON, whole or not at all.

    Args:
        path: the file; its folder is made where it is missing.
        results: list of dicts as `detections_to_coco` returns them.

    Raises:
        ValueError: if a number is not finite (JSON has no way to write it).
    """
    files.write_whole(path, json.dumps(results, allow_nan=False))


def read_results(path):
    """Reads what `write_results` wrote.

    Args:
        path: the JSON file.

    Returns:
        The list of result dicts.

    Raises:
        ValueError: if the file is not JSON or does not hold a list.
    """
    results = files.read_json(path, "write the results again.")
    if not isinstance(results, list):
        raise ValueError(f"{path} must hold a list of COCO results, found {type(results).__name__}")
    return results


def format_table(metrics):
    """Lays out metrics for a log: the summary numbers, then AP by class.

    Args:
        metrics: what `evaluate` returned.

    Returns:
        str of several lines, without a newline at its end; "-" stands for -1, no ground truth.
    """
    present = {k: p for k, p in METRIC_PREFIXES.items() if f"{p}/{METRIC_NAMES[0]}" in metrics}
    prefixes, lines, header = present.values(), [], None
    for iou_type, prefix in (present or {"bbox": None}).items():
        names = metric_names(iou_type)
        if names != header:
            lines.append(" " * _LABEL_WIDTH + "".join(f"{name:>7}" for name in names))
            header = names
        if prefix:
            numbers = [_number(metrics[f"{prefix}/{name}"]) for name in names]
            lines.append(f"{prefix:<{_LABEL_WIDTH}}" + "".join(numbers))

    classes = []
    for key in metrics:
        _, _, name = key.partition(f"/{_PER_CLASS}/")
        if name and name not in classes:
            classes.append(name)
    if not classes:
        return "\n".join(lines)
    width = max(len("AP by class"), *(len(name) for name in classes))
    cells = []
    for name in classes:
        numbers = [_number(metrics.get(f"{p}/{_PER_CLASS}/{name}", -1.0)) for p in prefixes]
        cells.append(f"{name:<{width}}" + "".join(f"{number:>10}" for number in numbers))
    columns = min(_TABLE_COLUMNS, len(cells))
    rows = -(-len(cells) // columns)
    header = f"{'AP by class':<{width}}" + "".join(f"{prefix:>10}" for prefix in prefixes)
    lines += ["", "   ".join([header] * (-(-len(cells) // rows)))]
    # Down the columns, so that the classes keep their order.
    lines += ["   ".join(cells[row::rows]) for row in range(rows)]
    return "\n".join(lines)


def _number(value):
    """Returns a metric in seven characters."""
    return f"{'-':>7}" if value < 0 else f"{value:7.3f}"
