"""Pastes boxes' small masks into the full image and encodes them in COCO's run lengths.

NumPy only, on the host: a full-size mask for each of 100 detections would not fit a device's
static shapes. It is not made here either: along a column of the image the pasted probability is
linear between the centres of the mask's cells, so that where it crosses the threshold follows from
the values at those centres, and the crossings are the run lengths. All masks of an image are worked
on together.

Letters: N masks, S side of a predicted mask, P = S + 2 with a frame of zeros around it, H and W the
original image's size, C columns of the image that some mask can reach, E crossings.
"""

import numpy as np
from pycocotools import mask as coco_mask

# Columns worked on at once: [C, P] float64 then takes a megabyte, whatever the image's size.
_COLUMNS_AT_ONCE = 4096


def paste_mask(mask, box, height, width, threshold=0.5):
    """Resamples a mask from its box to the image and cuts it at a threshold.

    The mask's cell j covers [low + j * step, low + (j + 1) * step) along an axis of the box, where
    step = (high - low) / S, and its value stands at the cell's centre. A pixel has the bilinear
    interpolation at its own centre; outside of the mask there is zero.

    Args:
        mask: float [S, S], probabilities.
        box: four floats (y1, x1, y2, x2), pixels of the original image; may reach out of it.
        height: int, H, pixels.
        width: int, W, pixels.
        threshold: float in (0, 1]; a pixel belongs to the object from this probability on.

    Returns:
        uint8 [H, W], 1 inside of the object, else 0. All zero for a box without area or outside of
        the image.

    Raises:
        ValueError: if the mask is not square, empty or not finite, the box not four finite numbers,
            the image without pixels or the threshold out of range.

    Source: `paste_masks_in_image` of Detectron2 0.6, which is torch's grid_sample (bilinear,
    align_corners=False, zero outside).
    """
    mask, box = np.asarray(mask), np.asarray(box)
    if mask.ndim != 2 or box.ndim != 1:
        raise ValueError(
            f"mask must be [S, S] and box [4], found shapes {list(mask.shape)} and "
            f"{list(box.shape)}"
        )
    (counts,) = _run_lengths(mask[np.newaxis], box[np.newaxis], height, width, threshold)
    pixels = np.repeat(np.arange(len(counts)) % 2, counts).astype(np.uint8)
    return np.ascontiguousarray(pixels.reshape([width, height]).T)


def paste_and_encode(masks, boxes, height, width, threshold=0.5):
    """Pastes the masks of an image and encodes them, as `encode_mask(paste_mask(...))` would.

    Args:
        masks: float [N, S, S], probabilities; N may be 0.
        boxes: float [N, 4], (y1, x1, y2, x2), pixels of the original image.
        height: int, H, pixels.
        width: int, W, pixels.
        threshold: float in (0, 1].

    Returns:
        N dicts as `encode_mask` returns them.

    Raises:
        ValueError: as `paste_mask`.
    """
    size = [int(height), int(width)]
    lengths = [
        {"size": size, "counts": counts}
        for counts in _run_lengths(masks, boxes, height, width, threshold)
    ]
    if not lengths:
        return []
    return [_as_json(encoded) for encoded in coco_mask.frPyObjects(lengths, *size)]


def encode_mask(mask):
    """Encodes a binary mask in COCO's compressed run lengths, ready for JSON.

    Args:
        mask: bool or integer [H, W]; what is not zero belongs to the object.

    Returns:
        {"size": [H, W], "counts": str}, as pycocotools and COCO result files have it.

    Raises:
        ValueError: if the mask is not two-dimensional.
    """
    mask = np.asarray(mask)
    if mask.ndim != 2:
        raise ValueError(f"mask must be [H, W], found shape {list(mask.shape)}")
    return _as_json(coco_mask.encode(np.asfortranarray(mask != 0, dtype=np.uint8)))


def _as_json(encoded):
    """Returns pycocotools' run lengths as plain values."""
    return {
        "size": [int(side) for side in encoded["size"]],
        "counts": encoded["counts"].decode("ascii"),
    }


def _run_lengths(masks, boxes, height, width, threshold):
    """Yields for each mask its run lengths, integers [runs], of zeros and ones in turns."""
    masks, boxes = np.asarray(masks, np.float64), np.asarray(boxes, np.float64)
    _check(masks, boxes, height, width, threshold)
    first, count = _reached(boxes, width, masks.shape[1])
    begin = 0
    while begin < len(masks):
        many = np.searchsorted(np.cumsum(count[begin:]), _COLUMNS_AT_ONCE, "right")
        some = slice(begin, begin + max(1, int(many)))
        yield from _lengths_of_some(
            masks[some], boxes[some], first[some], count[some], height, width, threshold
        )
        begin = some.stop


def _check(masks, boxes, height, width, threshold):
    """Raises ValueError if an argument can't be worked on."""
    if masks.ndim != 3 or masks.shape[1] != masks.shape[2] or not masks.shape[1]:
        raise ValueError(f"masks must be [N, S, S] with S > 0, found shape {list(masks.shape)}")
    if boxes.shape != (len(masks), 4):
        raise ValueError(
            f"boxes must be [N, 4] for {len(masks)} masks, found shape {list(boxes.shape)}"
        )
    for name, values in (("box", boxes), ("mask", masks)):
        finite = np.isfinite(values).all(axis=tuple(range(1, values.ndim)))
        if not finite.all():
            row = int(np.argmin(finite))
            shown = f", found {values[row].tolist()}" if name == "box" else ""
            raise ValueError(f"{name} {row} must be finite{shown}")
    if height < 1 or width < 1:
        raise ValueError(f"height and width must be at least 1, found {height} and {width}")
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold must be in (0, 1], found {threshold}")


