"""COCO's comparison of keypoints, and the form of its files.

COCO gives a keypoint as the indices of its pixel; positions elsewhere are continuous, so half a
pixel is taken off here, as it was added when the data were converted. Letters: N objects or
detections, K keypoints, D detections and T objects of one image and category.
"""

import numpy as np
from pycocotools import cocoeval

from rethink_tf.data.records.keypoints import HALF_PIXEL

# COCO's standard deviations of a person's 17 keypoints, as parts of the object's scale.
COCO_SIGMAS = cocoeval.Params("keypoints").kpt_oks_sigmas
# For other numbers of keypoints, for which annotators were not compared: between COCO's
# ears and wrists.
DEFAULT_SIGMA = 0.05


def sigmas(num_keypoints):
    """Returns float64 [K]: COCO's for its 17 keypoints, else `DEFAULT_SIGMA` for each."""
    if num_keypoints == len(COCO_SIGMAS):
        return COCO_SIGMAS
    return np.full(num_keypoints, DEFAULT_SIGMA)


def to_coco(keypoints):
    """Converts detected keypoints to COCO's result form.

    Args:
        keypoints: float [N, K, 3], (y, x, score), pixels of the original image.

    Returns:
        A list of N lists of 3 K floats, (x, y, score) of each keypoint.
    """
    y, x, score = np.moveaxis(np.asarray(keypoints, np.float64), -1, 0)
    flat = np.stack([x - HALF_PIXEL, y - HALF_PIXEL, score], -1)
    return flat.reshape([len(flat), 3 * flat.shape[1]]).tolist()


def of_objects(annotations, length):
    """Reads the keypoints of N annotations in COCO's form.

    Args:
        annotations: list of dicts; one without keypoints has none labelled.
        length: int, 3 K.

    Returns:
        float64 [N, 3 K], (x, y, visibility) of each, and int64 [N], how many are labelled.

    Raises:
        ValueError: if one has another number of keypoints.
    """
    none = [0] * length
    values = [annotation.get("keypoints") or none for annotation in annotations]
    for annotation, each in zip(annotations, values, strict=True):
        if len(each) != length:
            raise ValueError(
                f"annotation {annotation.get('id')} of image {annotation['image_id']} has "
                f"{len(each)} numbers under 'keypoints', others have {length}"
            )
    values = np.array(values, np.float64).reshape([len(values), length])
    labelled = (values[:, 2::3] > 0).sum(axis=1).tolist()
    stated = [a.get("num_keypoints", n) for a, n in zip(annotations, labelled, strict=True)]
    return values, np.array(stated, np.int64)


def check(row, values, image, length):
    """Raises ValueError where a result's keypoints are not 3 K finite numbers.

    Args:
        row: int, the result's place among the results.
        values: what it has under "keypoints".
        image: entry of the ground truth.
        length: int, 3 K.
    """
    try:
        values = np.asarray(values, np.float64)
        valid = values.shape == (length,) and np.isfinite(values).all()
    except (TypeError, ValueError):
        valid = False
    if not valid:
        raise ValueError(
            f"result {row} (image {image['id']}): 'keypoints' must be {length} finite numbers, x, "
            "y and score of each; for detections without them leave 'keypoints' out of iou_types"
        )


def extents(keypoints):
    """Returns float64 [N], the areas of the boxes around flat keypoints [N, 3 K].

    By them COCO tells a detection's size, as its results of keypoints have no boxes.
    """
    if not keypoints.size:
        return np.zeros(len(keypoints))
    x, y = keypoints[:, 0::3], keypoints[:, 1::3]
    return np.ptp(x, axis=1) * np.ptp(y, axis=1)


def similarity(found, truth, boxes, areas):
    """Computes COCO's object keypoint similarity, which takes the place of IoU.

    Args:
        found: float64 [D, 3 K], (x, y, score) of each keypoint.
        truth: float64 [T, 3 K], (x, y, visibility). Of an object without a labelled keypoint, the
            distances are those to a box of three times the sides around its own.
        boxes: float64 [T, 4], (x, y, width, height).
        areas: float64 [T].

    Returns:
        float64 [D, T], 0 to 1.

    Source: pycocotools' `COCOeval.computeOks`.
    """
    x, y, visibility = truth[:, 0::3], truth[:, 1::3], truth[:, 2::3]
    labelled = visibility > 0
    unlabelled = ~labelled.any(axis=1, keepdims=True)
    corner, sides = boxes[:, :2], boxes[:, 2:]
    low, high = corner - sides, corner + 2 * sides

    def distance(positions, targets, axis):
        positions = positions[:, np.newaxis]
        least, most = low[:, axis, np.newaxis], high[:, axis, np.newaxis]
        outside = np.maximum(0, least - positions) + np.maximum(0, positions - most)
        return np.where(unlabelled, outside, positions - targets)

    squares = distance(found[:, 0::3], x, 0) ** 2 + distance(found[:, 1::3], y, 1) ** 2
    variances = (2 * sigmas(x.shape[1])) ** 2
    errors = squares / variances / (areas[:, np.newaxis] + np.spacing(1)) / 2
    counted = labelled | unlabelled
    return (np.exp(-errors) * counted).sum(-1) / counted.sum(-1)
