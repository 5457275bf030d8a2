"""The work of one converter process: reads one image, checks it, and draws its masks as PNG.

Imports no TensorFlow, as `image_files` says, so that worker processes start in a fraction of a
second; only the process that writes the shards needs it.
"""

import dataclasses
import io
import os
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as mask_api

from rethink_tf.data.sources import image_files, run_lengths
from rethink_tf.data.sources.coco_checks import is_finite_number, name_image
from rethink_tf.data.sources.image_files import UnusableError

# Reasons that an object's segmentation, or a part of it, is not used.
EMPTY, MALFORMED = "segmentation_empty", "segmentation_malformed"
PARTS_LEFT_OUT = "segmentation_parts_left_out"
_NO_MASK = {"segmentation": []}


@dataclasses.dataclass
class PreparedImage:
    """One image ready to be written, or the reasons why it is not.

    Attributes:
        image: the entry of the COCO file.
        annotations: those kept, in the order of the file; all have an "area", and a "segmentation"
            that can be drawn or an empty one.
        skipped: (reason, entry) of what was left out.
        notes: (reason, entry, is_fault) of what was kept otherwise than stated.
        loaded: `image_files.LoadedImage`; None if the image is left out, or was written.
        masks: one PNG [height, width] of 0 and 1 for each annotation, of zeros for an object
            without a mask; None for a data set without masks.
        has_mask: for each annotation whether it has a mask.
    """

    image: dict
    annotations: list[dict]
    skipped: list[tuple[str, str]]
    notes: list[tuple[str, str, bool]] = dataclasses.field(default_factory=list)
    loaded: image_files.LoadedImage | None = None
    masks: list[bytes] | None = None
    has_mask: list[bool] = dataclasses.field(default_factory=list)


def prepare_image(
    folder: str,
    image: dict,
    annotations: list[dict],
    has_masks: bool,
    options: image_files.Options,
):
    """Reads and checks an image and draws the masks of its objects.

    An object whose segmentation cannot be drawn is kept without a mask.

    Args:
        folder: where the images lie.
        image: a checked entry of "images".
        annotations: its checked entries of "annotations".
        has_masks: whether to draw masks.
        options: how image files are read.

    Returns:
        A `PreparedImage`. It never raises for bad input: the caller decides what a bad entry means.
    """
    name = name_image(image)
    try:
        loaded = image_files.load_image(os.path.join(folder, image["file_name"]), image, options)
    except UnusableError as error:
        skipped = [(error.args[0], f"{name}: {error.args[1]}")]
        for annotation in annotations:
            entry = f"annotation {annotation['id']} of {name}: its image was skipped"
            skipped.append(("annotation_of_skipped_image", entry))
        return PreparedImage(image, [], skipped)
    done = PreparedImage(image, [], [], loaded=loaded, masks=[] if has_masks else None)
    for annotation in annotations:
        mask, kept, problem = _draw(annotation, image["height"], image["width"])
        if problem is not None:
            reason, detail = problem
            entry = f"annotation {annotation['id']} of {name}: {detail}"
            done.notes.append((reason, entry, reason != EMPTY))
        area = annotation["bbox"][2] * annotation["bbox"][3] if mask is None else int(mask.sum())
        done.annotations.append({"area": area} | annotation | kept)
        done.has_mask.append(mask is not None)
        if has_masks:
            shape = image["height"], image["width"]
            done.masks.append(encode_png(np.zeros(shape, np.uint8) if mask is None else mask))
    return done


def _draw(annotation, height, width):
    """Draws what can be drawn of an object's segmentation.

    Returns:
        uint8 [height, width] or None for no mask; {"segmentation": what of it is used} where that
        is not what is stated, else {}; and (reason, detail) where a part of it is not used.
    """
    stated = annotation.get("segmentation")
    if not stated:
        return None, {} if stated == [] or "segmentation" not in annotation else _NO_MASK, None
    try:
        used, problem = usable_parts(stated)
        mask = decode_segmentation(used, height, width)
    except UnusableError as error:
        return None, _NO_MASK, (error.args[0], f"{error.args[1]}; it is kept without a mask")
    if not mask.any():
        return None, _NO_MASK, (EMPTY, "its mask covers no pixel; it is kept without a mask")
    return mask, {} if problem is None else {"segmentation": used}, problem


