"""One image and its objects as a serialized `tf.train.Example`, in Model Garden's schema.

Source: the schema of Model Garden's `tf_example_decoder`, which passes over keypoints and
"has_mask"; "difficult" and the names of keypoints are of the object detection API before it, whose
records are the same else.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf


def encode_example(
    *,
    image_id: int,
    filename: str,
    encoded: bytes,
    image_format: str,
    height: int,
    width: int,
    boxes: Any,
    labels: Sequence[int],
    names: Sequence[str],
    is_crowd: Sequence[int],
    areas: Sequence[float],
    masks: Sequence[bytes] | None = None,
    has_mask: Sequence[bool] | None = None,
    difficult: Sequence[int] | None = None,
    keypoints: Any = None,
) -> bytes:
    """Returns one image and its N objects as a serialized `tf.train.Example`.

    The same input gives the same bytes.

    Args:
        image_id: int64, unique in the data set.
        filename: base name of the image, for people.
        encoded: JPEG or PNG bytes that decode to three channels.
        image_format: "jpeg" or "png".
        height, width: of the stored image, pixels.
        boxes: float [N, 4], (y1, x1, y2, x2), its pixels.
        labels, names: N category ids of the data set (no contiguous numbers), and their names.
        is_crowd: N values of 0 or 1.
        areas: N areas, square pixels.
        masks: N PNGs of [height, width] with values 0 and 1, or None for a data set without.
        has_mask: N values, whether an object has a mask; None for all of them, which records do not
            say. The PNG of an object without is of zeros, for Model Garden's decoder to read.
        difficult: N values of 0 or 1 (PASCAL VOC), or None for a data set without.
        keypoints: float [N, K, 3], (y, x, visibility), pixels, or None for a data set without.

    Raises:
        ValueError: if the lists differ in length.
    """
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    required = {"labels": labels, "names": names, "is_crowd": is_crowd, "areas": areas}
    given = {"masks": masks, "has_mask": has_mask, "difficult": difficult, "keypoints": keypoints}
    given = {name: values for name, values in given.items() if values is not None}
    for name, values in (required | given).items():
        if len(values) != len(boxes):
            raise ValueError(f"image {image_id}: {len(boxes)} boxes but {len(values)} {name}")
    features = {
        "image/encoded": _bytes_feature([encoded]),
        "image/format": _bytes_feature([image_format.encode()]),
        "image/height": _int_feature([height]),
        "image/width": _int_feature([width]),
        "image/source_id": _bytes_feature([str(int(image_id)).encode()]),
        "image/filename": _bytes_feature([filename.encode("utf-8", "surrogateescape")]),
    }
    boxes = boxes / [height, width, height, width]
    features |= _required_features(boxes, **required) | _optional_features(height, width, **given)
    example = tf.train.Example(features=tf.train.Features(feature=features))
    return example.SerializeToString(deterministic=True)  # else in any order of the keys


def _required_features(boxes, labels, names, is_crowd, areas) -> dict:
    """What every object has; boxes are parts of the image's sides."""
    features = {
        "image/object/class/label": _int_feature(labels),
        "image/object/class/text": _bytes_feature([name.encode() for name in names]),
        "image/object/is_crowd": _int_feature(is_crowd),
        "image/object/area": _float_feature(areas),
    }
    for column, side in enumerate(("ymin", "xmin", "ymax", "xmax")):
        features[f"image/object/bbox/{side}"] = _float_feature(boxes[:, column])
    return features


def _optional_features(
    height, width, masks=None, has_mask=None, difficult=None, keypoints=None
) -> dict:
    """What the objects of some data sets have."""
    features = {}
    if masks is not None:
        features["image/object/mask"] = _bytes_feature(masks)
        if has_mask is not None and not all(has_mask):
            features["image/object/has_mask"] = _int_feature(has_mask)
    if difficult is not None:
        features["image/object/difficult"] = _int_feature(difficult)
    if keypoints is not None:
        y, x, visibility = np.moveaxis(np.asarray(keypoints, np.float64), -1, 0)
        features["image/object/keypoint/y"] = _float_feature(y.ravel() / height)
        features["image/object/keypoint/x"] = _float_feature(x.ravel() / width)
        features["image/object/keypoint/visibility"] = _int_feature(visibility.ravel())
        features["image/object/keypoint/num"] = _int_feature((visibility > 0).sum(-1))
    return features


def _bytes_feature(values) -> tf.train.Feature:
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))


def _int_feature(values) -> tf.train.Feature:
    return tf.train.Feature(int64_list=tf.train.Int64List(value=[int(v) for v in values]))


def _float_feature(values) -> tf.train.Feature:
    return tf.train.Feature(float_list=tf.train.FloatList(value=[float(v) for v in values]))
