"""Pictures of a few evaluated images, ground truth beside detections, for each evaluation."""

import os

import numpy as np
import tensorflow as tf
from PIL import Image
from pycocotools import mask as coco_mask

from rethink_tf.data.records.keypoints import read_keypoints
from rethink_tf.report import pictures

# Detections that score lower are not drawn: most are wrong, though COCO's AP counts them.
MIN_SCORE = 0.5
MAX_PICTURES = 4


class SamplePictures:
    """Draws the images it is called with, up to a few an evaluation."""

    def __init__(self, ground_truth, model_dir, step, label=""):
        """Prepares names and annotations for drawing.

        Args:
            ground_truth: dict in COCO form.
            model_dir: str; pictures go to its folder `pictures`.
            step: variable that counts the training steps.
            label: str, added to the pictures' names, for another evaluation of the same step.
        """
        self._names = pictures.drawable_names(
            {entry["id"]: entry["name"] for entry in ground_truth["categories"]}
        )
        self._annotations = {}
        for annotation in ground_truth["annotations"]:
            self._annotations.setdefault(annotation["image_id"], []).append(annotation)
        self._sizes = {
            each["id"]: (each["height"], each["width"]) for each in ground_truth["images"]
        }
        self._model_dir, self._step, self._label = model_dir, step, label
        self._drawn = {}
        self.newest = None

    def __call__(self, image_id, image, found):
        """Draws one image into a PNG and a TensorBoard picture.

        Args:
            image_id: int.
            image: uint8 [h, w, 3], the image as the network saw it, without padding.
            found: dict of detections in its pixels: boxes float [N, 4], scores float [N],
                category_ids int [N] and, where the detector finds them, an iterable of masks
                [h, w], keypoints float [N, P, 3] and proposals float [R, 4], zero for none.
        """
        step = int(self._step.numpy())
        position = self._drawn.get(step, 0)
        if position >= MAX_PICTURES:
            return
        self._drawn[step] = position + 1
        shown = np.flatnonzero(found["scores"] >= MIN_SCORE)
        masks = list(found["masks"]) if "masks" in found else None
        detections = pictures.Objects(
            boxes=found["boxes"][shown],
            class_names=[self._names[found["category_ids"][row]] for row in shown],
            scores=found["scores"][shown],
            masks=None if masks is None else [masks[row] for row in shown],
            keypoints=found["keypoints"][shown] if "keypoints" in found else None,
        )
        truth = self._truth(image_id, image.shape[:2], "keypoints" in found)
        picture = pictures.side_by_side(image, truth, detections)
        folder = os.path.join(self._model_dir, "pictures")
        path = os.path.join(folder, f"step-{step}-image-{image_id}{self._label}.png")
        pictures.save_png(path, picture)
        self.newest = path if position == 0 else self.newest
        tf.summary.image(f"detections{self._label}/{position}", picture[np.newaxis], step=step)
        if "proposals" in found:
            picture = pictures.draw_proposals(image, truth.boxes, found["proposals"])
            tf.summary.image(f"proposals{self._label}/{position}", picture[np.newaxis], step=step)

    def _truth(self, image_id, shape, with_keypoints):
        """Returns the `Objects` of an image's annotations, resized to the shape (h, w)."""
        height, width = self._sizes[image_id]
        scale = np.array([shape[0] / height, shape[1] / width] * 2)
        boxes, names, masks = [], [], []
        annotations = self._annotations.get(image_id, [])
        for annotation in annotations:
            x, y, w, h = annotation["bbox"]
            boxes.append(np.array([y, x, y + h, x + w]) * scale)
            names.append(self._names[annotation["category_id"]])
            mask = np.zeros([height, width], np.uint8)  # of an object without one
            if annotation.get("segmentation"):
                mask = _decode(annotation["segmentation"], height, width)
            resized = Image.fromarray(mask).resize(shape[::-1], Image.Resampling.NEAREST)
            masks.append(np.asarray(resized))
        boxes = np.reshape(boxes, [-1, 4])
        keypoints = read_keypoints(annotations) * [*scale[:2], 1] if with_keypoints else None
        return pictures.Objects(boxes, names, None, masks, keypoints)


def _decode(segmentation, height, width):
    """Returns the uint8 mask [height, width] of polygons or run lengths."""
    if isinstance(segmentation, dict) and not isinstance(segmentation["counts"], list):
        return coco_mask.decode(segmentation)
    rles = coco_mask.frPyObjects(segmentation, height, width)
    return coco_mask.decode(coco_mask.merge(rles) if isinstance(rles, list) else rles)