def usable_parts(segmentation: Any) -> tuple[Any, tuple[str, str] | None]:
    """Returns a segmentation without the polygons that cannot be drawn.

    Args:
        segmentation: as a COCO file states it.

    Returns:
        The segmentation, and (reason, detail) of what was left out of it, or None.

    Raises:
        UnusableError: (reason, detail), if it is a list in which no polygon can be drawn.

    Source: Detectron2 leaves out such polygons likewise.
    """
    if not isinstance(segmentation, list):
        return segmentation, None
    if all(map(is_finite_number, segmentation)):
        detail = f"it is a flat list of {len(segmentation)} numbers, not a list of polygons"
        raise UnusableError(MALFORMED, detail)
    problems = [_polygon_problem(polygon) for polygon in segmentation]
    used = [p for p, problem in zip(segmentation, problems, strict=True) if problem is None]
    left_out = [problem for problem in problems if problem is not None]
    if not used:
        reasons = dict(left_out)
        reason = MALFORMED if MALFORMED in reasons else EMPTY
        raise UnusableError(reason, reasons[reason])
    if not left_out:
        return segmentation, None
    detail = f"{len(left_out)} of {len(problems)} polygons left out: {left_out[0][1]}"
    return used, (PARTS_LEFT_OUT, detail)


def decode_segmentation(segmentation: list | dict, height: int, width: int) -> np.ndarray:
    """Draws polygons, an uncompressed or a compressed RLE.

    Args:
        segmentation: COCO's form. Polygons: [[x1, y1, x2, y2, ...], ...], pixels, all of them
            such as `usable_parts` keeps.
        height: pixels of the image.
        width: pixels of the image.

    Returns:
        uint8 [height, width], 0 or 1; equal to pycocotools' `annToMask`.

    Raises:
        UnusableError: (reason, detail), if it is no segmentation of that size.
    """
    if isinstance(segmentation, list):
        parts = mask_api.frPyObjects(segmentation, height, width)
        return mask_api.decode(mask_api.merge(parts))
    if not isinstance(segmentation, dict) or not {"size", "counts"} <= set(segmentation):
        raise _malformed("it is neither a list of polygons nor an RLE with size and counts")
    if segmentation["size"] != [height, width]:
        raise _malformed(f"RLE size {segmentation['size']}, the image has {[height, width]}")
    try:
        counts = run_lengths.read_counts(segmentation)
    except ValueError as error:
        raise _malformed(str(error)) from error
    values = np.arange(len(counts), dtype=np.uint8) % 2
    # COCO runs down the columns, the first run is of zeros.
    return np.repeat(values, counts).reshape(width, height).T


def encode_png(image: np.ndarray) -> bytes:
    """PNG of uint8 [height, width] or [height, width, 3]."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()


def _polygon_problem(polygon) -> tuple[str, str] | None:
    """(reason, detail) if a polygon cannot be drawn, else None."""
    if not isinstance(polygon, list) or not all(map(is_finite_number, polygon)):
        return MALFORMED, "a polygon is not a list of finite numbers"
    # Four numbers would be taken for a box by pycocotools, an odd number read past the end.
    if len(polygon) < 6 and len(polygon) % 2 == 0:
        return EMPTY, f"a polygon of {len(polygon) // 2} points"
    if len(polygon) % 2:
        return MALFORMED, f"a polygon of {len(polygon)} numbers, not of pairs"
    if max(map(abs, polygon)) > 1e6:
        return MALFORMED, "a polygon lies more than 1,000,000 pixels away"
    return None


def _malformed(detail: str) -> UnusableError:
    return UnusableError(MALFORMED, detail)
