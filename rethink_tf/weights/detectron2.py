"""Loads Detectron2's detection checkpoints (.pkl) into our detector.

Detectron2 stores OIHW kernels, takes BGR images, puts the background class last, and orders box
deltas (dx, dy, dw, dh); ours are HWIO, RGB, background first and (dy, dx, dh, dw).
"""

import dataclasses
import itertools
import os
from collections.abc import Callable

import numpy as np
from absl import logging

from rethink_tf.models.resnet import ResNet
from rethink_tf.ops import anchors
from rethink_tf.weights import normalizers

_BACKBONE = "backbone.bottom_up."
_CELL_ANCHORS = "proposal_generator.anchor_generator.cell_anchors."
# Constants that a checkpoint holds beside its weights. Our gin files state them; the anchors are
# compared.
CONSTANTS = ("pixel_mean", "pixel_std", _CELL_ANCHORS)
_ANCHOR_TOLERANCE = 0.05  # pixels
# PyTorch's batch normalization counts its batches; with a momentum nothing uses the number.
COUNTERS = (".norm.num_batches_tracked",)


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One parameter: its name there, our variable, and the function from its array to ours."""

    name: str
    variable: object
    convert: Callable[[np.ndarray], np.ndarray]


def parameters(detector, input_format="BGR"):
    """Pairs Detectron2's parameters with the detector's variables.

    Args:
        detector: `MaskRCNN` whose variables exist.
        input_format: "BGR" or "RGB", the channel order that the checkpoint was trained with.

    Returns:
        list of Parameter, one for every variable of the detector.

    Raises:
        ValueError: if the input format is unknown, or the detector is not one of ResNet or ResNeXt
            with FPN.
    """
    if not (isinstance(detector.backbone, ResNet) and detector.fpn):
        raise ValueError(
            "Detectron2's checkpoints are read into detectors of ResNet with FPN; this one has "
            f"{type(detector.backbone).__name__} {'with' if detector.fpn else 'without'} FPN."
        )
    pairs = resnet_parameters(detector.backbone, _BACKBONE, input_format)
    fpn = detector.fpn
    for level, lateral, output in zip(fpn.levels, fpn.laterals, fpn.outputs, strict=True):
        pairs += conv_norm(f"backbone.fpn_lateral{level}", lateral)
        pairs += conv_norm(f"backbone.fpn_output{level}", output)
    pairs += _rpn(detector.rpn) + _box_heads(detector.box_head) + _mask_head(detector.mask_head)
    return pairs + _keypoint_head(detector.keypoint_head)


def resnet_parameters(resnet, prefix="", input_format="BGR"):
    """Pairs Detectron2's parameters with the variables of a ResNet or ResNeXt.

    Args:
        resnet: `ResNet` whose variables exist.
        prefix: str, what the names begin with; in an ImageNet checkpoint nothing.
        input_format: "BGR" or "RGB".

    Returns:
        list of Parameter, one for every variable of the backbone.

    Raises:
        ValueError: if the input format is unknown.
    """
    pairs = conv_norm(f"{prefix}stem.conv1", resnet.stem)
    for level, blocks in enumerate(resnet.stages, start=2):
        for position, block in enumerate(blocks):
            name = f"{prefix}res{level}.{position}"
            if block.shortcut is not None:
                pairs += conv_norm(f"{name}.shortcut", block.shortcut)
            for index, layer in enumerate(block.convs, start=1):
                pairs += conv_norm(f"{name}.conv{index}", layer)
    return to_rgb(pairs, input_format)


def to_rgb(pairs, input_format):
    """Returns parameters of which the first, the kernel that sees the image, takes RGB.

    Args:
        pairs: list of Parameter.
        input_format: "BGR" or "RGB", what it took.

    Raises:
        ValueError: if the input format is unknown.
    """
    if input_format not in ("BGR", "RGB"):
        raise ValueError(f"The input format must be BGR or RGB, got {input_format!r}.")
    if input_format == "RGB":
        return pairs
    first = dataclasses.replace(pairs[0], convert=lambda a: _kernel(a)[:, :, ::-1])
    return [first, *pairs[1:]]


def load(detector, arrays, input_format="BGR"):
    """Assigns a checkpoint's arrays to the detector's variables, all of them or none.

    Args:
        detector: `MaskRCNN` whose variables exist.
        arrays: dict of a Detectron2 checkpoint: {"model": {name: array}}, or the inner dict.
        input_format: "BGR" or "RGB".

    Raises:
        ValueError: if a name is missing or left over, a shape differs, or the checkpoint states
            other anchors than the detector has; every one is named. Also if the backbone's
            normalization is another one.
    """
    state = arrays.get("model", arrays)
    pairs = parameters(detector, input_format)
    in_backbone = [name for name in state if name.startswith(_BACKBONE)]
    normalizers.check(detector.backbone, in_backbone)
    assign(pairs, state, _anchor_problems(detector.rpn, state))


def assign(pairs, state, further_problems=()):
    """Assigns arrays to variables, all of them or none.

    Args:
        pairs: list of Parameter.
        state: dict {name: array}; `CONSTANTS` and `COUNTERS` in it are passed over.
        further_problems: texts, for which nothing is assigned either.

    Raises:
        ValueError: as of `load`.
    """
    problems, values, known = list(further_problems), [], set()
    for pair in pairs:
        known.add(pair.name)
        if pair.name not in state:
            problems.append(f"{pair.name}: not in the checkpoint")
            continue
        array = np.asarray(state[pair.name])
        try:
            value = pair.convert(array)
        except (ValueError, IndexError):
            problems.append(f"{pair.name}: shape {array.shape} does not fit the detector")
            continue
        if tuple(value.shape) != tuple(pair.variable.shape):
            problems.append(
                f"{pair.name}: shape {array.shape} becomes {value.shape}, "
                f"the detector has {tuple(pair.variable.shape)}"
            )
        values.append((pair.variable, value))
    unused = [
        name
        for name in state
        if name not in known and not name.startswith(CONSTANTS) and not name.endswith(COUNTERS)
    ]
    problems += [f"{name}: in the checkpoint, not in the detector" for name in unused]
    if problems:
        raise ValueError(
            "The checkpoint does not fit the detector that the gin files describe:\n  "
            + "\n  ".join(problems)
        )
    for variable, value in values:
        variable.assign(value)
    _log_parts(pairs)


def _log_parts(pairs):
    """Says what went where: a line for every part of the detector, and stage of a ResNet."""
    for part, group in itertools.groupby(pairs, lambda pair: _part(pair.variable)):
        group = list(group)
        logging.info(
            "%s*: %d arrays, %s numbers, into %s",
            os.path.commonprefix([pair.name for pair in group]),
            len(group),
            f"{sum(np.prod(pair.variable.shape, dtype=int) for pair in group):,}",
            part,
        )


def _part(variable):
    """Returns the detector's part that a variable is of, by its name."""
    layer, rest = variable.name.split("/")[:2]
    return f"{layer}/{rest.partition('_')[0]}" if rest.startswith(("stem", "stage")) else layer


