"""What is done to an image and its objects inside tf.data: flip, resize, pad, choose, crop masks.

Each function takes one image and what was drawn for it (`plan.draw_uniforms`); none draws itself.
Letters: h x w pixels of the stored image, K its objects, H x W the bucket, S side of a mask crop.
"""

import tensorflow as tf

from rethink_tf.ops.boxes import area


def flip_image(image, flip):
    """Mirrors left and right. `image` [h, w, 3], `flip` a bool scalar."""
    return tf.cond(flip, lambda: tf.reverse(image, [1]), lambda: image)


def flip_boxes(boxes, width, flip):
    """Mirrors boxes left and right.

    Args:
        boxes: float32 [..., K, 4], (y1, x1, y2, x2), pixels.
        width: float32 scalar or [..., 1], of the image, pixels.
        flip: bool scalar.

    Returns:
        float32 [..., K, 4].
    """
    y1, x1, y2, x2 = tf.unstack(boxes, axis=-1)
    return tf.where(flip, tf.stack([y1, width - x2, y2, width - x1], -1), boxes)


def resize_and_pad(image, size, bucket):
    """Resizes an image and pads it at the bottom and the right to its bucket.

    Bilinear at pixel centres; when it shrinks, the kernel grows with the step (antialias), so
    that both are what PIL, and with it Detectron2, gives, up to its rounding between the two
    passes. Growing, which is what COCO's photographs do on their way to 800 pixels, needs no
    antialias, and TensorFlow's plain kernel gives the same numbers four times as fast.

    Args:
        image: uint8 [h, w, 3].
        size: int32 [2], height and width after resizing; at most the bucket.
        bucket: int32 [2], H and W.

    Returns:
        uint8 [H, W, 3].
    """

    def resize(antialias):
        return tf.image.resize(image, size, method="bilinear", antialias=antialias)

    shrinks = tf.reduce_any(size < tf.shape(image)[:2])
    resized = tf.cond(shrinks, lambda: resize(True), lambda: resize(False))
    # The cast cuts off what is behind the point, so this rounds; values lie in 0..255.
    rounded = tf.cast(resized + 0.5, tf.uint8)
    bottom, right = tf.unstack(bucket - size)
    # As rows of bytes: padded as rows of pixels, it would be copied three bytes at a time.
    rows = tf.reshape(rounded, [size[0], size[1] * 3])
    padded = tf.pad(rows, [[0, bottom], [0, right * 3]])
    return tf.reshape(padded, [bucket[0], bucket[1], 3])


def choose_objects(boxes, left_out, max_objects):
    """Picks the objects to train on: none left out or without area, the largest if too many.

    Args:
        boxes: float32 [K, 4], clipped to the image, pixels.
        left_out: bool [K], crowds and others that are not to be learnt.
        max_objects: most objects to keep; by area of the box.

    Returns:
        int32 [kept] rows in their own order, and an int32 scalar, how many were cut.
    """
    areas = area(boxes)
    usable = tf.where((areas > 0) & ~left_out)[:, 0]
    count = tf.shape(usable)[0]
    largest = tf.math.top_k(tf.gather(areas, usable), tf.minimum(count, max_objects)).indices
    rows = tf.gather(usable, tf.sort(largest))
    return tf.cast(rows, tf.int32), tf.maximum(count - max_objects, 0)


def pad_rows(values, num_rows):
    """Appends zero rows: [K, ...] to [num_rows, ...], with K <= num_rows."""
    missing = num_rows - tf.shape(values)[0]
    padded = tf.pad(values, [[0, missing]] + [[0, 0]] * (values.shape.rank - 1))
    return tf.ensure_shape(padded, [num_rows, *values.shape[1:]])


def crop_masks(encoded, boxes, image_shape, crop_size):
    """Decodes masks and resamples each within its own box.

    The masks are PNGs of the whole image; no mask is resized whole. Sample i of a side lies at
    y1 + (i + 0.5) / S * (y2 - y1) - 0.5, counted in pixels: bilinear where the box is smaller
    than the crop, with a triangle as wide as the step where it is larger (antialias).

    Args:
        encoded: string [K], one-channel PNGs of [h, w]; any value but 0 is object.
        boxes: float32 [K, 4], (y1, x1, y2, x2), pixels of the stored image, with an area.
        image_shape: int32 [2], h and w.
        crop_size: S.

    Returns:
        uint8 [K, S, S], 0..255, the share of the sample that is object.

    Raises:
        tf.errors.InvalidArgumentError: on evaluation, if a mask is no PNG or of another size.
    """

    def crop(inputs):
        png, box = inputs
        mask = tf.io.decode_png(png, channels=1)
        tf.debugging.assert_equal(
            tf.shape(mask)[:2], image_shape, "a mask is not of the size of its image"
        )
        # Only the box and the reach of the kernel around it are sampled: a fraction of the work.
        step = (box[2:] - box[:2]) / crop_size
        reach = tf.maximum(step, 1.0) + 1.0
        limit = tf.cast(image_shape, tf.float32)
        low = tf.floor(tf.maximum(box[:2] - reach, 0.0))
        high = tf.math.ceil(tf.minimum(box[2:] + reach, limit))
        top, left = tf.unstack(tf.cast(low, tf.int32))
        bottom, right = tf.unstack(tf.cast(high, tf.int32))
        window = mask[top:bottom, left:right]
        window = tf.cast(window > 0, tf.uint8)  # 1-bit PNGs decode to 0 and 255, others to 0 and 1
        sampled = tf.raw_ops.ScaleAndTranslate(
            images=window[tf.newaxis],
            size=[crop_size, crop_size],
            scale=1.0 / step,
            translation=(low - box[:2]) / step,
            kernel_type="triangle",
            antialias=True,
        )
        return tf.cast(sampled[0, :, :, 0] * 255.0 + 0.5, tf.uint8)

    return tf.map_fn(
        crop,
        (encoded, boxes),
        fn_output_signature=tf.TensorSpec([crop_size, crop_size], tf.uint8),
    )
