"""ResNet and ResNeXt: the stem and the four stages, whose outputs have strides 4, 8, 16 and 32.

Sources: He et al. 2015, arXiv:1512.03385, table 1; Xie et al. 2016, arXiv:1611.05431, table 1, for
ResNeXt, whose 3x3 convolutions are grouped. The stride of a bottleneck sits in its 3x3 convolution,
as in Detectron's GroupNorm models, unless pre-trained weights want it elsewhere. Kernels have
`conv.msra`, as in Detectron2; Detectron's have Caffe2's Xavier.
"""

import functools

import gin
import tensorflow as tf
import tf_keras

from rethink_tf.layers import conv

# Blocks of each stage, and whether they are bottlenecks.
DEPTHS = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
    152: ((3, 8, 36, 3), True),
}
STEM_WIDTH = 64
BOTTLENECK_EXPANSION = 4


class _Block(tf_keras.layers.Layer):
    """A residual block: two 3x3 convolutions, or a bottleneck of 1x1, 3x3 and 1x1."""

    def __init__(
        self,
        channels,
        width,
        groups,
        strides,
        bottleneck,
        project,
        normalizer,
        stride_in_1x1,
        same_padding,
        **kwargs,
    ):
        super().__init__(**kwargs)
        in_1x1 = strides if stride_in_1x1 else 1

        def layer(filters, size, stride, relu, name, groups=1):
            options = {"groups": groups, "same_padding": same_padding, "name": name}
            return conv.ConvNorm(filters, size, stride, normalizer, relu, **options)

        self.strides = strides
        self.shortcut = layer(channels, 1, strides, False, "shortcut") if project else None
        if bottleneck:
            self.convs = [
                layer(width, 1, in_1x1, True, "conv1"),
                layer(width, 3, strides // in_1x1, True, "conv2", groups),
                layer(channels, 1, 1, False, "conv3"),
            ]
        else:
            self.convs = [
                layer(width, 3, strides, True, "conv1"),
                layer(channels, 3, 1, False, "conv2"),
            ]

    def call(self, inputs, training=False, content=None):
        outputs = conv.run(self.convs, inputs, training, content)
        shortcut = [] if self.shortcut is None else [self.shortcut]
        return tf.nn.relu(outputs + conv.run(shortcut, inputs, training, content))


@gin.register
class ResNet(tf_keras.layers.Layer):
    """The backbone, with groups ResNeXt."""

    shares_fcs = False  # A classifier averages the features and has one layer more.
    coarsest_stride = 32  # Pixels.

    def __init__(
        self,
        depth=50,
        normalizer="gn",
        groups=1,
        width_per_group=64,
        blocks_per_stage=None,
        freeze_at=0,
        stride_in_1x1=False,
        same_padding=False,
        **kwargs,
    ):
        """Makes the layers.

        ResNeXt-50-32x4d is depth 50 with 32 groups of width 4, ResNeXt-101-32x8d and 152-32x8d have
        32 groups of width 8.

        Args:
            depth: one of 18, 34, 50, 101, 152.
            normalizer: one of `layers.normalization.NORMALIZERS`.
            groups: int, of the 3x3 convolutions of bottlenecks.
            width_per_group: int, channels of each group in the first stage; every further stage has
                twice as many.
            blocks_per_stage: four ints, in place of those of the depth, which then says what the
                blocks are alone; None for those of the depth.
            freeze_at: int, how many parts keep the weights that they start from: 0 none, 1 the
                stem, 2 the stem and stage 2, up to 5 for all. See `conv.freeze`.
            stride_in_1x1: bool, whether the stride of a bottleneck sits in its first 1x1
                convolution, as in He et al. 2015 and Keras Applications, and not in its 3x3 one.
            same_padding: bool, whether strided convolutions and the pooling have TensorFlow's
                padding "same", as in Model Garden, and not one that is equal on all sides, as in
                Caffe2, PyTorch and Keras Applications. See `conv.Conv2D`.
            **kwargs: of the Keras layer.

        Raises:
            ValueError: if the depth is not one of the above, a number is below 1, there are not
                four numbers of blocks, a depth without bottlenecks is to have groups, a width of
                its own or its stride in a 1x1 convolution, or freeze_at is not one of the above.
        """
        super().__init__(**kwargs)
        _check(depth, groups, width_per_group, blocks_per_stage, stride_in_1x1)
        counts, bottleneck = DEPTHS[depth]
        counts = counts if blocks_per_stage is None else blocks_per_stage
        # Its ReLU comes after the pooling, see `_pool`.
        self.stem = conv.ConvNorm(
            STEM_WIDTH, 7, 2, normalizer, relu=False, same_padding=same_padding, name="stem"
        )
        self.stride_in_1x1, self.same_padding = stride_in_1x1, same_padding
        block = functools.partial(
            _Block,
            groups=groups,
            bottleneck=bottleneck,
            normalizer=normalizer,
            stride_in_1x1=stride_in_1x1,
            same_padding=same_padding,
        )
        self.stages = [
            _make_stage(index, count, groups * width_per_group, bottleneck, block)
            for index, count in enumerate(counts)
        ]
        self.freeze_at = freeze_at
        conv.freeze("ResNet", [[self.stem], *self.stages], freeze_at)

    def call(self, images, training=False, content=None):
        """Computes the feature maps.

        Args:
            images: floating [B, H, W, 3], normalized; H and W multiples of 32.
            training: bool.
            content: `ops.content.Content` of the images, multiples of 32; None where they fill
                H x W.

        Returns:
            dict {2: [B, H/4, W/4, C2], ..., 5: [B, H/32, W/32, C5]}.
        """
        pooled = content and content.after(4)
        pool = functools.partial(
            _pool, self.stem.conv.operations, content=pooled, same_padding=self.same_padding
        )
        trains = training and self.freeze_at < 1
        outputs = conv.run([self.stem], images, trains, content, then=pool)
        content = pooled
        features = {}
        for level, blocks in enumerate(self.stages, start=2):
            if level == self.freeze_at + 1:
                outputs = tf.stop_gradient(outputs)
            for block in blocks:
                trains = training and self.freeze_at < level
                outputs = block(outputs, training=trains, content=content)
                content = content and content.after(block.strides)
            # The gradient stops at each frozen level: the pyramid takes all of them.
            features[level] = tf.stop_gradient(outputs) if level <= self.freeze_at else outputs
        return features


def _pool(operations, outputs, content, same_padding=False):
    """ReLU and a maximum over 3x3 cells, every second one, padded as the convolutions."""
    # ReLU and maximum may change places, and after the maximum ReLU has a quarter of the work and
    # of the memory. It also lets zeros pad the maximum as minus infinity would.
    before = 0 if same_padding else 1
    outputs = tf.pad(outputs, [[0, 0], [before, 1], [before, 1], [0, 0]])
    outputs = tf.nn.relu(operations.max_pool(outputs))
    # The first maximum beyond the content is taken over its last cells, and must be 0.
    return content.keep(outputs) if content else outputs


def _make_stage(index, count, width, bottleneck, make_block):
    """Returns the blocks of one of the four stages, index 0 to 3; width is the first stage's."""
    width *= 2**index
    channels = STEM_WIDTH * 2**index * (BOTTLENECK_EXPANSION if bottleneck else 1)
    blocks = []
    for block in range(count):
        # The first stage keeps the stem's stride; its blocks widen only as bottlenecks.
        strides = 2 if block == 0 and index > 0 else 1
        project = block == 0 and (bottleneck or index > 0)
        name = f"stage{index + 2}_block{block}"
        blocks.append(make_block(channels, width, strides=strides, project=project, name=name))
    return blocks


def _check(depth, groups, width_per_group, blocks_per_stage, stride_in_1x1):
    """Raises ValueError where arguments of `ResNet` do not fit."""
    if depth not in DEPTHS:
        raise ValueError(f"ResNet: depth must be one of {sorted(DEPTHS)}, got {depth}.")
    if groups < 1 or width_per_group < 1:
        raise ValueError(
            f"ResNet: groups = {groups} and width_per_group = {width_per_group} must be at least 1."
        )
    if blocks_per_stage is not None and (len(blocks_per_stage) != 4 or min(blocks_per_stage) < 1):
        raise ValueError(
            f"ResNet: blocks_per_stage = {blocks_per_stage}: give four numbers of at least 1."
        )
    _, bottleneck = DEPTHS[depth]
    if not bottleneck and (groups, width_per_group) != (1, STEM_WIDTH):
        raise ValueError(
            f"ResNet: depth {depth} has no bottlenecks, which groups = {groups} and "
            f"width_per_group = {width_per_group} are for; take a depth of 50 or more."
        )
    if not bottleneck and stride_in_1x1:
        raise ValueError(
            f"ResNet: depth {depth} has no 1x1 convolution for the stride: drop stride_in_1x1, or "
            "take a depth of 50 or more."
        )
