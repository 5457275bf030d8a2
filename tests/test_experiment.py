"""Whole experiments with the tiny overlay, in this process."""

import json
import shutil

import gin
import numpy as np
import pytest
import tensorflow as tf
from experiment_runs import read_metrics, read_scalars, read_weights, tiny

from rethink_tf import config, config_record, experiment
from rethink_tf.data.sources import coco
from rethink_tf.training.health import NonFiniteLossError

pytestmark = pytest.mark.usefixtures("fresh_tensorflow_settings")

LOSSES = ("rpn_objectness", "rpn_box", "box_class", "box_regression", "mask", "weight_decay")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("experiment") / "shapes"


def run(gin_file, params, mode="train_and_evaluate"):
    config.parse([gin_file, "overlays/tiny.gin"], params)
    return experiment.run(mode=mode)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data_dir):
    """A finished run of the tiny quickstart: its folder and what `run` returned."""
    model_dir = tmp_path_factory.mktemp("finished")
    metrics = run("quickstart.gin", tiny(model_dir, data_dir))
    gin.clear_config()
    return model_dir, metrics


def test_a_run_leaves_what_it_says(finished):
    model_dir, metrics = finished
    (line,) = read_metrics(model_dir)
    assert line["step"] == 4 and line["seconds"] > 0
    for part in ("box", "mask"):
        for name in ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR100"):
            assert line[f"{part}/{name}"] == metrics[f"{part}/{name}"]
        assert f"{part}/AP_per_class/star" in metrics
    results = json.loads((model_dir / "results" / "detections-4.json").read_text())
    for result in results:
        assert set(result) == {"image_id", "category_id", "bbox", "score", "segmentation"}
    assert [path.name for path in (model_dir / "pictures").iterdir()]
    assert json.loads((model_dir / "best" / "best.json").read_text())["step"] == 4
    plan = json.loads((model_dir / "config.json").read_text())["plan"]
    assert (plan["device"], plan["convolution"]) == ("CPU", "cpu") and plan["is_deterministic"]
    scalars = read_scalars(model_dir)
    for step in (1, 2, 3, 4):
        assert all(np.isfinite(scalars[f"train/{name}", step]) for name in LOSSES)
        for name in ("learning_rate", "gradient_norm", "images_per_second", "rpn_positives"):
            assert f"train/{name}", step in scalars
        total = sum(scalars[f"train/{name}", step] for name in LOSSES)
        assert scalars["train/total", step] == pytest.approx(total, rel=1e-5)
    assert ("evaluation/box/AP", 4) in scalars


def test_the_operative_config_can_be_run_again(finished):
    config.parse([str(finished[0] / "config.gin")])
    config_record.compare(finished[0])


def test_a_finished_run_is_not_run_again(finished, data_dir):
    model_dir, _ = finished
    before = read_weights(model_dir, 4)
    run("quickstart.gin", tiny(model_dir, data_dir))
    assert len(read_metrics(model_dir)) == 1
    after = read_weights(model_dir, 4)
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_evaluation_alone_repeats_the_numbers(finished, data_dir):
    model_dir, metrics = finished
    again = run("quickstart.gin", tiny(model_dir, data_dir), mode="evaluate")
    assert again == pytest.approx(metrics, abs=1e-6)
    lines = read_metrics(model_dir)
    assert [line["step"] for line in lines] == [4] * len(lines) and len(lines) >= 2