def _reached(boxes, width, size):
    """Returns the first column that each mask can reach, and how many, both int64 [N].

    A pixel sees something of a mask up to half a cell outside of the box.
    """
    y1, x1, y2, x2 = boxes.T
    half_cell = 0.5 * (x2 - x1) / size
    first = np.clip(np.floor(x1 - half_cell), 0, width)
    last = np.clip(np.ceil(x2 + half_cell), first, width)
    count = np.where((y2 > y1) & (x2 > x1), last - first, 0)
    return first.astype(np.int64), count.astype(np.int64)


def _lengths_of_some(masks, boxes, first, count, height, width, threshold):
    """Returns the run lengths of some masks.

    Args:
        masks: float64 [N, S, S].
        boxes: float64 [N, 4].
        first: int64 [N], the first column of each mask.
        count: int64 [N], its columns; they add up to C.
        height: int H.
        width: int W.
        threshold: float.

    Returns:
        List of N integer arrays.
    """
    y1, x1, y2, x2 = boxes.T
    size = masks.shape[1]
    owner = np.repeat(np.arange(len(masks)), count)
    column = np.arange(len(owner)) + (first - np.cumsum(count) + count)[owner]
    # In cells of the framed mask, whose cell 0 is the frame.
    position = (column + 0.5 - x1[owner]) / (x2 - x1)[owner] * size + 0.5
    values = _at_columns(masks, owner, np.clip(position, 0, size + 1))

    # As one long line: the frame keeps the end of a column and the start of the next outside.
    values = values.reshape(-1)
    inside = values >= threshold
    crossing = np.flatnonzero(inside[1:] != inside[:-1])
    line, cell = np.divmod(crossing, size + 2)
    before, after = values[crossing], values[crossing + 1]
    position = cell + (threshold - before) / (after - before)
    owner = owner[line]
    # The threshold is met at y, in pixels' centres: the first pixel inside is at y or below, the
    # first one outside below it.
    y = (position - 0.5) / size * (y2 - y1)[owner] + y1[owner] - 0.5
    row = np.where(before < threshold, np.ceil(y), np.floor(y) + 1)
    # Run lengths go down the columns, from mask to mask here.
    position = np.clip(row, 0, height).astype(np.int64) + column[line] * height
    position = _toggles(position + owner * (height * width + 1))
    return _differences(position, len(masks), height * width)


def _at_columns(masks, owner, position):
    """Interpolates between the cells' columns.

    Args:
        masks: float64 [N, S, S].
        owner: int64 [C], which mask a column of the image belongs to.
        position: float64 [C], 0 to S + 1, where it lies in the framed mask.

    Returns:
        float64 [C, P], the values at the centres of the framed mask's rows.
    """
    side = masks.shape[1] + 2
    framed = np.zeros([len(masks), side, side])
    framed[:, 1:-1, 1:-1] = masks.transpose([0, 2, 1])
    framed = framed.reshape([len(masks) * side, side])
    left = np.minimum(position.astype(np.int64), side - 2)
    values = framed.take(owner * side + left, axis=0)
    slopes = framed.take(owner * side + left + 1, axis=0)
    slopes -= values
    slopes *= (position - left)[:, np.newaxis]
    values += slopes
    return values


def _toggles(position):
    """Sorts the positions at which runs begin or end, and drops pairs of equal ones: empty runs,
    and runs that meet at the foot of a column and the top of the next.
    """
    position = np.sort(position, kind="stable")
    new = np.append(True, position[1:] != position[:-1])[: len(position)]
    starts = np.flatnonzero(new)
    odd = np.diff(np.append(starts, len(position))) % 2 == 1
    return position[starts[odd]]


def _differences(position, count, pixels):
    """Returns the lengths of the runs between toggles.

    Args:
        position: int64 [T], sorted; mask n's pixel p is n * (pixels + 1) + p.
        count: int N.
        pixels: int, of the image.

    Returns:
        List of N integer arrays, lengths that begin with a run of zeros (which may be empty) and
        add up to `pixels`.
    """
    begins = np.arange(count) * (pixels + 1)
    cuts = np.searchsorted(position, np.append(begins, count * (pixels + 1)))
    # Each mask's first pixel goes before its toggles, and its end after them.
    marks = np.empty(len(position) + 2 * count, np.int64)
    order = np.arange(count)
    first, last = cuts[:-1] + 2 * order, cuts[1:] + 2 * order + 1
    inner = np.ones(len(marks), bool)
    inner[first] = inner[last] = False
    marks[first], marks[last], marks[inner] = begins, begins + pixels, position
    lengths = np.diff(marks).astype(np.uint32)
    # Run lengths have no empty run at their end.
    last -= (lengths[last - 1] == 0) & (last - first > 1)
    return [lengths[i:j] for i, j in zip(first.tolist(), last.tolist(), strict=True)]
