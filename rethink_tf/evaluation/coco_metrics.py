"""COCO's box and mask metrics by pycocotools, and the files and tables that hold them.

Boxes are converted here from (y1, x1, y2, x2) to COCO's (x, y, width, height); class indices have
been mapped to the data set's category ids by the caller. Letters: N detections of one image.
"""

import contextlib
import io
import json
import os
import time
from collections import Counter

import numpy as np
from absl import logging
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from rethink_tf import files

# The order of pycocotools' `COCOeval.stats`. AP is over IoU 0.50:0.05:0.95; s, m and l are objects
# below 32^2, below 96^2 and from 96^2 pixels on; AR1, AR10, AR100 allow that many detections.
METRIC_NAMES = tuple("AP AP50 AP75 APs APm APl AR1 AR10 AR100 ARs ARm ARl".split())
# pycocotools' names of what is compared, and ours.
METRIC_PREFIXES = {"bbox": "box", "segm": "mask"}
_PER_CLASS = "AP_per_class"
_TABLE_COLUMNS = 3


def detections_to_coco(image_id, boxes, scores, category_ids, rles=None):
    """Converts one image's detections to COCO's result form.

    Args:
        image_id: int, the image's id in the data set.
        boxes: float [N, 4], (y1, x1, y2, x2), pixels of the original image. N may be 0.
        scores: float [N], 0 to 1.
        category_ids: int [N], the data set's own category ids.
        rles: None, or N compressed run lengths as `pasting.encode_mask` returns them.

    Returns:
        A list of N dicts of plain Python values, ready for JSON.

    Raises:
        ValueError: if the lengths differ.
    """
    boxes = np.asarray(boxes, np.float64).reshape([-1, 4])
    scores = np.asarray(scores, np.float64).reshape([-1])
    category_ids = np.asarray(category_ids).reshape([-1])
    lengths = [len(boxes), len(scores), len(category_ids)]
    lengths += [] if rles is None else [len(rles)]
    if len(set(lengths)) > 1:
        raise ValueError(
            f"image {image_id}: boxes, scores, category ids (and masks) must have one length, "
            f"found {lengths}"
        )
    results = []
    for row, (y1, x1, y2, x2) in enumerate(boxes.tolist()):
        result = {
            "image_id": int(image_id),
            "category_id": int(category_ids[row]),
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "score": float(scores[row]),
        }
        if rles is not None:
            result["segmentation"] = rles[row]
        results.append(result)
    return results


def evaluate(ground_truth, results, iou_types=("bbox", "segm"), image_ids=None, class_names=None):
    """Computes COCO's metrics.

    Crowd regions are ignored as COCO does: a detection inside of one counts neither as right nor as
    wrong. A metric without any ground truth is -1. Where the ground truth has no masks at all, all
    mask metrics are -1, with a warning.

    Args:
        ground_truth: dict in COCO's form, or the path of its JSON file. Not changed.
        results: list of dicts in COCO's result form, for these images. Not changed. For "bbox" a
            result without "bbox" gets the box around its mask.
        iou_types: of "bbox" and "segm".
        image_ids: ids of the images to count, None for all of the ground truth.
        class_names: {category id: name}, None for the names in the ground truth.

    Returns:
        {metric: float}: for "bbox" `box/AP`, `box/AP50`, ... in the order of `METRIC_NAMES`, then
        `box/AP_per_class/<name>`; for "segm" the same under `mask/`. Fractions of 1.

    Raises:
        ValueError: if a result names an image or a category that the ground truth lacks, has a
            score or box that is not finite, or no mask (for "segm") of the image's size; if an
            entry of `image_ids` or `iou_types` is unknown; if the ground truth is not in COCO form.
    """
    unknown = [iou_type for iou_type in iou_types if iou_type not in METRIC_PREFIXES]
    if unknown:
        raise ValueError(f"iou_types must be of {list(METRIC_PREFIXES)}, found {unknown}")
    truth = _load_ground_truth(ground_truth)
    images = {image["id"]: image for image in truth["images"]}
    names = _class_names(truth["categories"], class_names)
    _check_results(results, images, names)
    if image_ids is not None:
        missing = sorted(set(image_ids) - set(images))
        if missing:
            raise ValueError(f"image_ids {missing[:10]} are not in the ground truth")
        kept = set(image_ids)
        images = {image_id: image for image_id, image in images.items() if image_id in kept}

    annotations = [entry for entry in truth["annotations"] if entry["image_id"] in images]
    results = [result for result in results if result["image_id"] in images]
    metrics = {}
    for iou_type in iou_types:
        started = time.monotonic()
        prefix = METRIC_PREFIXES[iou_type]
        evaluator = _run_coco(iou_type, images, truth["categories"], annotations, results)
        metrics.update(_collect(evaluator, prefix, names))
        logging.info(
            "COCO %s metrics of %d detections in %d images took %.1f s",
            prefix,
            len(results),
            len(images),
            time.monotonic() - started,
        )
    return metrics


