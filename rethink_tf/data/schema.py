"""The batch contract: what travels from data to model, and nothing else does.

Letters: B images of one replica's batch, H x W the shape of the batch, M object rows an image, S
side of a mask crop, K keypoints an object.

| key | dtype | shape | what |
| --- | --- | --- | --- |
| image | uint8 | [B, H, W, 3] | RGB, resized, zero padded at the bottom and the right |
| image_size | int32 | [B, 2] | height and width of the content, pixels |
| original_size | int32 | [B, 2] | height and width of the stored image, pixels |
| image_scale | float32 | [B, 2] | resized / stored size, for y and x |
| image_id | int64 | [B] | the data set's id; -2**63 = padding image of an evaluation batch |
| boxes | float32 | [B, M, 4] | (y1, x1, y2, x2), pixels of the content, zero = padding |
| classes | int32 | [B, M] | 1..C in the order of the sorted category ids, 0 = padding |
| masks | uint8 | [B, M, S, S] | the object's mask cropped to its box, 0..255 (soft) |
| has_mask | bool | [B, M] | whether the object has a mask; without one `masks` is 0 |
| keypoints | float32 | [B, M, K, 3] | (y, x, visibility), pixels of the content |
| padding | bool | [1] or [0] | [0]: all images fill H x W |

A keypoint's visibility is 0 (not labelled; y and x are 0), 1 (hidden) or 2 (visible).
Training batches have all keys (`masks` and `has_mask` unless the pipeline leaves them out,
`keypoints` if it includes them); evaluation batches have those up to `image_id`, and `padding`. The
padding image of an evaluation batch is black, with both sizes 1.

`padding` has a shape and no value: a step without padding is a program of its own. It is of the
whole global batch, where images are rounded up to the network's coarsest stride (`ops.content`).

The content is the resized image, in training cut to H x W where it is larger (`resizing`), and
larger itself where objects of another image were pasted beside it (`copy_paste`).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from rethink_tf.ops import content

IMAGE = "image"
IMAGE_SIZE = "image_size"
ORIGINAL_SIZE = "original_size"
IMAGE_SCALE = "image_scale"
IMAGE_ID = "image_id"
BOXES = "boxes"
CLASSES = "classes"
MASKS = "masks"
HAS_MASK = "has_mask"
KEYPOINTS = "keypoints"
PADDING = content.PADDING

# The one int64 that no data set's id can be; some count down from -1.
PADDING_IMAGE_ID = -(2**63)
MAX_OBJECTS = 100
MASK_SIZE = 112  # four times the 28 x 28 of the mask head: crops of jittered RoIs stay sharp


def evaluation_spec(
    batch_size: int | None, image_shape: tuple[int, int] | None = None
) -> dict[str, tf.TensorSpec]:
    """Element spec of an evaluation batch.

    Args:
        batch_size: B, images of one replica; None leaves it open.
        image_shape: (H, W) of a bucket, pixels; None leaves both open.
    """
    height, width = image_shape or (None, None)
    return {
        IMAGE: tf.TensorSpec([batch_size, height, width, 3], tf.uint8),
        IMAGE_SIZE: tf.TensorSpec([batch_size, 2], tf.int32),
        ORIGINAL_SIZE: tf.TensorSpec([batch_size, 2], tf.int32),
        IMAGE_SCALE: tf.TensorSpec([batch_size, 2], tf.float32),
        IMAGE_ID: tf.TensorSpec([batch_size], tf.int64),
    }


def training_spec(
    batch_size: int | None,
    image_shape: tuple[int, int] | None = None,
    max_objects: int = MAX_OBJECTS,
    mask_size: int | None = MASK_SIZE,
    num_keypoints: int | None = None,
) -> dict[str, tf.TensorSpec]:
    """Element spec of a training batch.

    Args:
        batch_size: B, images of one replica; None leaves it open.
        image_shape: (H, W) of a bucket, pixels; None leaves both open.
        max_objects: M.
        mask_size: S; None for batches without `masks` and `has_mask`.
        num_keypoints: K; None for batches without `keypoints`.
    """
    spec = evaluation_spec(batch_size, image_shape)
    spec[BOXES] = tf.TensorSpec([batch_size, max_objects, 4], tf.float32)
    spec[CLASSES] = tf.TensorSpec([batch_size, max_objects], tf.int32)
    if mask_size is not None:
        shape = [batch_size, max_objects, mask_size, mask_size]
        spec[MASKS] = tf.TensorSpec(shape, tf.uint8)
        spec[HAS_MASK] = tf.TensorSpec([batch_size, max_objects], tf.bool)
    if num_keypoints is not None:
        spec[KEYPOINTS] = tf.TensorSpec([batch_size, max_objects, num_keypoints, 3], tf.float32)
    return spec


def check_batch(
    batch: Mapping[str, Any], spec: Mapping[str, tf.TensorSpec], num_classes: int | None = None
) -> None:
    """Checks keys, dtypes and shapes, and the values too where they are at hand (eager).

    Args:
        batch: dict of tensors or arrays.
        spec: what `training_spec` or `evaluation_spec` gave; `padding` is not looked at.
        num_classes: C, to bound `classes`.

    Raises:
        ValueError: naming the key, what was found and what the contract says.
    """
    batch, spec = (
        {key: value for key, value in each.items() if key != PADDING} for each in (batch, spec)
    )
    if set(batch) != set(spec):
        missing, extra = sorted(set(spec) - set(batch)), sorted(set(batch) - set(spec))
        raise ValueError(f"batch lacks the keys {missing} and has {extra} beyond the contract")
    for key, wanted in spec.items():
        found = batch[key]
        shape, dtype = tf.TensorShape(found.shape), tf.as_dtype(found.dtype)
        if dtype != wanted.dtype or not wanted.shape.is_compatible_with(shape):
            raise ValueError(
                f"batch[{key!r}] is {dtype.name} {shape}, "
                f"the contract says {wanted.dtype.name} {wanted.shape}"
            )
    if all(isinstance(v, np.ndarray) or hasattr(v, "numpy") for v in batch.values()):
        _check_values({key: np.asarray(value) for key, value in batch.items()}, num_classes)


def _check_values(batch: dict[str, np.ndarray], num_classes: int | None) -> None:
    ids, size = batch[IMAGE_ID], batch[IMAGE_SIZE]
    _require(np.all(size >= 1), IMAGE_SIZE, "is below 1", ids)
    _require(np.all(size <= batch[IMAGE].shape[1:3]), IMAGE_SIZE, "exceeds the padded image", ids)
    if BOXES not in batch:  # In training it may be cropped, or pasted beside.
        resized = np.floor(batch[IMAGE_SCALE] * batch[ORIGINAL_SIZE] + 0.5)
        _require(np.all(size == resized), IMAGE_SIZE, "is not image_scale * original_size", ids)
    for image, (height, width) in zip(batch[IMAGE], size, strict=True):
        padding = image[height:].any() or image[:, width:].any()
        _require(not padding, IMAGE, "has content beyond image_size", ids)
    if BOXES not in batch:
        return
    boxes, classes = batch[BOXES], batch[CLASSES]
    padded = classes == 0
    _require(not boxes[padded].any(), BOXES, "is not zero where classes is 0", ids)
    _require(np.all(classes >= 0), CLASSES, "is negative", ids)
    if num_classes is not None:
        _require(np.all(classes <= num_classes), CLASSES, f"exceeds {num_classes}", ids)
    has_area = (boxes[..., 2:] > boxes[..., :2]).all(-1)
    _require(np.all(has_area | padded), BOXES, "has a box with no area", ids)
    inside = (boxes[..., :2] >= 0).all() and np.all(boxes[..., 2:] <= size[:, None] + 1e-3)
    _require(inside, BOXES, "leaves the image", ids)
    if MASKS in batch:
        _require(not batch[HAS_MASK][padded].any(), HAS_MASK, "is true where classes is 0", ids)
        no_mask = batch[MASKS][~batch[HAS_MASK]]
        _require(not no_mask.any(), MASKS, "is not zero where there is no mask", ids)
    if KEYPOINTS in batch:
        keypoints = batch[KEYPOINTS]
        visibility = keypoints[..., 2]
        _require(not keypoints[padded].any(), KEYPOINTS, "is not zero where classes is 0", ids)
        known = np.isin(visibility, [0, 1, 2]).all()
        _require(known, KEYPOINTS, "has a visibility other than 0, 1 and 2", ids)
        no_place = not keypoints[visibility == 0].any()
        _require(no_place, KEYPOINTS, "is not zero where its visibility is 0", ids)


def _require(holds: Any, key: str, fault: str, image_ids: np.ndarray) -> None:
    if not holds:
        raise ValueError(f"batch[{key!r}] {fault}; images {image_ids.tolist()}")
