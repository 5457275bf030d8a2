"""Each cause of a low AP, planted in a healthy run's files and found; and the healthy run."""

import json
import subprocess
import sys

import numpy as np
import pytest
from run_folder import NAMES, PLACES, RunFolder, run_lengths

from rethink_tf.diagnosis import run_files, table, texts

PLANTS = {}


def plants(cause, *seen):
    """Marks what plants a cause, whose text then names some numbers."""

    def keep(function):
        PLANTS.setdefault(cause, []).append((function, seen))
        return function

    return keep


def diagnose(run, folder, **options):
    files = run_files.RunFiles(run.write(folder), **options)
    return files, table.diagnose(files)


def test_a_healthy_run_has_no_finding(tmp_path):
    run, findings = diagnose(RunFolder(), tmp_path)
    assert findings == []
    assert run.unread == {}
    assert "No cause of a low AP was found" in texts.describe(run, findings)


@plants("no_evaluation_objects", "the AP is -1")
def nothing_to_find(run):
    run.data["evaluation"]["num_objects"] = 0
    run.truth["evaluation"]["annotations"] = []
    for entry in run.manifests["evaluation"]["categories"]:
        entry["num_objects"] = 0
    run.lines[-1] |= {"box/AP": -1.0, "mask/AP": -1.0}


@plants("images_without_objects", "92% of 12 training images")
def background_only(run):
    run.low()
    run.num_objects["training"] = [0] * 11 + [3]


@plants("objects_left_out", "54 annotations (60%)", "annotation_of_unknown_image")
def most_skipped(run):
    run.low()
    run.manifests["training"]["skipped"] = {
        "annotation_malformed": 4, "annotation_of_unknown_image": 50
    }  # fmt: skip


@plants("classes_without_training", "67% of the objects", "dog (12)", "bird (12)")
def unseen_classes(run):
    run.low()
    for entry in run.manifests["training"]["categories"][1:]:
        entry["num_objects"] = 0


@plants("categories_differ", "5 is 'dog'", "'bird'")
def names_swapped(run):
    """The evaluation data were converted again, from a file that numbers its classes otherwise."""
    names = [each["name"] for each in run.manifests["evaluation"]["categories"]]
    for entry, name in zip(
        run.manifests["evaluation"]["categories"], np.roll(names, 1), strict=True
    ):
        entry["name"] = str(name)


@plants("categories_differ", "[2, 3]")
def ids_that_no_class_has(run):
    """Classes 1 to 3 in place of the data set's ids 1, 5 and 7."""
    run.low()
    for each in run.detections:
        each["category_id"] = 1 + list(NAMES).index(each["category_id"])


@plants("boxes_outside", "30 of 36 boxes (83%)")
def corners_as_sizes(run):
    run.low()
    run.manifests["training"]["num_clipped"] = 30


@plants("boxes_contradict_masks", "[y, x, height, width] in pixels", "100%")
def swapped_beside_masks(run):
    run.low()
    for each in run.truth["training"]["annotations"]:
        x, y, width, height = each["bbox"]
        each["bbox"] = [y, x, height, width]


@plants("objects_too_small", "5.3 pixels", "smallest anchor has 16")
def specks(run):
    run.low()
    for each in run.truth["evaluation"]["annotations"]:
        each["bbox"] = [each["bbox"][0], each["bbox"][1], 7.0, 4.0]
        each["segmentation"] = run_lengths((100, 160), [int(v) for v in each["bbox"]])


@plants("masks_missing", "0 of 36 objects")
def no_masks(run):
    run.lines[-1]["mask/AP"] = 0.0
    run.manifests["training"]["num_masks"] = 0


@plants("nothing_detected", "0 detections in 0 of 12", "= 0.05")
def below_the_threshold(run):
    run.low(detections=0, images_with_detections=0, highest_score=0.0)
    run.detections = []


@plants("nothing_detected", "2 detections in 1 of 12")
def below_the_threshold_before_it_was_counted(run):
    run.low()
    run.detections = run.detections[:2]
    del run.lines[-1]["detections"], run.lines[-1]["images_with_detections"]


@plants("classes_mixed_up", "cat as dog (12 of 12)", "bird as cat (12 of 12)")
def classes_turned(run):
    """Boxes are right, and each class is called by the next one's id."""
    run.low()
    following = {1: 5, 5: 7, 7: 1}
    for each in run.detections:
        each["category_id"] = following[each["category_id"]]


