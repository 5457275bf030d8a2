"""Pastes a box's small mask into the full image and encodes it in COCO's run lengths.

NumPy only, on the host: a full-size mask for each of 100 detections would not fit a device's
static shapes. Letters: S side of the predicted mask, H and W the original image's size, h the
length of the window of pixels that the mask can reach, along one axis.
"""

import numpy as np
from pycocotools import mask as coco_mask


def _interpolation_matrix(low, high, length, size):
    """Returns the bilinear weights of one axis, and where its window begins.

    The mask's cell j covers [low + j * step, low + (j + 1) * step), step = (high - low) / size, and
    its value stands at the cell's centre; outside the mask there is zero. So the centre of pixel i,
    at i + 0.5, lies at j = (i + 0.5 - low) / step - 0.5, and it sees something of the mask while
    -1 < j < size: up to half a cell outside of the box.

    Args:
        low: float, where the box begins, pixels.
        high: float, where the box ends, pixels, greater than `low`.
        length: int, the image's size along this axis, pixels.
        size: int, S.

    Returns:
        (matrix, first): float64 [h, S], rows sum to 1 at most, and the index of its first pixel.
        h is zero where the box lies outside of the image.
    """
    half_cell = 0.5 * (high - low) / size
    first = int(np.clip(np.floor(low - half_cell), 0, length))
    last = int(np.clip(np.ceil(high + half_cell), first, length))
    position = (np.arange(first, last) + 0.5 - low) / (high - low) * size - 0.5
    # A cell's weight falls linearly from 1 at its centre to 0 at its neighbours' centres.
    distance = np.abs(position[:, None] - np.arange(size)[None, :])
    return np.maximum(1.0 - distance, 0.0), first


def paste_mask(mask, box, height, width, threshold=0.5):
    """Resamples a mask from its box to the image and cuts it at a threshold.

    Only the window that the mask can reach is computed, as the product of two small matrices
    (bilinear interpolation is separable).

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
        ValueError: if the mask is not square or empty, the box not four finite numbers, the image
            without pixels or the threshold out of range.

    Source: `paste_masks_in_image` of Detectron2 0.6, which is torch's grid_sample (bilinear,
    align_corners=False, zero outside).
    """
    mask = np.asarray(mask, np.float64)
    box = np.asarray(box, np.float64)
    if mask.ndim != 2 or mask.shape[0] != mask.shape[1] or not mask.size:
        raise ValueError(f"mask must be [S, S] with S > 0, found shape {list(mask.shape)}")
    if box.shape != (4,) or not np.isfinite(box).all():
        raise ValueError(f"box must be four finite numbers (y1, x1, y2, x2), found {box.tolist()}")
    if height < 1 or width < 1:
        raise ValueError(f"height and width must be at least 1, found {height} and {width}")
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold must be in (0, 1], found {threshold}")

    pasted = np.zeros((height, width), np.uint8)
    y1, x1, y2, x2 = box.tolist()
    if not (y2 > y1 and x2 > x1):
        return pasted
    rows, top = _interpolation_matrix(y1, y2, height, mask.shape[0])
    columns, left = _interpolation_matrix(x1, x2, width, mask.shape[1])
    probabilities = rows @ mask @ columns.T
    window = pasted[top : top + rows.shape[0], left : left + columns.shape[0]]
    window[...] = probabilities >= threshold
    return pasted


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
    encoded = coco_mask.encode(np.asfortranarray(mask != 0, dtype=np.uint8))
    return {
        "size": [int(side) for side in encoded["size"]],
        "counts": encoded["counts"].decode("ascii"),
    }
