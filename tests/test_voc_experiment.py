"""PASCAL VOC and subsets of images in whole runs: its metric, its data, and which images count."""

import json

import gin
import numpy as np
import pytest
from experiment_runs import read_metrics, tiny
from voc_source import VocSource, voc_object

from rethink_tf import config, experiment
from rethink_tf.data.records import store
from rethink_tf.evaluation import voc_metrics

pytestmark = pytest.mark.usefixtures("fresh_tensorflow_settings")

SMALL = """
include 'base/run.gin'
include 'base/faster_rcnn.gin'
run.metrics = @VocMetrics
run.schedule = @StepwiseSchedule()
StepwiseSchedule.num_steps = %STEPS
StepwiseSchedule.peak_learning_rate = 0.01
Pipeline.min_side = 64
Pipeline.max_side = 128
Pipeline.include_difficult = False
ResNet.depth = 18
FPN.channels = 32
RPN.anchor_sizes = ((16,), (24,), (32,), (48,), (64,))
RPN.channels = 32
RPN.train_proposals = 32
RPN.test_proposals = 32
BoxHead.num_convs = 0
BoxHead.fc_channels = 64
BoxHead.num_samples = 16
BoxHead.normalizer = 'none'
run.log_every = 1
run.checkpoint_every = 2
run.evaluate_every = 2
"""


@pytest.fixture(scope="module")
def voc_data(tmp_path_factory):
    """Record directories train (6 images) and val (3 images) of noise with bright objects."""
    source = VocSource(tmp_path_factory.mktemp("voc"))
    rng = np.random.default_rng(3)
    for number in range(1, 10):
        pixels = rng.integers(0, 90, (source.height, source.width, 3), dtype=np.uint8)
        xmin, ymin = (int(each) for each in rng.integers(1, 20, 2))
        pixels[ymin - 1 : ymin + 15, xmin - 1 : xmin + 20] = (250, 220, 30)
        objects = voc_object("bus", xmin, ymin, xmin + 20, ymin + 15)
        objects += voc_object("car", 40, 25, 55, 35, difficult=1)
        year, split = ("VOC2007", "train") if number <= 6 else ("VOC2012", "val")
        source.add(year, f"{number:06d}", objects, lists=[split], pixels=pixels)
    for year, split in (("VOC2007", "train"), ("VOC2012", "val")):
        source.convert(f"{year}:{split}", output=split, strict=True)
    return source.root


def run_small(tmp_path, data_dir, *params, mode="train_and_evaluate"):
    (tmp_path / "small.gin").write_text(SMALL)
    bindings = tiny(tmp_path / "model", data_dir, "STEPS=4", "BATCH_SIZE=2", *params)
    config.parse([str(tmp_path / "small.gin")], bindings)
    metrics = dict(experiment.run(mode=mode))
    gin.clear_config()
    return metrics


def test_a_run_is_measured_and_its_best_chosen_by_vocs_map(tmp_path, voc_data):
    metrics = run_small(tmp_path, voc_data, "Pipeline.num_images=4")

    lines = read_metrics(tmp_path / "model")
    assert [line["step"] for line in lines] == [2, 4]
    names = [name for name in lines[-1] if "/" in name]
    assert names == list(metrics) and names[0] == "voc/mAP" and len(names) == 21
    assert 0 <= metrics["voc/mAP"] <= 1 and metrics["voc/AP_per_class/car"] == -1
    best = json.loads((tmp_path / "model" / "best" / "best.json").read_text())
    assert best["score"] == max(line["voc/mAP"] for line in lines)

    # The whole of val was measured though four images were trained on: the same by hand.
    results = json.loads((tmp_path / "model" / "results" / "detections-4.json").read_text())
    truth = json.loads((voc_data / "val" / store.GROUND_TRUTH_FILE).read_text())
    assert len(truth["images"]) == 3 and {r["image_id"] for r in results} <= {
        image["id"] for image in truth["images"]
    }
    assert metrics == pytest.approx(voc_metrics.evaluate(truth, results))


def test_a_subset_larger_than_the_data_stops_before_training(tmp_path, voc_data):
    with pytest.raises(ValueError, match="Pipeline.num_images, for .*train: .* 7 images .* has 6"):
        run_small(tmp_path, voc_data, "Pipeline.num_images=7")
    assert not (tmp_path / "model" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("name", "num_images", "num_steps", "drops", "factor"),
    [
        ("coco_35k", 35_000, 540_000, (480_000, 520_000), 0.02),
        ("coco_10k", 10_000, 220_000, (160_000, 200_000), 0.02),
        ("coco_3500", 3_500, 77_000, (56_000, 70_000), 0.02),
        ("coco_1k", 1_000, 22_000, (16_000, 20_000), 0.02),
        ("voc_r101", None, 144_000, (128_000, 138_667), 0.1),
        # From pre-trained weights: the same drops as shares of fewer steps.
        ("pretrained_coco_10k", 10_000, 60_000, (43_636, 54_545), 0.02),
        ("pretrained_coco_3500", 3_500, 21_000, (15_273, 19_091), 0.02),
        ("pretrained_coco_1k", 1_000, 6_000, (4_364, 5_455), 0.02),
        ("pretrained_voc_r101", None, 18_000, (16_000, 17_333), 0.1),
    ],
)
def test_schedules_of_the_shipped_experiments(name, num_images, num_steps, drops, factor):
    params = ["INIT_CHECKPOINT='/nowhere'"] if name.startswith("pretrained") else []
    config.parse([f"{name}.gin"], tiny("/nowhere", "/nowhere", *params))
    schedule = gin.get_configurable("PaperSchedule")()
    assert (schedule.num_steps, schedule.drop_steps) == (num_steps, drops)
    rate = 0.04 if num_images else 0.02
    rates = [rate, rate * factor, rate * factor**2]
    found = [float(schedule(step)) for step in (drops[0] - 1, drops[0], drops[1])]
    np.testing.assert_allclose(found, rates, rtol=1e-6)
    pipeline = gin.get_configurable("Pipeline")()
    assert pipeline.num_images == num_images and pipeline.evaluation_num_images is None
    assert pipeline.evaluation_min_side == 800
    sides, sampling = pipeline.shorter_side.sides, pipeline.shorter_side.sampling
    assert (sides, sampling) == (([800], None) if num_images is None else ([512, 800], "range"))
