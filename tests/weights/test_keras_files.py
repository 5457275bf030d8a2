"""Keras Applications' ResNet and VGG-16 in a detector: features are its own; refusals."""

import functools
import re
import shutil
import zipfile

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from keras.src.applications import resnet as keras_resnet
from pretrained_detector import SHALLOW, make_detector

from rethink_tf.models.resnet import ResNet
from rethink_tf.models.vgg import VGG16
from rethink_tf.training import checkpoints
from rethink_tf.weights import conversion, imagenet, reading

UNDIVIDED = (1.0, 1.0, 1.0)


def randomize(model):
    """Gives biases, scales and statistics values that are not those they start with."""
    generator = np.random.default_rng(1)
    for variable in model.weights:
        if variable.path.endswith(("gamma", "moving_variance")):
            variable.assign(generator.uniform(0.5, 1.5, variable.shape))
        elif not variable.path.endswith("kernel"):
            variable.assign(generator.normal(0.0, 0.5, variable.shape))
    return model


def make_shallow(preact=False):
    """Returns a ResNet of Keras Applications with `SHALLOW`'s blocks."""
    stack = keras_resnet.stack_residual_blocks_v1
    if preact:
        stack = keras_resnet.stack_residual_blocks_v2

    def stack_fn(x):
        for stage, count in enumerate(SHALLOW["blocks_per_stage"], start=2):
            x = stack(
                x, 16 * 2**stage, count + preact, stride1=min(stage - 1, 2), name=f"conv{stage}"
            )
        return x

    model = keras_resnet.ResNet(
        stack_fn, preact, True, include_top=True, weights=None, input_shape=(64, 64, 3), classes=5
    )
    return randomize(model)


@pytest.fixture(scope="module")
def shallow():
    keras.utils.set_random_seed(1)
    return make_shallow()


@pytest.fixture(scope="module")
def files(shallow, tmp_path_factory):
    """{form: path} of the shallow ResNet as Keras writes it."""
    folder = tmp_path_factory.mktemp("keras")
    paths = {"keras": "a.keras", "weights": "a.weights.h5", "h5": "full.h5", "old": "weights.h5"}
    paths = {form: folder / name for form, name in paths.items()}
    shallow.save(paths["keras"])
    shallow.save(paths["h5"])
    shallow.save_weights(paths["weights"])
    # Keras 2's own function for weights alone, with Keras 3's layers.
    with h5py.File(paths["old"], "w") as file:
        keras.src.legacy.saving.legacy_h5_format.save_weights_to_hdf5_group(file, shallow)
    return paths


def make_backbone(stride_in_1x1=True, normalizer="frozen_bn", **kwargs):
    kwargs = kwargs or SHALLOW
    return functools.partial(ResNet, normalizer=normalizer, stride_in_1x1=stride_in_1x1, **kwargs)


def make_resnet_detector(*args, **kwargs):
    return make_detector(fpn_backbone=make_backbone(*args, **kwargs), pixel_std=UNDIVIDED)


