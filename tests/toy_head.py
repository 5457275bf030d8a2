"""A head of objects in one file: how large an object is."""

import gin
import numpy as np
import tensorflow as tf
import tf_keras

from rethink_tf.models.object_head import ObjectHead, flatten, keep


@gin.register
class SizeHead(ObjectHead):
    """One linear layer to the logarithms of an object's height and width, of no class."""

    loss_name, field, described_shape = "size", "sizes", (2,)

    def __init__(self, num_classes, roi_size=2, **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.roi_size = roi_size
        self.dense = tf_keras.layers.Dense(2)

    def call(self, rois):
        return self.dense(tf.reshape(rois, [-1, np.prod(rois.shape[1:])]))

    def train(self, pool, positives, batch, static_shapes):
        boxes = positives.of_objects(batch["boxes"])
        rois = flatten(pool(positives.boxes, self.roi_size))
        valid = tf.reshape(positives.classes, [-1]) > 0
        if not static_shapes:
            rois, boxes, valid = keep(valid, rois, boxes, valid)
        targets = tf.math.log(tf.maximum(boxes[:, 2:] - boxes[:, :2], 1.0))
        losses = tf.reduce_sum(tf.abs(self(rois) - targets), -1)
        return {"losses": losses, "valid": valid, "targets": targets}

    def describe_rois(self, rois, classes):
        return self(rois)

    def mirror(self, described, flip_order):
        return described

    def decode(self, described, boxes, classes):
        return tf.where(classes[..., tf.newaxis] > 0, tf.exp(tf.minimum(described, 8.0)), 0.0)
