"""Boxes that are probably not what was meant: found from the ground truth, no image is read.

A finding is a reason to look, not an error: a photograph of one dog may well be all dog.
"""

import dataclasses

import numpy as np

WHOLE_IMAGE = 0.98  # of both sides
SAME_BOX = 0.95  # IoU
# A box and the bounds of its mask differ by this IoU, and by so many pixels at some side.
MASK_IOU, MASK_PIXELS = 0.7, 3.0
SWAPPED_IOU = 0.8
ONE_PIXEL = 1.0
OUTSIDE_PIXELS = 0.01  # COCO rounds to two decimals
# Objects of images that are longer than wide, or wider than long, by this factor tell whether x
# and y are swapped.
LONG, MIN_TELLING, MIN_CUT = 1.2, 30, 0.1

KINDS = {
    "one pixel": f"a side of at most {ONE_PIXEL:g} pixel",
    "outside": "the box reaches out of the image",
    "whole image": f"both sides are {WHOLE_IMAGE:.0%} of the image's or more",
    "duplicate": f"another object of the class has the same box (IoU from {SAME_BOX})",
    "two classes": f"an object of another class has the same box (IoU from {SAME_BOX})",
    "x and y swapped": "with x and y swapped, the box is that of its mask",
    "mask elsewhere": f"the mask reaches over another box (IoU below {MASK_IOU})",
}


@dataclasses.dataclass(frozen=True)
class Finding:
    """An object that is suspicious.

    Attributes:
        kind: one of `KINDS`.
        objects: rows of the `ObjectTable`, one or the two of a pair.
    """

    kind: str
    objects: tuple


def find(table):
    """Finds suspicious objects.

    Args:
        table: `objects.ObjectTable`.

    Returns:
        list of `Finding`, in the order of `KINDS`, of each in that of the objects.
    """
    boxes = table.boxes
    sides = boxes[:, 2:] - boxes[:, :2]
    limits = table.image_sizes[table.row]
    out = (boxes[:, :2] < -OUTSIDE_PIXELS) | (boxes[:, 2:] > limits + OUTSIDE_PIXELS)
    disagrees, is_swapped = _against_masks(table)
    marks = {
        "one pixel": (sides <= ONE_PIXEL).any(-1),
        "outside": out.any(-1),
        "whole image": (sides >= WHOLE_IMAGE * limits).all(-1),
        "x and y swapped": is_swapped,
        "mask elsewhere": disagrees & ~is_swapped,
    }
    pairs = _same_boxes(table)
    is_same_class = table.category[pairs[:, 0]] == table.category[pairs[:, 1]]
    found = {kind: np.flatnonzero(mark)[:, np.newaxis] for kind, mark in marks.items()}
    found |= {"duplicate": pairs[is_same_class], "two classes": pairs[~is_same_class]}
    return [Finding(kind, tuple(map(int, rows))) for kind in KINDS for rows in found[kind]]


def may_be_swapped(table):
    """Says why the boxes of a whole split look as if x and y were swapped, or returns None.

    Boxes of landscape images whose x was written as y reach over the bottom, where they were cut,
    and leave the right of every image empty.

    Args:
        table: `objects.ObjectTable`, of boxes inside of their images.
    """
    height, width = table.image_sizes[table.row].T
    telling = np.maximum(height, width) > LONG * np.minimum(height, width)
    if telling.sum() < MIN_TELLING:
        return None
    shorter = np.minimum(height, width)[telling]
    is_landscape = (width > height)[telling]
    far_y, far_x = table.boxes[telling, 2], table.boxes[telling, 3]
    along = np.where(is_landscape, far_x, far_y)
    across = np.where(is_landscape, far_y, far_x)
    cut = (across >= shorter - OUTSIDE_PIXELS).mean()
    if (along > shorter + OUTSIDE_PIXELS).any() or cut < MIN_CUT:
        return None
    return (
        f"x and y may be swapped: in images that are longer than wide or wider than long, none of "
        f"{telling.sum()} boxes lies beyond the shorter side along the longer one, and {cut:.0%} "
        "end at the border of the shorter one."
    )


def _against_masks(table):
    """Whether each box differs from the bounds of its mask, and agrees with them when swapped."""
    bounds, has_mask = table.mask_bounds, np.isfinite(table.mask_bounds).all(-1)
    differs = np.abs(table.boxes - bounds).max(-1) > MASK_PIXELS
    own = _iou(table.boxes, bounds)
    swapped = _iou(table.boxes[:, [1, 0, 3, 2]], bounds)
    disagrees = has_mask & differs & (own < MASK_IOU)
    return disagrees, disagrees & (swapped >= SWAPPED_IOU)


def _same_boxes(table):
    """Returns int64 [P, 2], pairs of objects of one image whose boxes are the same."""
    pairs = [np.zeros([0, 2], np.int64)]
    ends = np.cumsum(table.per_image)
    for start, end in zip(ends - table.per_image, ends, strict=True):
        boxes = table.boxes[start:end]
        same = np.triu(_iou(boxes[:, np.newaxis], boxes) >= SAME_BOX, 1)
        if same.any():
            pairs.append(start + np.argwhere(same))
    return np.concatenate(pairs)


def _iou(one, other):
    """Returns the IoU of boxes [..., 4]; nan where one is nan."""
    low, high = np.maximum(one[..., :2], other[..., :2]), np.minimum(one[..., 2:], other[..., 2:])
    both = np.maximum(high - low, 0).prod(-1)
    areas = sum((each[..., 2:] - each[..., :2]).prod(-1) for each in (one, other))
    return both / np.maximum(areas - both, 1e-12)
