"""Detectron2's parameters: round trips on a tiny detector, names, and what does not fit."""

import functools

import numpy as np
import pytest
import tf_keras

from rethink_tf.models.box_head import BoxHead
from rethink_tf.models.cascade import CascadeBoxHead
from rethink_tf.models.detector import MaskRCNN
from rethink_tf.models.fpn import FPN
from rethink_tf.models.keypoint_head import KeypointHead
from rethink_tf.models.mask_head import MaskHead
from rethink_tf.models.resnet import ResNet
from rethink_tf.models.rpn import RPN
from rethink_tf.weights import detectron2

NUM_CLASSES = 3


def make_detector(normalizer="gn", mask_head=True, backbone=None, keypoint_head=None):
    partial = functools.partial
    counts = dict(test_pre_nms=16, test_proposals=16)
    detector = MaskRCNN(
        NUM_CLASSES,
        backbone or partial(ResNet, 18, normalizer),
        partial(FPN, 32, normalizer),
        partial(RPN, 32, **counts),
        partial(
            BoxHead,
            num_convs=1,
            conv_channels=32,
            num_fcs=2,
            fc_channels=16,
            normalizer=normalizer,
            max_detections=8,
        ),
        partial(MaskHead, num_convs=1, channels=32, normalizer=normalizer) if mask_head else None,
        keypoint_head,
    )
    detector.create_variables()
    return detector


@pytest.fixture(scope="module")
def detector():
    tf_keras.utils.set_random_seed(1)
    return make_detector()


def invert(name, value):
    """Our array in Detectron2's form, for a BGR checkpoint: written apart from the importer."""
    swapped = [1, 0, 3, 2]  # (dy, dx, dh, dw) to (dx, dy, dw, dh)
    if "anchor_deltas" in name:
        value = value.reshape(*value.shape[:-1], -1, 4)[..., swapped].reshape(value.shape)
    if "bbox_pred" in name:
        value = value.reshape(*value.shape[:-1], NUM_CLASSES, 4)[..., swapped].reshape(value.shape)
    if "cls_score" in name:
        value = np.concatenate([value[..., 1:], value[..., :1]], axis=-1)  # background last
    if "box_head.fc1.weight" in name:
        spatial = value.reshape(7, 7, 32, -1)
        return np.einsum("yxco->ocyx", spatial).reshape(spatial.shape[-1], -1)
    if "mask_head.predictor.weight" in name:
        return value[:, :, np.newaxis, np.newaxis]
    if value.ndim == 4:
        value = np.einsum("hwio->oihw", value)  # Keras' deconvolution: h w out in to in out h w
    elif value.ndim == 2:
        value = value.T
    return value[:, ::-1] if "stem.conv1.weight" in name else value


def checkpoint(detector):
    """Returns the detector's own parameters as a Detectron2 checkpoint of a BGR model."""
    return {
        parameter.name: invert(parameter.name, parameter.variable.numpy())
        for parameter in detectron2.parameters(detector)
    }


def snapshot(detector):
    return [variable.numpy() for variable in detector.variables]


def test_round_trip(detector):
    before = snapshot(detector)
    state = checkpoint(detector)
    for variable in detector.variables:
        variable.assign(variable + 1.0)
    state["pixel_mean"] = np.array([[[103.53]], [[116.28]], [[123.675]]])
    detectron2.load(detector, {"model": state, "__author__": "a test"})
    for value, expected in zip(snapshot(detector), before, strict=True):
        np.testing.assert_array_equal(value, expected)


def test_an_rgb_checkpoint_keeps_the_order_of_the_channels(detector):
    before = snapshot(detector)
    state = checkpoint(detector)
    stem = "backbone.bottom_up.stem.conv1.weight"
    state[stem] = state[stem][:, ::-1]
    detectron2.load(detector, state, input_format="RGB")
    for value, expected in zip(snapshot(detector), before, strict=True):
        np.testing.assert_array_equal(value, expected)
    with pytest.raises(ValueError, match="BGR or RGB, got 'rgb'"):
        detectron2.parameters(detector, "rgb")


def test_every_variable_has_one_parameter(detector):
    pairs = detectron2.parameters(detector)
    names = [pair.name for pair in pairs]
    assert len(set(names)) == len(names)
    assert {id(pair.variable) for pair in pairs} == {id(v) for v in detector.variables}
    assert len(pairs) == len(detector.variables)


def test_an_rpn_of_two_convolutions(detector):
    rpn = RPN(32, test_pre_nms=16, test_proposals=16, num_convs=2)
    two = MaskRCNN(
        NUM_CLASSES,
        lambda: detector.backbone,
        lambda: detector.fpn,
        lambda: rpn,
        lambda num_classes: detector.box_head,
        None,
    )
    two.create_variables()
    names = {id(pair.variable): pair.name for pair in detectron2.parameters(two)}
    for place, layer in enumerate((rpn.conv, *rpn.further_convs)):
        name = f"proposal_generator.rpn_head.conv.conv{place}"
        assert names[id(layer.kernel)] == f"{name}.weight"
        assert names[id(layer.bias)] == f"{name}.bias"


