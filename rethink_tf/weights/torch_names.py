"""The names of torchvision's and timm's ResNet, ResNeXt and VGG-16, as Detectron2 calls the same.

Both libraries have RGB pixels that ImageNet's mean and deviation have normalized, and the stride of
a bottleneck in its 3x3 convolution, as the layers here.
"""

import re

_RESNET = re.compile(r"layer([1-4])\.(\d+)\.(conv|bn)([123])\.(\w+)")
_SHORTCUT = re.compile(r"layer([1-4])\.(\d+)\.downsample\.([01])\.(\w+)")
_STEM = re.compile(r"(conv1|bn1)\.(\w+)")
_VGG = re.compile(r"(features|classifier)\.(\d+)\.(weight|bias)")
# The places of VGG-16's convolutions among its layers, pooling and ReLU in between.
_VGG_CONVS = {
    place: f"conv{stage}_{index}"
    for stage, places in enumerate(
        ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28)), start=1
    )
    for index, place in enumerate(places, start=1)
}
_VGG_FCS = {0: "fc6", 3: "fc7", 6: "linear"}
_FIRST = ("conv1.weight", "features.0.weight")


def is_classifier(names) -> bool:
    """Tells whether a checkpoint has the names of these libraries.

    Args:
        names: of its arrays.
    """
    return not set(_FIRST).isdisjoint(names) and not any("." not in name for name in names)


def translate(name: str) -> str:
    """Returns Detectron2's name of a parameter, a name that is none of them as it is."""
    if match := _RESNET.fullmatch(name):
        stage, block, kind, index, part = match.groups()
        norm = ".norm" if kind == "bn" else ""
        return f"res{int(stage) + 1}.{block}.conv{index}{norm}.{part}"
    if match := _SHORTCUT.fullmatch(name):
        stage, block, index, part = match.groups()
        norm = ".norm" if index == "1" else ""
        return f"res{int(stage) + 1}.{block}.shortcut{norm}.{part}"
    if match := _STEM.fullmatch(name):
        return f"stem.conv1{'.norm' if match[1] == 'bn1' else ''}.{match[2]}"
    if name in ("fc.weight", "fc.bias"):
        return f"stem.{name}"
    if match := _VGG.fullmatch(name):
        layers = _VGG_CONVS if match[1] == "features" else _VGG_FCS
        return f"{layers.get(int(match[2]), name)}.{match[3]}"
    return name
