"""Every shipped experiment: runs with the tiny overlay, and its detector at full size."""

import atexit
import concurrent.futures
import functools
import multiprocessing
import os
import pickle
import re

import gin
import numpy as np
import pytest
import tensorflow as tf
from experiment_runs import REPOSITORY, read_metrics, read_scalars, read_weights, tiny

from benchmarks import experiments
from rethink_tf import config, config_record, experiment
from rethink_tf.models.resnet import DEPTHS
from rethink_tf.weights import conversion, imagenet

pytestmark = pytest.mark.usefixtures("fresh_tensorflow_settings")

EXPERIMENTS = config.shipped_experiments()
TWINS = [name for name in EXPERIMENTS if name.startswith("pretrained_")]
# What a twin may change beside the weights it starts from: what of them it freezes, and how long it
# trains.
OF_A_TWIN = (
    "PaperSchedule.multiple PaperSchedule.tails run.cascade_steps run.evaluate_every "
    "run.checkpoint_every run.init_checkpoint MaskRCNN.pixel_std ResNet.freeze_at VGG16.freeze_at"
).split()


def parse(name, *overlays, params=()):
    config.parse([name, *overlays], [*experiments.parameters_for(name), *params])


def build(num_classes):
    """Returns the parsed experiment's detector with its variables."""
    detector = experiment.detector_builder()(num_classes=num_classes)
    detector.create_variables()
    return detector


def make_classifier(name, folder):
    """Returns weights for the tiny form of a twin, of a made-up classifier, and makes them."""
    parse(name, "overlays/tiny.gin")
    arrays, generator = {}, np.random.default_rng(0)
    for pair in imagenet.parameters(build(1)):
        value = generator.uniform(-0.01, 0.01, pair.variable.shape).astype(np.float32)
        value = abs(value) if pair.name.endswith("running_var") else value
        if pair.name == "fc6.weight":
            value = value.reshape(7, 7, -1, value.shape[-1])
        if value.ndim == 4:
            value = value.transpose(3, 2, 0, 1)
        if pair.name.startswith("fc"):
            value = value.reshape(len(value), -1) if value.ndim == 4 else value.T
        arrays[pair.name] = value
    (folder / "classifier.pkl").write_bytes(pickle.dumps({"model": arrays}))
    pkl, output = str(folder / "classifier.pkl"), str(folder / "weights")
    divides = config.value_of("MaskRCNN.pixel_std") != (1.0, 1.0, 1.0)
    conversion.convert(pkl, output, "RGB" if divides else "BGR", experiment.detector_builder())
    return output


def models(*but):
    """Returns the parsed experiment's bindings of models, without names that hold any of `but`."""
    return tuple(
        (key, value)
        for key, value in config_record.canonical_bindings().items()
        if (".models." in key or "detector" in key) and not any(part in key for part in but)
    )


def left_by_overlay():
    """Returns the parsed experiment's bindings without those of its schedule and its depth."""
    replaced = (".PaperSchedule.", "run.evaluate_every", "run.checkpoint_every", ".ResNet.depth")
    bindings = config_record.canonical_bindings().items()
    return [pair for pair in bindings if not any(part in pair[0] for part in replaced)]


def run_tiny(name, folder, data_dir, eagerly):
    """Trains and evaluates in a process of the pool, and returns the metrics."""
    tf.config.run_functions_eagerly(eagerly)
    params = tiny(folder / "run", data_dir, "STEPS=2")
    if name in TWINS:
        params.append(f"INIT_CHECKPOINT={make_classifier(name, folder)!r}")
    parse(name, "overlays/tiny.gin", params=params)
    return dict(experiment.run())


@pytest.fixture(scope="module")
def runs(request, tmp_path_factory):
    """{name: (folder, future)} of the tiny runs that are asked for, two at a time.

    To trace the graph is most of a run's time. So it is traced where a model has a binding that
    none had before (the overlay says how deep it is); the others run operation by operation.
    Experiments that differ in what the overlay replaces, schedule and depth, share a run.
    """
    data_dir = tmp_path_factory.mktemp("shipped") / "shapes"
    spawn = multiprocessing.get_context("spawn")
    # At their end the processes would wait for what TensorFlow reads ahead, for up to a minute.
    end = {"initializer": atexit.register, "initargs": (os._exit, 0)}
    with concurrent.futures.ProcessPoolExecutor(2, spawn, **end) as pool:
        started, shared, traced = {}, {}, set()
        for item in request.session.items:
            if item.path == request.path and "runs" in item.fixturenames:
                name = item.callspec.params["name"]
                parse(name, "overlays/tiny.gin")
                key, model = frozenset(left_by_overlay()), set(models("pixel", "ResNet.depth"))
                if key not in shared:
                    folder = tmp_path_factory.mktemp(name.removesuffix(".gin"))
                    run = pool.submit(run_tiny, name, folder, data_dir, eagerly=model <= traced)
                    shared[key] = folder, run
                started[name] = shared[key]
                traced |= model
        yield started


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_two_steps_and_an_evaluation_with_the_tiny_overlay(runs, name):
    folder, run = runs[name]
    metrics = run.result()
    (line,) = read_metrics(folder / "run")
    assert line["step"] == 2 and metrics and metrics.items() <= line.items()
    assert all(np.isfinite(value) and value >= -1 for value in metrics.values())
    scalars = read_scalars(folder / "run")
    for step in (1, 2):
        values = {tag: value for (tag, of), value in scalars.items() if of == step}
        assert values["train/total"] > 0 and values["train/rpn_box"] >= 0
        assert all(np.isfinite(value) for value in values.values())
    if name in TWINS:
        check_frozen(folder)


