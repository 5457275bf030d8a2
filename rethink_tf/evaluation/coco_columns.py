"""Ground truth and results in COCO's form, checked and turned into columns.

Half a million detections are too many for checks one by one: here whole columns are read and
compared at once, and entries are looked at singly only to say which of them is wrong.
Letters: N entries, I images and K categories, both counted from 0 in the order of their ids.
"""

import dataclasses
import itertools
import json
import os
from operator import itemgetter

import numpy as np
from pycocotools import mask as coco_mask

from rethink_tf.evaluation import keypoints, result_checks

_NO_BOX = (np.nan,) * 4
# pycocotools 2.0.11 fails on longer lists of masks with NumPy 2.
_MASKS_AT_ONCE = 255


@dataclasses.dataclass(frozen=True)
class Instances:
    """Objects or detections as they are compared by box, mask or keypoints.

    Fields:
        images: int64 [N], 0 to I - 1.
        categories: int64 [N], 0 to K - 1.
        areas: float64 [N], pixels: of the box, of the mask or of the box around the keypoints.
        shapes: float64 [N, 4], (x, y, width, height), or N compressed run lengths, or float64
            [N, 3 * number of keypoints], (x, y, visibility or score) of each.
        scores: float64 [N], None for ground truth.
        crowds: int64 [N], 1 for a crowd region, None for detections.
        boxes: float64 [N, 4], of ground truth compared by keypoints, else None.
        num_keypoints: int64 [N], how many of its keypoints are labelled, likewise.
    """

    images: np.ndarray
    categories: np.ndarray
    areas: np.ndarray
    shapes: np.ndarray | list
    scores: np.ndarray | None = None
    crowds: np.ndarray | None = None
    boxes: np.ndarray | None = None
    num_keypoints: np.ndarray | None = None

    def take(self, rows):
        """Returns the instances of these rows, in their order."""

        def pick(column):
            if isinstance(column, list):
                return [column[row] for row in rows.tolist()]
            return None if column is None else column[rows]

        return Instances(*(pick(getattr(self, field.name)) for field in dataclasses.fields(self)))


class GroundTruth:
    """A ground truth, read once and measured against any number of times."""

    def __init__(self, ground_truth):
        """Reads it.

        Args:
            ground_truth: dict in COCO's form, or the path of its JSON file. Not changed.

        Raises:
            ValueError: if it is not in COCO's form.
        """
        truth = _load(ground_truth)
        self.images = {image["id"]: image for image in truth["images"]}
        self.categories = truth["categories"]
        self.image_positions = _positions(self.images)
        self.category_positions = _positions(entry["id"] for entry in self.categories)
        # Annotations of images or categories that are not listed count for nothing.
        self._annotations = [
            entry
            for entry in truth["annotations"]
            if entry["image_id"] in self.images and entry["category_id"] in self.category_positions
        ]
        self._images = np.array(
            [self.image_positions[entry["image_id"]] for entry in self._annotations], np.int64
        )
        self._lengths = [None] * len(self._annotations)
        # Of each object that has any: three numbers a keypoint.
        self.keypoints_length = max(
            (len(e.get("keypoints") or ()) for e in self._annotations), default=0
        )

    def instances(self, iou_type, kept):
        """Returns the objects of some images.

        Args:
            iou_type: "bbox", "segm" or "keypoints".
            kept: bool [I], the images.

        Returns:
            `Instances`; None where there are objects, but no mask, or no keypoints, for any of
            them. An object without keypoints among others that have some has none labelled.
            For "segm", without the objects that have no mask; a crowd region's is its box then.

        Raises:
            ValueError: if an annotation has no box, its image no size, or two annotations a
                different number of keypoints.
        """
        rows = np.flatnonzero(kept[self._images])
        entries = [self._annotations[row] for row in rows.tolist()]
        more = {}
        if iou_type != "segm":
            for entry in entries:
                _check_has(entry, "bbox", iou_type)
            shapes = np.array([entry["bbox"] for entry in entries], np.float64).reshape([-1, 4])
            areas = (shapes[:, 2] * shapes[:, 3]).tolist()
        if iou_type == "keypoints":
            if entries and not any(entry.get("keypoints") for entry in entries):
                return None
            more["boxes"] = shapes
            shapes, more["num_keypoints"] = keypoints.of_objects(entries, self.keypoints_length)
        elif iou_type == "segm":
            if entries and not any(entry.get("segmentation") for entry in entries):
                return None
            # `unmasked` handles the others without a mask.
            held = [bool(e.get("segmentation") or e.get("iscrowd")) for e in entries]
            rows, entries = rows[held], list(itertools.compress(entries, held))
            shapes = [self._run_lengths(row) for row in rows.tolist()]
            areas = itertools.repeat(None)
        areas = [
            float(entry["area"]) if "area" in entry else _area(shape, area)
            for entry, shape, area in zip(entries, shapes, areas, strict=False)
        ]
        return Instances(
            self._images[rows],
            np.array([self.category_positions[e["category_id"]] for e in entries], np.int64),
            np.array(areas, np.float64),
            shapes,
            crowds=np.array([int(entry.get("iscrowd", 0)) for entry in entries], np.int64),
            **more,
        )

    def flags(self, key, kept):
        """Returns bool, one each of `instances`: whether an annotation has 1 under a key.

        Args:
            key: str, such as "difficult"; any other value, or none, is no.
            kept: bool [I], the images.
        """
        rows = np.flatnonzero(kept[self._images])
        return np.array([self._annotations[row].get(key) == 1 for row in rows.tolist()], bool)

    def have(self, key, kept):
        """Returns bool, one each of `instances` by box: whether an annotation has a key's value."""
        rows = np.flatnonzero(kept[self._images])
        return np.array([bool(self._annotations[row].get(key)) for row in rows.tolist()], bool)

    def _run_lengths(self, row):
        """Returns an annotation's mask as compressed run lengths, made at the first call."""
        if self._lengths[row] is None:
            entry = self._annotations[row]
            segmentation = entry.get("segmentation")
            if not segmentation:
                _check_has(entry, "bbox", "segm")
                x, y, w, h = entry["bbox"]
                segmentation = [[x, y, x + w, y, x + w, y + h, x, y + h]]
            size = image_size(self.images[entry["image_id"]])
            self._lengths[row] = compress(segmentation, *size)
        return self._lengths[row]


