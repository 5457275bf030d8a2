"""What becomes of the heads' outputs in evaluation: their place in an image, and COCO's form.

A field (`ObjectHead.field`) that has no form here is written as its numbers, under its own name.

Letters: N detections of an image, S side of a mask, K keypoints.
"""

import numpy as np

from rethink_tf.evaluation import keypoints as keypoint_lib
from rethink_tf.evaluation import pasting


class Numbers:
    """Numbers that have nothing to do with the image's pixels."""

    def __init__(self, key):
        """Names the form.

        Args:
            key: str, what COCO's results have the values under.
        """
        self.key = key

    def in_image(self, values, scale):
        """Brings values into an image.

        Args:
            values: [N, ...], as the detector gives them.
            scale: float [2], pixels of the network's input by pixel of the image, y and x.
        """
        del scale
        return values

    def to_coco(self, values, boxes, height, width):
        """Returns what N results have under `key`, plain Python values.

        Args:
            values: [N, ...], of `in_image`.
            boxes: float [N, 4], (y1, x1, y2, x2), pixels of the image.
            height: int, of the image, pixels.
            width: int, the same.
        """
        del boxes, height, width
        return np.asarray(values).tolist()

    def to_picture(self, values, boxes, height, width):
        """Returns the values as `report.samples` draws them; arguments as of `to_coco`."""
        del boxes, height, width
        return values


class Masks(Numbers):
    """Masks float [N, S, S], probabilities within their boxes: compressed run lengths in COCO."""

    def to_coco(self, values, boxes, height, width):
        """Returns N compressed run lengths; see `pasting.paste_and_encode`."""
        return pasting.paste_and_encode(values, boxes, height, width)

    def to_picture(self, values, boxes, height, width):
        """Returns an iterator over N masks bool [height, width]."""
        # One at a time: a hundred masks of a large photograph need not be held at once.
        pairs = zip(values, boxes, strict=True)
        return (pasting.paste_mask(mask, box, height, width) for mask, box in pairs)


class Keypoints(Numbers):
    """Keypoints float [N, K, 3], (y, x, score), pixels."""

    def in_image(self, values, scale):
        """Returns the keypoints in pixels of the image."""
        return values / [*scale, 1]

    def to_coco(self, values, boxes, height, width):
        """Returns N lists of 3 K numbers; see `keypoints.to_coco`."""
        return keypoint_lib.to_coco(values)


_FORMS = {"masks": Masks("segmentation"), "keypoints": Keypoints("keypoints")}


def of(field):
    """Returns the form of a field."""
    return _FORMS.get(field) or Numbers(field)
