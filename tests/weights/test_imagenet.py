"""Classifiers of Detectron, Detectron2, torchvision and timm: names, layout, refusals."""

import re
import struct

import numpy as np
import pytest
import safetensors.numpy
import tensorflow as tf
import tf_keras
import torch_writer
from pretrained_detector import SHALLOW, make_detector

from rethink_tf.models.vgg import VGG16
from rethink_tf.training import checkpoints
from rethink_tf.weights import conversion, imagenet, origins, reading, torch_names

FORMATS = {"detectron": None, "detectron2": "RGB"}
BRANCHES = {"branch2a": "conv1", "branch2b": "conv2", "branch2c": "conv3", "branch1": "shortcut"}


@pytest.fixture(scope="module")
def detector():
    tf_keras.utils.set_random_seed(1)
    return make_detector()


def caffe2_resnet(norm="gn"):
    """Returns made-up {"blobs": ...} of Detectron, with the names and shapes of its R-50-GN.pkl."""
    generator, blobs = np.random.default_rng(1), {}

    def add(name, inputs, outputs, size, normalization=None):
        blobs[f"{name}_w"] = generator.normal(size=(outputs, inputs, size, size)).astype("f")
        for part in "sb":
            array = generator.normal(size=outputs).astype("f")
            blobs[f"{normalization or name}_{norm}_{part}"] = array

    add("conv1", 3, 64, 7, "res_conv1" if norm == "bn" else None)
    inputs = 64
    for stage, blocks in enumerate(SHALLOW["blocks_per_stage"]):
        width = 64 * 2**stage
        for block in range(blocks):
            name = f"res{stage + 2}_{block}"
            add(f"{name}_branch2a", inputs, width, 1)
            add(f"{name}_branch2b", width, width, 3)
            add(f"{name}_branch2c", width, 4 * width, 1)
            if block == 0:
                add(f"{name}_branch1", inputs, 4 * width, 1)
            inputs = 4 * width
    blobs |= {"pred_w": np.zeros([1000, 2048], "f"), "pred_b": np.zeros([1000], "f")}
    blobs["conv1_w_momentum"] = np.zeros([64, 3, 7, 7], "f")
    return {"blobs": blobs}


def to_detectron2(arrays):
    """The same with Detectron2's names, by replacement apart from the importer's own."""
    state = {}
    for name, array in arrays["blobs"].items():
        name = name.replace("pred_w", "stem.fc.weight").replace("pred_b", "stem.fc.bias")
        name = name.replace("_gn_s", ".norm.weight").replace("_gn_b", ".norm.bias")
        name = name.removesuffix("_w") + ".weight" if name.endswith("_w") else name
        for branch, layer in BRANCHES.items():
            name = name.replace(f"_{branch}", f".{layer}")
        if name.startswith("res"):
            name = f"{name[:4]}.{name[5:]}"
        state["stem." + name if name.startswith("conv1") else name] = array
    return {"model": state, "__author__": "a test", "matching_heuristics": True}


def snapshot(layer):
    return [variable.numpy() for variable in layer.variables]


def check_resnet(backbone, blobs, rgb=False):
    """Compares by another path than names: a few layers by hand."""
    block = backbone.stages[0][1]
    for layer, name in (
        (block.convs[0], "res2_1_branch2a"),
        (block.convs[2], "res2_1_branch2c"),
        (backbone.stages[3][0].convs[1], "res5_0_branch2b"),
        (backbone.stages[2][0].shortcut, "res4_0_branch1"),
    ):
        np.testing.assert_array_equal(
            layer.conv.kernel, np.einsum("oihw->hwio", blobs[f"{name}_w"])
        )
        np.testing.assert_array_equal(layer.norm.gamma, blobs[f"{name}_gn_s"])
        np.testing.assert_array_equal(layer.norm.beta, blobs[f"{name}_gn_b"])
    stem = np.einsum("oihw->hwio", blobs["conv1_w"])
    np.testing.assert_array_equal(backbone.stem.conv.kernel, stem if rgb else stem[:, :, ::-1])
    np.testing.assert_array_equal(backbone.stem.norm.gamma, blobs["conv1_gn_s"])


