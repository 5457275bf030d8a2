"""What is done to an image and its objects inside tf.data: flip, resize, crop, pad, choose, masks.

Each function takes one image and what was drawn for it (`order.draw_uniforms`); none draws itself.
Letters: h x w pixels of the stored image, K its objects, H x W the bucket, S side of a mask crop.

An image is mirrored, then resized, then cropped to its view, which lies in the bucket's upper left
corner. Objects are handled in the stored image, as their masks are, and brought into the pixels of
the bucket at the end.
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


def view_of_stored(view, size, stored, flip):
    """Where in the stored image the view of the resized and maybe mirrored one lies.

    Args:
        view: int32 [4], (y1, x1, y2, x2), pixels of the resized image.
        size: int32 [2], height and width after resizing.
        stored: int32 [2], h and w.
        flip: bool scalar.

    Returns:
        float32 [4], pixels of the stored image, not mirrored.
    """
    step = tf.cast(stored / size, tf.float32)
    box = tf.cast(view, tf.float32) * tf.tile(step, [2])
    return flip_boxes(box[tf.newaxis], tf.cast(stored[1], tf.float32), flip)[0]


def clip_to_view(boxes, view):
    """Clips boxes [K, 4] to a box [4], the view; those outside of it have no area then."""
    low, high = tf.tile(view[:2], [2]), tf.tile(view[2:], [2])
    return tf.clip_by_value(boxes, low, high)


def to_network(boxes, width, flip, scale, view=None):
    """Brings boxes from the stored image to the bucket.

    Args:
        boxes: float32 [K, 4], (y1, x1, y2, x2), pixels of the stored image, in view.
        width: float32 scalar, of the stored image, pixels.
        flip: bool scalar.
        scale: float32 [2], resized / stored size.
        view: int32 [4], pixels of the resized image; None for all of it.

    Returns:
        float32 [K, 4], pixels of the bucket.
    """
    boxes = flip_boxes(boxes, width, flip) * tf.tile(scale, [2])
    if view is None:
        return boxes
    view = tf.cast(view, tf.float32)
    # Clipped once more: what was cut at the view's border lies there up to rounding.
    return clip_to_view(boxes, view) - tf.tile(view[:2], [2])


def keypoints_in_view(keypoints, view=None):
    """Brings keypoints from the resized and mirrored image to the bucket.

    Args:
        keypoints: float32 [N, K, 3], (y, x, visibility), pixels of the resized image.
        view: int32 [4], pixels of the resized image; None for all of it.

    Returns:
        float32 [N, K, 3], pixels of the bucket; all zero, as not labelled, where it is out of view.
    """
    if view is None:
        return keypoints
    low, high = tf.split(tf.cast(view, tf.float32), 2)
    position = keypoints[..., :2]
    inside = tf.reduce_all((position >= low) & (position <= high), -1, keepdims=True)
    return tf.where(
        inside & (keypoints[..., 2:] > 0.0), keypoints - tf.concat([low, [0.0]], 0), 0.0
    )


def resize_and_pad(image, size, bucket, view=None):
    """Resizes an image, takes its view and pads it at the bottom and the right to its bucket.

    Bilinear at pixel centres; when it shrinks, the kernel grows with the step (antialias), so
    that both are what PIL, and with it Detectron2, gives, up to its rounding between the two
    passes. Growing, which is what COCO's photographs do on their way to 800 pixels, needs no
    antialias, and TensorFlow's plain kernel gives the same numbers four times as fast.

    Args:
        image: uint8 [h, w, 3].
        size: int32 [2], height and width after resizing; without a view at most the bucket.
        bucket: int32 [2], H and W.
        view: int32 [4], (y1, x1, y2, x2), pixels of the resized image, what is taken of it; at most
            as large as the bucket. None for all of it.

    Returns:
        uint8 [H, W, 3].
    """

    def resize(antialias):
        return tf.image.resize(image, size, method="bilinear", antialias=antialias)

    shrinks = tf.reduce_any(size < tf.shape(image)[:2])
    resized = tf.cond(shrinks, lambda: resize(True), lambda: resize(False))
    if view is not None:
        size = view[2:] - view[:2]
        resized = tf.slice(resized, tf.pad(view[:2], [[0, 1]]), tf.concat([size, [3]], 0))
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
    y1 + (i + 0.5) / S * (y2 - y1) - 0.5, counted in pixels.

    Args:
        encoded: string [K], one-channel PNGs of [h, w]; any value but 0 is object. Empty for an
            object without a mask.
        boxes: float32 [K, 4], (y1, x1, y2, x2), pixels of the stored image, with an area.
        image_shape: int32 [2], h and w.
        crop_size: S.

    Returns:
        uint8 [K, S, S], 0..255, the share of the sample that is object; 0 without a mask.

    Raises:
        tf.errors.InvalidArgumentError: on evaluation, if a mask is no PNG or of another size.
    """

    def crop(inputs):
        png, box = inputs
        return tf.cond(
            has_mask(png),
            lambda: crop_mask(decode_mask(png, image_shape), box, crop_size),
            lambda: tf.zeros([crop_size, crop_size], tf.uint8),
        )

    return tf.map_fn(
        crop,
        (encoded, boxes),
        fn_output_signature=tf.TensorSpec([crop_size, crop_size], tf.uint8),
    )


