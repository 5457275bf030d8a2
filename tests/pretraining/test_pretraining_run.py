"""Whole runs: they learn, stop and go on, and detectors take what they leave."""

import functools
import json
import signal
import subprocess
import sys

import gin
import numpy as np
import pytest
import tensorflow as tf
from experiment_runs import REPOSITORY, assert_equal_weights, read_until, read_weights
from PIL import Image

from rethink_tf import config, exit_codes, experiment, metrics_file
from rethink_tf.models.vgg import VGG16
from rethink_tf.pretraining import loop
from rethink_tf.pretraining.classifier import Classifier
from rethink_tf.training import checkpoints

pytestmark = pytest.mark.usefixtures("fresh_tensorflow_settings")

GIN_FILE = """
include 'base/pretrain.gin'
BATCH_SIZE = 6
pretrain.data = @ImageFolders
pretrain.schedule = @CosineSchedule()
CosineSchedule.num_steps = %STEPS
CosineSchedule.peak_learning_rate = 0.01
ImageInput.image_size = 32
ResNet.depth = 18
ResNet.blocks_per_stage = (1, 1, 1, 1)
pretrain.log_every = 1
pretrain.evaluate_every = 12
"""
COLOURS = ((0, 0, 200), (0, 200, 0), (200, 0, 0))


