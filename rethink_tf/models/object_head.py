"""The protocol of heads that predict more of an object than its box: masks, keypoints, or others.

A head is one file with its layers, targets, loss, prediction and mirror image. The detector, the
losses, evaluation and test augmentation loop over `MaskRCNN.heads` and know no head by its name.
`evaluation.forms` brings its predictions into COCO's form.

Shapes: B images, N RoIs an image, M objects, P the RoIs that a head trains on, D detections, and
[...] what a head predicts for one object.
"""

from typing import NamedTuple

import tensorflow as tf
import tf_keras

from rethink_tf.ops import convolution


class Positives(NamedTuple):
    """The sampled RoIs that are objects, first of each image; others fill up.

    Attributes:
        boxes: float32 [B, N, 4], (y1, x1, y2, x2), pixels.
        classes: int32 [B, N], 1..C; 0 or -1 is no object.
        matches: int32 [B, N], the object of each.
    """

    boxes: tf.Tensor
    classes: tf.Tensor
    matches: tf.Tensor

    def of_objects(self, values):
        """Returns the values [B, M, ...] of the objects that the RoIs match, [B * N, ...]."""
        return flatten(tf.gather(values, self.matches, batch_dims=1))


class ObjectHead(tf_keras.layers.Layer):
    """A head on the RoIs of objects.

    Attributes:
        loss_name: str, such as "mask": the name of its loss, and of its training outputs.
        field: str, such as "masks": the name of its predictions among the detections.
        roi_size: int, side of the pooled features that it takes.
        described_shape: ints, the shape of what `describe` returns for one object.
    """

    loss_name: str
    field: str
    roi_size: int
    described_shape: tuple[int, ...]

    def create_variables(self, rois):
        """Creates the variables, given pooled features [1, roi_size, roi_size, channels]."""
        self.describe_rois(rois, tf.ones([1], tf.int32))

    def train(self, pool, positives, batch, static_shapes):
        """Runs the head on the positives that it has targets for.

        Args:
            pool: `RoIAlign` of the features.
            positives: `Positives`.
            batch: dict as in `data.schema`.
            static_shapes: bool, whether all positives are to be kept, with or without a target.

        Returns:
            dict: losses float32 [P] or [P, k], one each sample, and valid bool of the same shape,
            which of them count. Further entries become training outputs, which tests compare.
        """
        raise NotImplementedError

    def describe_rois(self, rois, classes):
        """Runs the head on RoIs, without training.

        Args:
            rois: floating [P, roi_size, roi_size, channels], pooled features.
            classes: int32 [P], 1..C; 0 is taken as 1.

        Returns:
            float32 [P, ...].
        """
        raise NotImplementedError

    def describe(self, pool, boxes, classes, static_shapes):
        """Runs the head on detections. Test augmentation averages the values over its views.

        Args:
            pool: `RoIAlign` of the features.
            boxes: float32 [B, D, 4], pixels.
            classes: int32 [B, D], 0 is padding.
            static_shapes: bool, whether to run on padding as well.

        Returns:
            float32 [B, D, ...], 0 for padding.
        """
        pooled, flat = flatten(pool(boxes, self.roi_size)), tf.reshape(classes, [-1])
        if static_shapes:
            found = self.describe_rois(pooled, flat)
        else:
            rows = tf.where(convolution.keep_one_row(flat > 0))
            found = self.describe_rois(tf.gather_nd(pooled, rows), tf.gather_nd(flat, rows))
            shape = [tf.shape(pooled, tf.int64)[0], *self.described_shape]
            found = tf.scatter_nd(rows, found, tf.stack(shape))
        is_there = tf.reshape(flat > 0, [-1] + [1] * len(self.described_shape))
        found = tf.where(is_there, found, 0.0)
        return tf.reshape(found, [-1, boxes.shape[1], *self.described_shape])

    def mirror(self, described, flip_order):
        """Turns what `describe` returns for a mirrored image into the values for the image.

        Args:
            described: float32 [B, D, ...].
            flip_order: ints, the keypoint of the data set that each one becomes.
        """
        raise NotImplementedError

    def decode(self, described, boxes, classes):
        """Turns what `describe` returns into the detections' field.

        Args:
            described: float32 [B, D, ...].
            boxes: float32 [B, D, 4], pixels.
            classes: int32 [B, D], 0 is padding.

        Returns:
            Tensor [B, D, ...], 0 for padding.
        """
        del boxes, classes
        return described


def flatten(values):
    """Returns values [B, N, ...] as [B * N, ...]."""
    return tf.reshape(values, [-1, *values.shape[2:]])


def keep(rows, *values):
    """Keeps some rows of values, at least one: see `convolution.keep_one_row`.

    Args:
        rows: bool [P].
        *values: [P, ...].
    """
    rows = convolution.keep_one_row(rows)
    return [tf.boolean_mask(each, rows) for each in values]
