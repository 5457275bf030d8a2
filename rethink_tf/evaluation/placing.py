"""Brings a detector's outputs from the pixels of the network's input into those of an image.

Letters: B images of a batch, D detections an image, N of them that are no padding.
"""

import numpy as np

from rethink_tf.evaluation import forms


class Placer:
    """Places the detections of images; makes them anew for each image."""

    def __init__(self, category_ids, fields):
        """Takes what the outputs mean.

        Args:
            category_ids: ids of the data set's categories; class k is the k-th smallest.
            fields: what detections have beside boxes, as of `Predictor.fields`.
        """
        self._category_ids = np.asarray(sorted(category_ids))
        self.forms = {field: forms.of(field) for field in fields}

    def detections(self, outputs, row, height, width, scale):
        """Returns the detections of one image, without padding.

        Args:
            outputs: of `Predictor`.
            row: int, the image's row in them.
            height: int, of the image to place them in, pixels.
            width: int, the same.
            scale: float [2], pixels of the network's input by pixel of that image, y and x.

        Returns:
            dict: boxes float [N, 4], clipped to the image, scores float [N], category_ids int [N]
            and the heads' fields, as of `forms`.
        """
        valid = outputs["classes"][row] > 0
        boxes = outputs["boxes"][row][valid] / np.tile(scale, 2)
        found = {
            "boxes": np.clip(boxes, 0, np.tile([height, width], 2)),
            "scores": outputs["scores"][row][valid],
            "category_ids": self._category_ids[outputs["classes"][row][valid] - 1],
        }
        for field, form in self.forms.items():
            found[field] = form.in_image(outputs[field][row][valid], scale)
        return found