def test_test_augmentation_comes_once_after_training_and_alone(finished, data_dir, tmp_path):
    shutil.copytree(finished[0] / "checkpoints", tmp_path / "checkpoints")

    def augmented(mode, **settings):
        params = [f"TestTimeAugmentation.{name}={value!r}" for name, value in settings.items()]
        files = ["quickstart.gin", "overlays/tiny.gin", "overlays/test_augmentation.gin"]
        config.parse(files, tiny(tmp_path, data_dir, *params))
        return experiment.run(mode=mode)

    def results(suffix=""):
        return json.loads((tmp_path / "results" / f"detections-4{suffix}.json").read_text())

    metrics = augmented("train_and_evaluate", scales=(160,), max_side=192)
    plain, line = read_metrics(tmp_path)
    assert plain["step"] == line["step"] == 4
    assert "test_augmentation" not in plain and line["test_augmentation"] is True
    assert {name: line[name] for name in metrics} == dict(metrics)
    assert metrics.keys() <= plain.keys()
    best = json.loads((tmp_path / "best" / "best.json").read_text())
    assert best["score"] == plain["mask/AP"]
    scalars = read_scalars(tmp_path)
    assert scalars["evaluation/box/AP", 4] == pytest.approx(plain["box/AP"])
    assert scalars["test_augmentation/box/AP", 4] == pytest.approx(metrics["box/AP"])
    pictures = {path.name.partition("image")[2] for path in (tmp_path / "pictures").iterdir()}
    assert {"-1000001.png", "-1000001-augmented.png"} <= pictures
    assert results("-augmented") != results()
    for result in results("-augmented"):
        assert set(result["segmentation"]) == {"size", "counts"}

    # Started again, there is nothing left to do.
    augmented("train_and_evaluate", scales=(160,), max_side=192)
    assert len(read_metrics(tmp_path)) == 2
    # Where nothing is evaluated, its settings are still none without effect.
    assert augmented("train", scales=(160,), max_side=192) == {}

    # Every image twice in the same size, and nobody votes: as if there were no augmentation.
    metrics = augmented("evaluate", scales=(128,), max_side=128, flip=False, vote_iou=1.0)
    assert dict(metrics) == pytest.approx({name: plain[name] for name in metrics}, abs=1e-6)
    assert len(results()) == len(results("-augmented")) > 0
    for result, expected in zip(results("-augmented"), results(), strict=True):
        assert result["bbox"] == pytest.approx(expected["bbox"], abs=1e-3)
        assert result["score"] == pytest.approx(expected["score"], abs=1e-6)
        for key in ("image_id", "category_id", "segmentation"):
            assert result[key] == expected[key]
    assert read_metrics(tmp_path)[2]["test_augmentation"]


def test_test_augmentation_is_checked_before_anything_is_made(tmp_path):
    params = tiny(tmp_path / "run", tmp_path / "data", "TestTimeAugmentation.vote_iou=0")
    config.parse(["quickstart.gin", "overlays/tiny.gin", "overlays/test_augmentation.gin"], params)
    with pytest.raises(ValueError, match="vote_iou = 0 must be above 0"):
        experiment.run()
    assert not any(tmp_path.iterdir())


def test_a_folder_of_another_experiment_is_refused(finished, data_dir):
    with pytest.raises(config.ConfigError, match=r"run\.seed: 1 there, 2 now"):
        run("quickstart.gin", tiny(finished[0], data_dir, "SEED=2"))


def test_a_run_is_held_to_the_categories_of_its_weights(finished, data_dir, tmp_path):
    """Evaluation alone, and a resumed training, on data whose names are other ones."""
    model_dir, _ = finished
    kept = json.loads((model_dir / "categories.json").read_text())["categories"]
    assert [entry["name"] for entry in kept] == ["circle", "rectangle", "triangle", "star"]
    other = tmp_path / "shapes"
    shutil.copytree(data_dir, other)
    for split in ("train", "val"):
        path = other / split / "manifest.json"
        swapped = path.read_text().replace("circle", "?").replace("star", "circle")
        path.write_text(swapped.replace("?", "star"))
    for mode in ("evaluate", "train"):
        gin.clear_config()
        with pytest.raises(
            ValueError, match=r"(?s)trained on other categories.*4 \(circle\) becom"
        ):
            run("quickstart.gin", tiny(model_dir, other), mode)


def test_evaluating_an_empty_folder_says_what_to_do(tmp_path, data_dir):
    with pytest.raises(ValueError, match="no checkpoint in .* to evaluate"):
        run("quickstart.gin", tiny(tmp_path, data_dir), mode="evaluate")


def test_evaluating_averages_that_a_run_does_not_have_is_refused(finished, data_dir):
    params = tiny(finished[0], data_dir, "run.weight_average=@WeightAverage")
    with pytest.raises(ValueError, match=r"run\.weight_average: None there, "):
        run("quickstart.gin", params, mode="evaluate")


