"""Test-time augmentation as a whole experiment: after training, alone, and where it is idle."""

import json

import pytest
from experiment_runs import read_metrics, read_scalars, tiny

from rethink_tf import config, experiment

pytestmark = pytest.mark.usefixtures("fresh_tensorflow_settings")


def run(params, mode="train_and_evaluate"):
    config.parse(["quickstart.gin", "overlays/tiny.gin", "overlays/test_augmentation.gin"], params)
    return experiment.run(mode=mode)


def settings(**values):
    return [f"TestTimeAugmentation.{name}={value!r}" for name, value in values.items()]


def test_it_comes_once_after_training_and_alone(tmp_path):
    model_dir = tmp_path / "model"
    params = tiny(model_dir, tmp_path / "data", "STEPS=2", "run.evaluate_every=1")
    small = settings(scales=(96, 160), max_side=192)
    metrics = run(params + small)
    lines = read_metrics(model_dir)
    kinds = [(line["step"], line.get("test_augmentation", False)) for line in lines]
    assert kinds == [(1, False), (2, False), (2, True)]
    assert {name: lines[2][name] for name in metrics} == dict(metrics)
    assert metrics.keys() <= lines[1].keys()
    # The best is the best of the plain ones.
    best = json.loads((model_dir / "best" / "best.json").read_text())
    assert best["score"] == max(line["mask/AP"] for line in lines[:2])
    scalars = read_scalars(model_dir)
    assert scalars["evaluation/box/AP", 2] == pytest.approx(lines[1]["box/AP"])
    assert scalars["test_augmentation/box/AP", 2] == pytest.approx(metrics["box/AP"])
    pictures = {path.name.partition("image")[2] for path in (model_dir / "pictures").iterdir()}
    assert {"-1000001.png", "-1000001-augmented.png"} <= pictures
    augmented = read_results(model_dir, "-augmented")
    assert augmented != read_results(model_dir)
    assert {result["image_id"] for result in augmented} == set(range(1000001, 1000005))
    assert all(set(result["segmentation"]) == {"size", "counts"} for result in augmented)

    # Started again, there is nothing left to do.
    run(params + small)
    assert len(read_metrics(model_dir)) == 3

    # Every image twice in the same size, and nobody votes: as if there were no augmentation.
    same = settings(scales=(128,), max_side=128, flip=False, vote_iou=1.0)
    metrics = run(params + same, mode="evaluate")
    for name, value in metrics.items():
        assert value == pytest.approx(lines[1][name], abs=1e-6), name
    plain, augmented = read_results(model_dir), read_results(model_dir, "-augmented")
    assert len(plain) == len(augmented) > 0
    for result, expected in zip(augmented, plain, strict=True):
        assert result["bbox"] == pytest.approx(expected["bbox"], abs=1e-3)
        assert result["score"] == pytest.approx(expected["score"], abs=1e-6)
        for key in ("image_id", "category_id", "segmentation"):
            assert result[key] == expected[key]
    assert read_metrics(model_dir)[3]["test_augmentation"]


def read_results(model_dir, suffix=""):
    return json.loads((model_dir / "results" / f"detections-2{suffix}.json").read_text())
