"""To what size an image is resized, computed inside an exported program.

The same numbers as the evaluation's, which is NumPy (`data.input.order.resized_shapes` and
`batch_shapes.BatchShapes.limit`): float64, in the same order. Letters: B images, S given shapes.
"""

from typing import NamedTuple

import tensorflow as tf


class SizeRule(NamedTuple):
    """The evaluation's rule.

    Attributes:
        min_side: int, the shorter side after resizing, pixels.
        max_side: int, the longest side after resizing, pixels; wins over min_side.
        buckets: (H, W) each, pixels: an image that none of them holds is shrunk. None for no such
            limit.
    """

    min_side: int
    max_side: int
    buckets: tuple[tuple[int, int], ...] | None = None

    def resized(self, stored):
        """Returns the sizes of images after resizing.

        Args:
            stored: int32 [B, 2], (height, width), pixels.

        Returns:
            int32 [B, 2], at least 1.
        """
        sides = tf.cast(stored, tf.float64)
        sides *= self.min_side / tf.reduce_min(sides, axis=-1, keepdims=True)
        longest = tf.reduce_max(sides, axis=-1, keepdims=True)
        sides *= tf.where(longest > self.max_side, self.max_side / longest, 1.0)
        sizes = tf.maximum(tf.floor(sides + 0.5), 1.0)
        if self.buckets:
            sizes = self._limit(sizes)
        return tf.cast(sizes, tf.int32)

    def _limit(self, sizes):
        """Shrinks sizes float64 [B, 2] that no bucket holds to where one does."""
        given = tf.constant(self.buckets, tf.float64)
        scale = tf.reduce_min(given / sizes[:, tf.newaxis], axis=-1)  # [B, S]
        best = tf.gather(given, tf.argmax(scale, axis=1))
        fitting = tf.minimum(tf.reduce_max(scale, axis=1, keepdims=True), 1.0)
        return tf.clip_by_value(tf.floor(sizes * fitting + 0.5), 1.0, best)
