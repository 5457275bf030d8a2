"""A tiny run whose detections are many, for tests of what uses a trained detector."""

import fcntl
import os

import gin
from experiment_runs import tiny

from rethink_tf import config, experiment


def train(folder, data_dir, *params, mode="train_and_evaluate"):
    """Trains it, with nothing below its threshold, and returns its folder."""
    params = tiny(folder, data_dir, "BoxHead.score_threshold=0.0", "STEPS=2", *params)
    config.parse(["quickstart.gin", "overlays/tiny.gin"], params)
    experiment.run(mode=mode)
    gin.clear_config()
    return str(folder)


def train_once(base):
    """Returns the folder that holds such a run and its data, which all test processes share.

    Args:
        base: `pathlib.Path`, the folder for temporary files of this process.
    """
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "loaded"
    folder.mkdir(exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "done").exists():
            train(folder / "run", folder / "shapes")
            (folder / "done").touch()
    return folder