@pytest.mark.parametrize("form", ["detectron", "detectron2"])
def test_the_backbone_is_read_and_nothing_else(detector, form):
    arrays = caffe2_resnet()
    assert imagenet.is_classifier(arrays)
    for variable in detector.backbone.variables:
        variable.assign(tf.zeros_like(variable))
    others = [detector.fpn, detector.rpn, detector.box_head, detector.mask_head]
    before = [snapshot(layer) for layer in others]
    given = arrays if form == "detectron" else to_detectron2(arrays)
    assert imagenet.is_classifier(given)
    imagenet.load(detector, given, imagenet.origin_of(given, FORMATS[form]))
    check_resnet(detector.backbone, arrays["blobs"], rgb=form == "detectron2")
    for layer, expected in zip(others, before, strict=True):
        for value, old in zip(snapshot(layer), expected, strict=True):
            np.testing.assert_array_equal(value, old)


def test_what_does_not_fit_is_named_and_nothing_assigned(detector):
    arrays = caffe2_resnet()
    del arrays["blobs"]["res3_0_branch2b_w"]
    arrays["blobs"]["res2_2_branch2a_w"] = np.zeros([64, 256, 1, 1], "f")
    before = snapshot(detector.backbone)
    with pytest.raises(ValueError) as raised:
        imagenet.load(detector, arrays)
    assert str(raised.value).splitlines()[1:] == [
        "  res3.0.conv2.weight: not in the checkpoint",
        "  res2.2.conv1.weight: in the checkpoint, not in the detector",
    ]
    for value, old in zip(snapshot(detector.backbone), before, strict=True):
        np.testing.assert_array_equal(value, old)
    assert not imagenet.is_classifier({"model": {"backbone.bottom_up.stem.conv1.weight": 0}})
    assert not imagenet.is_classifier({"blobs": None})


def test_batch_normalization_needs_its_statistics(detector):
    arrays = caffe2_resnet("bn")
    with pytest.raises(ValueError, match="such as res_conv1_bn_s, has .* no statistics.*R-50-GN"):
        imagenet.load(detector, arrays)
    arrays["blobs"] |= {
        name.removesuffix("s") + part: np.full_like(array, value)
        for name, array in arrays["blobs"].items()
        if name.endswith("_bn_s")
        for part, value in (("rm", 3.0), ("riv", 5.0))
    }
    with pytest.raises(ValueError, match=r"has batch normalization, with statistics, .*syncbn"):
        imagenet.load(detector, arrays)
    synchronised = make_detector("syncbn")
    with pytest.raises(ValueError, match=r"another one, without statistics: bind NORMALIZER='gn'"):
        imagenet.load(synchronised, caffe2_resnet("gn"))
    imagenet.load(synchronised, arrays)
    norm = synchronised.backbone.stages[1][0].convs[1].norm
    assert (norm.moving_mean.numpy() == 3.0).all() and (norm.moving_variance.numpy() == 5.0).all()
    np.testing.assert_array_equal(norm.gamma, arrays["blobs"]["res3_0_branch2b_bn_s"])


