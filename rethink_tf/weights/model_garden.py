"""Reads the ResNet of Model Garden's TensorFlow checkpoints (`official.vision`).

The backbone is taken, of a classifier or of a detector. Of its Mask R-CNN no more is: its pyramid
normalizes its outputs alone and makes the coarsest level by a convolution, and its RPN has a
normalization for every level; the detector has neither.

A checkpoint names variables by their place in the graph of objects, such as
model/backbone/layer_with_weights-2/_conv1/kernel: 0 and 1 are the stem's convolution and
normalization, then come the blocks in their order. A block begins a stage where it has a shortcut
with weights. The arrays get Detectron2's names and layouts. The optimizer's are left out.
"""

import re

import numpy as np
import tensorflow as tf

_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
_STEM = "layer_with_weights-0/kernel"
_FIRST_BLOCK = "layer_with_weights-2/_conv1/kernel"
_NAME = re.compile(
    r"layer_with_weights-(\d+)/(?:(_conv|_norm)([0-3])/|(_shortcut)/)?"
    r"(kernel|gamma|beta|moving_mean|moving_variance)"
)
_PARTS = {
    "kernel": "weight",
    "gamma": "norm.weight",
    "beta": "norm.bias",
    "moving_mean": "norm.running_mean",
    "moving_variance": "norm.running_var",
}


def load_arrays(path):
    """Reads the arrays of the backbone.

    Args:
        path: str, of the checkpoint, without ".index".

    Returns:
        dict {Detectron2's name: array}, in Detectron2's layouts; what is not the plain ResNet's
        keeps its name.

    Raises:
        ValueError: if it cannot be read or has no such backbone.
    """
    try:
        reader = tf.train.load_checkpoint(path)
        keys = [key.removesuffix(_VALUE) for key in reader.get_variable_to_shape_map()]
        prefix = _find_backbone(path, keys)
        names = [
            key.removeprefix(prefix)
            for key in keys
            if key.startswith(prefix + "layer_with_weights-") and ".OPTIMIZER_SLOT" not in key
        ]
        arrays = {name: reader.get_tensor(prefix + name + _VALUE) for name in sorted(names)}
    except ValueError:
        raise
    except Exception as error:  # TensorFlow raises one of many.
        raise ValueError(
            f"{path} cannot be read as a TensorFlow checkpoint ({str(error)[:200]}); get its "
            ".index and .data files again"
        ) from error
    return _translate(arrays)


def _find_backbone(path, keys):
    """Returns what the names of the backbone's variables begin with."""
    found = set(keys)
    prefixes = [
        key.removesuffix(_STEM)
        for key in keys
        if key.endswith(_STEM) and key.removesuffix(_STEM) + _FIRST_BLOCK in found
    ]
    if len(prefixes) != 1:
        raise ValueError(
            f"{path} has {len(prefixes)} ResNets of Model Garden, with {_STEM} and {_FIRST_BLOCK}: "
            "give a checkpoint of official.vision.modeling.backbones.ResNet, or of a model with "
            "one. (One of this project is for run.init_checkpoint as it is.)"
        )
    return prefixes[0]


def _translate(arrays):
    """Returns the arrays under Detectron2's names and layouts."""
    places = sorted({int(match[1]) for name in arrays if (match := _NAME.fullmatch(name))})
    names, stage, block = {0: "stem.conv1", 1: "stem.conv1"}, 1, 0
    for place in places[2:]:
        begins = f"layer_with_weights-{place}/_shortcut/kernel" in arrays
        stage, block = (stage + 1, 0) if begins else (stage, block + 1)
        names[place] = f"res{stage}.{block}"
    state = {}
    for name, array in arrays.items():
        match = _NAME.fullmatch(name)
        if not match:
            state[name] = array
            continue
        place, kind, index, shortcut, part = match.groups()
        layer = names[int(place)]
        if kind or shortcut:
            layer += ".shortcut" if shortcut or index == "0" else f".conv{index}"
        state[f"{layer}.{_PARTS[part]}"] = (
            array.transpose(3, 2, 0, 1) if np.ndim(array) == 4 else array
        )
    return state
