"""RoIAlign over a feature pyramid.

Two ways give the same numbers. `_by_gather` works everywhere; `_by_kernel` uses TensorFlow's
`crop_and_resize`, which is about four times as fast but not always usable: see `_kernel_is_safe`.
Each reads every RoI from its own level alone.

Letters: B images, R regions an image, P output side, C channels, L levels.
"""

import math

import tensorflow as tf
from tensorflow.python.framework import config as framework_config

# Detectron's assignment: a RoI of 224 x 224 pixels goes to level 4 (stride 16).
CANONICAL_SIZE, CANONICAL_LEVEL = 224.0, 4
SAMPLES_PER_BIN = 2


def assign_levels(boxes, min_level, max_level):
    """Returns the pyramid level of each box.

    Args:
        boxes: float32 [..., 4], pixels.
        min_level: int, the finest level there is.
        max_level: int, the coarsest.

    Returns:
        int32 [...], floor(4 + log2(sqrt(area) / 224)) clipped to the levels.

    Source: Lin et al. 2017, arXiv:1612.03144, equation 1; the 1e-8 is Detectron2's.
    """
    size = tf.sqrt((boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1]))
    level = CANONICAL_LEVEL + tf.math.log(size / CANONICAL_SIZE + 1e-8) / math.log(2.0)
    return tf.cast(tf.clip_by_value(tf.floor(level), min_level, max_level), tf.int32)


def roi_align(features, boxes, output_size, static_shapes=False):
    """Pools each RoI from its own pyramid level by bilinear samples, 2 x 2 a bin, averaged.

    Args:
        features: dict {level: [B, H_l, W_l, C]}; the stride of level l is 2 ** l pixels.
        boxes: float32 [B, R, 4], pixels of the input image. No gradient flows into them.
        output_size: int P.
        static_shapes: whether it must compile with XLA, which has no `crop_and_resize`.

    Returns:
        [B, R, P, P, C], the features' dtype. Boxes are clipped to the feature maps; samples sit at
        pixel centres (half-pixel shift), and those beyond the outermost centres take their value.

    Source: He et al. 2017, arXiv:1703.06870, section 3; sampling points as Detectron2's ROIAlignV2.
    """
    levels = sorted(features)
    extent = tf.shape(features[levels[0]])[1:3] * 2 ** levels[0]
    limits = tf.cast(tf.tile(extent, [2]), boxes.dtype)
    boxes = tf.clip_by_value(tf.stop_gradient(boxes), 0.0, limits)
    assigned = assign_levels(boxes, levels[0], levels[-1])
    if static_shapes or not _kernel_is_safe():
        return _by_gather(features, boxes, assigned, output_size)
    return _by_kernel(features, boxes, assigned, output_size)


def _kernel_is_safe():
    """Tells whether the gradient of `crop_and_resize` can be trusted here.

    On the CPU its threads add into the same places without locks and lose updates, unless op
    determinism is on, which makes it serial. On a GPU it adds atomically, which is right but in no
    fixed order, so with op determinism on it is refused there.
    """
    on_gpu = bool(tf.config.list_logical_devices("GPU"))
    return on_gpu != framework_config.is_op_determinism_enabled()


def _by_kernel(features, boxes, assigned, output_size):
    levels = sorted(features)
    batch, num_regions = tf.shape(boxes)[0], tf.shape(boxes)[1]
    num_samples = output_size * SAMPLES_PER_BIN
    atlas, starts = _atlas([features[level] for level in levels])
    scaled = boxes / tf.pow(2.0, tf.cast(assigned, tf.float32))[..., tf.newaxis]
    half_step = 0.5 * (scaled[..., 2:] - scaled[..., :2]) / num_samples
    # A sample at p of its level lies at p - 0.5 + 1 of the level's padded map, and that starts some
    # rows down the atlas. The kernel takes the first and the last sample of each axis, in fractions
    # of the atlas' last index.
    start = tf.cast(tf.gather(starts, assigned - levels[0]), tf.float32)
    origin = tf.stack([start, tf.zeros_like(start)], axis=-1) + 0.5
    last_index = tf.cast(tf.shape(atlas)[1:3] - 1, tf.float32)
    first = (scaled[..., :2] + half_step + origin) / last_index
    last = (scaled[..., 2:] - half_step + origin) / last_index
    samples = tf.image.crop_and_resize(
        atlas,
        tf.reshape(tf.concat([first, last], axis=-1), [-1, 4]),
        tf.repeat(tf.range(batch), num_regions),
        [num_samples, num_samples],
    )
    pooled = tf.nn.avg_pool2d(samples, SAMPLES_PER_BIN, SAMPLES_PER_BIN, "VALID")
    static = [boxes.shape[0], boxes.shape[1], output_size, output_size, atlas.shape[-1]]
    pooled = tf.reshape(pooled, [batch, num_regions, *static[2:]])
    return tf.cast(tf.ensure_shape(pooled, static), features[levels[0]].dtype)


