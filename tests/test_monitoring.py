"""What TensorBoard, and the page of errors, show of a run that was killed and went on."""

import io
import json
import re
import shutil
import subprocess
import threading
import time
import urllib.parse
import urllib.request

import gin
import numpy as np
import pytest
import tensorflow as tf
from experiment_runs import tiny
from PIL import Image
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

from rethink_tf import config, curves, experiment, summaries
from rethink_tf.errors import inputs, measures, worst
from rethink_tf.report import event_files

pytestmark = pytest.mark.usefixtures("fresh_tensorflow_settings")

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
PRECISION = np.append(np.linspace(1.0, 0.5, 81), np.zeros(20))  # a recall of 0.8 is reached


def run(model_dir, data_dir):
    params = tiny(model_dir, data_dir, "STEPS=4", "run.evaluate_every=2")
    config.parse(["quickstart.gin", "overlays/tiny.gin"], params)
    experiment.run()
    gin.clear_config()


@pytest.fixture(scope="module")
def resumed(tmp_path_factory):
    """The folder of a run as one that was killed after 4 steps and went on from the second."""
    folder = tmp_path_factory.mktemp("monitoring")
    model_dir = folder / "run"
    # Operation by operation: to trace the steps takes most of a short run.
    tf.config.run_functions_eagerly(True)
    try:
        run(model_dir, folder / "shapes")
        for path in (model_dir / "checkpoints").glob("step-[34].index"):
            path.unlink()
        run(model_dir, folder / "shapes")
    finally:
        tf.config.run_functions_eagerly(False)
    with tf.summary.create_file_writer(str(model_dir / "tensorboard" / "known")).as_default():
        summaries.write_precision_recall("known", PRECISION, step=1)
    return model_dir


def test_every_curve_has_one_value_a_step(resumed):
    """As TensorBoard's loader in Python reads the files of both starts, one after the other."""
    files = list((resumed / "tensorboard").glob("events.*"))
    assert len(files) == 2
    loaded = EventAccumulator(str(resumed / "tensorboard"), {"tensors": 0})
    loaded.Reload()
    found = {tag: [e.step for e in loaded.Tensors(tag)] for tag in loaded.Tags()["tensors"]}
    expected = {"train": [1, 2, 3, 4], "data": [1, 2, 3, 4], "evaluation": [2, 4],
                "detections": [2, 4], "proposals": [2, 4], "config": [1, 3]}  # fmt: skip
    parts = {tag.partition("/")[0] for tag in found}
    assert parts == {*expected, "_hparams_", "steps_per_second"}
    for tag, steps in found.items():
        if (part := tag.partition("/")[0]) in expected:
            assert steps == expected[part], tag


@pytest.fixture(scope="module")
def server(resumed):
    """The address of a TensorBoard that has read the run."""

    class Lines(io.StringIO):
        has_line = threading.Event()

        def flush(self):
            self.has_line.set()

    output = Lines()
    with curves.tensorboard(str(resumed), output):
        assert output.has_line.wait(timeout=60)
        address = output.getvalue().removeprefix("TensorBoard: ").strip()
        deadline = time.monotonic() + 60
        while set(fetch(address, "data/plugin/images/tags")) != {
            "tensorboard"
        } or "tensorboard/known" not in fetch(address, "data/plugin/pr_curves/tags"):
            assert time.monotonic() < deadline
        yield address


def fetch(address, path, body=None, **query):
    url = f"{address}{path}?{urllib.parse.urlencode(query)}"
    content = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, content, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def test_tensorboard_gives_scalars_pictures_and_settings(resumed, server):
    points = fetch(server, "data/plugin/scalars/scalars", run="tensorboard", tag="train/total")
    assert [step for _, step, _ in points] == [1, 2, 3, 4]
    points = fetch(
        server, "data/plugin/scalars/scalars", run="tensorboard", tag="evaluation/mask/AP"
    )
    assert [step for _, step, _ in points] == [2, 4]
    for tag in ("detections/0", "proposals/0"):
        shown = fetch(server, "data/plugin/images/images", run="tensorboard", tag=tag, sample=0)
        assert [each["step"] for each in shown] == [2, 4]
    (text, *_) = fetch(
        server, "data/plugin/text/text", run="tensorboard", tag="config", markdown="true"
    )
    assert "ResNet.depth = 18" in text["text"] and "<code>" in text["text"]


def test_tensorboard_gives_precision_over_recall(server):
    curve = fetch(
        server, "data/plugin/pr_curves/pr_curves", run="tensorboard/known", tag="known/pr_curves"
    )
    (curve,) = curve["tensorboard/known"]
    # The end at recall 0, which has no detection, is cut off.
    assert curve["recall"] == pytest.approx(np.linspace(1, 0.01, 100), abs=1e-6)
    assert curve["precision"] == pytest.approx(PRECISION[:0:-1], abs=1e-6)
    assert fetch(server, "data/plugin/pr_curves/tags")["tensorboard"].keys() >= {
        "evaluation/box/mean, IoU 0.5/pr_curves", "evaluation/mask/star, IoU 0.5/pr_curves"
    }  # fmt: skip


