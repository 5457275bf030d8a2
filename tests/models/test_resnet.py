"""ResNet and ResNeXt: shapes, parameters, and where the strides are."""

import numpy as np
import pytest
import tensorflow as tf
from detector_steps import machine_plan

from rethink_tf.models import resnet
from rethink_tf.models.resnet import ResNet
from rethink_tf.ops.content import Content

# torchvision's resnets without their classifier (1000 x 513 or 1000 x 2049 parameters). Group
# normalization has as many parameters as batch normalization trains.
PARAMETERS = {18: 11_176_512, 34: 21_284_672, 50: 23_508_032, 101: 42_500_160, 152: 58_143_808}

# Of ResNeXt: torchvision's 32x4d and 32x8d, again without their classifier of 2,049,000.
RESNEXT_PARAMETERS = {(50, 4): 25_028_904 - 2_049_000, (101, 8): 88_791_336 - 2_049_000}


@pytest.mark.parametrize("depth", PARAMETERS)
def test_parameters_and_shapes(depth):
    backbone = ResNet(depth)
    features = backbone(tf.zeros([1, 32, 64, 3]))
    assert sum(np.prod(v.shape) for v in backbone.trainable_variables) == PARAMETERS[depth]
    assert not backbone.non_trainable_variables
    expansion = 1 if depth < 50 else 4
    assert {level: tuple(feature.shape) for level, feature in features.items()} == {
        level: (1, 32 // 2**level, 64 // 2**level, 64 * 2 ** (level - 2) * expansion)
        for level in (2, 3, 4, 5)
    }


def test_the_stride_of_a_bottleneck_is_in_its_3x3_convolution():
    backbone = ResNet(50)
    strides = [layer.conv.strides for layer in backbone.stages[1][0].convs]
    assert strides == [(1, 1), (2, 2), (1, 1)]
    assert backbone.stages[1][0].shortcut.conv.strides == (2, 2)
    assert [block.shortcut is not None for block in backbone.stages[0]] == [True, False, False]
    # The last convolution of a block and the shortcut are added before the ReLU.
    assert [layer.relu for layer in backbone.stages[0][0].convs] == [True, True, False]
    assert not backbone.stages[0][0].shortcut.relu


def test_the_stride_in_the_first_1x1_convolution():
    backbone = ResNet(50, stride_in_1x1=True)
    for blocks, stride in zip(backbone.stages, (1, 2, 2, 2), strict=True):
        found = [layer.conv.strides[0] for layer in blocks[0].convs]
        assert found == [stride, 1, 1]
        assert [layer.conv.strides[0] for layer in blocks[1].convs] == [1, 1, 1]
    features = backbone(tf.zeros([1, 64, 32, 3]))
    assert {level: feature.shape[1] for level, feature in features.items()} == {
        level: 64 // 2**level for level in (2, 3, 4, 5)
    }
    with pytest.raises(ValueError, match="depth 18 has no 1x1 convolution for the stride"):
        ResNet(18, stride_in_1x1=True)


@pytest.mark.parametrize("normalizer", ["gn", "frozen_bn", "none"])
@pytest.mark.parametrize("setting", ["stride_in_1x1", "same_padding"])
def test_strides_and_padding_see_nothing_beyond_the_content(setting, normalizer):
    backbone = ResNet(50, normalizer, blocks_per_stage=(1, 1, 1, 1), **{setting: True})
    image = tf.random.stateless_normal([1, 64, 32, 3], [1, 2])
    backbone(image)
    for variable in backbone.variables:
        if variable.name.endswith(("beta:0", "bias:0")):
            variable.assign(tf.random.stateless_normal(variable.shape, [3, 4]))
    padded = tf.pad(image, [[0, 0], [0, 32], [0, 64], [0, 0]])
    content = Content.of_images(tf.constant([[64, 32]]), 32)
    for training in (False, True):
        alone, found = backbone(image, training), backbone(padded, training, content)
        for level, features in alone.items():
            rows, columns = features.shape[1:3]
            expected = np.pad(features, [(0, 0), (0, rows // 2), (0, columns * 2), (0, 0)])
            np.testing.assert_allclose(found[level], expected, rtol=1e-3, atol=1e-3)


def resnext_parameters(depth, groups, width_per_group):
    """Counts the parameters by the table of the paper: kernels, and two for every channel."""
    total, inputs = 7 * 7 * 3 * 64 + 2 * 64, 64
    for stage, blocks in enumerate(resnet.DEPTHS[depth][0]):
        width, outputs = groups * width_per_group * 2**stage, 256 * 2**stage
        total += inputs * outputs + 2 * outputs  # the shortcut
        for _ in range(blocks):
            total += inputs * width + 9 * width * width // groups + width * outputs
            total += 2 * (2 * width + outputs)
            inputs = outputs
    return total


@pytest.mark.parametrize(("depth", "width_per_group"), [(50, 4), (101, 8), (152, 8)])
def test_parameters_and_shapes_of_resnext(depth, width_per_group):
    backbone = ResNet(depth, groups=32, width_per_group=width_per_group)
    features = backbone(tf.zeros([1, 32, 64, 3]))
    count = sum(np.prod(v.shape) for v in backbone.trainable_variables)
    assert count == resnext_parameters(depth, 32, width_per_group)
    assert count == RESNEXT_PARAMETERS.get((depth, width_per_group), count)
    assert {level: feature.shape.as_list() for level, feature in features.items()} == {
        level: [1, 32 // 2**level, 64 // 2**level, 64 * 2**level] for level in (2, 3, 4, 5)
    }
    for stage, blocks in enumerate(backbone.stages):
        for block in blocks:
            first, grouped, last = (layer.conv for layer in block.convs)
            assert (first.groups, grouped.groups, last.groups) == (1, 32, 1)
            width = width_per_group * 2**stage
            assert grouped.kernel.shape == (3, 3, width, 32 * width)


@pytest.mark.parametrize("normalizer", ["gn", "syncbn"])
def test_resnext_trains(normalizer):
    backbone = ResNet(50, normalizer, groups=32, width_per_group=4)
    machine_plan().give_to(backbone)
    images = tf.random.stateless_normal([2, 32, 64, 3], [1, 2])
    backbone(images)
    with tf.GradientTape() as tape:
        features = backbone(images, training=True)
        value = tf.add_n([tf.reduce_sum(tf.square(feature)) for feature in features.values()])
    gradients = tape.gradient(value, backbone.trainable_variables)
    for variable, gradient in zip(backbone.trainable_variables, gradients, strict=True):
        assert np.isfinite(gradient).all() and np.any(gradient), variable.name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(depth=18, groups=32, width_per_group=4), "depth 18 has no bottlenecks"),
        (dict(depth=50, groups=0), "groups = 0 .* at least 1"),
        (dict(depth=50, groups=32, width_per_group=0), "width_per_group = 0 must be at least 1"),
        (dict(depth=50, groups=3, width_per_group=5), "15 channels cannot be split into 32"),
    ],
)
def test_widths_that_cannot_be_are_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        ResNet(**arguments)(tf.zeros([1, 32, 32, 3]))


def test_basic_blocks_project_where_the_stride_changes():
    backbone = ResNet(18)
    for index, blocks in enumerate(backbone.stages):
        assert [block.shortcut is not None for block in blocks] == [index > 0, False]
        assert blocks[0].convs[0].conv.strides == ((1, 1) if index == 0 else (2, 2))


@pytest.mark.parametrize("normalizer", ["syncbn", "frozen_bn", "none"])
def test_other_normalizers(normalizer):
    backbone = ResNet(18, normalizer)
    features = backbone(tf.random.stateless_normal([2, 32, 32, 3], [1, 2]), training=True)
    assert all(np.isfinite(feature).all() for feature in features.values())
    # 4,800 channels of convolutions have a scale and a shift, two constants, or a bias.
    channels, kernels = 4800, PARAMETERS[18] - 2 * 4800
    trainable = sum(np.prod(v.shape) for v in backbone.trainable_variables)
    fixed = sum(np.prod(v.shape) for v in backbone.non_trainable_variables)
    expected = {
        "syncbn": (kernels + 2 * channels, 2 * channels),
        "frozen_bn": (kernels, 4 * channels),
        "none": (kernels + channels, 0),
    }
    assert (trainable, fixed) == expected[normalizer]


def test_an_unknown_depth_is_an_error():
    with pytest.raises(ValueError, match="18, 34, 50, 101, 152.*got 20"):
        ResNet(20)
