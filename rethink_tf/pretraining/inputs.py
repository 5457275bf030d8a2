"""From labelled images to batches: the order, crops and flips, and what could not be read.

A training image is cropped at random and resized (Szegedy et al. 2014, arXiv:1409.4842, section 6,
with the numbers of torchvision's RandomResizedCrop), and mirrored half the time; of a validation
image the middle is taken. The draws depend on the seed, the epoch and the image alone, so that a
resumed run has the batches of an unbroken one.

An image that does not read keeps its place in the batch with a weight of 0: it is counted and
named, and enters neither the loss nor the accuracy.

Letters: G images of a global batch, B of a replica, S pixels a side.
"""

import contextlib
import math
import threading

import gin
import numpy as np
import tensorflow as tf
from absl import logging

from rethink_tf.config_values import Count
from rethink_tf.data.input import batch_shapes, decode, order
from rethink_tf.data.input.reading import DataError
from rethink_tf.data.input.worker_share import Share

_TRIES = 10  # Draws of a crop that fits, torchvision's.
_NUM_DRAWS = 2 * _TRIES + 3  # Area and ratio of each, two of the place, one of the flip.
_MOST_PIXELS = 2**28  # A header that states more is taken for damage.


class LeftOut:
    """What could not be read; safe to read while the pipeline runs, ahead of the model.

    Attributes:
        error: `DataError` that ended the pipeline, or None.
        waiting: callable that returns the context in which to wait for a batch.
    """

    def __init__(self):
        self._lock, self._counts = threading.Lock(), {}
        self.error, self.waiting = None, contextlib.nullcontext

    def as_dict(self):
        """Returns the counts by name, for logs."""
        return {"skipped_records": sum(self._counts.values())}

    def add(self, name):
        """Counts an image, and warns of it the first time."""
        with self._lock:
            self._counts[name] = self._counts.get(name, 0) + 1
            is_first = self._counts[name] == 1
        if is_first:
            logging.warning(
                "Left out an image that cannot be read: %s. TensorFlow's warning before this one "
                "has the reason; copy it again, or remove it.",
                name,
            )

    @property
    def num_images(self):
        """How many different images could not be read."""
        return len(self._counts)