def _atlas(maps):
    """Lays the levels' maps on top of each other, so that one kernel call serves all of them.

    Args:
        maps: list of [B, H_l, W_l, C], the widest first.

    Returns:
        float32 [B, H, W, C] (the kernel has no bfloat16 and returns float32 for every type), and
        int32 [L], the row where each map starts. Each has one repeated border row and column on
        each side, for samples may lie half a cell outside.
    """
    padded = [
        tf.pad(tf.cast(each, tf.float32), [[0, 0], [1, 1], [1, 1], [0, 0]], "SYMMETRIC")
        for each in maps
    ]
    heights = tf.stack([tf.shape(each)[1] for each in padded])
    width = tf.shape(padded[0])[2]
    rows = [
        tf.pad(each, [[0, 0], [0, 0], [0, width - tf.shape(each)[2]], [0, 0]]) for each in padded
    ]
    return tf.concat(rows, axis=1), tf.cumsum(heights, exclusive=True)


def _by_gather(features, boxes, assigned, output_size):
    levels = sorted(features)
    batch = tf.shape(boxes)[0]
    sizes = tf.stack([tf.shape(features[level])[1:3] for level in levels])
    counts = tf.reduce_prod(sizes, axis=1)
    channels = features[levels[0]].shape[-1]
    # All levels in one row of cells, so that a single gather serves every RoI.
    cells = tf.concat([tf.reshape(features[k], [batch, -1, channels]) for k in levels], axis=1)
    cells_per_image = tf.reduce_sum(counts)
    cells = tf.reshape(cells, [-1, channels])
    rank = assigned - levels[0]
    height, width = tf.gather(sizes[:, 0], rank), tf.gather(sizes[:, 1], rank)
    start = tf.gather(tf.cumsum(counts, exclusive=True), rank)
    start += tf.range(batch)[:, tf.newaxis] * cells_per_image
    scaled = boxes / tf.pow(2.0, tf.cast(assigned, tf.float32))[..., tf.newaxis]
    row, row_weight = _samples(scaled[..., 0], scaled[..., 2], height, output_size)
    column, column_weight = _samples(scaled[..., 1], scaled[..., 3], width, output_size)
    index = start[..., tf.newaxis, tf.newaxis] + (
        row[..., :, tf.newaxis] * width[..., tf.newaxis, tf.newaxis] + column[..., tf.newaxis, :]
    )
    corners = 2 * SAMPLES_PER_BIN
    values = tf.reshape(
        tf.gather(cells, index),
        [batch, -1, output_size, corners, output_size, corners, channels],
    )
    weights = [
        tf.cast(tf.reshape(w, [batch, -1, output_size, corners]), values.dtype)
        for w in (row_weight, column_weight)
    ]
    return tf.einsum("brpiqjc,brpi,brqj->brpqc", values, *weights)


def _samples(low, high, size, output_size):
    """Returns the cells that one axis reads, and their weights.

    Args:
        low: float32 [B, R], where the region starts, in cells.
        high: float32 [B, R], where it ends.
        size: int32 [B, R], cells along the axis.
        output_size: int P.

    Returns:
        int32 and float32 [B, R, P * SAMPLES_PER_BIN * 2].
    """
    num_samples = output_size * SAMPLES_PER_BIN
    fractions = (tf.range(num_samples, dtype=tf.float32) + 0.5) / num_samples
    last = size[..., tf.newaxis] - 1
    position = low[..., tf.newaxis] + fractions * (high - low)[..., tf.newaxis] - 0.5
    position = tf.clip_by_value(position, 0.0, tf.cast(last, tf.float32))
    first = tf.floor(position)
    fraction = position - first
    first = tf.cast(first, tf.int32)
    cells = tf.stack([first, tf.minimum(first + 1, last)], axis=-1)
    weights = tf.stack([1.0 - fraction, fraction], axis=-1) / SAMPLES_PER_BIN
    shape = tf.concat([tf.shape(low), [num_samples * 2]], axis=0)
    return tf.reshape(cells, shape), tf.reshape(weights, shape)
