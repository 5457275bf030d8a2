"""What a detector has found in one image, as NumPy arrays.

Letters: N detections, H x W pixels of the image, S side of a mask, K keypoints.
"""

import dataclasses
import functools

import numpy as np

from rethink_tf.evaluation import coco_metrics, forms, pasting


@dataclasses.dataclass(frozen=True)
class Detections:
    """The detections of one image, by falling score, in its pixels.

    Attributes:
        size: (H, W) of the image.
        boxes: float32 [N, 4], (y1, x1, y2, x2), pixels, y2 and x2 exclusive.
        scores: float32 [N], 0 to 1.
        category_ids: int64 [N], the data set's own.
        class_names: N names.
        further: {field: values [N, ...]} of the heads, as of `evaluation.forms`: "masks" float32
            [N, S, S], probabilities within the boxes; "keypoints" float32 [N, K, 3],
            (y, x, score), pixels.
    """

    size: tuple[int, int]
    boxes: np.ndarray
    scores: np.ndarray
    category_ids: np.ndarray
    class_names: list[str]
    further: dict[str, np.ndarray]

    def __len__(self):
        return len(self.scores)

    @property
    def keypoints(self):
        """float32 [N, K, 3], (y, x, score), pixels; None of a detector without keypoints."""
        return self.further.get("keypoints")

    @functools.cached_property
    def masks(self):
        """bool [N, H, W], pasted into the image when first asked; None of one without masks."""
        probabilities = self.further.get("masks")
        if probabilities is None:
            return None
        masks = np.zeros([len(self), *self.size], bool)
        for row, (mask, box) in enumerate(zip(probabilities, self.boxes, strict=True)):
            masks[row] = pasting.paste_mask(mask, box, *self.size)
        return masks

    def above(self, score):
        """Returns the detections that score as much or more.

        Args:
            score: float, 0 to 1.
        """
        kept = np.flatnonzero(self.scores >= score)
        return Detections(
            self.size,
            self.boxes[kept],
            self.scores[kept],
            self.category_ids[kept],
            [self.class_names[row] for row in kept],
            {field: values[kept] for field, values in self.further.items()},
        )

    def to_coco(self, image_id):
        """Returns COCO's results, a list of N dicts ready for JSON; masks as run lengths.

        Args:
            image_id: int.
        """
        height, width = self.size
        further = {
            forms.of(field).key: forms.of(field).to_coco(values, self.boxes, height, width)
            for field, values in self.further.items()
        }
        return coco_metrics.detections_to_coco(
            image_id, self.boxes, self.scores, self.category_ids, **further
        )