def test_vgg16_with_its_fully_connected_layers():
    detector, generator = make_detector(backbone=VGG16), np.random.default_rng(1)
    blobs, inputs = {"fc8_w": np.zeros([1000, 16], "f"), "fc8_b": np.zeros([1000], "f")}, 3
    for stage, (count, channels) in enumerate(((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)), 1):
        for index in range(1, count + 1):
            name = f"conv{stage}_{index}"
            blobs[f"{name}_w"] = generator.normal(size=(channels, inputs, 3, 3)).astype("f")
            blobs[f"{name}_b"] = generator.normal(size=channels).astype("f")
            inputs = channels
    for name, inputs in (("fc6", 7 * 7 * 512), ("fc7", 16)):
        blobs[f"{name}_w"] = generator.normal(size=(16, inputs)).astype("f")
        blobs[f"{name}_b"] = generator.normal(size=16).astype("f")
    deltas = detector.box_head.deltas.kernel.numpy()
    imagenet.load(detector, {"blobs": blobs})
    stages, (fc6, fc7) = detector.backbone.stages, detector.box_head.fcs
    first, last = stages[0][0].conv, stages[4][2].conv
    np.testing.assert_array_equal(
        first.kernel, np.einsum("oihw->hwio", blobs["conv1_1_w"])[:, :, ::-1]
    )
    np.testing.assert_array_equal(last.kernel, np.einsum("oihw->hwio", blobs["conv5_3_w"]))
    np.testing.assert_array_equal(last.bias, blobs["conv5_3_b"])
    spatial = np.reshape(fc6.kernel, (7, 7, 512, 16))
    np.testing.assert_array_equal(np.einsum("hwco->ochw", spatial).reshape(16, -1), blobs["fc6_w"])
    np.testing.assert_array_equal(np.transpose(fc7.kernel), blobs["fc7_w"])
    np.testing.assert_array_equal(detector.box_head.deltas.kernel, deltas)


def to_torch(arrays):
    """The same with the names of torchvision and timm, whose first kernel takes RGB."""
    state = {}
    for name, array in arrays["blobs"].items():
        if name.endswith("momentum"):
            continue
        layer, part = re.fullmatch(r"(.*?)_((?:gn_|bn_)?(?:s|b|rm|riv|w))", name).groups()
        kind = "bn" if part[1:2] == "n" else "conv"
        parts = {"w": "weight", "s": "weight", "b": "bias", "rm": "running_mean"}
        part = parts.get(part.rpartition("_")[2], "running_var")
        if layer == "pred":
            state[f"fc.{part}"] = array
        elif layer in ("conv1", "res_conv1"):
            state[f"{kind}1.{part}"] = array[:, ::-1] if kind == "conv" else array
        else:
            stage, block, branch = layer.split("_")
            place = {"branch2a": "1", "branch2b": "2", "branch2c": "3"}.get(branch)
            own = f"{kind}{place}" if place else f"downsample.{int(kind == 'bn')}"
            state[f"layer{int(stage[3:]) - 1}.{block}.{own}.{part}"] = array
    return {name: np.ascontiguousarray(array) for name, array in state.items()}


def test_batch_normalization_of_torchvision(tmp_path):
    """Its counters of batches are passed over."""
    arrays = caffe2_resnet("bn")
    arrays["blobs"] |= {
        name.removesuffix("s") + part: np.full_like(array, value)
        for name, array in arrays["blobs"].items()
        if name.endswith("_bn_s")
        for part, value in (("rm", 3.0), ("riv", 5.0))
    }
    state = to_torch(arrays)
    for name in [name for name in state if name.endswith("running_var")]:
        state[name.replace("running_var", "num_batches_tracked")] = np.array(7)
    path, output = tmp_path / "resnet50.pth", str(tmp_path / "weights")
    torch_writer.save(path, {name: torch_writer.Tensor(array) for name, array in state.items()})
    conversion.convert(str(path), output, None, lambda **_: make_detector("frozen_bn"))
    detector = make_detector("frozen_bn")
    checkpoints.initialize(detector, output)
    norm = detector.backbone.stages[1][0].convs[1].norm
    assert (norm.moving_mean.numpy() == 3.0).all() and (norm.moving_variance.numpy() == 5.0).all()
    with pytest.raises(ValueError, match=f"{path}: .* Bind NORMALIZER='syncbn'"):
        conversion.convert(str(path), output, None, lambda **_: make_detector("gn"))