@plants("boxes_in_another_form", "36 of 36 objects", "corners [x1, y1, x2, y2]", "and 0 as")
def evaluation_by_corners(run):
    """Without masks, nothing in the file itself contradicts its boxes."""
    run.low()
    for each in run.truth["evaluation"]["annotations"]:
        del each["segmentation"]
        x, y, width, height = each["bbox"]
        each["bbox"] = [x, y, x + width, y + height]


@plants("boxes_in_another_form", "[y, x, height, width]")
def evaluation_with_x_for_y(run):
    run.low()
    for each in run.truth["evaluation"]["annotations"]:
        del each["segmentation"]
        x, y, width, height = each["bbox"]
        each["bbox"] = [y, x, height, width]


@plants("masks_empty", "100% of the detected masks are empty", "0% of the annotated")
def empty_masks(run):
    run.lines[-1]["mask/AP"] = 0.0
    for each in run.detections:
        each["segmentation"] = {"size": [100, 160], "counts": [16000]}


@plants("not_finite", "step 1,200 mask, total", "bfloat16")
def overflow(run):
    run.plan["precision"] = "mixed_bfloat16"
    run.lines.append({"event": "not_finite", "step": 1200, "terms": ["mask", "total"], "time": 0})


@plants("not_finite", "2 times that the run went back")
def going_back_again_and_again(run):
    run.lines += [{"event": "skip", "step": step, "back_to": 1, "time": 0} for step in (50, 70)]


@plants("loss_rises", "from 3 to 30", "0.02 for 16 images")
def diverged(run):
    run.low()
    run.curves["train/total"] = [3.0] * 8 + [30.0] * 12


@plants("rate_too_high", "a rate of 0.5 for 16", "25 times the rule's")
def high_rate(run):
    run.low()
    run.schedule["peak_learning_rate"] = 0.5


@plants("rate_too_low", "0.0001 for 16", "0.005 times the rule's")
def rate_as_of_adam(run):
    run.low()
    run.schedule["peak_learning_rate"] = 1e-4


@plants("warming_up", "step 2,000 is within the 5,000 steps of warm-up")
def still_rising(run):
    run.low()
    run.schedule |= {"warmup_steps": 5000, "num_steps": 20_000}


@plants("too_early", "40 of 2,000 steps", "from 3 to 1.1")
def forty_steps(run):
    run.low(step=40)
    run.schedule["warmup_steps"] = 0


@plants("few_positives", "0.1 positive anchors an image and 0 positive RoIs", "3.0 objects")
def objects_lost_on_the_way(run):
    run.low()
    run.curves |= {"train/rpn_positives": [0.1] * 20, "train/roi_positives": [0.0] * 20}


@plants("statistics_of_one_image", "statistics of 1 image (", "ResNet.normalizer")
def one_image_a_micro_batch(run):
    run.bind(NORMALIZER="syncbn", run__accumulate_steps=16)


@plants("frozen_random", "ResNet.freeze_at = 2", "init_checkpoint is not given")
def frozen_from_random(run):
    run.low()
    run.bind(FREEZE_AT=2)


@plants("frozen_random", 'ResNet.normalizer = "frozen_bn"')
def frozen_statistics(run):
    run.low()
    run.bind(NORMALIZER="frozen_bn")


@plants("part_without_gradient", "gradient of rpn was 0")
def rpn_without_gradient(run):
    run.low()
    run.curves["train/gradient_norm/rpn"] = [0.0] * 20


CASES = [(cause, *each) for cause, planted in PLANTS.items() for each in planted]


@pytest.mark.parametrize(("cause", "plant", "seen"), CASES, ids=[c[1].__name__ for c in CASES])
def test_a_planted_cause_is_found_and_no_other(tmp_path, cause, plant, seen):
    run = RunFolder()
    plant(run)
    files, findings = diagnose(run, tmp_path)
    assert [each.cause for each in findings] == [cause]
    (finding,) = findings
    assert [text for text in seen if text not in finding.seen] == []
    assert 1 <= finding.weight <= 100
    page = texts.describe(files, findings)
    assert cause.replace("_", " ") in page and "do:" in page


def test_each_cause_is_planted():
    """Those of the weights need a checkpoint: test_weights has them."""
    of_weights = {"weights_not_finite", "weights_unchanged"}
    assert {each.__name__ for each in table.CAUSES} == PLANTS.keys() | of_weights