def crop_masks_in_view(encoded, boxes, is_cut, image_shape, crop_size):
    """As `crop_masks`, for boxes that the view has cut: each shrinks to what is left of its mask.

    The box of an object without a mask stays as it was cut, and counts as seen.

    Args:
        encoded: string [K], as in `crop_masks`.
        boxes: float32 [K, 4], (y1, x1, y2, x2), pixels of the stored image, clipped to the view.
        is_cut: bool [K], whether clipping changed the box; others stay as they are.
        image_shape: int32 [2], h and w.
        crop_size: S.

    Returns:
        (uint8 [K, S, S], float32 [K, 4] the boxes, bool [K] whether any of the mask is in view).

    Source: Detectron2's `recompute_boxes`, which does so with polygons.
    """

    def crop(inputs):
        """Returns the crop, the box and whether it is in view, of one object."""
        png, box, cut = inputs

        def in_view():
            mask = decode_mask(png, image_shape)
            shrunk, seen = tf.cond(cut, lambda: shrink_box(box, mask), lambda: (box, True))
            return crop_mask(mask, shrunk, crop_size), shrunk, seen

        return tf.cond(
            has_mask(png),
            in_view,
            lambda: (tf.zeros([crop_size, crop_size], tf.uint8), box, True),
        )

    signature = (
        tf.TensorSpec([crop_size, crop_size], tf.uint8),
        tf.TensorSpec([4], tf.float32),
        tf.TensorSpec([], tf.bool),
    )
    return tf.map_fn(crop, (encoded, boxes, is_cut), fn_output_signature=signature)


def has_mask(png):
    """Whether an object has a mask: bool scalar; `png` is empty for one that has none."""
    return tf.strings.length(png) > 0


def decode_mask(png, image_shape):
    """Decodes a PNG of one channel to uint8 [h, w, 1]; any value but 0 is object."""
    mask = tf.io.decode_png(png, channels=1)
    tf.debugging.assert_equal(
        tf.shape(mask)[:2], image_shape, "a mask is not of the size of its image"
    )
    return mask


def crop_mask(mask, box, crop_size):
    """Resamples a mask [h, w, 1] within a box [4] with an area: uint8 [S, S], 0..255."""
    step = (box[2:] - box[:2]) / crop_size
    sampled = sample_mask(mask, box[:2], step, [crop_size, crop_size])
    return tf.cast(sampled * 255.0 + 0.5, tf.uint8)


def sample_mask(mask, start, step, size):
    """Resamples a part of a mask on a grid of rows and columns.

    Bilinear where the grid is finer than the mask, with a triangle as wide as the step where it is
    coarser (antialias).

    Args:
        mask: uint8 [h, w, 1]; any value but 0 is object.
        start: float32 [2], y and x where the grid begins, pixels of the mask.
        step: float32 [2], height and width of a cell of the grid, pixels of the mask.
        size: int32 [2], cells down and across.

    Returns:
        float32 [*size], 0..1, the share of the cell that is object; 0 for cells whose centre is
        outside of the mask.
    """
    # Only the grid and the reach of the kernel around it are sampled: a fraction of the work.
    reach = tf.maximum(step, 1.0) + 1.0
    end = start + step * tf.cast(size, tf.float32)
    low = tf.floor(tf.maximum(start - reach, 0.0))
    high = tf.math.ceil(tf.minimum(end + reach, tf.cast(tf.shape(mask)[:2], tf.float32)))
    top, left = tf.unstack(tf.cast(low, tf.int32))
    bottom, right = tf.unstack(tf.cast(high, tf.int32))
    window = mask[top:bottom, left:right]
    window = tf.cast(window > 0, tf.uint8)  # 1-bit PNGs decode to 0 and 255, others to 0 and 1
    sampled = tf.raw_ops.ScaleAndTranslate(
        images=window[tf.newaxis],
        size=size,
        scale=1.0 / step,
        translation=(low - start) / step,
        kernel_type="triangle",
        antialias=True,
    )
    return sampled[0, :, :, 0]


def shrink_box(box, mask):
    """Shrinks a box to what it holds of a mask.

    Masks are of whole pixels and boxes are not: a side within a pixel of the mask stays.

    Args:
        box: float32 [4], (y1, x1, y2, x2), pixels of the mask, inside of it and with an area.
        mask: [h, w, 1], not zero inside of the object.

    Returns:
        (float32 [4], bool scalar whether the box holds any of the mask). The box as it was where
        it holds none.
    """
    low, high = tf.floor(box[:2]), tf.math.ceil(box[2:])
    top, left = tf.unstack(tf.cast(low, tf.int32))
    bottom, right = tf.unstack(tf.cast(high, tf.int32))
    inside = mask[top:bottom, left:right, 0] > 0
    rows, columns = tf.reduce_any(inside, 1), tf.reduce_any(inside, 0)

    def first(flags):
        return tf.cast(tf.argmax(tf.cast(flags, tf.uint8)), tf.float32)

    before = tf.stack([first(rows), first(columns)])
    after = tf.stack([first(tf.reverse(rows, [0])), first(tf.reverse(columns, [0]))])
    held = tf.concat([low + before, high - after], 0)
    seen = tf.reduce_any(rows)
    return tf.where((tf.abs(held - box) > 1.0) & seen, held, box), seen
