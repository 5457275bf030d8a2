"""Finds boxes that are not COCO's (x, y, width, height) in pixels, by the objects' own masks.

Corners and fractions of the image pass every check of one box. The masks tell: if most of the boxes
lie elsewhere than their masks do, the file has another form. Nothing here needs TensorFlow.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as mask_api

from rethink_tf.data.sources import run_lengths

# A mask and its box are at one from this IoU on; boxes of whole objects whose masks are of the
# visible part stay above it in most.
AGREEMENT = 0.5
_SAMPLE = 1000

# Each takes [N, 4] numbers as stated and [N, 4] (width, height, width, height) of the images, and
# returns corners (x1, y1, x2, y2), pixels.
OWN_FORM = "[x, y, width, height] in pixels"


def _from_xywh(boxes):
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)


def _from_centres(boxes):
    return np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], 1)


FORMS: dict[str, Callable] = {
    OWN_FORM: lambda boxes, sizes: _from_xywh(boxes),
    "corners [x1, y1, x2, y2] in pixels": lambda boxes, sizes: boxes,
    "corners [y1, x1, y2, x2] in pixels": lambda boxes, sizes: boxes[:, [1, 0, 3, 2]],
    "[y, x, height, width] in pixels": lambda boxes, sizes: _from_xywh(boxes[:, [1, 0, 3, 2]]),
    "[centre x, centre y, width, height] in pixels": lambda boxes, sizes: _from_centres(boxes),
    "fractions [x, y, width, height] of the image": lambda b, sizes: _from_xywh(b * sizes),
    "corners [x1, y1, x2, y2] as fractions of the image": lambda boxes, sizes: boxes * sizes,
    "corners [y1, x1, y2, x2] as fractions of the image": (
        lambda boxes, sizes: boxes[:, [1, 0, 3, 2]] * sizes
    ),
    "fractions [centre x, centre y, width, height] of the image": (
        lambda boxes, sizes: _from_centres(boxes * sizes)
    ),
}


def check(annotations: Sequence[Any], images: Mapping[int, dict]) -> None:
    """Checks the form of a file's boxes.

    Args:
        annotations: entries of a COCO file, unchecked.
        images: checked entries of "images" by id.

    Raises:
        ValueError: if most of the boxes contradict their masks, or all are fractions of a pixel;
            says which form they look like.
    """
    usable = [entry for entry in annotations if _has_box(entry, images)]
    _check_fractions(usable)
    rows = with_masks(usable, images)
    if not rows:
        return
    shares = agreement(rows, images)
    if shares[OWN_FORM] >= 0.5:
        return
    likely = max(shares, key=shares.get)
    looks = f"They look like {likely}, in which {shares[likely]:.0%} agree: convert them to"
    if shares[likely] <= 0.5:
        looks = "They look like no form that is known here; each must be"
    entry = rows[0][0]
    raise ValueError(
        f"{1 - shares[OWN_FORM]:.0%} of {len(rows):,} boxes contradict their own masks, such as "
        f"that of annotation {entry.get('id')!r} of image {entry['image_id']!r}, {entry['bbox']} "
        f"with a mask from {_rounded(rows[0][1][:2])} to {_rounded(rows[0][1][2:])} (x, y). "
        f"{looks} {OWN_FORM}"
    )


def with_masks(
    annotations: Sequence[dict], images: Mapping[int, dict]
) -> list[tuple[dict, Sequence[float]]]:
    """Returns some annotations with corners (x1, y1, x2, y2) around their masks, in pixels.

    Args:
        annotations: entries of a COCO file with four numbers as "bbox".
        images: entries of "images" by id.
    """
    step = max(1, len(annotations) // _SAMPLE)
    rows = [(entry, _extent(entry, images[entry["image_id"]])) for entry in annotations[::step]]
    return [(entry, extent) for entry, extent in rows if extent is not None]


def agreement(
    rows: Sequence[tuple[dict, Sequence[float]]], images: Mapping[int, dict]
) -> dict[str, float]:
    """Returns {form: share of the boxes that lie where they should, read in that form}.

    Args:
        rows: annotations with the corners (x1, y1, x2, y2) of where they should lie, pixels.
        images: entries of "images" by id.
    """
    boxes = np.array([entry["bbox"] for entry, _ in rows], np.float64)
    places = np.array([place for _, place in rows])
    sides = [(images[e["image_id"]]["width"], images[e["image_id"]]["height"]) for e, _ in rows]
    sizes = np.tile(np.array(sides, np.float64), 2)
    return {
        name: float((iou(corners(boxes, sizes), places) >= AGREEMENT).mean())
        for name, corners in FORMS.items()
    }


def _check_fractions(entries):
    """Raises ValueError where all boxes lie within the first pixel of their images."""
    boxes = [entry["bbox"] for entry in entries]
    if not boxes or not all(-0.01 <= value <= 1.01 for value in itertools.chain(*boxes)):
        return
    if all(value == int(value) for value in itertools.chain(*boxes)):
        return
    entry = entries[0]
    raise ValueError(
        f"all {len(boxes):,} boxes have numbers from 0 to 1 only, such as {entry['bbox']} of "
        f"annotation {entry.get('id')!r} of image {entry['image_id']!r}: they look like fractions "
        f"of the image; convert them to {OWN_FORM}"
    )


def _has_box(entry, images):
    if not isinstance(entry, dict) or not isinstance(entry.get("image_id"), int):
        return False
    box = entry.get("bbox")
    return (
        entry["image_id"] in images
        and isinstance(box, list)
        and len(box) == 4
        and all(type(value) in (int, float) and abs(value) < 1e9 for value in box)
    )


def _extent(entry, image):
    """Corners (x1, y1, x2, y2) around the mask of an object, None without a mask to be drawn."""
    segmentation = entry.get("segmentation")
    if isinstance(segmentation, list):
        polygons = [
            polygon
            for polygon in segmentation
            if isinstance(polygon, list)
            and len(polygon) >= 6
            and len(polygon) % 2 == 0
            and all(type(value) in (int, float) and abs(value) < 1e6 for value in polygon)
        ]
        if not polygons:
            return None
        points = np.concatenate([np.reshape(polygon, [-1, 2]) for polygon in polygons])
        size = image["width"], image["height"]
        points = np.clip(points.astype(np.float64), 0, size)
        corners = [*points.min(0), *points.max(0)]
    elif isinstance(segmentation, dict) and {"size", "counts"} <= set(segmentation):
        corners = _extent_of_runs(segmentation)
    else:
        return None
    if corners is None or corners[2] <= corners[0] or corners[3] <= corners[1]:
        return None
    return corners


def _extent_of_runs(segmentation):
    """Corners around run lengths, None where they are none."""
    try:
        counts = run_lengths.read_counts(segmentation)
    except ValueError:
        return None
    size = segmentation["size"]
    runs = {"size": size, "counts": counts}
    x, y, width, height = mask_api.toBbox(mask_api.frPyObjects(runs, *size))
    return [x, y, x + width, y + height]


def iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Returns float64 [N], the IoU of the rows of two arrays of corners [N, 4]."""
    low = np.maximum(first[:, :2], second[:, :2])
    high = np.minimum(first[:, 2:], second[:, 2:])
    shared = np.maximum(high - low, 0).prod(1)
    areas = [np.maximum(each[:, 2:] - each[:, :2], 0).prod(1) for each in (first, second)]
    union = areas[0] + areas[1] - shared
    return np.divide(shared, union, out=np.zeros_like(union), where=union > 0)


def _rounded(point):
    return "[" + ", ".join(f"{value:g}" for value in np.round(point, 1)) + "]"
