"""Where the images of a batch end, and which rows of a list of RoIs are there.

The images of a batch lie in the upper left corners of one shape. What a network sees of an image,
its content, ends at the next multiple of the network's coarsest stride, as in Detectron2, which
pads an image on its own to there. Beyond, every layer leaves zeros, as a convolution finds beyond
the border of a feature map, and no statistic counts those cells. So an image has the same features
in every shape that holds it, and beside any other image.

Letters: B images, H x W cells of a feature map, R RoIs.
"""

import tensorflow as tf

# Key of a batch that says by its shape, [1] or [0], whether any of its images is padded.
PADDING = "padding"


def split_padding(batch):
    """Takes from a batch what it says of its padding.

    Args:
        batch: dict of tensors, distributed or not; one without PADDING may be padded.

    Returns:
        The batch without PADDING, and bool, whether any of its images may be padded.
    """
    rest = {key: value for key, value in batch.items() if key != PADDING}
    if PADDING not in batch:
        return rest, True
    # Of a distributed batch every replica says the same.
    padding = getattr(batch[PADDING], "values", [batch[PADDING]])[0]
    return rest, padding.shape[0] != 0


class Content:
    """How many cells of a feature map are content, from the upper left corner, image by image."""

    def __init__(self, sizes, shared=None, stride=1):
        """Takes the sizes of the finest map; the others are for `after`.

        Args:
            sizes: int32 [B, 2], (rows, columns) of content, at least 0.
            shared: dict, of the content of all strides.
            stride: int, cells of the finest map from one of this map's to the next.
        """
        self.sizes, self._stride = sizes, stride
        self._shared, self._masks = {} if shared is None else shared, {}
        self._shared[stride] = self

    @classmethod
    def of_images(cls, image_size, multiple):
        """Returns the content of images.

        Args:
            image_size: int32 [B, 2], (height, width), pixels; the rest of the batch's shape is
                padding.
            multiple: int, the coarsest stride of the network, pixels.
        """
        return cls(_divide_up(image_size, multiple) * multiple)

    def after(self, strides):
        """Returns the content of the maps that a layer of these strides makes of this one's."""
        stride = self._stride * strides
        if stride not in self._shared:
            Content(_divide_up(self.sizes, strides), self._shared, stride)
        return self._shared[stride]

    def mask(self, maps):
        """Returns which cells are content.

        Args:
            maps: floating [B, H, W, C].

        Returns:
            [B, H, W, 1], 1 or 0, of the maps' dtype.
        """
        if maps.dtype not in self._masks:
            height, width = tf.unstack(tf.shape(maps)[1:3])
            rows = tf.range(height) < self.sizes[:, :1]
            columns = tf.range(width) < self.sizes[:, 1:]
            inside = rows[:, :, tf.newaxis, tf.newaxis] & columns[:, tf.newaxis, :, tf.newaxis]
            inside = tf.ensure_shape(inside, [*maps.shape[:3], 1])
            self._masks[maps.dtype] = tf.cast(inside, maps.dtype)
        return self._masks[maps.dtype]

    def keep(self, maps):
        """Returns maps [B, H, W, C] with zeros beyond the content."""
        return maps * self.mask(maps)


def _divide_up(sizes, divisor):
    """Returns sizes / divisor, rounded up; of no negative number, which ONNX would round to 0."""
    return (sizes + (divisor - 1)) // divisor


class Rows:
    """Which RoIs are there; the others fill a list up to a fixed length.

    RoIs do not see each other, but for the statistics of batch normalization, which leave out the
    rows that are not there. What a layer makes of those has no meaning and is never read.
    """

    def __init__(self, valid):
        """Takes the rows, bool [R]."""
        self._valid = valid

    def after(self, strides):
        """Returns the same rows: RoIs are whole at every stride."""
        del strides
        return self

    def mask(self, maps):
        """Returns [R, 1, 1, 1], 1 or 0, of the maps' dtype."""
        return tf.cast(self._valid, maps.dtype)[:, tf.newaxis, tf.newaxis, tf.newaxis]

    def keep(self, maps):
        """Returns the maps [R, H, W, C] as they are."""
        return maps