def test_the_stages_of_a_cascade(detector):
    stage = functools.partial(BoxHead, num_convs=1, conv_channels=32, fc_channels=16)
    cascade = MaskRCNN(
        NUM_CLASSES,
        lambda: detector.backbone,
        lambda: detector.fpn,
        lambda: detector.rpn,
        functools.partial(CascadeBoxHead, stage=stage),
        mask_head=None,
    )
    cascade.create_variables()
    pairs = {pair.name: pair for pair in detectron2.parameters(cascade)}
    assert {id(each.variable) for each in pairs.values()} == {
        id(each) for each in cascade.variables if each is not cascade.box_head.stages_trained
    }
    assert "roi_heads.box_head.2.conv1.norm.weight" in pairs
    logits = pairs["roi_heads.box_predictor.1.cls_score.bias"]
    assert logits.variable is cascade.box_head.stages[1].class_logits.bias
    deltas = pairs["roi_heads.box_predictor.2.bbox_pred.bias"]
    np.testing.assert_array_equal(deltas.convert(np.array([1, 0, 3, 2])), range(4))
    state = {"roi_heads.box_predictor.0.cls_score.bias": np.zeros([NUM_CLASSES + 1])}
    assert detectron2.num_classes(state) == NUM_CLASSES


def test_conversions_by_hand(detector):
    pairs = {pair.name: pair for pair in detectron2.parameters(detector)}

    def convert(name, array):
        return pairs[name].convert(np.asarray(array))

    predictor = "roi_heads.box_predictor"
    np.testing.assert_array_equal(convert(f"{predictor}.cls_score.bias", [1, 2, 3, 0]), range(4))
    # Classes stay in their order; within each, x and y change places.
    deltas = convert(f"{predictor}.bbox_pred.bias", [1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10])
    np.testing.assert_array_equal(deltas, range(12))
    # Detectron2 flattens [C, H, W], we [H, W, C]: of 2 channels, the second's cell (1, 2) of 7 x 7.
    kernel = np.zeros((5, 2 * 7 * 7))
    kernel[3, 1 * 49 + 1 * 7 + 2] = 1
    ours = convert("roi_heads.box_head.fc1.weight", kernel)
    assert np.argwhere(ours).tolist() == [[(1 * 7 + 2) * 2 + 1, 3]]
    blue = np.zeros((1, 3, 7, 7))
    blue[:, 0] = 1
    stem = convert("backbone.bottom_up.stem.conv1.weight", blue)
    assert np.argwhere(stem.any(axis=(0, 1, 3))).tolist() == [[2]]


def test_all_that_does_not_fit_is_named_at_once_and_nothing_assigned(detector):
    before = snapshot(detector)
    state = {name: array + 1.0 for name, array in checkpoint(detector).items()}
    missing = ["backbone.fpn_lateral3.weight", "roi_heads.mask_head.predictor.bias"]
    for name in missing:
        del state[name]
    state["backbone.bottom_up.res2.7.conv1.weight"] = np.zeros([1])
    misshapen = {
        "backbone.bottom_up.stem.conv1.norm.weight": np.zeros([65]),
        "backbone.fpn_output2.weight": np.zeros([32, 32, 3]),
        "proposal_generator.rpn_head.anchor_deltas.bias": np.zeros([11]),
        "roi_heads.box_head.fc1.weight": np.zeros([16, 50]),
        "roi_heads.box_predictor.cls_score.weight": np.zeros([81, 16]),
        "roi_heads.mask_head.predictor.weight": np.zeros([3, 32, 3, 3]),
    }
    state |= misshapen
    with pytest.raises(ValueError) as raised:
        detectron2.load(detector, {"model": state})
    lines = str(raised.value).splitlines()[1:]
    assert len(lines) == len(missing) + len(misshapen) + 1
    for name in missing:
        assert f"  {name}: not in the checkpoint" in lines
    assert (
        "  backbone.bottom_up.res2.7.conv1.weight: in the checkpoint, not in the detector" in lines
    )
    for name, array in misshapen.items():
        (line,) = (line for line in lines if line.startswith(f"  {name}: "))
        assert f"shape {array.shape}" in line
    for value, expected in zip(snapshot(detector), before, strict=True):
        np.testing.assert_array_equal(value, expected)


