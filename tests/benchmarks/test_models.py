"""The benchmarks of the training step and of prediction, on a few pixels."""

import numpy as np
import pytest

from benchmarks import predict, train_step

pytestmark = pytest.mark.usefixtures("fresh_tensorflow_settings", "untraced")


@pytest.mark.parametrize("benchmark", [train_step, predict])
def test_our_side_runs(benchmark):
    small = "--depth=18 --height=64 --width=64 --images=1 --classes=3".split()
    own = ["--rois=16", "--objects=3"] if benchmark is train_step else ["--proposals=16"]
    flags = benchmark.make_parser().parse_args([*small, *own])

    run, *_ = benchmark.make_ours(flags, "float32")

    assert all(np.isfinite(value) and value > 0 for value in run().values())
