"""Checks of COCO annotations before any pixel is read: what is kept, clipped or skipped, and why.

Everything here works on the JSON alone. `coco_images` checks what needs pixels (the image file
and the masks). Nothing here needs TensorFlow.
"""

import dataclasses
import json
import math
from collections.abc import Sequence
from typing import Any

from rethink_tf.data.records.keypoints import KeypointLayout, find_layout, keypoints_problem
from rethink_tf.data.records.skips import (
    BadEntryError as BadEntryError,  # part of this module's interface
)
from rethink_tf.data.records.skips import SkipLog, printable
from rethink_tf.data.sources import box_forms

# Boxes in COCO's files are rounded to two decimals; leaving the image by less is no clipping.
CLIP_TOLERANCE = 0.01

_REQUIRED_FIELDS = {
    "categories": ("id", "name"),
    "images": ("id", "file_name", "height", "width"),
    "annotations": ("id", "image_id", "category_id", "bbox"),
}
_MAX_ID = 2**63 - 1


@dataclasses.dataclass
class CheckedDataset:
    """What is left of a COCO file after the checks.

    Attributes:
        info: the file's own "info" and "licenses".
        categories: sorted by id.
        images: sorted by id.
        annotations: image id -> its annotations in the order of the file. "iscrowd" is always
            there; "bbox" is inside the image.
        has_masks: whether any annotation has a segmentation that looks like one.
        keypoints: which ones the objects may have; None for a file without keypoints.
        clipped_ids: annotations whose box was cut at the image's border.
    """

    info: dict
    categories: list[dict]
    images: list[dict]
    annotations: dict[int, list[dict]]
    has_masks: bool
    keypoints: KeypointLayout | None
    clipped_ids: set[int]


