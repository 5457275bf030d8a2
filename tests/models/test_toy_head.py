"""A further head in one file: how large an object is. It trains, predicts and is written."""

import functools

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from detector_steps import run_step, with_parts_of

from rethink_tf.evaluation import forms, inference
from rethink_tf.evaluation import test_time_augmentation as tta
from rethink_tf.models.object_head import ObjectHead, flatten, keep


class SizeHead(ObjectHead):
    """One linear layer to the logarithms of an object's height and width, of no class."""

    loss_name, field, described_shape = "size", "sizes", (2,)

    def __init__(self, num_classes, roi_size=3, **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.roi_size = roi_size
        self.dense = tf_keras.layers.Dense(2)

    def call(self, rois):
        return self.dense(tf.reshape(rois, [-1, np.prod(rois.shape[1:])]))

    def train(self, pool, positives, batch, static_shapes):
        boxes = positives.of_objects(batch["boxes"])
        rois = flatten(pool(positives.boxes, self.roi_size))
        valid = tf.reshape(positives.classes, [-1]) > 0
        if not static_shapes:
            rois, boxes, valid = keep(valid, rois, boxes, valid)
        targets = tf.math.log(tf.maximum(boxes[:, 2:] - boxes[:, :2], 1.0))
        losses = tf.reduce_sum(tf.math.squared_difference(self(rois), targets), -1)
        return {"losses": losses, "valid": valid, "targets": targets}

    def describe_rois(self, rois, classes):
        return self(rois)

    def mirror(self, described, flip_order):
        return described

    def place(self, described, boxes, classes):
        return tf.where(classes[..., tf.newaxis] > 0, tf.exp(described), 0.0)


@pytest.fixture(scope="module")
def detector(tiny_detector):
    return with_parts_of(tiny_detector, further_heads=[functools.partial(SizeHead, roi_size=2)])


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
    detector.static_shapes = True
    _, static_losses, _ = run_step(detector, tiny_batch)
    detector.static_shapes = False
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