class Results:
    """Detections in COCO's result form, checked."""

    def __init__(self, results, truth):
        """Checks what every kind of comparison needs.

        Args:
            results: list of dicts. Not changed.
            truth: `GroundTruth`.

        Raises:
            ValueError: naming the entry that the metrics would count wrongly or crash on.
        """
        try:
            self.images = _positions_of(results, "image_id", truth.image_positions)
            self._categories = _positions_of(results, "category_id", truth.category_positions)
            self._scores = np.fromiter(map(itemgetter("score"), results), np.float64, len(results))
            boxes = [result.get("bbox", _NO_BOX) for result in results]
            self._boxes = _rows_of(boxes, 4, np.float64)
            self._has_box = np.fromiter((box is not _NO_BOX for box in boxes), bool, len(boxes))
            valid = np.isfinite(self._scores).all() and _are_boxes(self._boxes[self._has_box])
        except (AttributeError, KeyError, TypeError, ValueError):
            valid = False
        if not valid:
            result_checks.explain(results, truth)
        self._results, self._truth = results, truth

    def instances(self, iou_type, kept, categories):
        """Returns the detections of some images and categories.

        Args:
            iou_type: "bbox", "segm" or "keypoints".
            kept: bool [I], the images.
            categories: int64, the categories; detections of others are only checked.

        Returns:
            `Instances`. For "bbox", a detection without a box has the one around its mask.

        Raises:
            ValueError: if a detection has neither, no mask of its image's size for "segm", or not
                the ground truth's number of keypoints for "keypoints".
        """
        rows = np.flatnonzero(kept[self.images])
        wanted = np.isin(self._categories[rows], categories)
        if iou_type == "bbox":
            shapes = self._boxes[rows]
            for position in np.flatnonzero(~self._has_box[rows]).tolist():
                shapes[position] = self._box_around_mask(int(rows[position]))
            shapes = shapes[wanted]
            areas = shapes[:, 2] * shapes[:, 3]
        elif iou_type == "keypoints":
            shapes = self._keypoints(rows)[wanted]
            areas = keypoints.extents(shapes)
        else:
            shapes = list(itertools.compress(self._masks(rows), wanted.tolist()))
            areas = mask_areas(shapes)
        rows = rows[wanted]
        return Instances(
            self.images[rows], self._categories[rows], areas, shapes, scores=self._scores[rows]
        )

    def _box_around_mask(self, row):
        """Returns the box (x, y, width, height) around the mask of a result without a box."""
        result = self._results[row]
        if not result.get("segmentation"):
            raise ValueError(f"result {row} (image {result['image_id']}) has no 'bbox'")
        return coco_mask.toBbox(result["segmentation"])

    def _masks(self, rows):
        """Returns the masks of these rows, checked."""
        sizes = {row: image_size(self._image(row)) for row in _first_of_each(self.images, rows)}
        by_image = np.zeros([len(self._truth.images), 2], np.int64)
        for row, size in sizes.items():
            by_image[self.images[row]] = size
        masks = [self._results[row].get("segmentation") for row in rows.tolist()]
        try:
            types = set(map(type, map(itemgetter("counts"), masks)))
            found = _rows_of([mask["size"] for mask in masks], 2, np.int64)
            valid = types <= {str, bytes} and (found == by_image[self.images[rows]]).all()
        except (KeyError, TypeError, ValueError):
            valid = False
        if not valid:
            for row, mask in zip(rows.tolist(), masks, strict=True):
                image = self._image(row)
                result_checks.check_mask(row, mask, image, image_size(image))
        return masks

    def _keypoints(self, rows):
        """Returns the keypoints of these rows, float64 [N, 3 K], checked."""
        length = self._truth.keypoints_length
        if not length:
            return np.zeros([len(rows), 0])
        found = [self._results[row].get("keypoints", ()) for row in rows.tolist()]
        try:
            values = _rows_of(found, length, np.float64)
            valid = np.isfinite(values).all()
        except (TypeError, ValueError):
            valid = False
        if not valid:
            for row, each in zip(rows.tolist(), found, strict=True):
                keypoints.check(row, each, self._image(row), length)
        return values

    def _image(self, row):
        return self._truth.images[self._results[row]["image_id"]]


