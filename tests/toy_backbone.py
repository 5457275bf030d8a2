"""A backbone in one file: one convolution a level, each at half the size of the one before."""

import gin
import tf_keras

from rethink_tf.layers import conv


@gin.register
class ToyBackbone(tf_keras.layers.Layer):
    """Levels 2 to 5 of 32 channels."""

    shares_fcs, coarsest_stride, freeze_at = False, 32, 0

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.convs = [conv.ConvNorm(32, 3, 2, "gn", name=f"conv{level}") for level in range(1, 6)]

    def call(self, images, training=False, content=None):
        features, outputs = images, {}
        for level, layer in enumerate(self.convs, start=1):
            inside = content and content.after(2 ** (level - 1))  # of the layer's inputs
            features = conv.run([layer], features, training, inside)
            if level >= 2:
                outputs[level] = features
        return outputs