def _load_ground_truth(ground_truth):
    """Returns the COCO dict, read from its file where a path is given."""
    where = "the ground truth"
    if not isinstance(ground_truth, dict):
        where = os.fspath(ground_truth)
        with open(where, encoding="utf-8") as file:
            try:
                ground_truth = json.load(file)
            except ValueError as error:
                raise ValueError(f"{where} is not JSON: {error}") from error
    for key in ("images", "annotations", "categories"):
        if not isinstance(ground_truth, dict) or not isinstance(ground_truth.get(key), list):
            raise ValueError(f"{where} is not in COCO form: it has no list '{key}'")
    return ground_truth


def _class_names(categories, class_names):
    """Returns {category id: name} by id, with the id added to a name that several have."""
    names = {entry["id"]: str(entry.get("name", entry["id"])) for entry in categories}
    names.update({key: name for key, name in (class_names or {}).items() if key in names})
    count = Counter(names.values())
    return {
        key: name if count[name] == 1 else f"{name} (id {key})"
        for key, name in sorted(names.items())
    }


def _check_results(results, images, names):
    """Raises ValueError, naming the entry, for what pycocotools would count wrongly or crash on."""
    for index, result in enumerate(results):
        for key in ("image_id", "category_id", "score"):
            if key not in result:
                raise ValueError(f"result {index} has no '{key}'")
        where = f"result {index} (image {result['image_id']})"
        if result["image_id"] not in images:
            raise ValueError(
                f"{where}: the ground truth has no image with id {result['image_id']}; "
                "the detections belong to other images"
            )
        if result["category_id"] not in names:
            raise ValueError(
                f"{where}: the ground truth has no category with id {result['category_id']}; "
                "class indices must be mapped to the data set's ids"
            )
        if not np.isfinite(result["score"]):
            raise ValueError(f"{where}: the score is {result['score']}; it must be finite")
        box = result.get("bbox", [0, 0, 0, 0])
        if len(box) != 4 or not np.isfinite(box).all() or min(box[2:]) < 0:
            raise ValueError(f"{where}: bbox must be finite [x, y, width, height], found {box}")


