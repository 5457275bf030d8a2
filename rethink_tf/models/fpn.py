"""Feature pyramid network.

Source: Lin et al. 2017, arXiv:1612.03144; level 6 is level 5 subsampled, as in Detectron and
Detectron2.
"""

import gin
import tf_keras

from rethink_tf.layers import conv
from rethink_tf.ops.operations import Operations


@gin.register
class FPN(tf_keras.layers.Layer):
    """Merges the backbone's levels from coarse to fine."""

    operations = Operations()

    def __init__(self, channels=256, normalizer="gn", levels=(2, 3, 4, 5), **kwargs):
        """Makes the layers.

        Args:
            channels: int, of every output level.
            normalizer: one of `layers.normalization.NORMALIZERS`; no activation follows.
            levels: ints, the backbone's levels to use, from fine to coarse.
            **kwargs: of the Keras layer.
        """
        super().__init__(**kwargs)

        def layer(size, name):
            return conv.ConvNorm(
                channels, size, 1, normalizer, False, initializer=conv.xavier(), name=name
            )

        self.channels, self.levels = channels, tuple(levels)
        self.laterals = [layer(1, f"lateral{level}") for level in self.levels]
        self.outputs = [layer(3, f"output{level}") for level in self.levels]

    def call(self, features, training=False, content=None):
        """Computes the pyramid.

        Args:
            features: dict {level: [B, H_l, W_l, C_l]}, each half as large as the one before.
            training: bool.
            content: `ops.content.Content` of the images, multiples of the coarsest stride of the
                input; None where they fill the maps.

        Returns:
            dict {level: [B, H_l, W_l, channels]}, with one level more than the input's.
        """
        pyramid, above = {}, None
        for position in reversed(range(len(self.levels))):
            level = self.levels[position]
            inside = content and content.after(2**level)
            merged = conv.run([self.laterals[position]], features[level], training, inside)
            if above is not None:
                merged += self.operations.repeat_cells(above)  # Nearest neighbours.
            above = merged
            pyramid[level] = self.outputs[position](merged, training=training, content=inside)
        coarsest = self.levels[-1]
        # For the anchors of 512 pixels alone: every second cell is enough, and needs no weights.
        pyramid[coarsest + 1] = pyramid[coarsest][:, ::2, ::2, :]
        return pyramid
