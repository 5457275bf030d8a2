"""The programs that are exported: a served one, for images of any size, and one of a fixed size.

The served program is for TensorFlow: it decodes, resizes and normalizes images as the evaluation
does, and its boxes are pixels of the image that it was given. The fixed one is for TensorFlow Lite
and ONNX: it takes one image that is resized already.

Letters: B images, D detections an image, N candidates, H x W pixels of the fixed input.
"""

import contextlib
import functools

import numpy as np
import tensorflow as tf

from rethink_tf.data import schema
from rethink_tf.data.input import augment, decode
from rethink_tf.execution import ExecutionPlan
from rethink_tf.exporting import whole_masks
from rethink_tf.models.cascade import CascadeBoxHead
from rethink_tf.ops import nms
from rethink_tf.ops.boxes import clip_boxes

# What a fixed program gives: all of the detector, or its boxes before the suppression.
DETECTIONS, RAW = "detections", "raw"


class ServedProgram(tf.Module):
    """The detector behind two functions, `images` and `encoded`, for any number of images.

    Both return a dict, where D is the most detections of an image; rows of an image from its
    num_detections on are padding, zero and "":

    - num_detections int32 [B]
    - boxes float32 [B, D, 4], (y1, x1, y2, x2), pixels of the given image, clipped to it
    - scores float32 [B, D], falling
    - category_ids int64 [B, D], of the data set
    - labels string [B, D], the categories' names
    - each head's field as of `MaskRCNN.call`, keypoints in pixels of the given image
    - whole_masks uint8 [B, D, height, width] if asked for, see `whole_masks.paste`; height and
      width are the largest of the batch
    """

    def __init__(self, detector, categories, size_rule, with_whole_masks=False):
        """Takes what the program is made of.

        Args:
            detector: `MaskRCNN` with its variables; it computes as its plan says.
            categories: dicts with "id" and "name", by ascending id; class k is the k-th.
            size_rule: `SizeRule`.
            with_whole_masks: bool, whether masks are pasted into the given image, too.
        """
        super().__init__()
        # Not the detector itself: Keras would save a program of each layer.
        self.weights = list(detector.variables)
        self._multiple = detector.coarsest_stride
        pixels = tf.TensorSpec([None, None, None, 3], tf.uint8)
        batch = {schema.IMAGE: pixels, schema.IMAGE_SIZE: tf.TensorSpec([None, 2], tf.int32)}
        # Each is one program, whatever calls it.
        self._predict_filled, self._predict_padded = (
            tf.function(
                functools.partial(detector.__call__, padded=padded), [batch], autograph=False
            )
            for padded in (False, True)
        )
        self._size_rule, self._with_whole_masks = size_rule, with_whole_masks
        # Class 0 is padding.
        self._ids = [0, *(each["id"] for each in categories)]
        self._names = ["", *(each["name"] for each in categories)]
        images = tf.TensorSpec([None, None, None, 3], tf.uint8, "images")
        encoded = tf.TensorSpec([None], tf.string, "encoded")
        self.images = tf.function(self._of_images, [images], autograph=False)
        self.encoded = tf.function(self._of_encoded, [encoded], autograph=False)

    def _of_images(self, images):
        """Predicts for images of one size, uint8 [B, height, width, 3], RGB."""
        shape = tf.shape(images)
        size = self._size_rule.resized(shape[tf.newaxis, 1:3])
        bucket = self._round_up(size)[0]
        resized = tf.map_fn(
            lambda image: augment.resize_and_pad(image, size[0], bucket),
            images,
            fn_output_signature=tf.TensorSpec([None, None, 3], tf.uint8),
        )
        sizes, stored = (tf.tile(each, [shape[0], 1]) for each in (size, shape[tf.newaxis, 1:3]))
        found = self._predict_filled({schema.IMAGE: resized, schema.IMAGE_SIZE: sizes})
        return self._finish(found, sizes, stored)

    def _of_encoded(self, encoded):
        """Predicts for images of any sizes, string [B], bytes of JPEG or PNG."""
        stored = tf.map_fn(
            decode.size_in_header, encoded, fn_output_signature=tf.TensorSpec([2], tf.int32)
        )
        sizes = self._size_rule.resized(stored)
        content = self._round_up(sizes)
        bucket = tf.reduce_max(content, axis=0)

        def prepare(inputs):
            drawn = {"stored": inputs[1], "size": inputs[2], "flip": tf.constant(False)}
            return decode.decode_image(inputs[0], drawn | {"image_id": 0}, bucket)[schema.IMAGE]

        images = tf.map_fn(
            prepare,
            (encoded, stored, sizes),
            fn_output_signature=tf.TensorSpec([None, None, 3], tf.uint8),
        )
        batch = {schema.IMAGE: images, schema.IMAGE_SIZE: sizes}
        # The same numbers, and in less time where no image is padded.
        found = tf.cond(
            tf.reduce_all(content == bucket),
            lambda: self._predict_filled(batch),
            lambda: self._predict_padded(batch),
        )
        return self._finish(found, sizes, stored)

    def _round_up(self, sizes):
        return (sizes + self._multiple - 1) // self._multiple * self._multiple

    def _finish(self, found, sizes, stored):
        """Brings the detector's outputs into the given images, of sizes int32 [B, 2] `stored`."""
        scale = tf.cast(sizes / stored, tf.float32)
        counts = tf.reduce_sum(tf.cast(found["classes"] > 0, tf.int32), axis=1)
        # As text in JSON, a hundred masks of padding would be most of an answer.
        most = tf.reduce_max(tf.concat([counts, [0]], axis=0))
        found = {key: value[:, :most] for key, value in found.items()}
        classes = found.pop("classes")
        boxes = found.pop("boxes") / tf.tile(scale, [1, 2])[:, tf.newaxis]
        outputs = {
            "num_detections": counts,
            "boxes": clip_boxes(boxes, stored),
            "scores": found.pop("scores"),
            "category_ids": tf.gather(tf.constant(self._ids, tf.int64), classes),
            "labels": tf.gather(tf.constant(self._names), classes),
        }
        if "keypoints" in found:
            factors = tf.pad(scale, [[0, 0], [0, 1]], constant_values=1.0)
            found["keypoints"] /= factors[:, tf.newaxis, tf.newaxis]
        if self._with_whole_masks:
            size = tf.reduce_max(tf.concat([stored, [[1, 1]]], axis=0), axis=0)
            outputs["whole_masks"] = whole_masks.paste(found["masks"], outputs["boxes"], size)
        return outputs | found