def check_frozen(folder):
    """Two steps with weight decay left the first two parts as the classifier has them, no others.

    Statistics of batch normalization are among them.
    """
    reader = tf.train.load_checkpoint(str(folder / "weights"))
    found, moved = read_weights(folder / "run", 2), {True: [], False: []}
    for name in reader.get_variable_to_shape_map():
        if name.startswith("backbone/") and "VARIABLE_VALUE" in name:
            parts = r"stages/[01]/" if "vgg" in folder.name else r"(stem|stages/0)/"
            is_frozen = re.match(f"backbone/{parts}", name)
            different = np.any(reader.get_tensor(name) != found[f"model/{name}"])
            moved[bool(is_frozen)].append(different)
    assert moved[True] and not any(moved[True])
    assert np.mean(moved[False]) > 0.9


@pytest.mark.parametrize("name", TWINS)
def test_a_twin_differs_from_its_experiment_in_weights_and_schedule_alone(name):
    rest = name.removeprefix("pretrained_")
    (other,) = {rest, f"scratch_{rest}"} & set(EXPERIMENTS)
    parse(other)
    scratch = config_record.canonical_bindings()
    parse(name)
    twin = config_record.canonical_bindings()
    different = {key for key in twin.keys() | scratch if twin.get(key) != scratch.get(key)}
    assert any(key.endswith("run.init_checkpoint") for key in different)
    (frozen,) = (value for key, value in twin.items() if key.endswith(".freeze_at"))
    assert frozen == "2"
    assert {value for key, value in scratch.items() if key.endswith(".freeze_at")} == {"0"}
    assert {".".join(key.rsplit(".", 2)[1:]) for key in different} <= set(OF_A_TWIN)


def test_the_overfit_overlay_evaluates_what_it_trains_on():
    for name, sizes in (
        ("scratch_r50.gin", ((16,), (32,), (64,), (128,), (256,))),
        ("vgg16.gin", ((16, 32, 64, 128, 256),)),
    ):
        parse(name, "overlays/overfit.gin")
        bound = gin.query_parameter
        assert bound("Pipeline.num_images") == bound("Pipeline.evaluation_num_images") == 8
        assert bound("experiment.run.evaluation_split") == "train"
        assert gin.get_configurable("RPN")().anchor_sizes == sizes


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (["SCHEDULE=0.6"], r"0\.6x schedule .* has 54,000 steps, no more than the 60,000"),
        (["BATCH_SIZE=8", "SCHEDULE=0.5"], r"with 8 images .* 90,000 steps, .* than the 120,000"),
        (["PaperSchedule.tails=(20000, 60000)"], r"must descend"),
    ],
)
def test_a_schedule_shorter_than_its_tail_stops_before_anything_is_done(tmp_path, params, message):
    parse("scratch_r50.gin", params=tiny(tmp_path / "run", tmp_path / "data", *params))
    with pytest.raises(ValueError, match=message):
        experiment.run()
    assert not list(tmp_path.iterdir())


# Trainable parameters by hand. A convolution with group or synchronised batch normalization has a
# scale and a shift for every output, one without a bias.
def conv(inputs, outputs, size, groups=1, normalized=True):
    return size * size * inputs * outputs // groups + outputs * (2 if normalized else 1)


def dense(inputs, outputs):
    return (inputs + 1) * outputs


def stem_and_stage_2(groups, width):
    """What twins freeze of a ResNet of three blocks in stage 2, all shipped ones."""
    total, inner, inputs = conv(3, 64, 7) + conv(64, 256, 1), groups * width, 64
    for _ in range(3):
        total += conv(inputs, inner, 1) + conv(inner, inner, 3, groups) + conv(inner, 256, 1)
        inputs = 256
    return total


def resnext(depth, groups, width):
    total, inputs = conv(3, 64, 7), 64
    for stage, blocks in enumerate(DEPTHS[depth][0]):
        inner, outputs = groups * width * 2**stage, 256 * 2**stage
        total += conv(inputs, outputs, 1)
        for _ in range(blocks):
            total += (
                conv(inputs, inner, 1) + conv(inner, inner, 3, groups) + conv(inner, outputs, 1)
            )
            inputs = outputs
    return total