def read_json(content: bytes | str, path: str) -> dict:
    """Parses a COCO file and checks its top level.

    Raises:
        ValueError: if it is not JSON, or a top-level list is missing; names `path`.
    """
    try:
        dataset = json.loads(content)
    except UnicodeDecodeError:
        # Names of files keep their bytes, by which they are found on the disk.
        dataset = json.loads(content.decode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(dataset, dict):
        raise ValueError(
            f"{path} holds a {type(dataset).__name__}, not an object with images, annotations and "
            "categories; a COCO result file cannot be converted"
        )
    for key in _REQUIRED_FIELDS:
        if not isinstance(dataset.get(key), list):
            found = f"is a {type(dataset[key]).__name__}" if key in dataset else "is missing"
            raise ValueError(
                f"{path}: top-level {key!r} {found}; a COCO file has lists of "
                f"{', '.join(_REQUIRED_FIELDS)} (found: {', '.join(dataset) or 'nothing'})"
            )
    return dataset


def check_dataset(
    dataset: dict,
    skips: SkipLog,
    names: dict[int, str] | None = None,
    flip_pairs: Sequence[str] | None = None,
) -> CheckedDataset:
    """Sorts out the entries that cannot be used.

    Args:
        dataset: from `read_json`.
        skips: told of every entry that is left out.
        names: annotation id -> how messages call it, for sources whose files have no such ids.
        flip_pairs: as of `KeypointLayout.from_names`.

    Raises:
        ValueError: if the categories' keypoints do not fit each other or a mirrored image, or the
            boxes are in another form than COCO's.
    """
    categories = _check_categories(dataset["categories"], skips)
    images = _check_images(dataset["images"], skips)
    # Of the stated ids: objects of an image that was left out are said to be that.
    stated = {entry.get("id") for entry in dataset["images"] if _is_entry_with_id(entry)}
    has_masks = any(map(_may_have_mask, dataset["annotations"]))
    layout = find_layout([*categories.values()], dataset["annotations"], flip_pairs)
    box_forms.check(dataset["annotations"], images)
    annotations: dict[int, list[dict]] = {image_id: [] for image_id in images}
    seen, clipped_ids = set(), set()
    for position, entry in enumerate(dataset["annotations"]):
        problem = _annotation_problem(entry, seen, images, stated, categories)
        if problem is None:
            image = images[entry["image_id"]]
            box, excess = _clip_box(entry["bbox"], image["height"], image["width"])
            problem = _box_problem(entry["bbox"], box) or _keypoints_problem(entry, layout)
        name = names[entry["id"]] if names else _name_annotation(entry, position)
        if problem is not None:
            reason, detail = problem
            skips.add(reason, name + detail)
            continue
        seen.add(entry["id"])
        if excess > CLIP_TOLERANCE:
            clipped_ids.add(entry["id"])
        entry = {"iscrowd": 0} | entry | ({"bbox": box} if excess > 0 else {})
        for reason, detail, changes in _corrections(entry, layout):
            skips.note(reason, name + detail)
            entry |= changes
        annotations[entry["image_id"]].append(entry)
    return CheckedDataset(
        info={key: dataset[key] for key in ("info", "licenses") if key in dataset},
        categories=[categories[key] for key in sorted(categories)],
        images=[images[key] for key in sorted(images)],
        annotations=annotations,
        has_masks=has_masks,
        keypoints=layout,
        clipped_ids=clipped_ids,
    )


def _check_categories(entries: list, skips: SkipLog) -> dict[int, dict]:
    kept: dict[int, dict] = {}
    for position, entry in enumerate(entries):
        name = f"category {entry.get('id')!r}" if isinstance(entry, dict) else f"#{position}"
        problem = _field_problem(entry, "categories")
        if problem is None and not (isinstance(entry["name"], str) and entry["name"]):
            problem = f"name is {entry['name']!r}, not a text"
        if problem is not None:
            skips.add("category_malformed", f"{name} (categories[{position}]): {problem}")
        elif entry["id"] in kept:
            skips.add("category_duplicate_id", f"{name} (categories[{position}])")
        else:
            shown = printable(entry["name"])
            if shown != entry["name"]:
                skips.note("category_name_not_utf8", f"{name}: it is called {shown} from here on")
            kept[entry["id"]] = entry | {"name": shown}
    return kept


def _check_images(entries: list, skips: SkipLog) -> dict[int, dict]:
    kept: dict[int, dict] = {}
    for position, entry in enumerate(entries):
        problem = _field_problem(entry, "images")
        if problem is None and not (isinstance(entry["file_name"], str) and entry["file_name"]):
            problem = f"file_name is {entry['file_name']!r}, not a text"
        if problem is None and not _is_file_name(entry["file_name"]):
            problem = f"file_name {entry['file_name']!r} can be no name of a file"
        for side in ("height", "width") if problem is None else ():
            if not _is_integer(entry[side]) or not 0 < entry[side] < 2**31:
                problem = f"{side} is {entry[side]!r}, not a positive integer"
        if problem is not None:
            name = f"image {entry.get('id')!r}" if isinstance(entry, dict) else f"#{position}"
            skips.add("image_malformed", f"{name} (images[{position}]): {problem}")
        elif entry["id"] in kept:
            skips.add("image_duplicate_id", f"{name_image(entry)} (images[{position}])")
        else:
            kept[entry["id"]] = entry
    return kept


def _annotation_problem(entry, seen, images, stated, categories):
    """(reason, detail) if an annotation cannot be used whatever its box is, else None."""
    problem = _field_problem(entry, "annotations")
    if problem is not None:
        return "annotation_malformed", f": {problem}"
    if entry["id"] in seen:
        return "annotation_duplicate_id", ": its id was met before"
    if entry["image_id"] not in images:
        if _is_integer(entry["image_id"]) and entry["image_id"] in stated:
            return "annotation_of_skipped_image", ": its image was skipped"
        return "annotation_of_unknown_image", f": there is no image {entry['image_id']!r}"
    if entry["category_id"] not in categories:
        return "unknown_category", f": there is no category {entry['category_id']!r}"
    bbox = entry["bbox"]
    if not (isinstance(bbox, list) and len(bbox) == 4 and all(map(is_finite_number, bbox))):
        return "annotation_malformed", f": bbox is {bbox!r}, not four finite numbers"
    crowd = entry.get("iscrowd", 0)
    if isinstance(crowd, float) or crowd not in (0, 1):
        return "annotation_malformed", f": iscrowd is {crowd!r}, not 0 or 1"
    if "area" in entry and not (is_finite_number(entry["area"]) and entry["area"] >= 0):
        return "annotation_malformed", f": area is {entry['area']!r}, not a number >= 0"
    return None


def _corrections(entry, layout):
    """Yields (reason, detail, changes) of what a kept annotation means and does not say."""
    if entry.get("ignore") not in (None, 0) and not entry["iscrowd"]:
        yield "ignored_as_crowd", f": ignore is {entry['ignore']!r}", {"iscrowd": 1}
    box_area = entry["bbox"][2] * entry["bbox"][3]
    stated = entry.get("area")
    # The area scales the similarity of keypoints: with one near 0, half a pixel would be too far.
    if layout and entry.get("keypoints") and (stated or 0) <= 1 < box_area:
        if stated is not None or not _may_have_mask(entry):
            found = "no area" if stated is None else f"area {stated}"
            yield "area_of_box_taken", f": it has keypoints and {found}", {"area": box_area}


def _may_have_mask(entry: Any) -> bool:
    """Whether an annotation's segmentation looks like one; `coco_images` sees whether it is."""
    segmentation = entry.get("segmentation") if isinstance(entry, dict) else None
    if isinstance(segmentation, dict):
        return {"size", "counts"} <= set(segmentation)
    return isinstance(segmentation, list) and any(
        isinstance(polygon, list) and len(polygon) >= 6 for polygon in segmentation
    )


def _box_problem(bbox, clipped):
    """(reason, detail) if a box has no area or lies outside the image, else None."""
    if not (bbox[2] > 0 and bbox[3] > 0):
        return "box_without_area", f": bbox {bbox}"
    if not (clipped[2] > 0 and clipped[3] > 0):
        return "box_outside_image", f": bbox {bbox}"
    return None


def _keypoints_problem(entry, layout):
    """(reason, detail) if the keypoints are not what the categories say, else None."""
    problem = layout and keypoints_problem(entry, len(layout.names))
    return ("keypoints_malformed", f": {problem}") if problem else None


def _clip_box(bbox: list, height: int, width: int) -> tuple[list[float], float]:
    """Cuts a COCO box (x, y, width, height) at the image's border.

    Returns:
        The box, and by how many pixels it left the image at most (0: the box is as it was).
    """
    x1, y1, x2, y2 = bbox[0], bbox[1], bbox[0] + bbox[2], bbox[1] + bbox[3]
    excess = max(-x1, -y1, x2 - width, y2 - height, 0)
    if excess <= 0:
        return bbox, 0
    x1, x2 = (min(max(x, 0), width) for x in (x1, x2))
    y1, y2 = (min(max(y, 0), height) for y in (y1, y2))
    return [x1, y1, x2 - x1, y2 - y1], excess


def _field_problem(entry: Any, kind: str) -> str | None:
    """Says what is wrong with an entry's fields and ids, or None."""
    if not isinstance(entry, dict):
        return f"it is a {type(entry).__name__}, not an object"
    missing = [field for field in _REQUIRED_FIELDS[kind] if field not in entry]
    if missing:
        return f"no {', '.join(missing)}"
    for field in ("id", "image_id", "category_id"):
        if field in _REQUIRED_FIELDS[kind] and not _is_integer(entry[field]):
            return f"{field} is {entry[field]!r}, not an integer"
    return None


def name_image(image: dict) -> str:
    """How an image is called in messages."""
    return f"image {image['id']} ({image['file_name']})"


def _name_annotation(entry: Any, position: int) -> str:
    if not isinstance(entry, dict):
        return f"annotations[{position}]"
    return f"annotation {entry.get('id')!r} of image {entry.get('image_id')!r}"


def _is_file_name(text: str) -> bool:
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return "\0" not in text


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _MAX_ID


def _is_entry_with_id(entry: Any) -> bool:
    return isinstance(entry, dict) and _is_integer(entry.get("id"))


def is_finite_number(value: Any) -> bool:
    """Whether a JSON value is a number, and neither NaN, infinite nor a boolean."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) < 1e15 and math.isfinite(value)
