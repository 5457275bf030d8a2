"""The converter as a process, on the checkpoint that ../shared/parity describes."""

import pickle
import subprocess
import sys

import numpy as np
import tensorflow as tf
from experiment_runs import REPOSITORY


def convert(*flags):
    return subprocess.run(
        [sys.executable, "-m", "rethink_tf.convert", *flags],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_detectron2_checkpoint_becomes_one_to_start_from(shared_dir, tmp_path):
    pkl, output = tmp_path / "r50.pkl", tmp_path / "weights" / "r50"
    parity = shared_dir / "parity"
    subprocess.run(
        [sys.executable, parity / "weights.py", parity / "r50_fpn_gn.spec.json", pkl], check=True
    )
    done = convert("--gin_file=scratch_r50.gin", f"--checkpoint={pkl}", f"--output={output}")
    assert done.returncode == 0, done.stderr
    assert "Wrote 223 variables" in done.stderr
    with open(pkl, "rb") as file:
        arrays = pickle.load(file)["model"]
    reader = tf.train.load_checkpoint(str(output))

    def read(name):
        return reader.get_tensor(f"model/{name}/.ATTRIBUTES/VARIABLE_VALUE")

    stem = arrays["backbone.bottom_up.stem.conv1.weight"]
    np.testing.assert_array_equal(
        read("backbone/stem/conv/kernel"), stem.transpose(2, 3, 1, 0)[:, :, ::-1]
    )
    logits = arrays["roi_heads.box_predictor.cls_score.bias"]
    np.testing.assert_array_equal(read("box_head/class_logits/bias"), np.roll(logits, 1))


def test_a_pickle_that_would_run_something_is_one_clear_error(tmp_path):
    path = tmp_path / "bad.pkl"
    path.write_bytes(pickle.dumps({"model": print}))
    done = convert("--gin_file=scratch_r50.gin", f"--checkpoint={path}", f"--output={tmp_path}/out")
    assert done.returncode != 0
    assert "refused" in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.glob("out*"))