def test_constants_of_a_checkpoint_are_no_parameters_but_its_anchors_are_compared(detector):
    # Detectron2's own numbers for 32 pixels and the ratios 0.5, 1 and 2: (x1, y1, x2, y2).
    anchors = np.array(
        [
            [-22.627417, -11.313708, 22.627417, 11.313708],
            [-16.0, -16.0, 16.0, 16.0],
            [-11.313708, -22.627417, 11.313708, 22.627417],
        ]
    )
    name = "proposal_generator.anchor_generator.cell_anchors"
    levels = {f"{name}.{level}": anchors * 2**level for level in range(5)}
    state = checkpoint(detector) | {"pixel_mean": np.zeros([3, 1, 1])}
    detectron2.load(detector, state | {"pixel_std": np.ones([3, 1, 1])} | levels)
    other = levels | {f"{name}.0": anchors[:, [1, 0, 3, 2]], f"{name}.5": anchors}
    del other[f"{name}.4"]
    with pytest.raises(ValueError) as raised:
        detectron2.load(detector, state | other)
    lines = str(raised.value).splitlines()[1:]
    assert [line.split(":")[0].strip() for line in lines] == [f"{name}.{k}" for k in (0, 4, 5)]
    assert "23x45, 32x32, 45x23 pixels" in lines[0] and "RPN.aspect_ratios" in lines[0]


@pytest.mark.parametrize("normalizer", ["syncbn", "frozen_bn"])
def test_batch_normalization(normalizer):
    detector = make_detector(normalizer, mask_head=False)
    for variable in detector.variables:
        if "moving" in variable.name:
            variable.assign(np.random.default_rng(0).uniform(1, 2, variable.shape))
    before, state = snapshot(detector), checkpoint(detector)
    norm = "backbone.bottom_up.res3.0.shortcut.norm"
    assert [name for name in state if name.startswith(norm)] == [
        f"{norm}.{part}" for part in ("weight", "bias", "running_mean", "running_var")
    ]
    assert not any("mask_head" in name for name in state)
    # PyTorch's own counter, which a synchronised model's checkpoint holds too.
    state |= {
        name.replace("running_mean", "num_batches_tracked"): np.array(90_000)
        for name in state
        if name.endswith("running_mean")
    }
    for variable in detector.variables:
        variable.assign(variable + 1.0)
    detectron2.load(detector, state)
    for value, expected in zip(snapshot(detector), before, strict=True):
        np.testing.assert_array_equal(value, expected)


def test_the_normalization_of_the_backbone_is_the_checkpoints(detector):
    synchronised = make_detector("syncbn", mask_head=False)
    with pytest.raises(ValueError, match="has batch normalization, .* Bind NORMALIZER='syncbn'"):
        detectron2.load(detector, checkpoint(synchronised))
    with pytest.raises(ValueError, match="another one, without statistics: bind NORMALIZER='gn'"):
        detectron2.load(synchronised, checkpoint(detector))


def test_without_normalization_every_convolution_has_a_bias():
    names = checkpoint(make_detector("none", mask_head=False))
    assert not any(".norm." in name for name in names)
    assert "backbone.bottom_up.res5.1.conv2.bias" in names and "backbone.fpn_output5.bias" in names


def test_resnext():
    """Its grouped kernels have the channels of one group there too."""
    backbone = functools.partial(ResNet, 50, groups=32, width_per_group=4)
    detector = make_detector(mask_head=False, backbone=backbone)
    before, state = snapshot(detector), checkpoint(detector)
    assert state["backbone.bottom_up.res2.0.conv2.weight"].shape == (128, 4, 3, 3)
    assert state["backbone.bottom_up.res5.2.conv2.weight"].shape == (1024, 32, 3, 3)
    for variable in detector.variables:
        variable.assign(variable + 1.0)
    detectron2.load(detector, state)
    for value, expected in zip(snapshot(detector), before, strict=True):
        np.testing.assert_array_equal(value, expected)


def test_keypoint_head():
    head = functools.partial(KeypointHead, num_convs=2, channels=32, normalizer="none")
    detector = make_detector("none", mask_head=False, keypoint_head=head)
    before, state = snapshot(detector), checkpoint(detector)
    name = "roi_heads.keypoint_head"
    shapes = {key: value.shape for key, value in state.items() if key.startswith(name)}
    assert shapes == {
        f"{name}.conv_fcn1.weight": (32, 32, 3, 3),
        f"{name}.conv_fcn1.bias": (32,),
        f"{name}.conv_fcn2.weight": (32, 32, 3, 3),
        f"{name}.conv_fcn2.bias": (32,),
        f"{name}.score_lowres.weight": (32, 17, 4, 4),
        f"{name}.score_lowres.bias": (17,),
    }
    assert detectron2.num_keypoints({"model": state}) == 17
    for variable in detector.variables:
        variable.assign(variable + 1.0)
    detectron2.load(detector, state)
    for value, expected in zip(snapshot(detector), before, strict=True):
        np.testing.assert_array_equal(value, expected)


def test_number_of_classes(detector):
    state = checkpoint(detector)
    assert detectron2.num_classes(state) == detectron2.num_classes({"model": state}) == 3
    with pytest.raises(ValueError, match="cls_score.bias.*not one of a Detectron2 detector"):
        detectron2.num_classes({"model": {"conv1_w": np.zeros(3)}})
    assert detectron2.num_keypoints({"model": state}) == 0