def _run_coco(iou_type, images, categories, annotations, results):
    """Returns pycocotools' evaluator after its run, None where there is nothing to measure."""
    if not images or not categories:
        return None
    if iou_type == "segm" and annotations and not any(a.get("segmentation") for a in annotations):
        logging.warning("The ground truth has no masks: all mask metrics are -1")
        return None
    make_result = _mask_result if iou_type == "segm" else _box_result
    # pycocotools takes the id 0 of an annotation for "no match", and keeps one of several that
    # share an id, so that both sides are numbered here, from 1. The copies are for pycocotools to
    # write into.
    truth_entries = [
        dict(_truth_entry(annotation, iou_type, images), id=number)
        for number, annotation in enumerate(annotations, start=1)
    ]
    result_entries = [
        dict(make_result(index, result, images), id=index + 1, iscrowd=0)
        for index, result in enumerate(results)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = _as_coco(images, categories, truth_entries)
        for entry in truth_entries:
            if "area" not in entry:
                entry["area"] = float(coco_mask.area(truth.annToRLE(entry)))
        evaluator = COCOeval(truth, _as_coco(images, categories, result_entries), iou_type)
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator


def _as_coco(images, categories, annotations):
    """Returns pycocotools' index of these entries. (Its loadRes fails on an empty list.)"""
    coco = COCO()
    coco.dataset = {
        "images": list(images.values()),
        "categories": categories,
        "annotations": annotations,
    }
    coco.createIndex()
    return coco


def _truth_entry(annotation, iou_type, images):
    """Returns a copy of a ground truth annotation with all that pycocotools reads."""
    where = f"annotation {annotation.get('id')} of image {annotation['image_id']}"
    needed = "segmentation" if iou_type == "segm" else "bbox"
    if not annotation.get(needed):
        raise ValueError(
            f"{where} has no '{needed}': add it, or leave '{iou_type}' out of iou_types"
        )
    entry = dict(annotation, iscrowd=int(annotation.get("iscrowd", 0)))
    if iou_type == "segm":
        _image_size(images[annotation["image_id"]])
    elif "area" not in entry:
        entry["area"] = annotation["bbox"][2] * annotation["bbox"][3]
    return entry


def _box_result(index, result, images):
    """Returns a detection as pycocotools compares boxes: its area is the box's."""
    del images
    if "bbox" in result:
        box = [float(value) for value in result["bbox"]]
    elif result.get("segmentation"):
        box = coco_mask.toBbox(result["segmentation"]).tolist()
    else:
        raise ValueError(f"result {index} (image {result['image_id']}) has no 'bbox'")
    kept = {key: result[key] for key in ("image_id", "category_id", "score")}
    return dict(kept, bbox=box, area=box[2] * box[3])


def _mask_result(index, result, images):
    """Returns a detection as pycocotools compares masks: its area is the mask's."""
    where = f"result {index} (image {result['image_id']})"
    lengths = result.get("segmentation")
    if not isinstance(lengths, dict) or not isinstance(lengths.get("counts"), (str, bytes)):
        raise ValueError(
            f"{where}: 'segmentation' must be compressed run lengths; for detections without "
            "masks leave 'segm' out of iou_types"
        )
    size = _image_size(images[result["image_id"]])
    if list(lengths.get("size", ())) != size:
        raise ValueError(
            f"{where}: the mask's size is {lengths.get('size')}, that of the image {size} "
            "(height, width)"
        )
    kept = {key: result[key] for key in ("image_id", "category_id", "score")}
    return dict(kept, segmentation=lengths, area=float(coco_mask.area(lengths)))


def _image_size(image):
    """Returns [height, width], which mask metrics need."""
    if "height" not in image or "width" not in image:
        raise ValueError(f"image {image['id']} of the ground truth has no 'height' and 'width'")
    return [image["height"], image["width"]]


def _collect(evaluator, prefix, names):
    """Returns the summary and the per-class AP of an evaluator, all -1 where it is None."""
    metrics = {}
    for index, name in enumerate(METRIC_NAMES):
        metrics[f"{prefix}/{name}"] = -1.0 if evaluator is None else float(evaluator.stats[index])
    for index, name in enumerate(names.values()):
        average = -1.0
        if evaluator is not None:
            # [IoU thresholds, recalls, classes, areas, numbers of detections]; all areas, 100.
            precision = evaluator.eval["precision"][:, :, index, 0, -1]
            if (precision > -1).any():
                average = float(precision[precision > -1].mean())
        metrics[f"{prefix}/{_PER_CLASS}/{name}"] = average
    return metrics


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
    with open(path, encoding="utf-8") as file:
        try:
            results = json.load(file)
        except ValueError as error:
            raise ValueError(f"{path} is not JSON: {error}; write the results again") from error
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
    prefixes = [p for p in METRIC_PREFIXES.values() if f"{p}/{METRIC_NAMES[0]}" in metrics]
    lines = ["      " + "".join(f"{name:>7}" for name in METRIC_NAMES)]
    for prefix in prefixes:
        numbers = [_number(metrics[f"{prefix}/{name}"]) for name in METRIC_NAMES]
        lines.append(f"{prefix:<6}" + "".join(numbers))

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
        cells.append(f"{name:<{width}}" + "".join(numbers))
    columns = min(_TABLE_COLUMNS, len(cells))
    rows = -(-len(cells) // columns)
    header = f"{'AP by class':<{width}}" + "".join(f"{prefix:>7}" for prefix in prefixes)
    lines += ["", "   ".join([header] * (-(-len(cells) // rows)))]
    # Down the columns, so that the classes keep their order.
    lines += ["   ".join(cells[row::rows]) for row in range(rows)]
    return "\n".join(lines)


def _number(value):
    """Returns a metric in seven characters."""
    return f"{'-':>7}" if value < 0 else f"{value:7.3f}"