def _anchor_problems(rpn, state):
    """Yields how the anchors that a checkpoint states differ from the detector's."""
    stated = {name for name in state if name.startswith(_CELL_ANCHORS)}
    for position, sizes in enumerate(rpn.anchor_sizes if stated else ()):
        name = f"{_CELL_ANCHORS}{position}"
        ours = anchors.cell_anchors(sizes, rpn.aspect_ratios)[:, [1, 0, 3, 2]]
        theirs = np.asarray(state[name]) if name in state else np.zeros([0, 4])
        stated.discard(name)
        if theirs.shape != ours.shape or np.abs(theirs - ours).max() > _ANCHOR_TOLERANCE:
            yield (
                f"{name}: anchors of {_sides(theirs)} pixels (width x height), the detector has "
                f"{_sides(ours)}: bind RPN.anchor_sizes, RPN.anchor_scale or RPN.aspect_ratios"
            )
    for name in sorted(stated):
        yield f"{name}: anchors of {_sides(state[name])} pixels, of a level the detector has not"


def _sides(boxes):
    """The sides of boxes (x1, y1, x2, y2) as a text."""
    boxes = np.reshape(boxes, [-1, 4])
    sides = np.round(boxes[:, 2:] - boxes[:, :2]).astype(int)
    return ", ".join(f"{width}x{height}" for width, height in sides.tolist()) or "no"


def num_classes(arrays):
    """Returns the number of object classes of a checkpoint.

    Args:
        arrays: as of `load`.

    Raises:
        ValueError: if there is no box predictor in it.
    """
    state = arrays.get("model", arrays)
    # A cascade numbers its stages.
    for name in (
        "roi_heads.box_predictor.0.cls_score.bias",
        "roi_heads.box_predictor.cls_score.bias",
    ):
        if name in state:
            return len(state[name]) - 1
    raise ValueError(
        f"No {name} in the checkpoint: it is not one of a Detectron2 detector. It is no ImageNet "
        "classifier either, for it has no stem.conv1.weight, conv1_w or conv1_1_w."
    )


def num_keypoints(arrays):
    """Returns the number of keypoints of a checkpoint, 0 for one without a keypoint head.

    Args:
        arrays: as of `load`.
    """
    return len(arrays.get("model", arrays).get("roi_heads.keypoint_head.score_lowres.bias", ()))


def _rpn(rpn):
    name = "proposal_generator.rpn_head"
    # A single convolution has no number.
    numbers = [f".conv{index}" for index in range(len(rpn.convs))] if rpn.further_convs else [""]
    convs = [
        _conv(f"{name}.conv{number}", layer)
        for number, layer in zip(numbers, rpn.convs, strict=True)
    ]
    return [
        *itertools.chain(*convs),
        *_conv(f"{name}.objectness_logits", rpn.objectness),
        Parameter(
            f"{name}.anchor_deltas.weight",
            rpn.deltas.kernel,
            lambda a: _kernel(_swap_axes_of_deltas(a)),
        ),
        Parameter(f"{name}.anchor_deltas.bias", rpn.deltas.bias, _swap_axes_of_deltas),
    ]


