"""Mask head.

Only the mask of one class a RoI is ever computed: the target's in training, the detected one at
test. Shapes: R RoIs, S side of the logits.

Source: He et al. 2017, arXiv:1703.06870, figure 4. Initializers are Detectron2's: its
predictor is normal with a deviation of 0.001, that of Detectron's files MSRAFill as the rest is.
"""

import functools

import gin
import tensorflow as tf

from rethink_tf.layers import conv
from rethink_tf.models.object_head import ObjectHead, flatten, keep
from rethink_tf.ops import convolution
from rethink_tf.ops import masks as mask_ops
from rethink_tf.ops.content import Rows
from rethink_tf.ops.operations import Operations
from rethink_tf.ops.recomputation import Function


@gin.register
class MaskHead(ObjectHead):
    """Convolutions, a 2x2 deconvolution, and one mask a class."""

    loss_name, field = "mask", "masks"
    operations = Operations()

    def __init__(
        self, num_classes, num_convs=4, channels=256, normalizer="gn", roi_size=14, **kwargs
    ):
        """Makes the layers.

        Args:
            num_classes: int, object classes without background.
            num_convs: int, 3x3 convolutions.
            channels: int.
            normalizer: one of `layers.normalization.NORMALIZERS`.
            roi_size: int, side of the pooled features; the logits' side is twice that.
            **kwargs: of the Keras layer.
        """
        super().__init__(autocast=False, **kwargs)
        self.num_classes, self.roi_size, self.channels = num_classes, roi_size, channels
        self.size = 2 * roi_size
        self.described_shape = (self.size, self.size)
        self.convs = [
            conv.ConvNorm(channels, 3, 1, normalizer, name=f"conv{i + 1}") for i in range(num_convs)
        ]

    def build(self, input_shape):
        """Creates the deconvolution's and the predictor's weights.

        The predictor's is [classes, channels]: one row a class, of which a RoI uses one.
        """
        shape = [2, 2, self.channels, self.channels if self.convs else input_shape[-1]]
        self.upsample_kernel = self.add_weight("upsample/kernel", shape, initializer=conv.msra())
        self.upsample_bias = self.add_weight("upsample/bias", [self.channels], initializer="zeros")
        self.kernel = self.add_weight(
            "predictor/kernel", [self.num_classes, self.channels], initializer=conv.normal(0.001)
        )
        self.bias = self.add_weight("predictor/bias", [self.num_classes], initializer="zeros")
        super().build(input_shape)

    def call(self, rois, classes, training=False, rows=None):
        """Runs the head.

        Args:
            rois: floating [R, roi_size, roi_size, channels], pooled features.
            classes: int32 [R], 1..C, the class whose mask is wanted; 0 is taken as 1.
            training: bool.
            rows: `ops.content.Rows`, which RoIs are there; None for all.

        Returns:
            float32 [R, S, S], logits, S = 2 * roi_size.
        """
        features = conv.run(self.convs, rois, training, rows)
        indices = tf.maximum(classes - 1, 0)
        kernel, bias = tf.gather(self.kernel, indices), tf.gather(self.bias, indices)
        # The deconvolution's outputs are four times as large as all that goes in.
        predict = Function(
            functools.partial(_predict, self.operations),
            self.upsample_kernel,
            self.upsample_bias,
            kernel,
        )
        logits = self.operations.chain([predict], features)
        logits = tf.cast(logits, tf.float32)
        logits += tf.reshape(tf.cast(bias, tf.float32), [-1, 1, 1, 1])
        return tf.squeeze(tf.nn.depth_to_space(logits, 2), axis=-1)

    def train(self, pool, positives, batch, static_shapes):
        """Runs the head on the positives whose object has a mask; see `ObjectHead.train`.

        Returns:
            dict: losses float32 [P], valid bool [P]; logits and targets float32 [P, S, S].
        """
        rois, boxes = flatten(pool(positives.boxes, self.roi_size)), flatten(positives.boxes)
        classes = tf.reshape(positives.classes, [-1])
        valid = classes > 0
        if "has_mask" in batch:  # without it, every object has one
            valid &= positives.of_objects(batch["has_mask"])
        crops, crop_boxes = (positives.of_objects(batch[key]) for key in ("masks", "boxes"))
        if not static_shapes:
            rois, boxes, classes, crops, crop_boxes, valid = keep(
                valid, rois, boxes, classes, crops, crop_boxes, valid
            )
        logits = self(rois, classes, training=True, rows=Rows(valid))
        targets = mask_ops.crop_targets(crops, crop_boxes, boxes, self.size)
        losses = mask_losses(logits, targets)
        return {"losses": losses, "valid": valid, "logits": logits, "targets": targets}

    def describe_rois(self, rois, classes):
        """Returns the masks of RoIs, probabilities, float32 [P, S, S]."""
        return tf.sigmoid(self(rois, classes))

    def mirror(self, described, flip_order):
        """Returns masks [B, D, S, S] of a mirrored image as those of the image."""
        del flip_order
        return described[..., ::-1]


def mask_losses(logits, targets):
    """Returns the mean cross-entropy of each mask, float32 [P], of logits and targets [P, S, S]."""
    per_pixel = tf.nn.sigmoid_cross_entropy_with_logits(targets, logits)
    return tf.reduce_mean(per_pixel, axis=[1, 2])


def _predict(operations, features, upsample_kernel, upsample_bias, kernel):
    """Returns the logits [R, S / 2, S / 2, 4] without a bias, by kernels [R, channels]."""
    cells = tf.nn.relu(convolution.double(features, upsample_kernel, upsample_bias))
    return operations.weigh_channels(cells, kernel)