class FixedProgram(tf.Module):
    """The detector as one function, `predict`, of one image of a fixed shape.

    It takes `image` uint8 [1, H, W, 3], RGB, resized into the upper left corner, zero elsewhere,
    and `image_size` int32 [1, 2], (height, width) of what is resized. What lies beyond that changes
    nothing. It returns a dict, in pixels of the input: as of `MaskRCNN.call` or, of the part RAW,
    boxes float32 [1, N, 4], scores float32 [1, N], falling, 0 is padding, and classes int32 [1, N].
    """

    def __init__(self, detector, shape, part=DETECTIONS):
        """Takes what the program is made of. It is to be traced within `plain_operations`.

        Args:
            detector: `MaskRCNN` with its variables, of float32.
            shape: (H, W), multiples of the detector's coarsest stride, pixels.
            part: DETECTIONS or RAW.
        """
        super().__init__()
        self.weights = list(detector.variables)
        self._detector, self._part = detector.__call__, part
        self._candidates = detector.find_candidates
        image = tf.TensorSpec([1, *shape, 3], tf.uint8, "image")
        size = tf.TensorSpec([1, 2], tf.int32, "image_size")
        self.predict = tf.function(self._predict, [image, size], autograph=False)

    def _predict(self, image, image_size):
        batch = {schema.IMAGE: image, schema.IMAGE_SIZE: image_size}
        if self._part == DETECTIONS:
            return self._detector(batch)
        found = self._candidates(batch)
        is_there = found["scores"] > nms.NO_SCORE
        return {
            "boxes": tf.where(is_there[..., tf.newaxis], found["boxes"], 0.0),
            "scores": tf.where(is_there, found["scores"], 0.0),
            "classes": tf.where(is_there, found["classes"], 0),
        }


@contextlib.contextmanager
def plain_operations(detector):
    """Within it, a detector computes by operations that other formats have, of static shapes."""
    before, head, settled = detector.plan, detector.box_head, contextlib.nullcontext()
    if isinstance(head, CascadeBoxHead):
        settled = head.settled_stages()
    detector.plan = ExecutionPlan(static_shapes=True)
    detector.plan.give_to(detector)
    try:
        with settled:
            yield
    finally:
        detector.plan = before
        before.give_to(detector)


def input_arrays(image, image_size, shape):
    """Returns the inputs of a `FixedProgram` for a resized image, as NumPy arrays.

    Args:
        image: uint8 [1, h, w, 3], zero beyond its size.
        image_size: int32 [1, 2], (height, width), pixels, at most (H, W).
        shape: (H, W), pixels.
    """
    (height, width), padded = np.array(image_size)[0], np.zeros([1, *shape, 3], np.uint8)
    padded[:, :height, :width] = np.array(image)[:, :height, :width]
    return {"image": padded, "image_size": np.array([[height, width]], np.int32)}
