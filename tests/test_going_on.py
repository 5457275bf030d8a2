"""Runs that go on otherwise than they began: a longer schedule, another batch, data left out."""

import itertools
import json

import gin
import numpy as np
import pytest
import tensorflow as tf
from experiment_runs import assert_equal_weights, read_metrics, read_scalars, read_weights, tiny
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

from rethink_tf import config, experiment
from rethink_tf.models.detector import MaskRCNN
from rethink_tf.settings import Settings
from rethink_tf.training.health import NonFiniteLossError

pytestmark = pytest.mark.usefixtures("fresh_tensorflow_settings", "untraced")


class PoisonedDetector(MaskRCNN):
    """A detector whose loss is not finite for some images, and which notes what it trains on."""

    poison, poisoned_batch, trained_on = (), None, []

    def call(self, batch, training=False, **kwargs):
        outputs = super().call(batch, training=training, **kwargs)
        if training:
            ids = batch["image_id"].numpy().tolist()
            self.trained_on.append(ids)
            if len(self.trained_on) == self.poisoned_batch:
                type(self).poison = tuple(ids)
            bad = not self.poison or any(each in self.poison for each in ids)
            outputs["rpn_logits"] *= np.nan if bad else 1.0
        return outputs


@gin.register
def poisoned_detector(detector=MaskRCNN, **kwargs):
    built = detector(**kwargs)
    built.__class__ = PoisonedDetector
    return built


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("going_on") / "shapes"


def run(model_dir, data_dir, *params, mode="train"):
    config.parse(["quickstart.gin", "overlays/tiny.gin"], tiny(model_dir, data_dir, *params))
    return experiment.run(mode=mode)


def test_a_run_is_extended_from_before_its_first_drop(tmp_path, data_dir):
    short, long, extended = (tmp_path / name for name in ("short", "long", "extended"))
    run(short, data_dir, "STEPS=2")  # drops at 2
    run(long, data_dir, "STEPS=4")  # drops at 3 and 4
    run(extended, data_dir, "STEPS=4", f"run.continue_from={str(short)!r}")
    assert [path.name for path in (short / "branches").glob("*.index")] == ["step-2.index"]
    assert min(step for _, step in read_scalars(extended)) == 3
    assert_equal_weights(read_weights(long, 4), read_weights(extended, 4))
    # It is a run like any other by now.
    run(extended, data_dir, "STEPS=4", f"run.continue_from={str(short)!r}")

    new = tmp_path / "new"
    with pytest.raises(ValueError, match=r"more than the length .*channels: 32 there, 16 now"):
        run(new, data_dir, "STEPS=4", f"run.continue_from={str(short)!r}", "FPN.channels=16")
    with pytest.raises(ValueError, match=r"learning_rate of the schedule: 0.04 there, 0.02 now"):
        rate = "StepwiseSchedule.peak_learning_rate=0.02"
        run(new, data_dir, "STEPS=4", f"run.continue_from={str(short)!r}", rate)
    with pytest.raises(ValueError, match=r"short has no checkpoint of step 1 or before"):
        run(new, data_dir, "STEPS=1", f"run.continue_from={str(short)!r}")
    with pytest.raises(ValueError, match="new holds no run"):
        run(tmp_path / "newer", data_dir, f"run.continue_from={str(new)!r}")
    assert not new.exists()


def go_back_to(model_dir, step):
    """Leaves a run as if it had been killed after the checkpoint of a step."""
    for path in (model_dir / "checkpoints").glob("step-*.index"):
        if int(path.stem.rpartition("-")[2]) > step:
            path.unlink()


