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
    """The backbone, by default without normalization; nothing of it is frozen.

    The kernels have He initialization, which lets a network of this depth learn from random weights
    without normalization (He et al. 2018, arXiv:1811.08883, section 3).
    """

    # The fully connected layers of the box head, fc6 and fc7, are a classifier's too.
    classifier_goes_on = True
    coarsest_stride = 2**LEVEL  # Pixels.

    def __init__(self, normalizer="none", **kwargs):
        """Makes the layers.

        Args:
            normalizer: one of `layers.normalization.NORMALIZERS`.
            **kwargs: of the Keras layer.
        """
        super().__init__(**kwargs)
        self.stages = [
            [
                conv.ConvNorm(channels, 3, 1, normalizer, name=f"conv{stage}_{index}")
                for index in range(1, count + 1)
            ]
            for stage, (count, channels) in enumerate(STAGES, start=1)
        ]

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
        for index, layers in enumerate(self.stages):
            if index > 0:
                outputs = tf.nn.max_pool2d(outputs, 2, 2, "VALID")
            outputs = conv.run(layers, outputs, training, content and content.after(2**index))
        return {LEVEL: outputs}