@gin.register
class ImageInput:
    """Makes the batches of training and validation."""

    def __init__(
        self,
        image_size: Count = 224,
        min_area: float = 0.08,
        max_ratio: float = 4 / 3,
        flip: bool = True,
        test_crop: float = 0.875,
        max_skipped_share: float = 0.01,
        parallel_images: Count = 16,
    ):
        """Takes the numbers.

        Args:
            image_size: S, pixels.
            min_area: share of the image that a crop has at least; 1 for the middle of all images,
                as in validation.
            max_ratio: a crop's width over its height is at most this, and at least its inverse.
            flip: whether half of the training images are mirrored.
            test_crop: S over the shorter side that a validation image is resized to: 224 / 256.
            max_skipped_share: share of the training images that may be unreadable.
            parallel_images: images that are read and decoded at a time.

        Raises:
            ValueError: if a number is out of range.
        """
        for name, value in (("min_area", min_area), ("test_crop", test_crop)):
            if not 0 < value <= 1:
                raise ValueError(f"ImageInput.{name} must be above 0 and at most 1, got {value}.")
        if max_ratio < 1 or not 0 <= max_skipped_share <= 1:
            raise ValueError(
                f"ImageInput: max_ratio = {max_ratio} must be at least 1, and max_skipped_share = "
                f"{max_skipped_share} between 0 and 1."
            )
        self.image_size, self._flip = image_size, flip
        self._min_area, self._max_log_ratio = min_area, math.log(max_ratio)
        self._test_crop, self._max_skipped_share = test_crop, max_skipped_share
        self._parallel_images = parallel_images

    def training(self, images, batch_size, seed, start_step, context, left_out):
        """Returns a dataset of training batches without end.

        Args:
            images: `ImageRecords` or `ImageFolders`.
            batch_size: int G, over all replicas.
            seed: int, of the run.
            start_step: int, the step of the first batch.
            context: `tf.distribute.InputContext`, or None for one replica.
            left_out: `LeftOut`, which counts.

        Returns:
            Dataset of dicts: image uint8 [B, S, S, 3], RGB, label int32 [B], 0 to C - 1, weight
            float32 [B], 0 for an image that was not read, and image_id int64 [B].
        """
        share, side = Share(batch_size, context), self.image_size
        plan = order.TrainingPlan(
            images.num_images,
            batch_size,
            seed,
            lambda rows, epochs: np.full([len(rows), 2], side),
            batch_shapes.BatchShapes([(side, side)]),
        )

        def generate():
            for _, rows, epochs in plan.batches(start_step):
                rows, epochs = share.of(rows), share.of(epochs)
                draws = order.draw_uniforms(seed, epochs, rows, _NUM_DRAWS)
                yield images.arrays(rows) | {"row": rows, "draws": draws.astype(np.float32)}

        most = self._max_skipped_share * images.num_images
        return self._dataset(images, generate, share, left_out, most, self._random_crop)

    def evaluation(self, images, batch_size, context, left_out):
        """Returns a dataset of all validation images once; arguments and batches as of `training`.

        The last batch is filled up with black images of weight 0.
        """
        share, count = Share(batch_size, context), images.num_images
        padded = np.pad(np.arange(count), [0, -count % batch_size], constant_values=-1)

        def generate():
            for rows in padded.reshape(-1, batch_size):
                rows = share.of(rows)
                draws = np.zeros([len(rows), _NUM_DRAWS], np.float32)
                yield images.arrays(rows) | {"row": rows, "draws": draws}

        return self._dataset(images, generate, share, left_out, count, self._middle)

    def _dataset(self, images, generate, share, left_out, most, crop):
        def load(slot):
            encoded, label = images.read(slot)
            image = self._load_image(encoded, slot["draws"], crop)
            is_known = (label >= 0) & (label < images.num_classes)
            found = {"image": image, "label": tf.cast(label, tf.int32)}
            return found | {"weight": tf.cast(is_known, tf.float32), "row": slot["row"]}

        def read_one(slot):
            # After an error the dataset of one image goes on with the blank one.
            there = tf.data.Dataset.from_tensors(slot).filter(lambda slot: slot["row"] >= 0)
            found = there.map(load).ignore_errors(log_warning=True)
            blank = tf.data.Dataset.from_tensors(slot["row"]).map(self._blank)
            return found.concatenate(blank).take(1)

        def check(batch):
            """Counts and names what was left out; returns the batch for the model."""
            rows, labels = batch.pop("row"), batch["label"]
            tell = tf.reduce_any((batch["weight"] == 0) & (rows >= 0))
            arguments = [rows, labels, batch["weight"]]
            told = tf.cond(
                tell,
                lambda: tf.numpy_function(_tell(images, left_out, most), arguments, tf.int64),
                lambda: tf.constant(0, tf.int64),
            )
            with tf.control_dependencies([told]):
                # No class is told from any other where the weight is 0.
                batch["label"] = tf.where(batch["weight"] > 0, labels, 0)
            return batch | {"image_id": rows}

        example = images.arrays(np.zeros(1, np.int64))
        kinds = {name: tf.as_dtype(each.dtype) for name, each in example.items()}
        signature = {
            name: tf.TensorSpec([share.size], tf.string if kind == tf.string else kind)
            for name, kind in kinds.items()
        }
        signature["row"] = tf.TensorSpec([share.size], tf.int64)
        signature["draws"] = tf.TensorSpec([share.size, _NUM_DRAWS], tf.float32)
        dataset = tf.data.Dataset.from_generator(generate, output_signature=signature).unbatch()
        dataset = dataset.interleave(
            read_one,
            cycle_length=self._parallel_images,
            num_parallel_calls=self._parallel_images,
            deterministic=True,
        )
        dataset = dataset.batch(share.replica_batch_size, drop_remainder=True).map(check)
        return dataset.prefetch(2)

    def _blank(self, row):
        """Returns what stands in for an image that does not read."""
        side = self.image_size
        return {
            "image": tf.zeros([side, side, 3], tf.uint8),
            "label": tf.constant(0),
            "weight": tf.constant(0.0),
            "row": row,
        }

    def _load_image(self, encoded, draws, crop):
        """Returns uint8 [S, S, 3] of encoded bytes, cropped by `crop` and resized."""
        height, width = tf.unstack(decode.size_in_header(encoded))
        is_small = tf.debugging.assert_less_equal(
            tf.cast(height, tf.int64) * tf.cast(width, tf.int64),
            tf.constant(_MOST_PIXELS, tf.int64),
            "the image states more pixels than any photograph has",
        )
        with tf.control_dependencies([] if is_small is None else [is_small]):
            image = decode.decode_pixels(encoded)
        box = tf.cast(crop(tf.shape(image)[0], tf.shape(image)[1], draws), tf.int32)
        image = image[box[0] : box[0] + box[2], box[1] : box[1] + box[3]]
        side = [self.image_size, self.image_size]
        resized = tf.image.resize(tf.cast(image, tf.float32), side, antialias=True)
        image = tf.cast(tf.clip_by_value(tf.round(resized), 0, 255), tf.uint8)
        if self._flip:
            # Of validation images the draw is 0, and they are not mirrored.
            image = tf.where(draws[-1] > 0.5, image[:, ::-1], image)
        return tf.ensure_shape(image, [*side, 3])

    def _random_crop(self, height, width, draws):
        """Returns float32 [4], (y, x, height, width) of a crop of a training image, pixels."""
        if self._min_area == 1:
            return self._middle(height, width, draws)
        height, width = tf.cast(height, tf.float32), tf.cast(width, tf.float32)
        area = (self._min_area + (1 - self._min_area) * draws[:_TRIES]) * height * width
        ratio = tf.exp(self._max_log_ratio * (2 * draws[_TRIES : 2 * _TRIES] - 1))
        widths, heights = tf.round(tf.sqrt(area * ratio)), tf.round(tf.sqrt(area / ratio))
        # Where none fits, the largest middle part of an allowed ratio.
        most = math.exp(self._max_log_ratio)
        widths = tf.concat([widths, [tf.minimum(width, tf.round(height * most))]], 0)
        heights = tf.concat([heights, [tf.minimum(height, tf.round(width * most))]], 0)
        fits = (widths <= width) & (heights <= height) & (widths >= 1) & (heights >= 1)
        chosen = tf.argmax(tf.cast(fits, tf.int32))
        is_middle = chosen == _TRIES
        at = tf.where(is_middle, [0.5, 0.5], draws[2 * _TRIES : 2 * _TRIES + 2])
        inner = tf.stack([heights[chosen], widths[chosen]])
        room = tf.stack([height, width]) - inner
        start = tf.floor(tf.where(is_middle, at * room, at * (room + 1)))
        return tf.concat([start, inner], 0)

    def _middle(self, height, width, draws):
        """Returns the same of a validation image: its middle square, smaller by test_crop."""
        del draws
        height, width = tf.cast(height, tf.float32), tf.cast(width, tf.float32)
        side = tf.maximum(tf.round(self._test_crop * tf.minimum(height, width)), 1)
        start = tf.floor((tf.stack([height, width]) - side) / 2)
        return tf.concat([start, [side, side]], 0)


def _tell(images, left_out, most):
    """Returns the function that counts and names what a batch has left out."""

    def tell(rows, labels, weights):
        """Counts the images of a batch that were not read; raises `DataError` if too many."""
        try:
            for row, label, weight in zip(rows, labels, weights, strict=True):
                if weight or row < 0:
                    continue
                # The label of one that does not read is 0.
                if label:
                    raise DataError(f"{images.name(row)} {images.explain_class(label)}")
                left_out.add(images.name(row))
            if left_out.num_images > most:
                raise DataError(
                    f"{left_out.num_images} of {images.description} could not be read, more than "
                    "ImageInput.max_skipped_share allows; the warnings before this name them. "
                    "Bring them back; the same command goes on from the newest checkpoint."
                )
        except DataError as error:
            left_out.error = left_out.error or error
            raise
        return np.int64(0)

    return tell
