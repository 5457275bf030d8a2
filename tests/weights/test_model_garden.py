"""Model Garden's ResNet in a detector, from checkpoints that its own code writes."""

import functools

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from official.vision.modeling import classification_model
from official.vision.modeling.backbones import resnet as garden_resnet
from pretrained_detector import SHALLOW, make_detector

from rethink_tf.models.resnet import ResNet
from rethink_tf.training import checkpoints
from rethink_tf.weights import conversion, reading

EPSILON = 1e-3  # `norm_epsilon` of `backbones.ResNet`, and not of Model Garden's ImageNet recipe
SPECIFICATION = tf_keras.layers.InputSpec(shape=[None, 64, 64, 3])


@pytest.fixture(scope="module")
def garden():
    """Returns its ResNet with `SHALLOW`'s blocks and statistics that are not the first ones."""
    tf_keras.utils.set_random_seed(1)
    widths = zip((64, 128, 256, 512), SHALLOW["blocks_per_stage"], strict=True)
    with pytest.MonkeyPatch.context() as patch:
        blocks = [("bottleneck", width, count) for width, count in widths]
        patch.setitem(garden_resnet.RESNET_SPECS, 50, blocks)
        backbone = garden_resnet.ResNet(50, SPECIFICATION, norm_epsilon=EPSILON)
    generator = np.random.default_rng(1)
    for variable in backbone.variables:
        if "kernel" not in variable.name:
            low = 0.5 if "gamma" in variable.name or "variance" in variable.name else -0.5
            variable.assign(generator.uniform(low, low + 1.0, variable.shape))
    return backbone


@pytest.fixture(scope="module")
def files(garden, tmp_path_factory):
    """{form: path} of the backbone alone, a classifier in training, and a detector's items."""
    folder = tmp_path_factory.mktemp("garden")
    classifier = classification_model.ClassificationModel(garden, 5, SPECIFICATION)
    optimizer = tf_keras.optimizers.legacy.SGD(0.0, momentum=0.9)
    optimizer.apply_gradients([(tf.zeros_like(v), v) for v in classifier.trainable_variables])
    decoder = tf_keras.Sequential([tf_keras.layers.Conv2D(2, 1, input_shape=[8, 8, 256])])
    roots = {
        "backbone": tf.train.Checkpoint(backbone=garden),
        "training": tf.train.Checkpoint(model=classifier, optimizer=optimizer),
        "detector": tf.train.Checkpoint(backbone=garden, decoder=decoder),
    }
    return {form: root.write(str(folder / form)) for form, root in roots.items()}


def make_ours(same_padding=True, normalizer="frozen_bn", **options):
    backbone = functools.partial(
        ResNet, normalizer=normalizer, same_padding=same_padding, **(options or SHALLOW)
    )
    return make_detector(fpn_backbone=backbone)


@pytest.mark.parametrize("form", ["backbone", "training", "detector"])
def test_features_are_model_gardens_own(garden, files, form, tmp_path):
    output = str(tmp_path / "weights")
    suffix = ".index" if form == "backbone" else ""
    count = conversion.convert(files[form] + suffix, output, None, lambda **_: make_ours(), EPSILON)
    detector = make_ours()
    assert count == len(detector.backbone.variables)
    checkpoints.initialize(detector, output)
    pixels = tf.random.stateless_normal([2, 64, 64, 3], [1, 2])
    expected, found = garden(pixels, training=False), detector.backbone(pixels)
    assert [f"{level}" for level in found] == list(expected)
    for level, features in found.items():
        wanted = expected[f"{level}"]
        assert np.abs(features - wanted).max() < 1e-4 * np.abs(wanted).max() > 0


def test_other_detectors_are_refused_with_the_binding(files, tmp_path):
    path, output = files["training"], str(tmp_path / "weights")

    def convert(norm_epsilon=None, **kwargs):
        conversion.convert(path, output, None, lambda **_: make_ours(**kwargs), norm_epsilon)

    with pytest.raises(ValueError, match=rf"^{path}: .*Bind ResNet.same_padding = True"):
        convert(same_padding=False)
    with pytest.raises(ValueError, match="NORMALIZER='syncbn'"):
        convert(normalizer="gn")
    with pytest.raises(ValueError, match="res2.2.conv1.weight: not in the checkpoint"):
        convert(depth=50, blocks_per_stage=(3, 1, 1, 1))
    with pytest.raises(ValueError, match="epsilon .* 1e-06, is below the detector's"):
        convert(norm_epsilon=1e-6)
    convert()
    with pytest.raises(ValueError, match="bind ResNet.same_padding = True"):
        checkpoints.initialize(make_ours(same_padding=False), output)


def test_other_checkpoints_are_one_error(files, tmp_path):
    own = tf.train.Checkpoint(w=tf.Variable(1.0)).write(str(tmp_path / "other"))
    with pytest.raises(ValueError, match=f"{own} has 0 ResNets of Model Garden"):
        reading.load(own)
    for name in ("garden.index", "garden.data-00000-of-00001"):
        ending = name.partition(".")[2]
        with open(f"{files['backbone']}.{ending}", "rb") as file:
            whole = file.read()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2] if "data" in name else whole)
    with pytest.raises(ValueError, match="garden cannot be read as a TensorFlow checkpoint"):
        reading.load(tmp_path / "garden")
    (tmp_path / "garden.index").write_bytes(b"no index")
    with pytest.raises(ValueError, match="garden cannot be read as a TensorFlow checkpoint"):
        reading.load(tmp_path / "garden.index")
