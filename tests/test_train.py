"""The command line in real processes: help, errors, and two workers."""

import re
import subprocess
import sys
import tempfile

import gin
import pytest
from experiment_runs import (
    REPOSITORY,
    read_metrics,
    read_scalars,
    read_until,
    start_workers,
    tiny,
)
from experiment_runs import start as start_run

from rethink_tf import config, exit_codes, experiment


def test_help_explains_every_flag_without_tensorflow():
    code = "import sys; sys.argv = ['train', '--helpshort']\n"
    code += "import runpy\n"
    code += "try: runpy.run_module('rethink_tf.train', run_name='__main__', alter_sys=True)\n"
    code += "except SystemExit: pass\n"
    code += "assert 'tensorflow' not in sys.modules, 'TensorFlow was imported'"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for flag in ("--gin_file", "--gin_param", "--mode"):
        assert flag in done.stdout


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "Give at least one --gin_file"),
        (["--gin_file=quikstart.gin"], "did you mean quickstart.gin"),
    ],
)
def test_bad_flags_are_one_clear_message(flags, message):
    done = subprocess.run(
        [sys.executable, "-m", "rethink_tf.train", *flags],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert message in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_an_experiment_that_cannot_be_is_one_line_before_the_first_step(tmp_path):
    params = tiny(tmp_path / "run", tmp_path / "data", "Pipeline.num_images=17")
    process = start_run("quickstart.gin", params)
    output, _ = process.communicate()
    assert process.returncode == 1 and "Traceback" not in output
    (line,) = (line for line in output.splitlines() if line.startswith("error: "))
    assert re.search(r"Pipeline\.num_images, for .*train: a subset of 17 images was asked", line)
    assert output.splitlines()[-1] == line
    assert not (tmp_path / "run").exists()


def test_two_workers_train_like_one(tmp_path, untraced):
    params = ["STEPS=3", "BATCH_SIZE=4", "NORMALIZER='syncbn'"]
    # A low rate, and every RoI in the losses: else the rounding of sums over replicas would soon
    # change which are drawn.
    params += ["StepwiseSchedule.peak_learning_rate=0.002"]
    params += ["BoxHead.num_samples=72", "BoxHead.positive_fraction=1.0"]
    alone, together = tmp_path / "alone", tmp_path / "together"
    config.parse(["quickstart.gin", "overlays/tiny.gin"], tiny(alone, tmp_path / "data", *params))
    experiment.run()

    processes = start_workers("quickstart.gin", tiny(together, tmp_path / "data", *params))
    outputs = [process.communicate(timeout=400)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)

    expected, found = read_scalars(alone), read_scalars(together)
    for name in ("total", "rpn_objectness", "box_class", "mask", "gradient_norm"):
        for step in (1, 2, 3):
            key = f"train/{name}", step
            # Rounding may still change which proposals are suppressed, which the gradient feels.
            tolerance = 1e-2 if name == "gradient_norm" else 1e-3
            assert found[key] == pytest.approx(expected[key], rel=tolerance), key
    # Both save, and one line, one set of results and of pictures are there: the chief's.
    for output, folder in zip(outputs, (together, tempfile.gettempdir()), strict=True):
        assert re.search(rf"Saved checkpoint to {folder}\S*/step-3", output), output
    (sharded,) = read_metrics(together)
    results = sorted(path.name for path in (together / "results").iterdir())
    assert results == ["detections-3.json", "matches-3.npz"]
    assert len(list((together / "pictures").iterdir())) == 2  # of the chief's share of the 4
    assert not [path for path in together.glob("checkpoints/*") if path.is_dir()]

    # One process finds the same numbers for the same weights, to all digits.
    gin.clear_config()
    config.parse(
        ["quickstart.gin", "overlays/tiny.gin"], tiny(together, tmp_path / "data", *params)
    )
    experiment.run(mode="evaluate")
    whole = read_metrics(together)[1]
    names = [name for name in whole if "/" in name]
    assert len(names) > 20
    assert {name: whole[name] for name in names} == {name: sharded[name] for name in names}


def test_data_that_vanish_while_training_end_it_in_one_line(tmp_path):
    params = tiny(tmp_path / "run", tmp_path / "data", "STEPS=10000")
    with start_run("quickstart.gin", params, mode="train") as process:
        read_until(process, "step 2/10000")
        (tmp_path / "data" / "train").rename(tmp_path / "moved")
        output = process.stdout.read()
    assert process.returncode == exit_codes.REFUSED and "Traceback" not in output
    last = output.splitlines()[-1]
    assert last.startswith("error: ") and f"{tmp_path}/data/train" in last
    assert "could not be read" in last
