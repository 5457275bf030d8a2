"""The objects of a split as arrays, from its ground truth: no image is read.

Letters: I images, N objects.
"""

import dataclasses

import numpy as np
from pycocotools import mask as coco_mask


@dataclasses.dataclass(frozen=True, eq=False)
class ObjectTable:
    """The objects of some records that are no crowds.

    Attributes:
        index: `store.RecordIndex` of the I images.
        names: {category id: name} of the data set.
        row: int64 [N], the image of each, counted in the index; ascending.
        category: int64 [N], category ids.
        boxes: float64 [N, 4], (y1, x1, y2, x2), pixels of the stored image.
        mask_bounds: float64 [N, 4], what the mask reaches over, the same; nan without a mask.
        num_keypoints: int64 [N], labelled ones.
        num_crowds: int, regions that are left out here.
        file_names: I texts, "" where the ground truth has none.
    """

    index: object
    names: dict
    row: np.ndarray
    category: np.ndarray
    boxes: np.ndarray
    mask_bounds: np.ndarray
    num_keypoints: np.ndarray
    num_crowds: int
    file_names: list

    @property
    def image_sizes(self):
        """int64 [I, 2], (height, width) of the stored images, pixels."""
        return np.stack([self.index.height, self.index.width], -1).astype(np.int64)

    @property
    def per_image(self):
        """int64 [I], objects of each image."""
        return np.bincount(self.row, minlength=len(self.index))


def read_objects(split, index):
    """Reads the objects of some records.

    Args:
        split: `records.splits.Split`.
        index: `store.RecordIndex`, the split's or a part of it.

    Returns:
        `ObjectTable`.

    Raises:
        ValueError: as of `splits.load_ground_truth`.
    """
    truth = dataclasses.replace(split, index=index).ground_truth()
    rows = {image_id: row for row, image_id in enumerate(index.image_id.tolist())}
    names = {image["id"]: image.get("file_name") or "" for image in truth["images"]}
    objects = [each for each in truth["annotations"] if not each.get("iscrowd")]
    objects.sort(key=lambda each: rows[each["image_id"]])
    x, y, width, height = np.array([each["bbox"] for each in objects]).reshape(-1, 4).T
    image_row = np.array([rows[each["image_id"]] for each in objects], np.int64)
    return ObjectTable(
        index=index,
        names={each["id"]: each["name"] for each in split.categories},
        row=image_row,
        category=np.array([each["category_id"] for each in objects], np.int64),
        boxes=np.stack([y, x, y + height, x + width], -1),
        mask_bounds=np.array(
            [
                _mask_bounds(each.get("segmentation"), index.height[row], index.width[row])
                for each, row in zip(objects, image_row, strict=True)
            ]
        ).reshape(-1, 4),
        num_keypoints=np.array([_count_labelled(each) for each in objects], np.int64),
        num_crowds=len(truth["annotations"]) - len(objects),
        file_names=[names.get(image_id, "") for image_id in index.image_id.tolist()],
    )


def _mask_bounds(segmentation, height, width):
    """Returns (y1, x1, y2, x2) of polygons or run lengths; nan where there is no mask."""
    if isinstance(segmentation, list):
        # The converter has noted parts that are no polygon.
        parts = [np.array(part, float) for part in segmentation if len(part) >= 6]
        if not parts:
            return [np.nan] * 4
        points = np.concatenate([part[: len(part) // 2 * 2] for part in parts])
        x, y = points[0::2], points[1::2]
        bounds = y.min(), x.min(), y.max(), x.max()
        # The mask is drawn on the image alone.
        return np.clip(bounds, 0, [height, width, height, width])
    if not segmentation:
        return [np.nan] * 4
    if isinstance(segmentation["counts"], list):
        segmentation = coco_mask.frPyObjects(segmentation, *segmentation["size"])
    x, y, w, h = coco_mask.toBbox(segmentation)
    return (y, x, y + h, x + w) if w * h > 0 else [np.nan] * 4


def _count_labelled(annotation):
    return sum(visibility > 0 for visibility in (annotation.get("keypoints") or [])[2::3])
