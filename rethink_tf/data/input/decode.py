"""From the bytes of one record to the tensors of one image, in Model Garden's schema.

Everything here fails with an error of the op on damaged bytes; `pipeline` skips and counts those.
What is wrong with the data set and not with one record comes back as a problem code instead.
"""

import tensorflow as tf

from rethink_tf.data import schema
from rethink_tf.data.input import augment
from rethink_tf.ops import keypoints as keypoint_ops
from rethink_tf.ops.boxes import clip_boxes

NO_PROBLEM = 0
UNKNOWN_CATEGORY = 1
MASKS_MISSING = 2
KEYPOINTS_MISSING = 3

_BOX_SIDES = ("ymin", "xmin", "ymax", "xmax")


def parse_image(serialized):
    """Parses what evaluation needs of a record: {"image/encoded": string scalar}."""
    features = {"image/encoded": tf.io.FixedLenFeature([], tf.string)}
    return tf.io.parse_single_example(serialized, features)


def parse_image_and_objects(serialized, with_masks, with_keypoints=False):
    """Parses a record; the lists of objects are dense and may be empty."""

    def many(dtype):
        return tf.io.FixedLenSequenceFeature([], dtype, allow_missing=True)

    features = {
        "image/encoded": tf.io.FixedLenFeature([], tf.string),
        "image/object/class/label": many(tf.int64),
        "image/object/is_crowd": many(tf.int64),
        "image/object/difficult": many(tf.int64),
    }
    features |= {f"image/object/bbox/{side}": many(tf.float32) for side in _BOX_SIDES}
    if with_masks:
        features["image/object/mask"] = many(tf.string)
        features["image/object/has_mask"] = many(tf.int64)
    if with_keypoints:
        features |= {f"image/object/keypoint/{axis}": many(tf.float32) for axis in "yx"}
        features["image/object/keypoint/visibility"] = many(tf.int64)
    return tf.io.parse_single_example(serialized, features)


def no_notes():
    """The notes of a record with nothing to tell, as `decode_objects` gives them."""
    zero = tf.constant(0)
    return {"cut": zero, "problem": zero, "problem_value": tf.constant(0, tf.int64)}


def decode_pixels(encoded):
    """Decodes JPEG or PNG bytes to uint8 [h, w, 3]."""
    # The accurate DCT is PIL's and so Detectron2's; TensorFlow's default is up to 18 levels off.
    # The op reads PNG as well.
    return tf.io.decode_jpeg(encoded, channels=3, dct_method="INTEGER_ACCURATE")


def size_in_header(encoded):
    """Returns the int32 [2] height and width that JPEG or PNG bytes state."""

    def in_png():
        # Behind the signature, the length and the name of the first chunk: width, then height.
        sides = tf.io.decode_raw(tf.strings.substr(encoded, 16, 8), tf.int32, little_endian=False)
        return tf.ensure_shape(sides, [2])[::-1]

    def in_jpeg():
        return tf.image.extract_jpeg_shape(encoded)[:2]

    is_png = tf.strings.substr(encoded, 0, 8) == b"\x89PNG\r\n\x1a\n"
    return tf.cond(is_png, in_png, in_jpeg)


def decode_image(encoded, drawn, bucket):
    """Decodes, flips, resizes and pads an image.

    Args:
        encoded: JPEG or PNG bytes.
        drawn: what the plan says of the image: `image_id` int64, `flip` bool, `stored` int32 [2]
            the size in the index, `size` int32 [2] the size after resizing and, where only a part
            is taken of that, `view` int32 [4].
        bucket: int32 [2], H and W.

    Returns:
        The image's part of a training or evaluation element (see `schema`), without batch axis.
    """
    found = drawn["stored"]
    # Before it is decoded: some bytes may state an image of gigabytes.
    is_same = tf.debugging.assert_equal(
        size_in_header(encoded), found, "the image is not of the size that its record states"
    )
    with tf.control_dependencies([] if is_same is None else [is_same]):
        image = decode_pixels(tf.identity(encoded))
    image = augment.flip_image(image, drawn["flip"])
    view = drawn.get("view")
    return {
        schema.IMAGE: augment.resize_and_pad(image, drawn["size"], bucket, view),
        schema.IMAGE_SIZE: drawn["size"] if view is None else view[2:] - view[:2],
        schema.ORIGINAL_SIZE: found,
        schema.IMAGE_SCALE: tf.cast(drawn["size"] / found, tf.float32),
        schema.IMAGE_ID: drawn["image_id"],
    }


