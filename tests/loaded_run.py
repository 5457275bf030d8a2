"""A tiny run whose detections are many, for tests of what uses a trained detector."""

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
