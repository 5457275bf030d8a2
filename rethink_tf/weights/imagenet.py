"""Loads ImageNet classifiers into detectors, as far as they go.

They are those that `reading` reads: of Detectron and Detectron2, torchvision and timm, Keras
Applications and Model Garden.

That is the backbone, of VGG-16 also fc6 and fc7, the first layers of the box head. Kernels and
channels are laid out as `detectron2` says. Detectron's names are Caffe2's, such as
res2_0_branch2a_gn_s; they are translated to Detectron2's, here res2.0.conv1.norm.weight, and so are
torchvision's and timm's (`torch_names`).
"""

import re

import numpy as np
from absl import logging

from rethink_tf.layers.normalization import EPSILON
from rethink_tf.models.resnet import ResNet
from rethink_tf.models.vgg import VGG16
from rethink_tf.weights import detectron2, normalizers, origins, torch_names

# The classifier's own last layer in the files' several names, and the optimizer's state.
_OTHER_NAME = re.compile(r"(pred|fc1000|fc8)_[wb]|(stem\.fc|linear)\..*|.*_momentum|lr")
_CAFFE2_NAME = re.compile(
    r"(conv1|res_conv1|res[2-5]_\d+_branch(?:1|2[abc])|conv[1-5]_[1-3]|fc[67])"
    r"_(w|b|gn_s|gn_b|bn_s|bn_b|bn_rm|bn_riv)"
)
_PARTS = {
    "w": "weight",
    "b": "bias",
    "gn_s": "norm.weight",
    "gn_b": "norm.bias",
    "bn_s": "norm.weight",
    "bn_b": "norm.bias",
    "bn_rm": "norm.running_mean",
    "bn_riv": "norm.running_var",  # the variance, whatever its name says
}
_BRANCHES = {
    "branch1": "shortcut",
    "branch2a": "conv1",
    "branch2b": "conv2",
    "branch2c": "conv3",
}


def is_classifier(arrays):
    """Tells whether a checkpoint begins at the backbone, as those of classifiers do.

    Args:
        arrays: dict of a checkpoint: {"blobs": ...} of Detectron, {"model": ...} of Detectron2, or
            the inner dict.
    """
    return not {"stem.conv1.weight", "conv1_1.weight"}.isdisjoint(_translated(arrays))


def origin_of(arrays, input_format=None):
    """Returns the `Origin` of a pickle or of safetensors by its names.

    Args:
        arrays: as of `is_classifier`.
        input_format: "BGR" or "RGB", as of `convert`, or None.
    """
    if torch_names.is_classifier(_state(arrays)):
        return origins.TORCH
    return origins.DETECTRON2_RGB if input_format == "RGB" else origins.DETECTRON


def parameters(detector, input_format="BGR"):
    """Pairs a classifier's parameters with variables of the detector.

    Args:
        detector: `MaskRCNN` whose variables exist.
        input_format: "BGR" or "RGB", the channel order that the classifier was trained with.

    Returns:
        list of `detectron2.Parameter`, one for every variable of `detector.pretrained_parts()`.

    Raises:
        ValueError: if the input format is unknown.
    """
    backbone = detector.backbone
    if not isinstance(backbone, VGG16):
        return detectron2.resnet_parameters(backbone, "", input_format)
    pairs = []
    for stage, layers in enumerate(backbone.stages, start=1):
        for index, layer in enumerate(layers, start=1):
            pairs += detectron2.conv_norm(f"conv{stage}_{index}", layer)
    pairs += detectron2.fc_parameters("fc", detector.box_head.stages[0], first=6)
    return detectron2.to_rgb(pairs, input_format)


def load(detector, arrays, origin=origins.DETECTRON):
    """Assigns a classifier's arrays to what the detector shares with it, all of them or none.

    Args:
        detector: `MaskRCNN` whose variables exist.
        arrays: as of `is_classifier`.
        origin: `Origin`.

    Raises:
        ValueError: if a name is missing or left over, or a shape differs, every one of which is
            named; if batch normalization comes without statistics; or if the backbone or its
            normalization is another one than the classifier's.
    """
    state = _translated(arrays)
    norms = [name for name in _state(arrays) if str(name).endswith("_bn_s")]
    if norms and "stem.conv1.norm.running_mean" not in state:
        raise ValueError(
            f"The batch normalization of the checkpoint, such as {norms[0]}, has a scale and a "
            "shift but no statistics, so that it cannot be trained: take a classifier with group "
            "normalization, such as Detectron's R-50-GN.pkl, or one with statistics, such as "
            "torchvision's in Detectron2's form."
        )
    _check_backbone(detector.backbone, state)
    normalizers.check(detector.backbone, state)
    origin.check(detector.backbone)
    kept = {name: value for name, value in state.items() if not _OTHER_NAME.fullmatch(name)}
    _fold_epsilon(kept, origin.norm_epsilon)
    detectron2.assign(parameters(detector, origin.input_format), kept)
    logging.info(
        "Left out, of the classifier alone: %s.",
        ", ".join(sorted(state.keys() - kept.keys())) or "nothing",
    )


def _fold_epsilon(state, epsilon):
    """Adds to the variances what the classifier's epsilon is above the detector's.

    With the moving statistics the features are the same then. Batch statistics do not see it: with
    them, as in training by SyncBN, the epsilon is the detector's.
    """
    if epsilon < EPSILON:
        raise ValueError(
            f"The epsilon of the classifier's normalization, {epsilon}, is below the detector's, "
            f"{EPSILON}: a variance could become negative. Take weights with a larger one."
        )
    if epsilon > EPSILON:
        for name in [name for name in state if name.endswith(".norm.running_var")]:
            state[name] = state[name] + np.float32(epsilon - EPSILON)


def _check_backbone(backbone, state):
    """Checks that the backbone is of the classifier's family."""
    wanted = VGG16 if "conv1_1.weight" in state else ResNet
    if isinstance(backbone, (ResNet, VGG16)) and not isinstance(backbone, wanted):
        raise ValueError(
            f"The checkpoint is of a {wanted.__name__}, and the backbone of the gin files is a "
            f"{type(backbone).__name__}: take gin files of a {wanted.__name__}, or a checkpoint of "
            "the other."
        )


def _state(arrays):
    state = arrays.get("blobs", arrays.get("model", arrays))
    return state if isinstance(state, dict) else {}


def _translated(arrays):
    """Returns {name of Detectron2: array}; names that are no layer's stay as they are."""
    state = _state(arrays)
    rename = torch_names.translate if torch_names.is_classifier(state) else _translate
    return {rename(name): np.asarray(value) for name, value in state.items()}


def _translate(name):
    match = _CAFFE2_NAME.fullmatch(str(name))
    if not match:
        return str(name)
    layer, part = match.groups()
    if layer in ("conv1", "res_conv1"):
        layer = "stem.conv1"
    elif layer.startswith("res"):
        stage, block, branch = layer.split("_")
        layer = f"{stage}.{block}.{_BRANCHES[branch]}"
    return f"{layer}.{_PARTS[part]}"