def _box_heads(box_head):
    if len(box_head.stages) == 1:
        return _box_head(box_head.stages[0], "")
    return [
        pair for index, head in enumerate(box_head.stages) for pair in _box_head(head, f".{index}")
    ]


def _box_head(head, stage):
    """Pairs one head; stage is what follows "box_head" and "box_predictor" in the names."""
    pairs = []
    for index, layer in enumerate(head.convs, start=1):
        pairs += conv_norm(f"roi_heads.box_head{stage}.conv{index}", layer)
    pairs += fc_parameters(f"roi_heads.box_head{stage}.fc", head)
    name, logits, deltas = f"roi_heads.box_predictor{stage}", head.class_logits, head.deltas
    return pairs + [
        Parameter(f"{name}.cls_score.weight", logits.kernel, lambda a: np.roll(a, 1, axis=0).T),
        Parameter(f"{name}.cls_score.bias", logits.bias, lambda a: np.roll(a, 1)),
        Parameter(f"{name}.bbox_pred.weight", deltas.kernel, lambda a: _swap_axes_of_deltas(a).T),
        Parameter(f"{name}.bbox_pred.bias", deltas.bias, _swap_axes_of_deltas),
    ]


def fc_parameters(prefix, head, first=1):
    """Pairs the parameters of the fully connected layers of a box head.

    Args:
        prefix: str, what their numbers follow in the names.
        head: `BoxHead` whose variables exist.
        first: int, the number of the first.

    Returns:
        list of Parameter.
    """
    pairs = []
    for index, layer in enumerate(head.fcs):
        convert = np.transpose if index else _flattened(head.roi_size)
        name = f"{prefix}{first + index}"
        pairs.append(Parameter(f"{name}.weight", layer.kernel, convert))
        pairs.append(Parameter(f"{name}.bias", layer.bias, np.asarray))
    return pairs


def _mask_head(head):
    if head is None:
        return []
    pairs, name = [], "roi_heads.mask_head"
    for index, layer in enumerate(head.convs, start=1):
        pairs += conv_norm(f"{name}.mask_fcn{index}", layer)
    return pairs + [
        Parameter(f"{name}.deconv.weight", head.upsample_kernel, _kernel),
        Parameter(f"{name}.deconv.bias", head.upsample_bias, np.asarray),
        Parameter(f"{name}.predictor.weight", head.kernel, lambda a: a.reshape(a.shape[:2])),
        Parameter(f"{name}.predictor.bias", head.bias, np.asarray),
    ]


def _keypoint_head(head):
    if head is None:
        return []
    pairs, name = [], "roi_heads.keypoint_head"
    for index, layer in enumerate(head.convs, start=1):
        pairs += conv_norm(f"{name}.conv_fcn{index}", layer)
    return pairs + _conv(f"{name}.score_lowres", head.deconv)


def _conv(name, layer):
    pairs = [Parameter(f"{name}.weight", layer.kernel, _kernel)]
    if layer.use_bias:
        pairs.append(Parameter(f"{name}.bias", layer.bias, np.asarray))
    return pairs


def conv_norm(name, layer):
    """Pairs the parameters of a `ConvNorm`.

    Args:
        name: str, of the convolution; the normalization's is f"{name}.norm".
        layer: `ConvNorm` whose variables exist.

    Returns:
        list of Parameter, the kernel first.
    """
    pairs = _conv(name, layer.conv)
    if layer.norm is not None:
        pairs += [
            Parameter(f"{name}.norm.weight", layer.norm.gamma, np.asarray),
            Parameter(f"{name}.norm.bias", layer.norm.beta, np.asarray),
        ]
    if hasattr(layer.norm, "moving_mean"):
        pairs += [
            Parameter(f"{name}.norm.running_mean", layer.norm.moving_mean, np.asarray),
            Parameter(f"{name}.norm.running_var", layer.norm.moving_variance, np.asarray),
        ]
    return pairs


def _kernel(array):
    """Kernel [out, in, h, w] (of a deconvolution [in, out, h, w]) to ours, the axes reversed."""
    return np.transpose(array, (2, 3, 1, 0))


def _swap_axes_of_deltas(array):
    """Reorders the first axis' groups (dx, dy, dw, dh) to (dy, dx, dh, dw)."""
    groups = array.reshape(-1, 4, *array.shape[1:])
    return groups[:, [1, 0, 3, 2]].reshape(array.shape)


def _flattened(side):
    """Returns the function from an FC kernel over flattened [C, side, side] to [side, side, C]."""

    def convert(array):
        outputs = array.shape[0]
        spatial = array.reshape(outputs, -1, side, side)
        return np.transpose(spatial, (2, 3, 1, 0)).reshape(-1, outputs)

    return convert
