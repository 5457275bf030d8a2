"""Copy-paste: objects of a second image are pasted onto the first.

Both are resized, cropped and mirrored on their own before. The masks of a batch are crops of their
boxes, too late to say what hides what; so an image's objects are held with the masks of its record
until the two meet, and are compared pixel by pixel in the bucket. Nothing is blended, which made no
difference to the authors.

Letters: K objects of an image, M object rows, H x W the bucket, S side of a mask crop.

Source: Ghiasi et al. 2021, arXiv:2012.07177, and their code, which draws the objects as we do. It
takes an object for hidden when fewer than 300 pixels are left; here one is when none is. An object
without a mask is not pasted, and is hidden with all of its box.
"""

import tensorflow as tf

from rethink_tf.data import schema
from rethink_tf.data.input import augment, decode

_ENCODED, _IS_CUT, _FLIP, _SIZE, _VIEW = "encoded", "is_cut", "flip", "size", "view"


def num_draws(max_objects):
    """How many uniform draws `paste` takes."""
    return 1 + max_objects


def held_spec(spec, has_view):
    """Element spec of a batch of what `hold` returns.

    Args:
        spec: of `schema.training_spec`.
        has_view: whether images are cut to a view.
    """
    batch_size, max_objects = spec[schema.CLASSES].shape

    def of(dtype, *shape):
        return tf.TensorSpec([batch_size, *shape], dtype)

    of_crops = (schema.MASKS, schema.HAS_MASK)
    spec = {key: value for key, value in spec.items() if key not in of_crops} | {
        _ENCODED: of(tf.string, max_objects),
        _IS_CUT: of(tf.bool, max_objects),
        _FLIP: of(tf.bool),
        _SIZE: of(tf.int32, 2),
    }
    return spec | ({_VIEW: of(tf.int32, 4)} if has_view else {})


def hold(image, chosen, drawn, max_objects):
    """Joins an image and its objects, of fixed shape, to be pasted.

    Args:
        image: of `decode.decode_image`.
        chosen: of `decode.choose_objects`, with masks.
        drawn: as in `decode.decode_image`.
        max_objects: M.

    Returns:
        A flat dict of tensors, as `held_spec` says.
    """
    held = {key: augment.pad_rows(value, max_objects) for key, value in chosen.items()}
    return image | held | {key: drawn[key] for key in (_FLIP, _SIZE, _VIEW) if key in drawn}


def paste(first, second, draws, max_objects, mask_size):
    """Pastes some objects of the second image onto the first.

    How many is drawn from none to all, and then which. The first image's objects lose the pixels
    that are hidden; one of which nothing is left is removed, and the box of one that lost some
    shrinks to the rest. Of more than M objects the largest are kept.

    Args:
        first: of `hold`.
        second: of `hold`, for the same bucket.
        draws: float32 [1 + M] in [0, 1).
        max_objects: M.
        mask_size: S.

    Returns:
        A training element (see `schema`), without batch axis, with the sizes and the id of the
        first image, and an int32 scalar, how many objects were cut.
    """
    bucket = tf.shape(first[schema.IMAGE])[:2]
    front = _transformed(second, _draw_rows(second, draws), mask_size)
    cover, seen = _cover(front, second, bucket)
    front = {key: tf.boolean_mask(value, seen) for key, value in front.items()}
    count = tf.reduce_sum(tf.cast(first[schema.CLASSES] > 0, tf.int32))
    back = _hide(_transformed(first, tf.range(count), mask_size), first, cover, mask_size)

    joined = {
        key: tf.concat([back[key], front[key]], 0)
        for key in (schema.BOXES, schema.CLASSES, schema.MASKS, schema.HAS_MASK)
    }
    boxes = joined[schema.BOXES]
    # Pasting may make more objects than there are rows.
    rows, cut = augment.choose_objects(boxes, tf.zeros(tf.shape(boxes)[:1], tf.bool), max_objects)
    objects = {
        key: augment.pad_rows(tf.gather(value, rows), max_objects) for key, value in joined.items()
    }
    # Objects may lie beside the first image: what they span belongs to the content then, and is
    # black between them.
    extent = tf.math.ceil(tf.reduce_max(front[schema.BOXES][:, 2:], 0))
    size = tf.maximum(tf.cast(first[schema.IMAGE_SIZE], tf.float32), extent)
    image = {key: first[key] for key in schema.evaluation_spec(None)} | {
        schema.IMAGE: tf.where(cover[..., tf.newaxis], second[schema.IMAGE], first[schema.IMAGE]),
        schema.IMAGE_SIZE: tf.cast(size, tf.int32),
    }
    return image | objects, cut


