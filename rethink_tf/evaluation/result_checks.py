"""Says which of many results in COCO's form is wrong, and how."""

import numpy as np


def explain(results, truth):
    """Raises ValueError for the first result that is wrong.

    Args:
        results: list of dicts in COCO's result form.
        truth: `coco_columns.GroundTruth`.
    """
    for index, result in enumerate(results):
        for key in ("image_id", "category_id", "score"):
            if key not in result:
                raise ValueError(f"result {index} has no '{key}'")
        where = f"result {index} (image {result['image_id']})"
        if result["image_id"] not in truth.image_positions:
            raise ValueError(
                f"{where}: the ground truth has no image with id {result['image_id']}; "
                "the detections belong to other images"
            )
        if result["category_id"] not in truth.category_positions:
            raise ValueError(
                f"{where}: the ground truth has no category with id {result['category_id']}; "
                "class indices must be mapped to the data set's ids"
            )
        if not _are_finite([result["score"]], 1):
            raise ValueError(f"{where}: the score is {result['score']}; it must be finite")
        box = result.get("bbox", [0, 0, 0, 0])
        if not _are_finite(box, 4) or min(box[2:]) < 0:
            raise ValueError(f"{where}: bbox must be finite [x, y, width, height], found {box}")


def _are_finite(values, length):
    """Tells whether this is a sequence of so many finite numbers."""
    try:
        values = np.asarray(values, np.float64)
    except (TypeError, ValueError):
        return False
    return values.shape == (length,) and bool(np.isfinite(values).all())


def check_mask(row, mask, image, size):
    """Raises ValueError where a result's mask is none of its image.

    Args:
        row: int, the result's place among the results.
        mask: what it has under "segmentation".
        image: entry of the ground truth.
        size: [height, width] of the image.
    """
    where = f"result {row} (image {image['id']})"
    if not isinstance(mask, dict) or not isinstance(mask.get("counts"), (str, bytes)):
        raise ValueError(
            f"{where}: 'segmentation' must be compressed run lengths; for detections without "
            "masks leave 'segm' out of iou_types"
        )
    if list(mask.get("size", ())) != size:
        raise ValueError(
            f"{where}: the mask's size is {mask.get('size')}, that of the image {size} "
            "(height, width)"
        )
