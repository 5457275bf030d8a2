"""VGG-16: thirteen 3x3 convolutions in five stages, and one feature map of stride 16.

Source: Simonyan and Zisserman 2014, arXiv:1409.1556, table 1, configuration D. As in Fast R-CNN
(Girshick 2015, arXiv:1504.08083, section 2.2) the last pooling is left out, and the fully connected
layers fc6 and fc7 are those of the box head.
"""

import gin
import tensorflow as tf
import tf_keras

from rethink_tf.layers import conv

# Convolutions of each stage, and their channels.
STAGES = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))
# Of the only level: the last stage comes after four poolings.
LEVEL = 4


@gin.register
class VGG16(tf_keras.layers.Layer):
    """The backbone, by default without normalization.

    The kernels have He initialization, which lets a network of this depth learn from random weights
    without normalization (He et al. 2018, arXiv:1811.08883, section 3).
    """

    # The fully connected layers of the box head, fc6 and fc7, are a classifier's too.
    shares_fcs = True
    coarsest_stride = 2**LEVEL  # Pixels.

    def __init__(self, normalizer="none", freeze_at=0, **kwargs):
        """Makes the layers.

        Args:
            normalizer: one of `layers.normalization.NORMALIZERS`.
            freeze_at: int, how many of the five stages, from the first on, keep the weights that
                they start from. See `conv.freeze`.
            **kwargs: of the Keras layer.

        Raises:
            ValueError: if freeze_at is not from 0 to 5.
        """
        super().__init__(**kwargs)
        self.stages = [
            [
                conv.ConvNorm(channels, 3, 1, normalizer, name=f"conv{stage}_{index}")
                for index in range(1, count + 1)
            ]
            for stage, (count, channels) in enumerate(STAGES, start=1)
        ]
        self.freeze_at = freeze_at
        conv.freeze("VGG16", self.stages, freeze_at)

    def call(self, images, training=False, content=None):
        """Computes the feature map.

        Args:
            images: floating [B, H, W, 3], normalized; H and W multiples of 16.
            training: bool.
            content: `ops.content.Content` of the images, multiples of 16; None where they fill
                H x W.

        Returns:
            dict {4: [B, H/16, W/16, 512]}, conv5_3.
        """
        outputs = images
        for stage, layers in enumerate(self.stages, start=1):
            if stage > 1:
                outputs = tf.nn.max_pool2d(outputs, 2, 2, "VALID")
            inside = content and content.after(2 ** (stage - 1))
            outputs = conv.run(layers, outputs, training and self.freeze_at < stage, inside)
            if stage == self.freeze_at:
                outputs = tf.stop_gradient(outputs)
        return {LEVEL: outputs}
