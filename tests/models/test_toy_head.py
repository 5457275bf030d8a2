"""A further head, in one file: it trains, predicts and is written."""

import numpy as np
import pytest
import tensorflow as tf
from detector_steps import run_step, with_parts_of, with_plan
from toy_head import SizeHead

from rethink_tf.evaluation import forms, inference
from rethink_tf.evaluation import test_time_augmentation as tta


@pytest.fixture(scope="module")
def detector(tiny_detector):
    return with_parts_of(tiny_detector, further_heads=[SizeHead])


def test_it_trains(detector, tiny_batch):
    outputs, losses, gradients = run_step(detector, tiny_batch)
    valid = outputs["size_valid"].numpy()
    sides = np.exp(outputs["size_targets"].numpy()[valid])
    boxes = tiny_batch["boxes"].numpy()[tiny_batch["classes"].numpy() > 0]
    known = {tuple(np.round(each, 3)) for each in boxes[:, 2:] - boxes[:, :2]}
    assert valid.any() and {tuple(np.round(each, 3)) for each in sides} <= known
    mean = outputs["size_losses"].numpy()[valid].mean()
    assert float(losses["size"]) == pytest.approx(mean, rel=1e-5)
    names = [variable.name for variable in detector.trainable_variables]
    kernel = next(g for g, n in zip(gradients, names, strict=True) if "size_head" in n)
    assert np.any(kernel)
    with with_plan(detector, static_shapes=True):
        _, static_losses, _ = run_step(detector, tiny_batch)
    assert float(static_losses["size"]) == pytest.approx(float(losses["size"]), rel=1e-4)


def test_it_predicts_and_is_written(detector, tiny_batch):
    count = len(tiny_batch["image"])
    batch = {key: tiny_batch[key] for key in ("image", "image_size")} | {
        "image_id": tf.range(count, dtype=tf.int64),
        "original_size": tiny_batch["image_size"],
        "image_scale": tf.ones([count, 2]),
    }
    strategy = tf.distribute.get_strategy()
    predictor = inference.Predictor(detector, strategy)
    found = predictor(batch)
    assert predictor.fields == ("masks", "sizes")
    there = found["classes"] > 0
    assert (found["sizes"][there] > 0).all() and not found["sizes"][~there].any()
    # Of the image and its mirror image, whose head says something else.
    augmentation = tta.TestTimeAugmentation(scales=())
    (views,) = augmentation.group([batch])
    augmented = tta.AugmentedPredictor(detector, strategy, augmentation)(views)
    assert augmented["sizes"].shape == found["sizes"].shape
    form = forms.of("sizes")
    written = form.to_coco(found["sizes"][0], found["boxes"][0], 10, 10)
    assert form.key == "sizes" and written == found["sizes"][0].tolist()