def files_of(folder):
    """Writes the gin file and images of three plain colours, and returns the gin file."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 3)):
        for name, colour in enumerate(COLOURS):
            place = folder / "colours" / split / f"class{name}"
            place.mkdir(parents=True)
            for number in range(count):
                noise = rng.integers(0, 50, (36, 40, 3))
                Image.fromarray((noise + colour).astype(np.uint8)).save(place / f"{number}.png")
    path = folder / "colours.gin"
    path.write_text(GIN_FILE)
    return str(path)


def params(folder, model_dir, steps):
    places = [f"MODEL_DIR={str(folder / model_dir)!r}", f"DATA_DIR={str(folder / 'colours')!r}"]
    return [*places, f"STEPS={steps}"]


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """The folder and the report of a run."""
    folder = tmp_path_factory.mktemp("learned")
    config.parse([files_of(folder)], params(folder, "run", 24))
    return folder, loop.run()


def test_a_run_learns_and_leaves_its_counts(learned):
    folder, report = learned
    found = json.loads((folder / "run" / "pretraining.json").read_text())
    assert found == report and report["top1"] > 0.8 > 1 / 3
    assert report["images_seen"] == report["objects_seen"] == 24 * 6
    assert report["pixels_seen"] == 24 * 6 * 32 * 32
    assert (report["steps"], report["batch"], report["top5"]) == (24, 6, 1.0)
    assert report["seconds"] > 0 and "18 images, 3 classes" in report["data"]
    lines = metrics_file.read_evaluations(str(folder / "run"))
    assert [line["step"] for line in lines] == [12, 24]
    assert [line["images"] for line in lines] == [9, 9]


def test_a_detector_starts_from_the_backbone(learned):
    folder, _ = learned
    bindings = ["MODEL_DIR=''", "DATA_DIR=''", "ResNet.blocks_per_stage=(1, 1, 1, 1)"]
    config.parse(["quickstart.gin"], bindings)
    detector = experiment.detector_builder()(num_classes=4)
    detector.create_variables()
    unread = checkpoints.initialize(detector, str(folder / "run" / "backbone"))
    assert "ResNet" not in unread and unread
    trained = read_weights(folder / "run", 24)
    names = {f"model/{key}" for key in backbone_keys(folder / "run" / "backbone")}
    assert names == {name for name in trained if name.startswith("model/backbone/")}
    values = [trained[name] for name in sorted(names)]
    assert len(values) == len(detector.backbone.variables)
    loaded = {each.numpy().tobytes() for each in detector.backbone.variables}
    assert all(value.tobytes() in loaded for value in values)
    # A detector that divides its pixels by something else is refused.
    detector.pixel_std = (1.0, 1.0, 1.0)
    with pytest.raises(ValueError, match=r"pixels divided by \(58.395"):
        checkpoints.initialize(detector, str(folder / "run" / "backbone"))


def backbone_keys(path):
    names = tf.train.load_checkpoint(str(path)).get_variable_to_shape_map()
    return [name for name in names if name.startswith("backbone/")]


def test_a_run_that_is_told_to_stop_saves_and_goes_on_as_if_unbroken(tmp_path):
    gin_file = files_of(tmp_path)
    command = [sys.executable, "-m", "rethink_tf.pretrain", f"--gin_file={gin_file}"]
    command += [f"--gin_param={each}" for each in params(tmp_path, "broken", 24)]
    process = subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    read_until(process, "step 3/24")
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate()
    assert process.returncode == exit_codes.AGAIN, output
    assert "Stopped by SIGTERM" in output
    config.parse([gin_file], params(tmp_path, "broken", 24))
    resumed = loop.run()
    config.parse([gin_file], params(tmp_path, "straight", 24))
    straight = loop.run()
    weights = [read_weights(tmp_path / name, 24) for name in ("straight", "broken")]
    assert_equal_weights(*weights)
    assert resumed["images_seen"] == straight["images_seen"] == 24 * 6
    assert resumed["top1"] == straight["top1"]
    # Another pre-training is refused in its folder.
    config.parse([gin_file], [*params(tmp_path, "broken", 24), "BATCH_SIZE=3"])
    with pytest.raises(ValueError, match="another experiment"):
        loop.run()


def test_vgg_shares_fc6_and_fc7():
    classifier = Classifier(5, VGG16, fc_channels=8)
    with pytest.raises(ValueError, match="bind 224"):
        classifier.create_variables(64)
    classifier = Classifier(5, VGG16, fc_channels=8)
    classifier.create_variables(224)
    parts = classifier.pretrained_parts()
    assert set(parts) == {"backbone", "fcs"}
    assert parts["fcs"][0].kernel.shape == [7 * 7 * 512, 8]


def test_what_does_not_fit_is_one_clear_error():
    with pytest.raises(ValueError, match="pre-training trains all"):
        Classifier(5, functools.partial(VGG16, freeze_at=2))
    with pytest.raises(ValueError, match="multiple of 16"):
        Classifier(5, VGG16).create_variables(100)


def test_the_shipped_quickstart_runs_small(tmp_path):
    small = ["STEPS=2", "WARMUP_STEPS=0", "BATCH_SIZE=4", "IMAGE_SIZE=32"]
    small += ["make_textures.num_train=32", "make_textures.num_val=16"]
    small += ["ResNet.blocks_per_stage=(1, 1, 1, 1)"]
    places = [f"MODEL_DIR={str(tmp_path / 'run')!r}", f"DATA_DIR={str(tmp_path / 'data')!r}"]
    config.parse(["pretrain_quickstart.gin"], [*places, *small])
    report = loop.run()
    assert report["images_seen"] == 8 and "32 images, 16 classes" in report["data"]
    assert (tmp_path / "run" / "backbone.index").exists()


def test_the_shipped_r50_is_the_published_network():
    """torchvision's resnet50 has 25,557,032 parameters; the paper's schedule 500,456 steps."""
    config.parse(["pretrain_r50.gin"], ["MODEL_DIR=''", "DATA_DIR=''"])
    schedule = gin.get_bindings("pretraining.pretrain")["schedule"]
    assert schedule.num_steps == 500_456 and schedule.warmup_steps == 25_023
    assert schedule.peak_learning_rate == pytest.approx(0.1)
    classifier = config.value_of("pretrain.classifier")(num_classes=1000)
    classifier.create_variables(224)
    weights = classifier.trainable_variables
    assert sum(each.shape.num_elements() for each in weights) == 25_557_032
