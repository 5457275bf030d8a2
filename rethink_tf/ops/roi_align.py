"""RoIAlign over a feature pyramid.

Two ways give the same numbers. GATHER works everywhere; CROP uses TensorFlow's `crop_and_resize`,
which is about four times as fast but not always usable: see `choose_form`. Each reads every RoI
from its own level alone.

Letters: B images, R regions an image, P output side, C channels, L levels.
"""

import math

import tensorflow as tf

from rethink_tf.ops import ordering

GATHER, CROP = "gather", "crop_and_resize"
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


class RoIAlign:
    """Pools RoIs from their own pyramid levels by bilinear samples, 2 x 2 a bin, averaged.

    The levels are laid out once for all calls: the box and the mask head pool from the same ones.

    Source: He et al. 2017, arXiv:1703.06870, section 3; sampling points as Detectron2's ROIAlignV2.
    """

    def __init__(self, features, content=None, form=GATHER, is_fused=False):
        """Lays out the levels.

        Args:
            features: dict {level: [B, H_l, W_l, C]}; the stride of level l is 2 ** l pixels.
            content: `ops.content.Content` of the images, multiples of the coarsest stride; None
                where they fill the maps.
            form: GATHER or CROP; the execution plan's.
            is_fused: bool, whether XLA compiles it.
        """
        self._levels = sorted(features)
        self._maps = [features[level] for level in self._levels]
        self._content = [content and content.after(2**level) for level in self._levels]
        self._pool = {GATHER: _by_gather, CROP: _by_crops}[form]
        if form == CROP:
            self._layout = _atlas(self._maps, self._content)
        else:
            cells, sizes = lay_out_cells(self._maps)
            own = sizes[tf.newaxis]
            if content:
                own = tf.stack([each.sizes for each in self._content], axis=1)
            self._layout = _Cells(cells, is_fused), (sizes, own)

    def __call__(self, boxes, output_size):
        """Pools.

        Args:
            boxes: float32 [B, R, 4], pixels of the input image. No gradient flows into them.
            output_size: int P.

        Returns:
            [B, R, P, P, C], the features' dtype. Boxes are clipped to the content; samples sit at
            pixel centres (half-pixel shift), and those beyond its outermost centres take their
            value.
        """
        finest, coarsest = self._levels[0], self._levels[-1]
        cells = self._content[0].sizes if self._content[0] else tf.shape(self._maps[0])[1:3]
        extent = tf.cast(tf.reshape(cells * 2**finest, [-1, 1, 2]), boxes.dtype)
        limits = tf.tile(extent, [1, 1, 2])
        # As proposals are: samples beyond the content would repeat its border.
        boxes = tf.clip_by_value(tf.stop_gradient(boxes), 0.0, limits)
        return self.from_levels(boxes, assign_levels(boxes, finest, coarsest), output_size)

    def from_levels(self, boxes, levels, output_size):
        """As a call, for boxes within the features and levels that are given, int32 [B, R]."""
        scaled = boxes / tf.pow(2.0, tf.cast(levels, tf.float32))[..., tf.newaxis]
        pooled = self._pool(*self._layout, scaled, levels - self._levels[0], output_size)
        # `crop_and_resize` returns float32 whatever it is given.
        return tf.cast(pooled, self._maps[0].dtype)


def choose_form(device, static_shapes, is_deterministic):
    """Returns CROP where it is there and the gradient of `crop_and_resize` is right, else GATHER.

    On the CPU its threads add into the same places without locks and lose updates, unless op
    determinism is on, which makes it serial. On a GPU it adds atomically, which is right but in no
    fixed order, so with op determinism on it is refused there.

    Args:
        device: "CPU", "GPU" or "TPU".
        static_shapes: bool, whether XLA compiles it, which has no `crop_and_resize`.
        is_deterministic: bool, whether TensorFlow's op determinism is on.
    """
    return CROP if not static_shapes and (device == "GPU") != is_deterministic else GATHER


def _by_crops(atlas, starts, scaled, rank, output_size):
    """Pools by `crop_and_resize`.

    Args:
        atlas: float32 [B, H, W, C], of `_atlas`.
        starts: int32 [L], of `_atlas`.
        scaled: float32 [B, R, 4], boxes in cells of their levels.
        rank: int32 [B, R], their levels, 0 for the finest.
        output_size: int P.

    Returns:
        float32 [B, R, P, P, C].
    """
    batch, num_regions = tf.shape(scaled)[0], tf.shape(scaled)[1]
    step = (scaled[..., 2:] - scaled[..., :2]) / (output_size * SAMPLES_PER_BIN)
    # A sample at p of its level lies at p - 0.5 + 1 of the level's padded map, and that starts some
    # rows down the atlas. The kernel takes the first and the last sample of each axis, in fractions
    # of the atlas' last index.
    start = tf.cast(tf.gather(starts, rank), tf.float32)
    origin = tf.stack([start, tf.zeros_like(start)], axis=-1) + 0.5
    last_index = tf.cast(tf.shape(atlas)[1:3] - 1, tf.float32)
    corners = []
    for row in range(SAMPLES_PER_BIN):
        for column in range(SAMPLES_PER_BIN):
            first = scaled[..., :2] + (row + 0.5, column + 0.5) * step + origin
            last = first + SAMPLES_PER_BIN * (output_size - 1) * step
            corners.append(
                tf.reshape(tf.concat([first / last_index, last / last_index], axis=-1), [-1, 4])
            )
    pooled = _mean_of_crops(atlas, corners, tf.repeat(tf.range(batch), num_regions), output_size)
    static = [*scaled.shape[:2], output_size, output_size, atlas.shape[-1]]
    return tf.ensure_shape(tf.reshape(pooled, [batch, num_regions, *static[2:]]), static)