def test_another_batch_is_refused_with_the_rule_or_rescales_the_run(tmp_path, data_dir):
    folder = tmp_path / "run"
    run(folder, data_dir, "STEPS=8")
    go_back_to(folder, 4)
    params = ["STEPS=8", "BATCH_SIZE=4"]
    with pytest.raises(ValueError) as error:
        run(folder, data_dir, *params)
    assert "4 images a step in place of 2, the linear rule asks for 2 times" in str(error.value)
    assert "and 0.5 times the steps that are left" in str(error.value)

    # 4 of 8 steps are left, which 4 images each make 2; the drops, at 6 and 7, come at 5 and 6.
    run(folder, data_dir, *params, "run.on_change='rescale'")
    assert (folder / "checkpoints" / "step-6.index").exists()
    scalars = read_scalars(folder)
    rates = [scalars["train/learning_rate", step] for step in (4, 5, 6)]
    assert rates == pytest.approx([0.04, 0.08, 0.008])
    history = json.loads((folder / "history.json").read_text())
    assert history["batches"] == [{"step": 0, "batch_size": 2}, {"step": 4, "batch_size": 4}]
    # It is the folder's experiment by now.
    run(folder, data_dir, *params)
    with pytest.raises(ValueError, match="holds a run of another experiment"):
        run(folder, data_dir, *params, "run.on_change='rescale'", "FPN.channels=16", "BATCH_SIZE=8")


def test_the_same_batch_goes_on_in_other_parts(tmp_path, data_dir):
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    run(whole, data_dir, "STEPS=4")
    run(parted, data_dir, "STEPS=4")
    for folder, parts in ((whole, 1), (parted, 2)):
        go_back_to(folder, 3)
        run(folder, data_dir, "STEPS=4", f"run.accumulate_steps={parts}")
    one, other = (read_scalars(folder) for folder in (whole, parted))
    for name in ("total", "gradient_norm"):
        assert other[f"train/{name}", 4] == pytest.approx(one[f"train/{name}", 4], rel=1e-3)


def test_data_after_which_the_loss_is_not_finite_are_left_out(tmp_path, data_dir, monkeypatch):
    poisoned = ["run.detector=@poisoned_detector", "poisoned_detector.detector=@MaskRCNN"]
    poisoned += ["STEPS=8", "run.checkpoint_every=3", "BATCH_SIZE=1"]  # within one epoch
    trained_on = []
    monkeypatch.setattr(PoisonedDetector, "trained_on", trained_on)
    monkeypatch.setattr(PoisonedDetector, "poison", (-1,))
    monkeypatch.setattr(PoisonedDetector, "poisoned_batch", 5)
    folder = tmp_path / "poisoned"
    run(folder, data_dir, *poisoned, "run.on_non_finite='skip'")
    settings = Settings()
    batches = settings.pipeline().training(f"{data_dir}/train", [1, 2, 3, 4], 1, settings.seed)
    order = [each["image_id"].numpy().tolist() for each in itertools.islice(batches, 10)]
    # Step 5 fails. Back at step 3, the images of steps 4 and 5 are left out.
    assert trained_on == order
    (event,) = read_metrics(folder)
    assert (event["event"], event["step"], event["back_to"]) == ("skip", 5, 3)
    scalars = read_scalars(folder)
    assert scalars["data/stretches_left_out", 3] == 0 and scalars["data/stretches_left_out", 8] == 1
    # TensorBoard shows each step once: it drops what was written before the run went back.
    shown = EventAccumulator(str(folder / "tensorboard"), {"tensors": 0}).Reload()
    assert [each.step for each in shown.Tensors("train/total")] == list(range(1, 9))

    # A start from the last checkpoint before the end leaves them out as well.
    final = read_weights(folder, 8)
    go_back_to(folder, 6)
    run(folder, data_dir, *poisoned, "run.on_non_finite='skip'", mode="train_and_evaluate")
    assert_equal_weights(final, read_weights(folder, 8))
    _, line = read_metrics(folder)
    assert line["step"] == 8

    monkeypatch.setattr(PoisonedDetector, "poison", ())
    hopeless = tmp_path / "hopeless"
    skips = ["run.on_non_finite='skip'", "run.max_skips=2"]
    with pytest.raises(NonFiniteLossError):
        run(hopeless, data_dir, *poisoned, *skips)
    events = [(event["event"], event["step"]) for event in read_metrics(hopeless)]
    assert events == [("skip", 1), ("skip", 1), ("not_finite", 1)]
    assert tf.train.latest_checkpoint(str(hopeless / "checkpoints")).endswith("step-0")
