"""A backbone, a head and a metric of one's own, each one file, in a whole experiment."""

import json

import numpy as np
import pytest
from experiment_runs import read_metrics, read_scalars, read_weights, tiny

from rethink_tf import config, experiment

pytestmark = pytest.mark.usefixtures("fresh_tensorflow_settings")

GIN = """
import toy_backbone
import toy_head
import toy_metric

include 'quickstart.gin'

MaskRCNN.backbone = @ToyBackbone
MaskRCNN.further_heads = [@SizeHead]
run.metrics = @CountMetric
BoxHead.score_threshold = 0.0
"""


def test_parts_of_ones_own(tmp_path, caplog):
    gin_file = tmp_path / "mine.gin"
    gin_file.write_text(GIN)
    config.parse([str(gin_file), "overlays/tiny.gin"], tiny(tmp_path / "run", tmp_path / "data"))
    with caplog.at_level("INFO", logger="absl"):
        metrics = experiment.run()
    assert "ToyBackbone, FPN, RPN, BoxHead, MaskHead, SizeHead" in caplog.text
    assert "detections an image" in caplog.text
    (line,) = read_metrics(tmp_path / "run")
    assert line["count/mean"] == metrics["count/mean"] > 0
    results = json.loads((tmp_path / "run" / "results" / "detections-4.json").read_text())
    assert all(len(result["sizes"]) == 2 and min(result["sizes"]) > 0 for result in results)
    scalars = read_scalars(tmp_path / "run")
    assert all(0 < scalars["train/size", step] < np.inf for step in (1, 2, 3, 4))
    before, after = (read_weights(tmp_path / "run", step) for step in (2, 4))
    moved = {name for name in after if not np.array_equal(before[name], after[name])}
    for part in ("backbone/convs/0/conv/kernel", "further_heads/0/dense/kernel"):
        assert any(part in name for name in moved), part
    best = json.loads((tmp_path / "run" / "best" / "best.json").read_text())
    assert best["score"] == metrics["count/mean"]