def decode_objects(
    parsed,
    drawn,
    scale,
    category_ids,
    max_objects,
    mask_size,
    include_difficult=True,
    flip_order=None,
):
    """Chooses the objects of a record and brings them into the pixels of the bucket.

    Args:
        parsed: of `parse_image_and_objects`.
        drawn: as in `decode_image`.
        scale: float32 [2], resized / stored size.
        category_ids: int64 [C], ascending; class k is category_ids[k - 1].
        max_objects: M; the largest boxes are kept.
        mask_size: S, or None for no masks.
        include_difficult: whether objects marked as difficult are taken.
        flip_order: K ints, the keypoint that each one becomes in a mirrored image, or None for no
            keypoints.

    Returns:
        The objects' part of a training element, and {"cut": int32, "problem": int32 code,
        "problem_value": int64}, scalars.
    """
    chosen, notes = choose_objects(
        parsed,
        drawn,
        category_ids,
        max_objects,
        mask_size is not None,
        include_difficult,
        flip_order and len(flip_order),
    )
    objects = transform_objects(chosen, drawn, scale, mask_size, flip_order)
    objects.pop("encoded", None)
    return {key: augment.pad_rows(value, max_objects) for key, value in objects.items()}, notes


def choose_objects(
    parsed,
    drawn,
    category_ids,
    max_objects,
    with_masks,
    include_difficult=True,
    num_keypoints=None,
):
    """Chooses the objects of a record that are in view; arguments as of `decode_objects`.

    Returns:
        A dict of N objects, and the notes: `boxes` float32 [N, 4], pixels of the stored image,
        clipped to the view, `is_cut` bool [N], whether that changed them, `classes` int32 [N] and,
        with masks, `encoded` string [N], empty for an object without one, with keypoints,
        `keypoints` float32 [N, K, 3], pixels of the stored image.
    """
    stored = tf.cast(drawn["stored"], tf.float32)
    height, width = tf.unstack(stored)
    normalised = tf.stack([parsed[f"image/object/bbox/{side}"] for side in _BOX_SIDES], -1)
    boxes = normalised * tf.stack([height, width, height, width])
    labels = parsed["image/object/class/label"]
    count = tf.shape(labels)[0]
    boxes = clip_boxes(tf.reshape(boxes, [1, count, 4]), drawn["stored"][tf.newaxis])[0]
    boxes = tf.ensure_shape(boxes, [None, 4])
    whole = boxes
    if "view" in drawn:
        view = augment.view_of_stored(drawn["view"], drawn["size"], drawn["stored"], drawn["flip"])
        boxes = augment.clip_to_view(boxes, view)

    left_out = _flags(parsed["image/object/is_crowd"], count)
    if not include_difficult:
        left_out |= _flags(parsed["image/object/difficult"], count)
    rows, cut = augment.choose_objects(boxes, left_out, max_objects)
    labels, boxes, whole = (tf.gather(each, rows) for each in (labels, boxes, whole))

    classes, problem, value = _map_categories(labels, category_ids)
    chosen = {"boxes": boxes, "is_cut": tf.reduce_any(boxes != whole, -1), "classes": classes}
    if num_keypoints is not None:
        keypoints, missing = _read_keypoints(parsed, count, num_keypoints)
        problem = tf.where(missing, KEYPOINTS_MISSING, problem)
        found = tf.size(parsed["image/object/keypoint/visibility"], tf.int64)
        value = tf.where(missing, found, value)
        chosen["keypoints"] = tf.gather(keypoints, rows) * tf.stack([height, width, 1.0])
    if with_masks:
        encoded, complete = _read_masks(parsed, count)
        problem = tf.where(complete, problem, MASKS_MISSING)
        value = tf.where(complete, value, tf.size(encoded, tf.int64))
        kept = tf.where(complete, tf.size(rows), 0)
        chosen = {key: each[:kept] for key, each in chosen.items()}
        chosen["encoded"] = tf.gather(encoded, rows[:kept])
    return chosen, {"cut": cut, "problem": problem, "problem_value": value}