def test_findings_come_by_weight(tmp_path):
    run = RunFolder()
    for plant in (forty_steps, rate_as_of_adam, one_image_a_micro_batch):
        plant(run)
    _, findings = diagnose(run, tmp_path)
    assert [each.cause for each in findings] == [
        "statistics_of_one_image",
        "rate_too_low",
        "too_early",
    ]


def test_what_is_missing_is_said_and_stops_nothing(tmp_path):
    run = RunFolder()
    run.low()
    model_dir = run.write(tmp_path)
    (model_dir / "results" / "detections-2000.json").write_text('[{"image_id": 1, ')
    next((model_dir / "tensorboard").iterdir()).unlink()
    (tmp_path / "records" / "evaluation" / "ground_truth.json").unlink()
    (tmp_path / "records" / "training" / "index.npz").write_bytes(b"no archive")
    (tmp_path / "records" / "training" / "manifest.json").unlink()
    files = run_files.RunFiles(model_dir)
    assert table.diagnose(files) == []
    reasons = {path.rpartition("/")[2]: reason for path, reason in files.unread.items()}
    assert reasons["tensorboard"] == "no summaries on a local disk"
    assert reasons["ground_truth.json"] == reasons["manifest.json"] == "missing"
    assert reasons["detections-2000.json"].startswith("not JSON")
    assert "Not read" in texts.describe(files, [])


def test_of_large_results_the_first_are_read(tmp_path, monkeypatch):
    run = RunFolder()
    classes_turned(run)
    run.detections += [run.detections[-1] | {"score": 0.1}] * 300
    model_dir = run.write(tmp_path)
    size = (model_dir / "results" / "detections-2000.json").stat().st_size
    monkeypatch.setattr(run_files, "MAX_BYTES", size - 1000)
    files = run_files.RunFiles(model_dir)
    assert 0 < len(files.detections) < len(run.detections)
    assert files.detections == run.detections[: len(files.detections)]
    assert [each.cause for each in table.diagnose(files)] == ["classes_mixed_up"]


def test_a_run_says_the_usual_causes_once_and_its_own_while_they_change(tmp_path, caplog):
    run = RunFolder()
    forty_steps(run)
    model_dir = run.write(tmp_path)
    log = texts.LowApLog(str(model_dir), lambda: run.config)

    def said(step, **metrics):
        line = {"step": step, "box/AP": 0.001, "detections": 36, "images_with_detections": 12}
        with (model_dir / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(line | metrics) + "\n")
        caplog.clear()
        log()
        return " ".join(" ".join(record.getMessage() for record in caplog.records).split())

    with caplog.at_level("INFO", logger="absl"):
        first = said(50)
        assert first.startswith("box/AP 0.001 at step 50: below 0.01. Usual causes: ")
        assert "point at: (1) too early: 50 of 2,000 steps" in first
        assert first.endswith(f"What to do: python -m rethink_tf.doctor {model_dir}")
        again = said(60)
        assert again == "box/AP 0.001 at step 60: below 0.01, for the causes said at step 50."
        assert said(70, **{"box/AP": 0.2}) == ""
        others = said(80, detections=0, images_with_detections=0)
        assert "(1) nothing detected: 0 detections" in others and "Usual" not in others
        # What is damaged is a warning: the run goes on.
        (model_dir / "config.json").write_text("{")
        assert "could not be looked for" in said(90)


def test_places_differ_in_every_form():
    """Else a plant of another order would be no plant."""
    assert all(place[0] != place[1] and place[2] != place[3] for place in PLACES)


def run_doctor(*arguments):
    command = [sys.executable, "-X", "importtime", "-m", "rethink_tf.doctor", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_command_has_an_exit_code_for_each_end_and_needs_no_tensorflow(tmp_path):
    healthy = RunFolder().write(tmp_path / "healthy")
    ill = RunFolder()
    high_rate(ill)
    ill = ill.write(tmp_path / "ill")
    done = run_doctor(healthy)
    assert done.returncode == 0 and "No cause of a low AP was found" in done.stdout
    assert "| tensorflow\n" not in done.stderr
    done = run_doctor(ill, "--json")
    assert done.returncode == 1
    found = json.loads(done.stdout)
    assert found["metrics"] == {"box/AP": 0.001, "mask/AP": 0.0} and found["step"] == 2000
    (finding,) = found["findings"]
    assert finding["cause"] == "rate_too_high" and finding["weight"] == 60
    done = run_doctor(tmp_path)
    assert done.returncode == 2
    # Beside the lines of -X importtime.
    assert f"\nerror: {tmp_path} holds no config.gin" in done.stderr
    assert "Traceback" not in done.stderr