def rpn(channels, anchors):
    convs = (
        conv(channels, channels, 3),
        conv(channels, anchors, 1),
        conv(channels, 4 * anchors, 1),
    )
    return sum(convs) - channels - 5 * anchors  # not normalized


def box_head(classes, boxes):
    """4conv1fc, its logits and its boxes."""
    hidden = 4 * conv(256, 256, 3) + dense(7 * 7 * 256, 1024)
    return hidden + dense(1024, classes + 1) + dense(1024, 4 * boxes)


def mask_head(classes):
    deconvolution = conv(256, 256, 2, normalized=False)
    return 4 * conv(256, 256, 3) + deconvolution + conv(256, classes, 1, normalized=False)


FPN = sum(conv(inputs, 256, 1) + conv(256, 256, 3) for inputs in (256, 512, 1024, 2048))
TRUNK = FPN + rpn(256, 3)
MASK_RCNN = TRUNK + box_head(80, 80) + mask_head(80)
CASCADE = TRUNK + 3 * box_head(80, 1) + mask_head(80)
# Published: torchvision's resnet50 and resnet101 without their classifier of 2,049,000, and Keras'
# VGG16 without its top.
R50, R101, VGG16 = 25_557_032 - 2_049_000, 44_549_160 - 2_049_000, 14_714_688
X152 = resnext(152, 32, 8)
KEYPOINT_HEAD = conv(256, 512, 3) + 7 * conv(512, 512, 3) + conv(512, 17, 4, normalized=False)
VGG_HEAD = dense(7 * 7 * 512, 4096) + dense(4096, 4096) + dense(4096, 81) + dense(4096, 320)
VGG_STAGES_1_AND_2 = ((3, 64), (64, 64), (64, 128), (128, 128))
PARAMETERS = {
    "scratch_r50": R50 + MASK_RCNN,
    "scratch_r101": R101 + MASK_RCNN,
    "scratch_r50_syncbn": R50 + MASK_RCNN,
    "scratch_r101_scale_jitter": R101 + MASK_RCNN,
    "scratch_r101_cascade": R101 + CASCADE,
    "scratch_x152": X152 + MASK_RCNN,
    "scratch_x152_cascade": X152 + CASCADE,
    "coco_35k": R50 + MASK_RCNN,
    "coco_10k": R50 + MASK_RCNN,
    "coco_3500": R50 + MASK_RCNN,
    "coco_1k": R50 + MASK_RCNN,
    "keypoints_r50": R50 + TRUNK + box_head(1, 1) + KEYPOINT_HEAD,
    "lsj_r50": R50 + MASK_RCNN + conv(256, 256, 3, normalized=False),
    "lsj_r101": R101 + MASK_RCNN + conv(256, 256, 3, normalized=False),
    "voc_r101": R101 + TRUNK + box_head(20, 20),
    "vgg16": VGG16 + rpn(512, 15) + VGG_HEAD,
}


def count_parameters(detector):
    return sum(variable.shape.num_elements() for variable in detector.trainable_variables)


@functools.cache
def count_of_models(bindings, num_classes):
    """Counts for the parsed experiment; its bindings of models tell it from others."""
    del bindings
    return count_parameters(build(num_classes))


@pytest.mark.parametrize("name", experiments.of_one_size())
def test_parameters_at_full_size(name):
    parse(name)
    count = count_of_models(models("pixel"), experiments.num_classes_of(name))
    rest = name.removesuffix(".gin").removeprefix("pretrained_")
    expected = PARAMETERS.get(rest, PARAMETERS.get(f"scratch_{rest}"))
    if name in TWINS and "vgg" in name:
        expected -= sum(conv(*sides, 3, normalized=False) for sides in VGG_STAGES_1_AND_2)
    elif name in TWINS:
        expected -= stem_and_stage_2(*((32, 8) if "x152" in name else (1, 64)))
    assert count == (expected or count) > 0
    assert gin.get_bindings("experiment.run")["schedule"].num_steps > 0

    # The table of all experiments has it, with this size.
    table = (REPOSITORY / "docs" / "experiments.md").read_text()
    sizes = re.findall(rf"\| `{name}` \|.*\| ([\d.]+) M \| \d+ \|", table)
    assert set(sizes) == {f"{count / 1e6:.2f}"}


def test_parameters_equal_torchvisions():
    """maskrcnn_resnet50_fpn: 91 classes with the background, frozen BN, which is none of them."""
    build_params = ["NORMALIZER='none'", "ResNet.normalizer='frozen_bn'"]
    build_params += ["BoxHead.num_convs=0", "BoxHead.num_fcs=2"]
    parse("scratch_r50.gin", params=build_params)
    # Boxes and a mask of the background, which ours does without.
    assert count_parameters(build(90)) == 44_401_393 - dense(1024, 4) - conv(256, 1, 1, 1, False)
