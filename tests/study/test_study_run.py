"""A study as a user runs it: killed, stopped, refused, and with a run that collapses."""

import json
import os
import pathlib
import signal
import subprocess
import sys

from experiment_runs import (
    REPOSITORY,
    assert_equal_weights,
    finish,
    read_metrics,
    read_weights,
    tiny,
)

from rethink_tf import exit_codes

GIN = """
import rethink_tf.study.settings
Study.study_dir = {study!r}
Study.common = ("quickstart.gin", "DATA_DIR={data!r}", "run.checkpoint_every=2")
Study.overlays = ("overlays/tiny.gin",)
Study.arms = {{
    "gn": (),
    "too_fast": ("StepwiseSchedule.peak_learning_rate=1e30",),
}}
Study.schedules = {{"short": ("STEPS=4",), "long": ("STEPS=8",)}}
"""


def start(folder):
    return subprocess.Popen(
        [sys.executable, "-m", "rethink_tf.study", f"--gin_file={folder / 'study.gin'}"],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def stop_at(folder, run, text, number):
    """Starts the study, and sends it a signal once the log of a run has a new line with a text."""
    log = folder / "study" / "logs" / f"{run}.log"
    seen = log.stat().st_size if log.exists() else 0
    with start(folder) as process:
        while process.poll() is None:
            if log.exists() and text in log.read_text(errors="replace")[seen:]:
                process.send_signal(number)
                break
        output, _ = process.communicate(timeout=100)
    return process.returncode, output


def test_a_study_that_is_killed_twice_ends_like_straight_runs(tmp_path):
    study, data = tmp_path / "study", tmp_path / "data"
    (tmp_path / "study.gin").write_text(GIN.format(study=str(study), data=str(data)))
    long, short = "gn-all-long-seed-1", "gn-all-short-seed-1"

    code, _ = stop_at(tmp_path, long, "step 4/8", signal.SIGKILL)
    assert code == -signal.SIGKILL
    code, _ = stop_at(tmp_path, short, "step 4/4", signal.SIGKILL)
    assert code == -signal.SIGKILL
    with start(tmp_path) as process:
        output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output

    # The short run has the last of its four steps of its own.
    runs = study / "runs"
    gn = {name: runs / "gn" / "all" / name / "seed-1" for name in ("long", "short")}
    assert [line["step"] for line in read_metrics(gn["short"])] == [4]
    assert "step 3/4" not in (study / "logs" / f"{short}.log").read_text()
    straight = tmp_path / "straight"
    params = [*tiny(straight, data, "STEPS=4"), "SEED=1"]
    finish("quickstart.gin", params, mode="train")
    assert_equal_weights(read_weights(straight, 4), read_weights(gn["short"], 4))

    # The other arm has collapsed, is kept, and has no tail.
    assert "too_fast/all/long/seed-1 collapsed" in output
    collapsed = runs / "too_fast" / "all" / "long" / "seed-1"
    assert {line["event"] for line in read_metrics(collapsed)} == {"not_finite"}
    states = [line.split()[-1] for line in output.splitlines() if "/seed-1 " in line][-4:]
    assert states == ["done", "done", "collapsed", "collapsed"]
    plan = json.loads((study / "study.json").read_text())
    assert [pathlib.Path(run["model_dir"]) for run in plan["runs"]][:2] == list(gn.values())

    # Done, it starts nothing.
    with start(tmp_path) as process:
        again, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and "collapsed: " not in again


def test_a_study_that_is_told_to_stop_goes_on_by_the_same_command(tmp_path):
    text = GIN.format(study=str(tmp_path / "study"), data=str(tmp_path / "data"))
    (tmp_path / "study.gin").write_text(text)
    code, output = stop_at(tmp_path, "gn-all-long-seed-1", "", signal.SIGTERM)
    assert code == exit_codes.AGAIN
    assert "Stopped by SIGTERM. The same command goes on." in output and "Traceback" not in output


def test_a_run_that_is_refused_ends_the_study_with_its_words(tmp_path):
    text = GIN.format(study=str(tmp_path / "study"), data=str(tmp_path / "data"))
    (tmp_path / "study.gin").write_text(text + 'Study.common = ("quickstart.gin", "RPN.chanels=1")')
    with start(tmp_path) as process:
        output, _ = process.communicate(timeout=60)
    assert process.returncode == exit_codes.REFUSED and "Traceback" not in output
    assert "error: gn/all/long/seed-1 ended with 1" in output and "did you mean channels?" in output
