"""ResNet: shapes, parameters, and where the strides are."""

import numpy as np
import pytest
import tensorflow as tf

from rethink_tf.models.resnet import ResNet

# torchvision's resnets without their classifier (1000 x 513 or 1000 x 2049 parameters). Group
# normalization has as many parameters as batch normalization trains.
PARAMETERS = {18: 11_176_512, 34: 21_284_672, 50: 23_508_032, 101: 42_500_160, 152: 58_143_808}


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