def _mean_of_crops(images, all_corners, index, size):
    """Returns the mean of several crops of each region, one sample a cell.

    One crop follows the other, here and in the gradient, so that all samples of a bin are never
    held at once: they are several times as large as the result.

    Args:
        images: float32 [B, H, W, C].
        all_corners: list of float32 [N, 4], of each crop, as of `tf.image.crop_and_resize`.
        index: int32 [N], the image of each region.
        size: int P, side of a crop.

    Returns:
        float32 [N, P, P, C].
    """

    def sum_in_turn(compute):
        total = compute(all_corners[0])
        for corners in all_corners[1:]:
            total += compute(ordering.run_after(corners, total))
        return total

    @tf.custom_gradient
    def mean(images):
        def crop(corners):
            return tf.image.crop_and_resize(images, corners, index, [size, size])

        def gradient(upstream):
            """Adds the crops' gradients into a map of the images' size."""
            share = upstream / len(all_corners)

            def spread(corners):
                return tf.raw_ops.CropAndResizeGradImage(
                    grads=share,
                    boxes=corners,
                    box_ind=index,
                    image_size=tf.shape(images),
                    T=tf.float32,
                )

            # TensorFlow's optimizer would join this sum with that of other calls, and hold all that
            # it adds. It does not look beyond this operation, which copies nothing.
            return tf.ensure_shape(sum_in_turn(spread), images.shape)

        return sum_in_turn(crop) / len(all_corners), gradient

    return mean(images)


def _atlas(maps, contents):
    """Lays the levels' maps on top of each other, so that one kernel call serves all of them.

    Args:
        maps: list of [B, H_l, W_l, C], the widest first, 0 beyond the content.
        contents: list of `ops.content.Content` of them, or of None where they are filled.

    Returns:
        float32 [B, H, W, C] (the kernel has no bfloat16 and returns float32 for every type), and
        int32 [L], the row where each map starts. On each side of the content one row and column are
        repeated, for samples may lie half a cell outside.
    """
    padded = [
        _repeat_border(tf.cast(each, tf.float32), content)
        for each, content in zip(maps, contents, strict=True)
    ]
    heights = tf.stack([tf.shape(each)[1] for each in padded])
    width = tf.shape(padded[0])[2]
    rows = [
        tf.pad(each, [[0, 0], [0, 0], [0, width - tf.shape(each)[2]], [0, 0]]) for each in padded
    ]
    return tf.concat(rows, axis=1), tf.cumsum(heights, exclusive=True)


def _repeat_border(maps, content):
    """Pads maps [B, H, W, C] by one on each side, and repeats the border of the content there."""
    if not content:
        return tf.pad(maps, [[0, 0], [1, 1], [1, 1], [0, 0]], "SYMMETRIC")
    maps = tf.pad(maps, [[0, 0], [1, 0], [1, 0], [0, 0]], "SYMMETRIC")
    for axis in (1, 2):
        here, shifted = [[0, 0] for _ in range(4)], [[0, 0] for _ in range(4)]
        here[axis], shifted[axis] = [0, 1], [1, 0]
        # In the padded map: the first cell beyond the content, which repeats the last one inside.
        beyond = content.sizes[:, axis - 1, tf.newaxis] + 1
        is_border = tf.range(tf.shape(maps)[axis] + 1) == beyond
        shape = [tf.shape(maps)[0], 1, 1, 1]
        shape[axis] = -1
        is_border = tf.reshape(tf.cast(is_border, maps.dtype), shape)
        maps = tf.pad(maps, here) + tf.pad(maps, shifted) * is_border
    return maps


def lay_out_cells(maps):
    """Puts the cells of all levels into one row, so that a single gather reads from all of them.

    Args:
        maps: list of [B, H_l, W_l, C].

    Returns:
        [B, cells of all levels, C], and int32 [L, 2], the heights and widths.
    """
    batch, channels = tf.shape(maps[0])[0], maps[0].shape[-1]
    sizes = tf.stack([tf.shape(each)[1:3] for each in maps])
    return tf.concat([tf.reshape(each, [batch, -1, channels]) for each in maps], axis=1), sizes


