"""Synthetic batches of photographs' statistics, for both sides of a comparison.

Letters: B images, M object rows, C object classes.
"""

import numpy as np
import tensorflow as tf

from rethink_tf.data import schema
from rethink_tf.ops.content import split_padding


def make_batch(seed, num_images, height, width, num_objects, num_classes, max_objects=100):
    """Draws one training batch.

    Boxes have sides from 4 % to 80 % of the image's, evenly in their logarithm, as objects of COCO
    about have; masks are ellipses that fill their boxes; pixels are smooth noise.

    Args:
        seed: int.
        num_images: int B.
        height: int, pixels.
        width: int, pixels.
        num_objects: int, in every image, at most max_objects.
        num_classes: int C.
        max_objects: int M.

    Returns:
        dict of tensors as in `data.schema`.
    """
    generator = np.random.default_rng(seed)
    coarse = generator.uniform(0, 255, [num_images, height // 16 + 1, width // 16 + 1, 3])
    image = tf.image.resize(coarse, [height, width], "bicubic")
    shape = [num_images, max_objects]
    sides = np.exp(generator.uniform(np.log(0.04), np.log(0.8), [*shape, 2])) * [height, width]
    corners = generator.uniform(0, 1, [*shape, 2]) * ([height, width] - sides)
    used = np.arange(max_objects) < num_objects
    classes = generator.integers(1, num_classes + 1, shape) * used
    boxes = np.concatenate([corners, corners + sides], -1) * used[:, np.newaxis]
    axis = (np.arange(schema.MASK_SIZE) + 0.5) / schema.MASK_SIZE * 2 - 1
    ellipse = np.where(axis[:, np.newaxis] ** 2 + axis**2 < 1, 255, 0)
    masks = used[:, np.newaxis, np.newaxis] * ellipse
    return {
        schema.IMAGE: tf.cast(tf.clip_by_value(image, 0, 255), tf.uint8),
        schema.IMAGE_SIZE: tf.tile([[height, width]], [num_images, 1]),
        schema.ORIGINAL_SIZE: tf.tile([[height, width]], [num_images, 1]),
        schema.IMAGE_SCALE: tf.ones([num_images, 2]),
        schema.IMAGE_ID: tf.range(1, num_images + 1, dtype=tf.int64),
        schema.BOXES: tf.constant(boxes, tf.float32),
        schema.CLASSES: tf.constant(classes, tf.int32),
        schema.MASKS: tf.tile(tf.constant(masks[np.newaxis], tf.uint8), [num_images, 1, 1, 1]),
        schema.PADDING: tf.zeros([0], tf.bool),
    }


def open_spec(batch):
    """Returns the `batch_spec` of `TrainStep` and `Predictor` for a batch, of any height and width.

    It is what a run has where nothing compiles for fixed shapes.
    """
    batch, _ = split_padding(batch)
    spec = {key: tf.TensorSpec(value.shape, value.dtype) for key, value in batch.items()}
    num_images = spec[schema.IMAGE].shape[0]
    return spec | {schema.IMAGE: tf.TensorSpec([num_images, None, None, 3], tf.uint8)}