def test_one_gpu_takes_the_papers_batch_in_parts():
    config.parse(["scratch_r50.gin", "overlays/one_gpu.gin"], tiny("/nowhere", "/nowhere"))
    schedule = gin.get_configurable("PaperSchedule")()
    assert schedule.num_steps == 540_000 and schedule.peak_learning_rate == 0.02
    assert gin.query_parameter("experiment.run.accumulate_steps") == 8  # of 2 images each


def test_a_misspelt_macro_stops_the_run_before_the_first_step(tmp_path, data_dir):
    with pytest.raises(config.ConfigError, match=r"BATCHSIZE = 4 \(did you mean BATCH_SIZE"):
        run("quickstart.gin", tiny(tmp_path, data_dir, "BATCHSIZE=4"))
    assert not (tmp_path / "checkpoints").exists()


def test_a_batch_that_cannot_be_shared_is_refused(tmp_path, data_dir):
    with pytest.raises(ValueError, match=r"evaluation_batch_size = -1 images"):
        run("quickstart.gin", tiny(tmp_path, data_dir, "run.evaluation_batch_size=-1"))


def test_a_diverging_run_stops_unsaved_and_names_step_and_term(tmp_path, data_dir, untraced):
    params = ["StepwiseSchedule.peak_learning_rate=1e30", "STEPS=8", "run.checkpoint_every=1"]
    with pytest.raises(NonFiniteLossError, match=r"Step [2-8]: .*weight_decay.* is not finite"):
        run("quickstart.gin", tiny(tmp_path, data_dir, *params))
    for path in (tmp_path / "checkpoints").glob("step-*.index"):
        weights = read_weights(tmp_path, path.stem.rpartition("-")[2])
        kernels = [value for name, value in weights.items() if "kernel" in name]
        assert all(np.isfinite(value).all() for value in kernels)


@pytest.fixture(scope="module")
def boxes_only(finished, data_dir, tmp_path_factory):
    """The drawn validation images with their boxes alone, as both splits."""
    folder = tmp_path_factory.mktemp("boxes")
    truth = json.loads((data_dir / "annotations" / "instances_val.json").read_text())
    for each in truth["annotations"]:
        del each["segmentation"]
    (folder / "boxes.json").write_text(json.dumps(truth))
    for split in ("train", "val"):
        coco.convert(
            images=str(data_dir / "images" / "val"),
            annotations=str(folder / "boxes.json"),
            output=str(folder / split),
            num_shards=1,
            num_workers=0,
            progress=False,
        )
    return folder


def test_data_without_masks_is_refused_by_a_mask_head(tmp_path, boxes_only):
    (tmp_path / "no_drawing.gin").write_text(
        "include 'scratch_r50.gin'\nPipeline.min_side = 128\nPipeline.max_side = 128\n"
    )
    config.parse([str(tmp_path / "no_drawing.gin")], tiny(tmp_path / "model", boxes_only))
    with pytest.raises(ValueError, match="has no masks, and the detector has a mask head"):
        experiment.run()


def test_faster_rcnn_trains_on_boxes_alone(tmp_path, boxes_only, untraced):
    (tmp_path / "boxes.gin").write_text(
        "include 'base/run.gin'\n"
        "include 'base/faster_rcnn.gin'\n"
        "run.schedule = @StepwiseSchedule()\n"
        "StepwiseSchedule.num_steps = %STEPS\n"
        "StepwiseSchedule.peak_learning_rate = 0.01\n"
        "Pipeline.min_side = 128\n"
        "Pipeline.max_side = 128\n"
        "ResNet.depth = 18\n"
        "FPN.channels = 32\n"
        "BoxHead.num_convs = 0\n"
        "BoxHead.num_samples = 16\n"
        "BoxHead.normalizer = 'none'\n"
        "RPN.train_proposals = 32\n"
        "RPN.test_proposals = 32\n"
    )
    params = tiny(tmp_path / "model", boxes_only, "STEPS=2", "BATCH_SIZE=2")
    config.parse([str(tmp_path / "boxes.gin")], params)
    metrics = experiment.run()
    assert "box/AP" in metrics and "mask/AP" not in metrics
    assert ("train/mask", 2) not in read_scalars(tmp_path / "model")


