"""The paper's cascade as a whole experiment: switched on in a run that is killed before that."""

import shutil

import numpy as np
import pytest
from experiment_runs import read_metrics, read_scalars, read_weights, tiny

from rethink_tf import config, experiment

pytestmark = pytest.mark.usefixtures("fresh_tensorflow_settings")

# 2 of 3 parts of the schedule come before the switch: it is at step 2.
SHORT = ("STEPS=3", "run.checkpoint_every=1")

# What must go on as it was, too.
AVERAGED = ("run.weight_average=@WeightAverage", "run.accumulate_steps=2", "run.clip_norm=0.5")


def parse(params):
    config.parse(["scratch_r101_cascade.gin", "overlays/tiny.gin"], params)


def test_one_file_trains_without_and_then_with_the_cascade(tmp_path, caplog, untraced):
    whole, killed, data_dir = tmp_path / "whole", tmp_path / "killed", tmp_path / "data"
    parse(tiny(whole, data_dir, *SHORT, *AVERAGED))
    with caplog.at_level("INFO", logger="absl"):
        metrics = experiment.run()
    assert "Evaluating averaged weights (decay 0.9998)." in caplog.messages
    assert "box/AP" in metrics and "mask/AP" in metrics
    scalars = read_scalars(whole)
    for stage in ("_stage2", "_stage3"):
        for name in ("box_class", "box_regression", "roi_positives"):
            steps = [step for each, step in scalars if each == f"train/{name}{stage}"]
            assert steps == [3]
    (trained,) = (key for key in read_weights(whole, 3) if "stages_trained" in key)
    assert [int(read_weights(whole, step)[trained]) for step in (1, 2, 3)] == [1, 1, 3]

    # Killed after its first checkpoint, it ends as the one that was not.
    (killed / "checkpoints").mkdir(parents=True)
    shutil.copy(whole / "config.json", killed)
    for path in (whole / "checkpoints").glob("step-1.*"):
        shutil.copy(path, killed / "checkpoints")
    parse(tiny(killed, data_dir, *SHORT, *AVERAGED))
    experiment.run(mode="train")
    expected, found = read_weights(whole, 3), read_weights(killed, 3)
    assert any(name.startswith("averages/") for name in expected)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-7, err_msg=name)
    assert [line["step"] for line in read_metrics(whole)] == [3]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (["SCHEDULE=2"], r"at step -2 of a schedule of 3 .*: give a number above 0"),
        (["run.cascade_steps=0"], r"run\.cascade_steps = 0 .* at step 3 of a schedule of 3"),
        (["MaskRCNN.box_head=@BoxHead"], "the box head has one stage: include base/cascade.gin"),
        (["CascadeBoxHead.positive_from=(0.5, 0.45, 0.7)"], r"0\.45, must be above"),
        # Each stage has its own, the first the foreground's of the whole.
        (["BoxHead.positive_from=0.6"], r"no effect.*\n.*BoxHead\.positive_from = 0\.6"),
    ],
)
def test_a_cascade_that_cannot_be_is_refused(tmp_path, params, message):
    with pytest.raises(ValueError, match=message):
        parse(tiny(tmp_path / "run", tmp_path / "data", *SHORT, *params))
        experiment.run()
    assert not (tmp_path / "run" / "checkpoints").exists()
