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


@gin.register
class KeypointHead(tf_keras.layers.Layer):
    """Convolutions, a 4x4 deconvolution to K channels, and a bilinear doubling."""

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
        """
        super().__init__(autocast=False, **kwargs)
        self.num_keypoints, self.roi_size, self.size = num_keypoints, roi_size, 4 * roi_size
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


def _doubling(size):
    """Returns float32 [2 * size, size]: bilinear interpolation at the centres of half cells."""
    position = np.clip((np.arange(2 * size) + 0.5) / 2 - 0.5, 0, size - 1)
    weights = np.maximum(0, 1 - np.abs(position[:, np.newaxis] - np.arange(size)))
    return weights.astype(np.float32)
