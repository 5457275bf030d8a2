"""A run whose MODEL_DIR is not on a local disk: TensorFlow's file system in memory."""

import json
import os

import pytest
import tensorflow as tf
from experiment_runs import tiny

from rethink_tf import config, experiment, files

pytestmark = pytest.mark.usefixtures("fresh_tensorflow_settings")
MODEL_DIR = "ram://runs/remote"


def run(data_dir, *params, mode="train_and_evaluate"):
    config.parse(["quickstart.gin", "overlays/tiny.gin"], tiny(MODEL_DIR, data_dir, *params))
    return experiment.run(mode=mode)


def test_all_that_a_run_writes_and_reads_is_in_a_remote_folder(tmp_path, monkeypatch, untraced):
    monkeypatch.chdir(tmp_path)  # where a path that is taken for a local one would lie
    data_dir = tmp_path / "data"
    run(data_dir, "STEPS=2", mode="train")
    metrics = run(data_dir, "STEPS=2")  # goes on, which is only to evaluate
    assert metrics["box/AP"] >= 0

    (line,) = files.read_text(f"{MODEL_DIR}/metrics.jsonl").splitlines()
    assert json.loads(line)["step"] == 2
    found = {name.rstrip("/") for name in tf.io.gfile.listdir(MODEL_DIR)}
    assert found == {
        *("best", "branches", "checkpoints", "pictures", "results", "tensorboard"),
        *("categories.json", "config.gin", "config.json", "data.json", "history.json"),
        "metrics.jsonl",
    }
    assert tf.io.gfile.listdir(f"{MODEL_DIR}/pictures")
    assert files.exists(f"{MODEL_DIR}/checkpoints/step-2.index")
    assert json.loads(files.read_text(f"{MODEL_DIR}/best/best.json"))["step"] == 2
    assert os.listdir(tmp_path) == ["data"]

    with pytest.raises(config.ConfigError, match="run of another experiment"):
        run(data_dir, "STEPS=2", "FPN.channels=8", mode="evaluate")
    assert run(data_dir, "STEPS=2", mode="evaluate") == metrics
    assert len(files.read_text(f"{MODEL_DIR}/metrics.jsonl").splitlines()) == 2