@pytest.mark.parametrize("form", ["safetensors", "pth"])
def test_files_of_torchs_libraries_are_known_by_their_content(tmp_path, detector, caplog, form):
    caplog.set_level("INFO", logger="absl")
    arrays, path = caffe2_resnet(), tmp_path / "model.bin"
    if form == "safetensors":
        safetensors.numpy.save_file(to_torch(arrays), path)
    else:
        state = {name: torch_writer.Tensor(array) for name, array in to_torch(arrays).items()}
        torch_writer.save(path, {"epoch": 90, "state_dict": state})
    output = str(tmp_path / "weights")
    count = conversion.convert(str(path), output, None, lambda **_: make_detector())
    assert count == len(detector.backbone.variables)
    assert "Left out, of the classifier alone: stem.fc.bias, stem.fc.weight" in caplog.text
    # Its pixels were divided by ImageNet's deviation, as those of a detector by default.
    checkpoints.initialize(detector, output)
    check_resnet(detector.backbone, arrays["blobs"])
    undivided = make_detector(pixel_std=(1.0, 1.0, 1.0))
    with pytest.raises(ValueError, match=r"divided by \(58.395, 57.12, 57.375\), .*PIXEL_STD"):
        checkpoints.initialize(undivided, output)

    # Another architecture's names are left over, all of them said.
    state = to_torch(arrays) | {"layer1.0.se.fc1.weight": np.zeros([4, 4], "f")}
    with pytest.raises(ValueError, match="layer1.0.se.fc1.weight: in the checkpoint, not in the"):
        imagenet.load(detector, state, imagenet.origin_of(state))
    assert imagenet.origin_of(state) == origins.TORCH
    assert imagenet.origin_of(arrays) == origins.DETECTRON


def test_damaged_safetensors_are_one_error(tmp_path):
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(to_torch(caffe2_resnet()), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=f"{path} cannot be read as safetensors"):
        reading.load(path)
    # A header that announces more than there is, and one that is no JSON.
    for start in (struct.pack("<Q", 2**62) + b"{", struct.pack("<Q", 9) + b"{" * 9):
        path.write_bytes(start)
        with pytest.raises(ValueError, match=f"{path} (is|cannot be read)"):
            reading.load(path)


def test_torchs_names_of_vgg16():
    convs = [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]
    found = [torch_names.translate(f"features.{place}.weight") for place in convs]
    assert found[0] == "conv1_1.weight" and found[4:7] == [f"conv3_{k}.weight" for k in (1, 2, 3)]
    assert found[-1] == "conv5_3.weight" and len(set(found)) == 13
    names = [torch_names.translate(f"classifier.{place}.bias") for place in (0, 3, 6)]
    assert names == ["fc6.bias", "fc7.bias", "linear.bias"]


def test_a_run_starts_from_it_with_all_else_random(tmp_path, detector, caplog):
    caplog.set_level("INFO", logger="absl")
    imagenet.load(detector, caffe2_resnet())
    path = str(tmp_path / "classifier")
    tf.train.Checkpoint(**detector.pretrained_parts()).write(path)
    expected = snapshot(detector.backbone)
    other = make_detector()
    others = snapshot(other.fpn) + snapshot(other.box_head)
    checkpoint, folder = tf.train.Checkpoint(model=other), str(tmp_path / "run")
    checkpoints.load_weights(checkpoint, None, folder, path, required=False)
    for value, old in zip(snapshot(other.backbone), expected, strict=True):
        np.testing.assert_array_equal(value, old)
    for value, old in zip(snapshot(other.fpn) + snapshot(other.box_head), others, strict=True):
        np.testing.assert_array_equal(value, old)
    counts = f"Read {len(expected)} of {len(other.variables)} variables from {path}"
    assert counts in caplog.text
    assert "random are those of: RPN, FPN, BoxHead, MaskHead." in caplog.text
    with pytest.raises(ValueError, match="with random RPN, FPN, BoxHead, MaskHead says"):
        checkpoints.load_weights(checkpoint, None, folder, path, required=True)
    synchronised = tf.train.Checkpoint(model=make_detector("syncbn"))
    with pytest.raises(ValueError, match=r"does not fit the detector that the gin files describe"):
        checkpoints.load_weights(synchronised, None, folder, path, required=False)