def assert_close(found, expected):
    """Compares to 1e-4 of the largest value."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape and np.abs(expected).max() > 0
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


def check_features(backbone, model, counts):
    pixels = np.random.default_rng(2).uniform(-120, 140, [1, 64, 64, 3]).astype("f")
    features = backbone(tf.constant(pixels))
    names = [f"conv{stage}_block{count}_out" for stage, count in enumerate(counts, start=2)]
    outputs = [model.get_layer(name).output for name in names]
    expected = keras.Model(model.input, outputs)(pixels[..., ::-1])
    for level, value in enumerate(expected, start=2):
        assert_close(features[level], value)


@pytest.mark.parametrize("form", ["keras", "weights", "h5", "old"])
def test_features_are_keras_own(files, shallow, form, tmp_path, caplog):
    caplog.set_level("INFO", logger="absl")
    path = shutil.copy(files[form], tmp_path / "model.bin")  # known by what is in it
    output = str(tmp_path / "weights")
    detector = make_resnet_detector()
    count = conversion.convert(str(path), output, None, lambda **_: make_resnet_detector())
    assert count == len(detector.backbone.variables)
    assert re.search(r"res2\.\*: 35 arrays, [\d,]+ numbers, into res_net\S*/stage2", caplog.text)
    assert "classifier alone: stem.fc.bias, stem.fc.weight" in caplog.text
    checkpoints.initialize(detector, output)
    check_features(detector.backbone, shallow, SHALLOW["blocks_per_stage"])


def test_resnet50(tmp_path):
    model = randomize(keras.applications.ResNet50(weights=None, include_top=False))
    model.save_weights(tmp_path / "resnet50.weights.h5")
    arrays, origin = reading.load(tmp_path / "resnet50.weights.h5")
    detector = make_resnet_detector(depth=50)
    imagenet.load(detector, arrays, origin)
    check_features(detector.backbone, model, (3, 4, 6, 3))


def test_vgg16_with_its_fully_connected_layers(tmp_path):
    keras.utils.set_random_seed(1)
    base = keras.applications.VGG16(weights=None, include_top=False, input_shape=(224, 224, 3))
    outputs = keras.layers.Flatten(name="flatten")(base.output)
    for name in ("fc1", "fc2"):
        outputs = keras.layers.Dense(16, "relu", name=name)(outputs)
    predictions = keras.layers.Dense(5, name="predictions")(outputs)
    model = randomize(keras.Model(base.input, predictions, name="vgg16"))
    model.save(tmp_path / "vgg16.keras")
    arrays, origin = reading.load(tmp_path / "vgg16.keras")
    detector = make_detector(backbone=VGG16, pixel_std=UNDIVIDED)
    imagenet.load(detector, arrays, origin)
    pixels = np.random.default_rng(2).uniform(-120, 140, [1, 224, 224, 3]).astype("f")
    layers = [model.get_layer(name).output for name in ("block5_conv3", "fc2")]
    expected, expected_fc7 = keras.Model(model.input, layers)(pixels[..., ::-1])
    (found,) = detector.backbone(tf.constant(pixels)).values()
    assert_close(found, expected)
    fc7 = tf.reshape(tf.nn.max_pool2d(found, 2, 2, "VALID"), [1, -1])
    for layer in detector.box_head.fcs:
        fc7 = tf.nn.relu(layer(fc7))
    assert_close(fc7, expected_fc7)
    with pytest.raises(ValueError, match="is of a VGG16, and the backbone .* is a ResNet"):
        imagenet.load(make_resnet_detector(), arrays, origin)


def test_what_the_detector_would_compute_otherwise_is_refused(files, tmp_path):
    """Each refusal names the binding; it holds at the conversion and at the start of a run."""
    path, output = str(files["weights"]), str(tmp_path / "weights")

    def convert(**kwargs):
        conversion.convert(path, output, None, lambda **_: make_resnet_detector(**kwargs))

    with pytest.raises(ValueError, match=rf"^{path}: .*Bind ResNet.stride_in_1x1 = True"):
        convert(stride_in_1x1=False)
    with pytest.raises(ValueError, match="NORMALIZER='syncbn'"):
        convert(normalizer="gn")
    with pytest.raises(ValueError, match="batch_renorm' starts from random weights alone"):
        convert(normalizer="batch_renorm")
    with pytest.raises(ValueError, match="res5.1.conv1.weight: not in the checkpoint"):
        convert(depth=50, blocks_per_stage=(2, 1, 1, 2))
    convert()
    elsewhere = make_resnet_detector(stride_in_1x1=False)
    with pytest.raises(ValueError, match="bind ResNet.stride_in_1x1 = True"):
        checkpoints.initialize(elsewhere, output)
    divided = make_detector(fpn_backbone=make_backbone())
    with pytest.raises(ValueError, match=r"divided by \(1.0, 1.0, 1.0\), .*PIXEL_STD"):
        checkpoints.initialize(divided, output)
    options = dict(fpn_backbone=make_backbone(), pixel_std=UNDIVIDED)
    shifted = make_detector(pixel_mean=(0.0, 0.0, 0.0), **options)
    with pytest.raises(
        ValueError, match=r"bind MaskRCNN.pixel_mean = \(123.68, 116.779, 103.939\)"
    ):
        checkpoints.initialize(shifted, output)


def test_other_models_of_keras_are_refused(tmp_path):
    path = tmp_path / "other.weights.h5"
    make_shallow(preact=True).save_weights(path)
    with pytest.raises(ValueError, match=f"{path} is of a ResNetV2, which normalizes before"):
        reading.load(path)
    keras.Sequential([keras.layers.Input([2]), keras.layers.Dense(3)]).save_weights(path)
    with pytest.raises(ValueError, match=f"{path} has no layer conv1_conv .*keras.applications"):
        reading.load(path)
    model = tf_keras.Sequential([tf_keras.layers.Dense(3, input_shape=[2], name="conv1_conv")])
    model.save_weights(path)
    with pytest.raises(ValueError, match=f"{path}: the file does not name its layers"):
        reading.load(path)


def test_damaged_and_hostile_files_are_one_error(files, tmp_path):
    for form in ("keras", "weights", "h5"):
        path = tmp_path / f"half-{form}"
        whole = files[form].read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ValueError, match=f"{path}.*(truncated|damaged)") as raised:
            reading.load(path)
        assert "\n" not in str(raised.value)

    path, elsewhere = tmp_path / "hostile.h5", tmp_path / "elsewhere"
    elsewhere.write_bytes(bytes(4 * 64))

    def write(**options):
        with h5py.File(path, "w") as file:
            file.create_dataset("conv1_conv/kernel:0", [64], "f4", **options)

    # What a small file would fill the memory by, or read another file with.
    cases = [dict(compression="gzip", data=np.zeros([64])), dict(external=[(elsewhere, 0, 256)])]
    for options in cases:
        write(**options)
        with pytest.raises(ValueError, match="kernel:0 is compressed or lies in another file"):
            reading.load(path)
    with h5py.File(path, "w") as file:
        file.create_dataset("conv1_conv/kernel:0", [2**40], "f4")
    with pytest.raises(ValueError, match="needs more bytes than the file has"):
        reading.load(path)
    with h5py.File(path, "w") as file:
        file["conv1_conv"] = h5py.ExternalLink(str(files["old"]), "conv1_conv")
    with pytest.raises(ValueError, match="has no layer conv1_conv"):
        reading.load(path)
    bomb = tmp_path / "bomb.keras"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.weights.h5", bytes(10**6))
    with pytest.raises(ValueError, match=f"{bomb}: model.weights.h5 in it is compressed"):
        reading.load(bomb)