def compress(segmentation, height, width):
    """Returns polygons or run lengths as compressed run lengths.

    Args:
        segmentation: as COCO's annotations have it.
        height: int, of the image, pixels.
        width: int, the same.
    """
    if isinstance(segmentation, dict) and not isinstance(segmentation["counts"], list):
        return segmentation
    lengths = coco_mask.frPyObjects(segmentation, height, width)
    if isinstance(lengths, dict):
        return lengths
    # Most objects are in one part, and merging takes as long as drawing.
    return lengths[0] if len(lengths) == 1 else coco_mask.merge(lengths)


def mask_areas(masks):
    """Returns float64 [N], the pixels of N compressed run lengths."""
    parts = [
        coco_mask.area(masks[start : start + _MASKS_AT_ONCE])
        for start in range(0, len(masks), _MASKS_AT_ONCE)
    ]
    return np.concatenate([np.zeros(0), *parts])


def image_size(image):
    """Returns [height, width] of an image's entry, which mask metrics need."""
    if "height" not in image or "width" not in image:
        raise ValueError(f"image {image['id']} of the ground truth has no 'height' and 'width'")
    return [image["height"], image["width"]]


def _load(ground_truth):
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


def _positions(ids):
    """Returns {id: its position in the sorted ids}."""
    return {key: position for position, key in enumerate(sorted(set(ids)))}


def _positions_of(results, key, positions):
    """Returns int64 [N], the positions of the results' ids."""
    return np.fromiter(
        map(positions.__getitem__, map(itemgetter(key), results)), np.int64, len(results)
    )


def _rows_of(rows, length, dtype):
    """Returns an array [N, length] of N sequences; ValueError if one has another length."""
    if set(map(len, rows)) - {length}:
        raise ValueError
    values = itertools.chain.from_iterable(rows)
    return np.fromiter(values, dtype, length * len(rows)).reshape([-1, length])


def _are_boxes(boxes):
    return np.isfinite(boxes).all() and (boxes[:, 2:] >= 0).all()


def _first_of_each(column, rows):
    """Returns the first of the rows for each value of a column."""
    return rows[np.unique(column[rows], return_index=True)[1]].tolist()


def _area(shape, area):
    """Returns the given area of a box, or that of a mask."""
    return float(coco_mask.area(shape)) if area is None else area


def _check_has(entry, key, iou_type):
    if not entry.get(key):
        raise ValueError(
            f"annotation {entry.get('id')} of image {entry['image_id']} has no '{key}': add it, or "
            f"leave '{iou_type}' out of iou_types"
        )
