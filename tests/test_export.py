"""Tests of the command: rethink_tf/export.py, on a trained run."""

import json
import subprocess
import sys

import pytest
from experiment_runs import REPOSITORY


def export(*flags):
    """Runs the command, and returns its exit code and what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "rethink_tf.export", *map(str, flags)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return done.returncode, done.stdout


@pytest.mark.usefixtures("fresh_tensorflow_settings")
def test_a_run_is_exported_and_compared_on_its_own_data(run_dir, tmp_path):
    output = tmp_path / "export"
    flags = [f"--model_dir={run_dir}", "--format=tflite", f"--output={output}"]

    code, printed = export(*flags)

    assert code == 0, printed
    assert f"Wrote {output}." in printed and "the export finds the same" in printed
    assert "flatbuffer_helpers" not in printed and "Traceback" not in printed
    record = json.loads((output / "export.json").read_text())
    assert record["comparison"]["photographs"] > 1
    assert [entry["name"] for entry in record["categories"]][0] == "circle"


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--format=tflite", "--size=640"], "HEIGHTxWIDTH"),
        (["--format=saved_model", "--part=raw"], "takes any size"),
        (["--format=onnx", "--whole_masks"], "--whole_masks is for saved_model"),
    ],
)
def test_flags_that_do_not_fit_are_one_line(flags, words, tmp_path):
    code, printed = export(f"--model_dir={tmp_path}", f"--output={tmp_path / 'x'}", *flags)

    assert code == 1
    assert printed.startswith("error: ") and words in printed and printed.count("\n") == 1