def test_large_scale_jitter_with_copy_paste_trains_and_evaluates(tmp_path, data_dir, untraced):
    params = tiny(tmp_path, data_dir, "STEPS=2", "ResNet.depth=18", "run.log_every=2")
    overlays = ["overlays/copy_paste.gin", "overlays/tiny.gin"]
    config.parse(["lsj_r50.gin", *overlays], params)
    experiment.run()
    (line,) = read_metrics(tmp_path)
    assert line["step"] == 2 and "mask/AP" in line
    names = read_weights(tmp_path, 2)
    assert any("further_convs" in name for name in names)
    assert any("moving_mean" in name for name in names)


@pytest.mark.parametrize(
    ("name", "jitters", "sides", "num_steps", "drops"),
    [
        ("lsj_r50", True, [800], 184_375, (163_889, 177_546)),
        ("lsj_r101", True, [800], 184_375, (163_889, 177_546)),
        ("scratch_r101_scale_jitter", False, [640, 800], 810_000, (750_000, 790_000)),
        ("scratch_r101_cascade", False, [640, 800], 810_000, (750_000, 790_000)),
    ],
)
def test_sizes_and_schedules_of_jittered_experiments(name, jitters, sides, num_steps, drops):
    config.parse([f"{name}.gin"], tiny("/nowhere", "/nowhere"))
    pipeline = gin.get_configurable("Pipeline")()
    assert pipeline.evaluation_min_side == 800 and pipeline.max_side == 1333
    assert pipeline.buckets is None and pipeline.max_shapes == 8
    sampling = None if jitters else "range"
    assert (pipeline.shorter_side.sides, pipeline.shorter_side.sampling) == (sides, sampling)
    if jitters:
        assert (pipeline.jitter.min_scale, pipeline.jitter.max_scale) == (0.1, 2.0)
        assert pipeline.jitter.crop_size == (1024, 1024)
    schedule = gin.query_parameter("experiment.run.schedule").scoped_configurable_fn()
    assert (schedule.num_steps, schedule.drop_steps) == (num_steps, drops)
    assert schedule.peak_learning_rate == pytest.approx(0.1 if jitters else 0.02)


def test_overfitting_leaves_out_the_jitter():
    config.parse(["lsj_r50.gin", "overlays/overfit.gin"], tiny("/nowhere", "/nowhere"))
    pipeline = gin.get_configurable("Pipeline")()
    assert pipeline.jitter is None and (pipeline.evaluation_min_side, pipeline.max_side) == (
        320,
        448,
    )
    schedule = gin.query_parameter("experiment.run.schedule").scoped_configurable_fn()
    assert schedule.num_steps == 700 and schedule.peak_learning_rate == pytest.approx(0.02)


def test_the_whole_step_compiles_with_xla(tmp_path, data_dir, finished):
    run(
        "quickstart.gin",
        tiny(tmp_path, data_dir, "run.jit_compile=True", "STEPS=4"),
        mode="train",
    )
    compiled, plain = read_scalars(tmp_path), read_scalars(finished[0])
    for name in LOSSES:
        assert compiled[f"train/{name}", 1] == pytest.approx(plain[f"train/{name}", 1], rel=1e-4)


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_trains(tmp_path, data_dir, finished, precision):
    run("quickstart.gin", tiny(tmp_path, data_dir, f"run.precision={precision!r}"), mode="train")
    half, full = read_scalars(tmp_path), read_scalars(finished[0])
    assert half["train/total", 1] == pytest.approx(full["train/total", 1], rel=0.02)
    weights = read_weights(tmp_path, 4)
    halves = (tf.bfloat16.as_numpy_dtype, np.float16)
    assert all(value.dtype not in halves for value in weights.values())
    if precision == "mixed_float16":
        assert half["train/loss_scale", 4] == 2**15 and half["train/skipped_updates", 4] == 0
        norm = full["train/gradient_norm", 1]
        assert half["train/gradient_norm", 1] == pytest.approx(norm, rel=0.02)
