"""Keypoint head: where in a RoI each keypoint lies, as a softmax over the cells of a heatmap.

The heatmaps are of no class: a data set has one list of keypoints. Shapes: R RoIs, K keypoints, S
side of a heatmap.

Source: He et al. 2017, arXiv:1703.06870, section 5; layers and initializers as in
Detectron's files (MSRAFill) and in Detectron2.
"""

import gin
import numpy as np
import tensorflow as tf
import tf_keras

from rethink_tf.layers import conv
from rethink_tf.models.object_head import ObjectHead, flatten, keep
from rethink_tf.ops import keypoints as keypoint_ops
from rethink_tf.ops.content import Rows


@gin.register
class KeypointHead(ObjectHead):
    """Convolutions, a 4x4 deconvolution to K channels, and a bilinear doubling."""

    loss_name, field = "keypoint", "keypoints"

    def __init__(
        self, num_keypoints, num_convs=8, channels=512, normalizer="gn", roi_size=14, **kwargs
    ):
        """Makes the layers.

        Args:
            num_keypoints: int K.
            num_convs: int, 3x3 convolutions.
            channels: int.
            normalizer: one of `layers.normalization.NORMALIZERS`.
            roi_size: int, side of the pooled features; the heatmaps' side is four times that.
            **kwargs: of the Keras layer.

        Raises:
            ValueError: if the data have no keypoints.
        """
        super().__init__(autocast=False, **kwargs)
        if not num_keypoints:
            raise ValueError(
                "The detector has a keypoint head, and the data no keypoints: convert a file with "
                "keypoints (person_keypoints_*.json), or bind MaskRCNN.keypoint_head = None."
            )
        self.num_keypoints, self.roi_size, self.size = num_keypoints, roi_size, 4 * roi_size
        self.described_shape = (num_keypoints, self.size, self.size)
        self.convs = [
            conv.ConvNorm(channels, 3, 1, normalizer, name=f"conv{i + 1}") for i in range(num_convs)
        ]
        # Always in float32: it is a hundredth of the work, and TensorFlow has no fast gradients of
        # it in bfloat16 on processors without AVX-512.
        self.deconv = tf_keras.layers.Conv2DTranspose(
            num_keypoints,
            4,
            2,
            "same",
            kernel_initializer=conv.msra(),
            dtype="float32",
            name="deconv",
        )

    def call(self, rois, training=False, rows=None):
        """Runs the head.

        Args:
            rois: floating [R, roi_size, roi_size, channels], pooled features.
            training: bool.
            rows: `ops.content.Rows`, which RoIs are there; None for all.

        Returns:
            float32 [R, K, S, S], logits, S = 4 * roi_size.
        """
        features = conv.run(self.convs, rois, training, rows)
        coarse = self.deconv(tf.cast(features, tf.float32))
        # As products: XLA has no gradient of TensorFlow's resizing at half-pixel centres.
        weights = _doubling(2 * self.roi_size)
        doubled = tf.einsum("ih,rhwk->rkiw", weights, coarse)
        return tf.einsum("rkiw,jw->rkij", doubled, weights)

    def train(self, pool, positives, batch, static_shapes):
        """Runs the head on the positives with a labelled keypoint inside; see `ObjectHead.train`.

        Returns:
            dict: losses float32 [P, K], valid bool [P, K]; logits float32 [P, K, S, S] and targets
            int32 [P, K], cells as of `ops.keypoints.encode`.
        """
        rois, boxes = flatten(pool(positives.boxes, self.roi_size)), flatten(positives.boxes)
        keypoints = positives.of_objects(batch["keypoints"])
        targets, valid = keypoint_ops.encode(keypoints, boxes, self.size)
        valid &= tf.reshape(positives.classes, [-1, 1]) > 0
        if not static_shapes:
            rois, targets, valid = keep(tf.reduce_any(valid, axis=-1), rois, targets, valid)
        logits = self(rois, training=True, rows=Rows(tf.reduce_any(valid, -1)))
        losses = keypoint_losses(logits, targets)
        return {"losses": losses, "valid": valid, "logits": logits, "targets": targets}

    def describe_rois(self, rois, classes):
        """Returns the heatmaps of RoIs, logits, float32 [P, K, S, S], of no class."""
        del classes
        return self(rois)

    def mirror(self, described, flip_order):
        """Returns heatmaps [B, D, K, S, S] of a mirrored image as those of the image."""
        return keypoint_ops.mirror_heatmaps(described, flip_order)

    def decode(self, described, boxes, classes):
        """Returns keypoints float32 [B, D, K, 3], (y, x, score), pixels, at the heatmaps' peaks."""
        return keypoint_ops.decode_detections(described, boxes, classes)


def keypoint_losses(logits, cells):
    """Returns the cross-entropy of each keypoint over the cells of its heatmap.

    Args:
        logits: float32 [P, K, S, S].
        cells: int32 [P, K], of `ops.keypoints.encode`.

    Returns:
        float32 [P, K].
    """
    flat = tf.reshape(logits, [-1, logits.shape[1], logits.shape[2] * logits.shape[3]])
    return tf.nn.sparse_softmax_cross_entropy_with_logits(cells, flat)


def _doubling(size):
    """Returns float32 [2 * size, size]: bilinear interpolation at the centres of half cells."""
    position = np.clip((np.arange(2 * size) + 0.5) / 2 - 0.5, 0, size - 1)
    weights = np.maximum(0, 1 - np.abs(position[:, np.newaxis] - np.arange(size)))
    return weights.astype(np.float32)