def test_tensorboard_gives_hyper_parameters_and_the_last_ap(resumed, server):
    states = ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING"]
    shown = [{"metric": {"group": "", "tag": "evaluation/box/AP"}}]
    asked = {"allowedStatuses": states, "startIndex": 0, "sliceSize": 9, "colParams": shown}
    (group,) = fetch(server, "data/plugin/hparams/session_groups", asked)["sessionGroups"]
    values = group["hparams"]
    assert values["ResNet.depth"] == 18 and values["FPN.normalizer"] == "gn"
    assert values["MaskRCNN.backbone"] == "@ResNet" and values["Pipeline.include_masks"] is True
    assert not any("dir" in name for name in values)
    metrics = {each["name"]["tag"]: each for each in group["metricValues"]}
    last = json.loads((resumed / "metrics.jsonl").read_text().splitlines()[-1])
    assert metrics["evaluation/box/AP"]["trainingStep"] == 4 == last["step"]
    assert metrics["evaluation/box/AP"]["value"] == pytest.approx(last["box/AP"])


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium is installed here")
def test_a_browser_shows_scalars_and_images(server, tmp_path):
    def shown():
        done = subprocess.run(
            [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu",
             "--window-size=1280,1600", f"--user-data-dir={tmp_path}",
             "--virtual-time-budget=60000", "--dump-dom",
             f"{server}?tagFilter=train/total|detections/0#timeseries"],
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    # The browser's clock runs ahead of the server's answers: it is asked until they are there.
    for _ in range(30):
        page = shown()
        if "Image at step 4" in page and "<canvas" in page:
            break
    assert re.search(r"<img[^>]*alt=\"Image at step 4\"", page)
    assert "train/total" in re.sub(r"<[^>]*>", "", page) and "<canvas" in page


def test_names_of_hyper_parameters_are_short_and_apart():
    bound = {"a.b.Part.size": "3", "c.Part.size": "[1, 2]", "tall/a.b.Part.size": "0.5",
             "experiment.run.data_dir": "%DATA_DIR", "x.Y.z": "@m.n.Q()", "x.Y.w": "None",
             }  # fmt: skip
    assert summaries.hyperparameters(bound) == {
        "Part.size": 3, "c.Part.size": "[1, 2]", "tall/Part.size": 0.5, "Y.z": "@Q()",
        "Y.w": "None"
    }  # fmt: skip


def test_a_report_drops_what_tensorboard_drops(tmp_path):
    for first, steps in ((1, (1, 2, 3, 4)), (3, (4,))):  # the second start writes less often
        folder = str(tmp_path / "tensorboard")
        with tf.summary.create_file_writer(folder, filename_suffix=f".{first}").as_default():
            summaries.begin(first)
            for step in steps:
                tf.summary.scalar("train/total", step + 10 * first, step=step)
    found = event_files.read_scalars(str(tmp_path), ("train/total",))
    assert found == {"train/total": ([1, 2, 4], [11.0, 12.0, 34.0])}


def test_nothing_is_written_without_a_writer():
    summaries.begin(3)
    summaries.write_settings(3, "text", {})


def test_the_errors_of_a_run_are_drawn_on_the_images_of_its_records(resumed):
    case = inputs.read_run(str(resumed), None, None)
    assert case.title.endswith("run, step 4") and case.iou_types[0] == "bbox"
    found, _ = measures.measure(case)
    shown = worst.choose_score(found[0].errors)
    drawn = worst.draw(case, found[0], shown, 2)
    assert len(drawn) == 2 and "objects not found" in drawn[0][0]
    entry = next(iter(case.truth.images.values()))
    assert case.read_image(entry).shape == (entry["height"], entry["width"], 3)
    # From a folder in place of the records, whose own ground truth names the files.
    truth = resumed.parent / "shapes" / "val" / "ground_truth.json"
    images = resumed.parent / "images"
    images.mkdir()
    for entry in case.truth.images.values():
        Image.fromarray(case.read_image(entry)).save(images / entry["file_name"])
    again = inputs.read_run(str(resumed), str(truth), str(images))
    assert worst.draw(again, found[0], shown, 2)[0][0] == drawn[0][0]


def test_records_that_are_gone_or_not_named_are_said(resumed, tmp_path):
    shutil.copytree(resumed / "results", tmp_path / "results")
    shutil.copy(resumed / "metrics.jsonl", tmp_path)
    with pytest.raises(ValueError, match=r"what it was evaluated on \(data\.json\)"):
        inputs.read_run(str(tmp_path), None, None)
    data = json.loads((resumed / "data.json").read_text())
    assert len(data["evaluation"].pop("image_ids")) == 4
    data["evaluation"]["num_images"] = 3
    (tmp_path / "data.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match="on 3 of the 4 images .* does not say which"):
        inputs.read_run(str(tmp_path), None, None)
    data["evaluation"]["directory"] = "nowhere"
    (tmp_path / "data.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match="nowhere, the records of .* is not there"):
        inputs.read_run(str(tmp_path), None, None)
