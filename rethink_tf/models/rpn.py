"""Region proposal network: the head, its proposals, and the sample that its losses see.

Shapes: B images, L levels, A anchors a cell, N anchors an image (all levels, fine to coarse, rows
outermost), K sampled anchors, P proposals. Logits are for "object"; deltas are (dy, dx, dh, dw)
with weights 1. Constants are those of Detectron and Detectron2 with FPN (Lin et al. 2017,
arXiv:1612.03144; Ren et al. 2015, arXiv:1506.01497); where they differ: docs/constants.md.
"""

import gin
import tensorflow as tf
import tf_keras

from rethink_tf.layers import conv
from rethink_tf.ops import anchors as anchor_ops
from rethink_tf.ops import boxes as box_ops
from rethink_tf.ops import matching, nms
from rethink_tf.ops.roi_align import lay_out_cells

BOX_WEIGHTS = (1.0, 1.0, 1.0, 1.0)


@gin.register
class RPN(tf_keras.layers.Layer):
    """Convolutions shared by all levels, by default one, then logits and deltas."""

    def __init__(
        self,
        channels=256,
        min_level=2,
        anchor_sizes=((32,), (64,), (128,), (256,), (512,)),
        anchor_scale=1.0,
        aspect_ratios=(0.5, 1.0, 2.0),
        negative_below=0.3,
        positive_from=0.7,
        num_samples=256,
        positive_fraction=0.5,
        train_pre_nms=2000,
        train_proposals=2000,
        test_pre_nms=1000,
        test_proposals=1000,
        nms_threshold=0.7,
        num_convs=1,
        **kwargs,
    ):
        """Makes the layers.

        Args:
            channels: int, of the shared convolutions.
            min_level: int, the finest level; its stride is 2 ** min_level pixels.
            anchor_sizes: one tuple of sizes (pixels, square root of the area) a level.
            anchor_scale: float, what all of them are multiplied by.
            aspect_ratios: floats, height / width.
            negative_below: float, IoU below which an anchor is background.
            positive_from: float, IoU from which it is an object.
            num_samples: int K, anchors an image that enter the losses.
            positive_fraction: float, at most this share of them are objects.
            train_pre_nms: int, proposals a level before suppression, in training.
            train_proposals: int P, proposals an image after suppression, in training.
            test_pre_nms: int, the same at test.
            test_proposals: int P, the same at test.
            nms_threshold: float, IoU.
            num_convs: int >= 1, shared convolutions of 3x3.
            **kwargs: of the Keras layer.
        """
        super().__init__(autocast=False, **kwargs)
        if num_convs < 1:
            raise ValueError(f"RPN: num_convs must be at least 1, got {num_convs}.")
        if len({len(sizes) for sizes in anchor_sizes}) != 1:
            raise ValueError(f"RPN: every level needs as many anchor sizes, got {anchor_sizes}.")
        self.levels = tuple(range(min_level, min_level + len(anchor_sizes)))
        self.anchor_sizes = tuple(
            tuple(anchor_scale * size for size in sizes) for sizes in anchor_sizes
        )
        self.aspect_ratios = tuple(aspect_ratios)
        num_anchors = self._num_anchors = len(anchor_sizes[0]) * len(self.aspect_ratios)
        self.negative_below, self.positive_from = negative_below, positive_from
        self.num_samples, self.positive_fraction = num_samples, positive_fraction
        self.pre_nms = {True: train_pre_nms, False: test_pre_nms}
        self.num_proposals = {True: train_proposals, False: test_proposals}
        self.nms_threshold = nms_threshold

        self.conv = _layer(channels, 3, "conv", "relu")
        self.further_convs = [_layer(channels, 3, f"conv{k}", "relu") for k in range(1, num_convs)]
        self.objectness = _layer(num_anchors, 1, "objectness")
        self.deltas = _layer(num_anchors * 4, 1, "deltas")

    @property
    def convs(self):
        """The shared convolutions, in their order."""
        return [self.conv, *self.further_convs]

    def call(self, features, content=None):
        """Runs the head on every level.

        Args:
            features: dict {level: [B, H_l, W_l, C]}, 0 beyond the content.
            content: `ops.content.Content` of the images; None where they fill the maps.

        Returns:
            Three dicts by level: logits float32 [B, N_l], deltas float32 [B, N_l, 4] and anchors
            float32 [N_l, 4], pixels. Beyond the content logits are `nms.NO_SCORE`.

        Raises:
            ValueError: if a level of the anchors is not among the features.
        """
        logits, deltas, maps = {}, {}, {}
        for level in self.levels:
            if level not in features:
                raise ValueError(f"RPN: no features of level {level}, only of {sorted(features)}.")
            # One convolution for all levels, as in FPN: objects look alike at each level's own
            # scale.
            shared = self.conv(features[level])
            for each in self.further_convs:
                # It sees zeros beyond the content, not what the one before makes of them.
                shared = each(content.after(2**level).keep(shared) if content else shared)
            height, width = _sides(shared)
            # B stays known where it is: one image is not told from a size to broadcast.
            rows = [shared.shape[0] or -1, height * width * self._num_anchors]
            objectness = tf.cast(self.objectness(shared), tf.float32)
            if content:
                inside = content.after(2**level).mask(objectness) > 0.0
                objectness = tf.where(inside, objectness, nms.NO_SCORE)
            logits[level] = tf.reshape(objectness, rows)
            deltas[level] = tf.cast(tf.reshape(self.deltas(shared), [*rows, 4]), tf.float32)
            maps[level] = height, width
        return logits, deltas, self.make_anchors(maps)

    def make_anchors(self, maps):
        """Returns the anchors of feature maps.

        Args:
            maps: dict {level: (rows, columns)}, ints or int32 scalars.

        Returns:
            dict {level: float32 [N_l, 4]}, (y1, x1, y2, x2), pixels.
        """
        return {
            level: anchor_ops.level_anchors(*maps[level], 2**level, sizes, self.aspect_ratios)
            for level, sizes in zip(self.levels, self.anchor_sizes, strict=True)
        }

    def match(self, anchors, objects, object_valid, inside=None):
        """Says which anchors the losses may take as objects, and of which.

        Args:
            anchors: float32 [N, 4], pixels.
            objects: float32 [B, M, 4], pixels.
            object_valid: bool [B, M].
            inside: bool [B, N], whether an anchor's cell is content; None for all.

        Returns:
            labels int32 [B, N] and matches int32 [B, N], as of `matching.match`.
        """
        return matching.match(
            anchors[tf.newaxis],
            objects,
            object_valid,
            self.negative_below,
            self.positive_from,
            keep_best=True,
            candidate_valid=inside,
        )

    def propose(self, logits, deltas, anchors, image_size, training):
        """Chooses the proposals of each image: the best of every level, suppressed within it.

        P is what the settings say, whatever the shape of the batch.

        Args:
            logits: dict {level: float32 [B, N_l]}, of `call`.
            deltas: dict {level: float32 [B, N_l, 4]}.
            anchors: dict {level: float32 [N_l, 4]}.
            image_size: int32 [B, 2], (height, width), pixels.
            training: bool, which of the two sets of counts to use.

        Returns:
            boxes: float32 [B, P, 4], pixels, clipped to the image, best first; no gradient.
            valid: bool [B, P].
        """
        all_boxes, all_scores = [], []
        for level in self.levels:
            boxes, scores = self._level_proposals(
                tf.stop_gradient(logits[level]),
                tf.stop_gradient(deltas[level]),
                anchors[level],
                image_size,
                training,
            )
            all_boxes.append(boxes)
            all_scores.append(scores)
        boxes, scores = tf.concat(all_boxes, axis=1), tf.concat(all_scores, axis=1)
        scores, order = nms.top_scores(scores, self.num_proposals[training])
        valid = scores > nms.NO_SCORE
        boxes = tf.gather(boxes, order, batch_dims=1)
        return tf.where(valid[..., tf.newaxis], boxes, 0.0), valid

    def _level_proposals(self, logits, deltas, anchors, image_size, training):
        """Returns boxes [B, K, 4] and scores [B, K] of one level; NO_SCORE where there is none."""
        # A diverged head must not crash the suppression before the losses are seen and named.
        usable = tf.math.is_finite(logits) & tf.reduce_all(tf.math.is_finite(deltas), -1)
        scores = tf.where(usable, logits, nms.NO_SCORE)
        # Before the suppression, whose time and memory grow with the square of the boxes.
        scores, order = nms.top_scores(scores, self.pre_nms[training])
        boxes = box_ops.decode_boxes(
            tf.gather(deltas, order, batch_dims=1), tf.gather(anchors, order), BOX_WEIGHTS
        )
        boxes = box_ops.clip_boxes(boxes, image_size)
        keep = (scores > nms.NO_SCORE) & (box_ops.area(boxes) > 0.0)
        # A box of no area overlaps no other: it suppresses nothing.
        boxes = tf.where(keep[..., tf.newaxis], boxes, 0.0)
        scores = tf.where(keep, scores, nms.NO_SCORE)
        max_output = min(self.num_proposals[training], scores.shape[1])
        # Each level alone: a small object's proposals are not suppressed by those of a large one.
        kept, valid = nms.suppress(boxes, scores, max_output, self.nms_threshold)
        boxes = tf.gather(boxes, kept, batch_dims=1)
        return boxes, tf.where(valid, tf.gather(scores, kept, batch_dims=1), nms.NO_SCORE)

    def sample(self, features, anchors, objects, object_valid, draw, content=None):
        """Draws the anchors that enter the losses and runs the head at their cells alone.

        The losses see a few hundred of some hundred thousand anchors. A backward pass through the
        head's convolution on every cell would cost as much as a stage of the backbone, nearly all
        of it products with zero.

        Args:
            features: dict {level: [B, H_l, W_l, C]}, 0 beyond the content.
            anchors: dict {level: float32 [N_l, 4]}.
            objects: float32 [B, M, 4], pixels.
            object_valid: bool [B, M].
            draw: callable, number of draws N -> float32 [B, N] uniform.
            content: `ops.content.Content` of the images; None where they fill the maps.

        Returns:
            dict: rpn_logits float32 [B, K], rpn_labels int32 [B, K] (1, 0, -1 empty), rpn_deltas
            and rpn_delta_targets float32 [B, K, 4].
        """
        anchors = tf.concat([anchors[level] for level in self.levels], axis=0)
        draws, inside = draw(tf.shape(anchors)[0]), None
        if content:
            maps = {level: _sides(features[level]) for level in self.levels}
            positions = self.positions(maps, content)
            inside = positions >= 0
            # An anchor's draw goes by its cell of the image, which is that in every shape.
            draws = tf.gather(draws, tf.maximum(positions, 0), batch_dims=1)
        labels, matches = self.match(anchors, objects, object_valid, inside)
        indices, sampled = matching.sample(labels, draws, self.num_samples, self.positive_fraction)
        matches = tf.gather(matches, indices, batch_dims=1)
        targets = box_ops.encode_boxes(
            tf.gather(objects, matches, batch_dims=1), tf.gather(anchors, indices), BOX_WEIGHTS
        )
        logits, deltas = self._at_anchors(features, indices, content)
        return {
            "rpn_logits": logits,
            "rpn_labels": sampled,
            "rpn_deltas": deltas,
            "rpn_delta_targets": targets,
        }

    def positions(self, maps, content):
        """Returns `anchors.positions` of the anchors of feature maps.

        Args:
            maps: as of `make_anchors`.
            content: `ops.content.Content` of the images.
        """
        sizes = [content.after(2**level).sizes for level in self.levels]
        maps = [maps[level] for level in self.levels]
        return anchor_ops.positions(sizes, maps, self._num_anchors)

    def _at_anchors(self, features, indices, content=None):
        """Runs the head for some anchors: the same numbers as those of `call`, up to rounding.

        Args:
            features: dict {level: [B, H_l, W_l, C]}.
            indices: int32 [B, K] of the N anchors.
            content: as of `sample`.

        Returns:
            logits float32 [B, K] and deltas float32 [B, K, 4].
        """
        *first, last = self.convs
        cells = indices // self._num_anchors
        patches, inside = self._patches(features, cells, len(self.convs), content)
        for layer in first:
            patches = tf.nn.relu(_convolve(layer, patches))
            # The next convolution sees zeros beyond the border, not what this one makes of them.
            inside = inside[:, 1:-1, 1:-1]
            patches *= tf.cast(inside, patches.dtype)
        shape = tf.shape(indices)
        patches = tf.reshape(patches, [*tf.unstack(shape), 9 * patches.shape[-1]])
        shared = tf.nn.relu(_dense(last, patches))
        # A product with 0 and 1 in place of a gather, whose gradient would be a scatter.
        anchor = tf.one_hot(indices % self._num_anchors, self._num_anchors)
        logits = tf.cast(_dense(self.objectness, shared), tf.float32)
        deltas = tf.cast(_dense(self.deltas, shared), tf.float32)
        deltas = tf.reshape(deltas, tf.concat([tf.shape(anchor), [4]], axis=0))
        return (
            tf.reduce_sum(logits * anchor, axis=-1),
            tf.reduce_sum(deltas * anchor[..., tf.newaxis], axis=-2),
        )

    def _patches(self, features, cells, reach, content):
        """Returns the neighbourhoods of cells, zero beyond the content.

        Args:
            features: dict {level: [B, H_l, W_l, C]}.
            cells: int32 [B, K], cells of all levels, fine to coarse, rows outermost.
            reach: int r, cells to each side.
            content: as of `sample`.

        Returns:
            [B * K, 2r + 1, 2r + 1, C], the features' dtype, and bool [B * K, 2r + 1, 2r + 1, 1],
            False beyond the content.
        """
        flat, sizes = lay_out_cells([features[level] for level in self.levels])
        cells_per_image, channels = tf.shape(flat)[1], flat.shape[-1]
        starts = tf.cumsum(tf.reduce_prod(sizes, axis=1), exclusive=True)
        rank = tf.reduce_sum(tf.cast(cells[..., tf.newaxis] >= starts, tf.int32), axis=-1) - 1
        start, height, width = (
            tf.gather(each, rank)[..., tf.newaxis] for each in (starts, sizes[:, 0], sizes[:, 1])
        )
        cell = cells[..., tf.newaxis] - start
        side = 2 * reach + 1
        row = cell // width + tf.repeat(tf.range(-reach, reach + 1), side)
        column = cell % width + tf.tile(tf.range(-reach, reach + 1), [side])
        image = tf.range(tf.shape(cells)[0])[:, tf.newaxis, tf.newaxis]
        rows, columns = height, width
        if content:
            own = tf.stack([content.after(2**level).sizes for level in self.levels], axis=1)
            rows, columns = tf.split(tf.gather(own, rank, batch_dims=1), 2, axis=-1)
        inside = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
        index = image * cells_per_image + start + row * width + column
        patches = tf.gather(tf.reshape(flat, [-1, channels]), tf.where(inside, index, 0))
        patches *= tf.cast(inside, patches.dtype)[..., tf.newaxis]
        inside = tf.reshape(inside, [-1, side, side, 1])
        return tf.reshape(patches, [-1, side, side, channels]), inside


def _sides(maps):
    """Returns height and width of maps [B, H, W, C], ints where they are static."""
    dynamic = tf.unstack(tf.shape(maps)[1:3])
    return [side or sizes for side, sizes in zip(maps.shape[1:3], dynamic, strict=True)]


def _convolve(layer, inputs):
    """Applies a convolution of 3x3 without padding: [N, h, w, C] to [N, h - 2, w - 2, filters]."""
    kernel = tf.cast(layer.kernel, inputs.dtype)
    outputs = tf.nn.conv2d(inputs, kernel, strides=1, padding="VALID")
    return outputs + tf.cast(layer.bias, inputs.dtype)


def _dense(layer, inputs):
    """Applies a convolution's kernel and bias to flattened neighbourhoods [..., h * w * C]."""
    kernel = tf.cast(tf.reshape(layer.kernel, [-1, layer.filters]), inputs.dtype)
    return tf.linalg.matmul(inputs, kernel) + tf.cast(layer.bias, inputs.dtype)


def _layer(filters, size, name, activation=None):
    initializer = conv.normal(0.01)
    return conv.Conv2D(
        filters, size, kernel_initializer=initializer, activation=activation, name=name
    )