def transform_objects(chosen, drawn, scale, mask_size, flip_order=None):
    """Brings chosen objects into the pixels of the bucket.

    An object of whose mask the view shows nothing is left out. Of one without a mask, the part of
    the box in view is kept.

    Args:
        chosen: of `choose_objects`.
        drawn: as in `decode_image`.
        scale: float32 [2], resized / stored size.
        mask_size: S, or None for no masks.
        flip_order: as in `decode_objects`.

    Returns:
        A dict of N objects: `boxes` float32 [N, 4], pixels of the bucket, `classes` int32 [N] and,
        with masks, `masks` uint8 [N, S, S], `has_mask` bool [N] and `encoded` string [N], with
        keypoints, `keypoints`
        float32 [N, K, 3], pixels of the bucket, those out of view as if they were not labelled.
    """
    boxes, objects = chosen["boxes"], {"classes": chosen["classes"]}
    flip, view = drawn["flip"], drawn.get("view")
    width = tf.cast(drawn["stored"][1], tf.float32)
    if flip_order is not None:
        keypoints = chosen["keypoints"]
        mirrored = keypoint_ops.mirror(keypoints, width, flip_order)
        keypoints = tf.where(flip, mirrored, keypoints) * tf.concat([scale, [1.0]], 0)
        objects["keypoints"] = augment.keypoints_in_view(keypoints, view)
    if mask_size is not None:
        encoded = chosen["encoded"]
        if view is None:
            crops = augment.crop_masks(encoded, boxes, drawn["stored"], mask_size)
            objects |= {"masks": crops, "encoded": encoded}
        else:
            crops, boxes, seen = augment.crop_masks_in_view(
                encoded, boxes, chosen["is_cut"], drawn["stored"], mask_size
            )
            objects |= {"masks": crops, "encoded": encoded, "boxes": boxes}
            objects = {key: tf.boolean_mask(each, seen) for key, each in objects.items()}
            boxes = objects["boxes"]
        crops = objects[schema.MASKS]
        objects[schema.HAS_MASK] = tf.strings.length(objects["encoded"]) > 0
        objects[schema.MASKS] = tf.cond(flip, lambda: tf.reverse(crops, [2]), lambda: crops)
    objects["boxes"] = augment.to_network(boxes, width, flip, scale, view)
    return objects


def _read_masks(parsed, count):
    """Reads the masks of all objects of a record.

    Returns:
        string [count], PNGs, empty for an object without a mask, and whether the record has one
        each.
    """
    encoded, flags = parsed["image/object/mask"], parsed["image/object/has_mask"]
    complete = (tf.size(encoded) == count) & ((tf.size(flags) == 0) | (tf.size(flags) == count))
    has_no_mask = complete & (tf.size(flags) > 0)
    marked = tf.cond(has_no_mask, lambda: tf.where(flags > 0, encoded, ""), lambda: encoded)
    return marked, complete


def _flags(values, count):
    """int64 [K] of 0 and 1 to bool [K]; a list that the record lacks is all false."""
    return tf.cond(tf.size(values) > 0, lambda: values > 0, lambda: tf.zeros([count], tf.bool))


def _read_keypoints(parsed, count, num_keypoints):
    """Reads the keypoints of all objects of a record.

    Returns:
        float32 [count, K, 3], (y, x, visibility), parts of the image, and whether the record has
        other than K keypoints an object; then all are zero.
    """
    parts = [parsed[f"image/object/keypoint/{name}"] for name in ("y", "x", "visibility")]
    total = count * num_keypoints
    missing = tf.reduce_any(tf.stack([tf.size(part) for part in parts]) != total)
    columns = [
        tf.cond(missing, lambda: tf.zeros([total]), lambda part=part: tf.cast(part, tf.float32))
        for part in parts
    ]
    keypoints = tf.reshape(tf.stack(columns, -1), [count, num_keypoints, 3])
    return tf.where(keypoints[..., 2:] > 0.0, keypoints, 0.0), missing


def _map_categories(labels, category_ids):
    """Category ids [K] to classes int32 [K] of 1..C, with the first id that is none of them."""
    index = tf.searchsorted(category_ids, labels)
    known = tf.gather(category_ids, tf.minimum(index, tf.size(category_ids) - 1)) == labels
    unknown = tf.boolean_mask(labels, ~known)
    has_unknown = tf.size(unknown) > 0
    problem = tf.where(has_unknown, UNKNOWN_CATEGORY, NO_PROBLEM)
    value = tf.where(has_unknown, tf.reduce_max(unknown), tf.constant(0, tf.int64))
    return tf.where(known, index + 1, 0), problem, value
