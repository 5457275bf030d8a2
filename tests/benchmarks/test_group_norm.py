"""Test of benchmarks/group_norm.py: both sides compute the same, and the report is complete."""

import json
import pathlib
import subprocess
import sys

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


def test_both_sides_give_the_same_numbers(tmp_path):
    path = tmp_path / "group_norm.json"
    flags = ["--shapes=2x5x3x64", "--dtypes=float32", "--repetitions=1", "--calls=1"]
    finished = subprocess.run(
        [sys.executable, "-m", "benchmarks.group_norm", *flags, f"--output={path}"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert finished.returncode == 0, finished.stderr
    assert "2x5x3x64" in finished.stdout
    report = json.loads(path.read_text())
    assert {"machine", "settings", "copy_rate", "results"} <= report.keys()
    assert report["copy_rate"] is None or report["copy_rate"] > 0
    result = report["results"]["2x5x3x64/float32"]
    for side in ("ours", "Keras"):
        assert result[side]["seconds"] > 0 and result[side]["peak_bytes"] > 0
    assert result["seconds_ratio"] > 0
    assert {*result["differences"]} == {"output", "d_inputs", "d_gamma", "d_beta"}
    assert max(result["differences"].values()) < 1e-5
