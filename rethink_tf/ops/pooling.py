"""The maximum over 3x3 cells, in a form that XLA computes and differentiates in two passes.

XLA's own gradient of a maximum looks for the place of each one again, and adds into the map through
a scatter: four times the traffic of what is here.
"""

import tensorflow as tf

SIZE, STRIDE = 3, 2


def max_pool(maps):
    """Returns the maximum over 3x3 cells, every second one, without padding.

    Args:
        maps: floating [B, 2 h + 1 or 2 h + 2, 2 w + 1 or 2 w + 2, C].

    Returns:
        [B, h, w, C], the maps' dtype. As TensorFlow's, the gradient of each goes to the first of
        its cells that has the maximum.
    """
    height, width = ((side - SIZE) // STRIDE + 1 for side in maps.shape[1:3])
    places = [(row, column) for row in range(SIZE) for column in range(SIZE)]

    def span(place):
        row, column = place
        return (
            slice(None),
            slice(row, row + STRIDE * (height - 1) + 1, STRIDE),
            slice(column, column + STRIDE * (width - 1) + 1, STRIDE),
        )

    @tf.custom_gradient
    def compute(maps):
        best = maps[span(places[0])]
        first = tf.zeros_like(best, tf.uint8)
        for number, place in enumerate(places[1:], start=1):
            values = maps[span(place)]
            is_higher = values > best
            best = tf.where(is_higher, values, best)
            first = tf.where(is_higher, tf.constant(number, tf.uint8), first)

        def gradient(upstream):
            """Returns the maps' gradient: each maximum's goes to its place, the first one."""
            upstream = tf.cast(upstream, tf.float32)
            parts = []
            for number, place in enumerate(places):
                part = tf.where(first == tf.constant(number, tf.uint8), upstream, 0.0)
                row, column = place
                parts.append(
                    tf.raw_ops.StridedSliceGrad(
                        shape=tf.shape(maps),
                        begin=[0, row, column, 0],
                        end=[
                            0,
                            row + STRIDE * (height - 1) + 1,
                            column + STRIDE * (width - 1) + 1,
                            0,
                        ],
                        strides=[1, STRIDE, STRIDE, 1],
                        dy=part,
                        begin_mask=0b1001,
                        end_mask=0b1001,
                    )
                )
            return tf.ensure_shape(tf.cast(tf.add_n(parts), maps.dtype), maps.shape)

        return best, gradient

    return compute(maps)
