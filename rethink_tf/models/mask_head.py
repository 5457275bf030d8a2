"""Mask head.

Only the mask of one class a RoI is ever computed: the target's in training, the detected one at
test. Shapes: R RoIs, S side of the logits.

Source: He et al. 2017, arXiv:1703.06870, figure 4; initializers as in Detectron.
"""

import gin
import tensorflow as tf
import tf_keras

from rethink_tf.layers import conv


@gin.register
class MaskHead(tf_keras.layers.Layer):
    """Convolutions, a 2x2 deconvolution, and one mask a class."""

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
        self.convs = [
            conv.ConvNorm(channels, 3, 1, normalizer, name=f"conv{i + 1}") for i in range(num_convs)
        ]
        self.upsample = conv.Doubling(
            channels, activation="relu", kernel_initializer=conv.msra(), name="upsample"
        )

    def build(self, input_shape):
        self.kernel = self.add_weight(
            "predictor/kernel", [self.num_classes, self.channels], initializer=conv.normal(0.001)
        )
        self.bias = self.add_weight("predictor/bias", [self.num_classes], initializer="zeros")
        super().build(input_shape)

    def call(self, rois, classes, training=False):
        """Runs the head.

        Args:
            rois: floating [R, roi_size, roi_size, channels], pooled features.
            classes: int32 [R], 1..C, the class whose mask is wanted; 0 is taken as 1.
            training: bool.

        Returns:
            float32 [R, S, S], logits, S = 2 * roi_size.
        """
        outputs = self.upsample(conv.run(self.convs, rois, training))
        rows = tf.maximum(classes - 1, 0)
        kernel = tf.cast(tf.gather(self.kernel, rows), outputs.dtype)
        logits = tf.cast(tf.einsum("rhwpc,rc->rhwp", outputs, kernel), tf.float32)
        bias = tf.cast(tf.gather(self.bias, rows), tf.float32)
        logits += bias[:, tf.newaxis, tf.newaxis, tf.newaxis]
        return tf.squeeze(tf.nn.depth_to_space(logits, 2), axis=-1)