class _Cells:
    """Cells of all levels, whose gradients of several calls go into one array, one after the other.

    That array is float32, for a cell takes part in hundreds of samples. Of each call its own would
    be as large.
    """

    def __init__(self, cells, is_fused):
        """Takes [B, cells of all levels, C], of `lay_out_cells`, and whether XLA compiles it."""
        self.cells, self._is_fused = cells, is_fused
        # It carries the gradients alone: what is read are the cells themselves.
        self._carrier = tf.cast(ordering.gradient_once(cells) if is_fused else cells, tf.float32)

    def reduce(self, index, function, spread):
        """Returns a function's value of some cells.

        Args:
            index: int32 [...], rows of the cells of all images.
            function: callable of the cells [..., C].
            spread: callable of the value's gradient, returns that of the cells, float32 [..., C].
        """
        channels = self.cells.shape[-1]
        flat, rows = tf.reshape(self.cells, [-1, channels]), tf.reshape(index, [-1])

        @tf.custom_gradient
        def compute(carrier):
            def gradient(upstream, sums):
                shape = tf.shape(sums)
                sums = tf.reshape(sums, [-1, channels])
                parts = tf.reshape(spread(upstream), [-1, channels])
                if self._is_fused:
                    # Adds in place, and computes each part where it is added.
                    sums = tf.tensor_scatter_nd_add(sums, rows[:, tf.newaxis], parts)
                else:
                    sums += tf.math.unsorted_segment_sum(parts, rows, tf.shape(sums)[0])
                return tf.reshape(sums, shape)

            return (function(tf.gather(flat, index)), tf.identity(carrier)), gradient

        value, carrier = compute(self._carrier)
        # What a branch of a condition makes cannot be used outside of it.
        if tf.executing_eagerly() or self._carrier.graph is tf.compat.v1.get_default_graph():
            self._carrier = carrier
        return value


def _by_gather(layout, sizes, scaled, rank, output_size):
    """Pools by a gather of every sample's four cells; arguments and result as of `_by_crops`.

    Args:
        layout: `_Cells`.
        sizes: int32 [L, 2], of `lay_out_cells`, and int32 [B, L, 2] or [1, L, 2], the content's.
        scaled: float32 [B, R, 4].
        rank: int32 [B, R].
        output_size: int P.

    Returns:
        [B, R, P, P, C], the cells' dtype.
    """
    cells = layout.cells
    batch, cells_per_image, channels = tf.shape(cells)[0], tf.shape(cells)[1], cells.shape[-1]
    sizes, own = sizes
    width = tf.gather(sizes[:, 1], rank)
    own = tf.gather(tf.broadcast_to(own, [batch, *sizes.shape]), rank, batch_dims=1)
    start = tf.gather(tf.cumsum(tf.reduce_prod(sizes, axis=1), exclusive=True), rank)
    start += tf.range(batch)[:, tf.newaxis] * cells_per_image
    row, row_weight = _samples(scaled[..., 0], scaled[..., 2], own[..., 0], output_size)
    column, column_weight = _samples(scaled[..., 1], scaled[..., 3], own[..., 1], output_size)
    index = start[..., tf.newaxis, tf.newaxis] + (
        row[..., :, tf.newaxis] * width[..., tf.newaxis, tf.newaxis] + column[..., tf.newaxis, :]
    )
    corners = 2 * SAMPLES_PER_BIN
    rows, columns = (
        tf.reshape(w, [batch, -1, output_size, corners]) for w in (row_weight, column_weight)
    )

    def weigh(values):
        values = tf.reshape(
            values, [batch, -1, output_size, corners, output_size, corners, channels]
        )
        weights = [tf.cast(each, values.dtype) for each in (rows, columns)]
        pooled = tf.einsum("brpiqjc,brpi,brqj->brpqc", values, *weights)
        # Known to the caller, and lost where the features' sizes are open.
        return tf.ensure_shape(pooled, [*scaled.shape[:2], output_size, output_size, channels])

    def spread(upstream):
        upstream = tf.cast(upstream, tf.float32)[:, :, :, tf.newaxis, :, tf.newaxis]
        parts = upstream * rows[:, :, :, :, tf.newaxis, tf.newaxis, tf.newaxis]
        return parts * columns[:, :, tf.newaxis, tf.newaxis, :, :, tf.newaxis]

    return layout.reduce(index, weigh, spread)


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
    # A padding image has no cell at all; it has no detections either.
    last = tf.maximum(size[..., tf.newaxis] - 1, 0)
    position = low[..., tf.newaxis] + fractions * (high - low)[..., tf.newaxis] - 0.5
    position = tf.clip_by_value(position, 0.0, tf.cast(last, tf.float32))
    first = tf.floor(position)
    fraction = position - first
    first = tf.cast(first, tf.int32)
    cells = tf.stack([first, tf.minimum(first + 1, last)], axis=-1)
    weights = tf.stack([1.0 - fraction, fraction], axis=-1) / SAMPLES_PER_BIN
    shape = tf.concat([tf.shape(low), [num_samples * 2]], axis=0)
    return tf.reshape(cells, shape), tf.reshape(weights, shape)