def _draw_rows(held, draws):
    """The rows to paste, int32 [pasted], in their own order."""
    # What has no mask cannot be cut out.
    rows = tf.where((held[schema.CLASSES] > 0) & augment.has_mask(held[_ENCODED]))[:, 0]
    count = tf.shape(rows)[0]
    # From none to all, each number as likely as another.
    taken = tf.cast(draws[0] * tf.cast(count + 1, tf.float32), tf.int32)
    chosen = tf.argsort(draws[1 : count + 1])[: tf.minimum(taken, count)]
    return tf.sort(tf.gather(tf.cast(rows, tf.int32), chosen))


def _transformed(held, rows, mask_size):
    """Brings some held objects into the pixels of the bucket; see `decode.transform_objects`."""
    chosen = {
        key: tf.gather(held[key], rows) for key in (schema.BOXES, schema.CLASSES, _ENCODED, _IS_CUT)
    }
    drawn = {key: held[key] for key in (_FLIP, _SIZE, _VIEW) if key in held}
    drawn["stored"] = held[schema.ORIGINAL_SIZE]
    return decode.transform_objects(chosen, drawn, held[schema.IMAGE_SCALE], mask_size)


def _cover(objects, held, bucket):
    """Returns the pixels of all objects, bool [H, W], and which have any, bool [K]."""
    count = tf.shape(objects[_ENCODED])[0]

    def add(state, inputs):
        cover, seen = state
        row, png, box = inputs
        low, high = _pixels(box)
        mask = _mask_in_bucket(png, held, low, high)
        has_pixels = tf.reduce_any(mask)
        cover |= tf.pad(mask, tf.stack([low, bucket - high], -1))
        return cover, seen | (has_pixels & (tf.range(count) == row))

    nothing = (tf.zeros(bucket, tf.bool), tf.zeros([count], tf.bool))
    rows = (tf.range(count), objects[_ENCODED], objects[schema.BOXES])
    return tf.foldl(add, rows, nothing)


def _hide(objects, held, cover, mask_size):
    """Removes the covered pixels from each object, and objects without a visible pixel."""

    def hide(inputs):
        """Returns the crop and the box of what is seen of an object, and whether anything is."""
        png, box, crop = inputs
        low, high = _pixels(box)
        covered = cover[low[0] : high[0], low[1] : high[1]]

        def as_it_was():
            return crop, box, True

        def rest():
            # The kernel that makes the crop reaches beyond the box.
            step = (box[2:] - box[:2]) / mask_size
            reach = tf.cast(tf.math.ceil(tf.maximum(step, 1.0)), tf.int32) + 1
            start = tf.maximum(low - reach, 0)
            stop = tf.minimum(high + reach, held[schema.IMAGE_SIZE])
            mask = _mask_in_bucket(png, held, start, stop)
            mask &= ~cover[start[0] : stop[0], start[1] : stop[1]]
            left = tf.cast(mask, tf.uint8)[..., tf.newaxis]
            origin = tf.tile(tf.cast(start, tf.float32), [2])
            shrunk, seen = augment.shrink_box(box - origin, left)
            return augment.crop_mask(left, shrunk, mask_size), shrunk + origin, seen

        def compare():
            mask = _mask_in_bucket(png, held, low, high)
            # An object too thin for a pixel of its own is hidden with all of its box.
            hidden = tf.reduce_any(mask & covered) | tf.reduce_all(covered)
            return tf.cond(hidden, rest, as_it_was)

        def compare_box():
            return crop, box, ~tf.reduce_all(covered)

        def compare_what_there_is():
            return tf.cond(augment.has_mask(png), compare, compare_box)

        return tf.cond(tf.reduce_any(covered), compare_what_there_is, as_it_was)

    crops, boxes, seen = tf.map_fn(
        hide,
        (objects[_ENCODED], objects[schema.BOXES], objects[schema.MASKS]),
        fn_output_signature=(
            tf.TensorSpec([mask_size, mask_size], tf.uint8),
            tf.TensorSpec([4], tf.float32),
            tf.TensorSpec([], tf.bool),
        ),
    )
    left = {schema.BOXES: boxes, schema.MASKS: crops}
    left |= {key: objects[key] for key in (schema.CLASSES, schema.HAS_MASK)}
    return {key: tf.boolean_mask(value, seen) for key, value in left.items()}


def _pixels(box):
    """The pixels that a box [4] touches: int32 [2] from, int32 [2] to, y and x."""
    return tf.cast(tf.floor(box[:2]), tf.int32), tf.cast(tf.math.ceil(box[2:]), tf.int32)


def _mask_in_bucket(png, held, low, high):
    """An object's mask at the pixels [low, high) of the bucket, bool; half a pixel counts."""
    stored, size = held[schema.ORIGINAL_SIZE], held[_SIZE]
    mask = augment.flip_image(augment.decode_mask(png, stored), held[_FLIP])
    step = tf.cast(stored / size, tf.float32)
    start = tf.cast(low + held[_VIEW][:2] if _VIEW in held else low, tf.float32) * step
    return augment.sample_mask(mask, start, step, high - low) >= 0.5
