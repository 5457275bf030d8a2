"""Losses by hand values; empty places and missing positives."""

import math

import numpy as np
import pytest
import tensorflow as tf

from rethink_tf.losses import DetectionLosses, smooth_l1
from rethink_tf.models.keypoint_head import keypoint_losses
from rethink_tf.models.mask_head import mask_losses

ONE = {"rpn": 1.0, "rois": 1.0, "mask": 1.0}


def make_outputs(rpn_labels=((1, 0, -1),), class_targets=((2, 0, -1),), mask_valid=(True, False)):
    """One image, three anchors and RoIs, two masks of 2 x 2; the third of each is an empty place.

    What stands in empty places is far off, so that a loss which took it in would show it.
    """
    mask_logits = tf.constant([[[0.0, 0], [0, math.log(3.0)]], [[50.0, 50], [50, 50]]])
    return {
        "rpn_labels": tf.constant(rpn_labels),
        "rpn_logits": tf.constant([[0.0, math.log(3.0), 50.0]]),
        "rpn_deltas": tf.constant([[[1.0, 0, 0, 0.05], [9] * 4, [99] * 4]]),
        "rpn_delta_targets": tf.zeros([1, 3, 4]),
        "class_targets": tf.constant(class_targets),
        "class_logits": tf.constant([[[0.0, 0, 0], [0, 50, 0], [50, 0, 0]]]),
        "box_deltas": tf.constant([[[3.0, 0, 0.5, 0], [7] * 4, [99] * 4]]),
        "box_delta_targets": tf.constant([[[1.0, 0, 0, 0], [0] * 4, [0] * 4]]),
        "mask_losses": mask_losses(mask_logits, tf.zeros([2, 2, 2])),
        "mask_valid": tf.constant(mask_valid),
    }


def as_floats(losses):
    assert all(loss.shape == () and loss.dtype == tf.float32 for loss in losses.values())
    return {name: float(loss) for name, loss in losses.items()}


def test_smooth_l1_by_hand():
    errors = tf.constant([-2.0, -0.5, 0.0, 0.1, 1.0])
    np.testing.assert_allclose(smooth_l1(errors, 1.0), [1.5, 0.125, 0, 0.005, 0.5], rtol=1e-6)
    # Beta 1/9: 0.5 * 0.1^2 * 9 = 0.045 below it, |e| - 1/18 above.
    expected = [2 - 1 / 18, 0.5 - 1 / 18, 0, 0.045, 1 - 1 / 18]
    np.testing.assert_allclose(smooth_l1(errors, 1 / 9), expected, rtol=1e-5)
    np.testing.assert_array_equal(smooth_l1(errors, 0.0), np.abs(errors))


def test_smooth_l1_joins_smoothly():
    errors = tf.constant([0.999, 1.001])
    with tf.GradientTape() as tape:
        tape.watch(errors)
        loss = smooth_l1(errors, 1.0)
    np.testing.assert_allclose(loss, errors - 0.5, atol=1e-5)
    np.testing.assert_allclose(tape.gradient(loss, errors), [1.0, 1.0], atol=0.01)


def test_every_loss_by_hand():
    losses = as_floats(DetectionLosses()(make_outputs(), ONE))
    beta = 1 / 9
    assert losses == pytest.approx(
        {
            # Anchor 1: log 2. Anchor 2, background at p = 3/4: log 4.
            "rpn_objectness": math.log(2) + math.log(4),
            "rpn_box": (1 - beta / 2) + 0.5 * 0.05**2 / beta,
            # RoI 1: log 3. RoI 2, background with a logit 50 below the highest: 50.
            "box_class": math.log(3) + 50,
            "box_regression": (2 - 0.5) + 0.5 * 0.5**2,
            # Three places at p = 1/2, one at 3/4: (3 log 2 + log 4) / 4.
            "mask": (3 * math.log(2) + math.log(4)) / 4,
        },
        rel=1e-5,
    )


def test_detectron2s_betas_give_l1():
    losses = as_floats(DetectionLosses(rpn_beta=0.0, box_beta=0.0)(make_outputs(), ONE))
    assert losses["rpn_box"] == pytest.approx(1.05)
    assert losses["box_regression"] == pytest.approx(2.5)


def test_each_loss_is_divided_by_its_normalizer():
    outputs = make_outputs()
    normalizers = {"rpn": tf.constant(8.0), "rois": tf.constant(5.0), "mask": tf.constant(2.0)}
    plain = as_floats(DetectionLosses()(outputs, ONE))
    divided = as_floats(DetectionLosses()(outputs, normalizers))
    for name, divisor in [
        ("rpn_objectness", 8),
        ("rpn_box", 8),
        ("box_class", 5),
        ("box_regression", 5),
        ("mask", 2),
    ]:
        assert divided[name] == pytest.approx(plain[name] / divisor, rel=1e-5)


def test_counts():
    counts = DetectionLosses.counts(make_outputs(), 256)
    # The RPN's is the number wanted, as in Detectron; the others are those that are there.
    assert as_floats(counts) == {"rpn": 256.0, "rois": 2.0, "mask": 1.0}
    outputs = make_outputs()
    del outputs["mask_losses"], outputs["mask_valid"]
    assert set(DetectionLosses.counts(outputs, 256)) == {"rpn", "rois"}


def test_without_a_mask_head_there_is_no_mask_loss():
    outputs = {k: v for k, v in make_outputs().items() if not k.startswith("mask")}
    losses = as_floats(DetectionLosses()(outputs, ONE))
    assert set(losses) == {"rpn_objectness", "rpn_box", "box_class", "box_regression"}


def test_nothing_but_empty_places_is_0_with_finite_gradients():
    outputs = make_outputs(((-1, -1, -1),), ((-1, -1, -1),), (False, False))
    floats = {name: value for name, value in outputs.items() if value.dtype == tf.float32}
    with tf.GradientTape() as tape:
        tape.watch(floats)
        losses = DetectionLosses()(outputs, DetectionLosses.counts(outputs, 256))
        total = tf.add_n(list(losses.values()))
    assert as_floats(losses) == dict.fromkeys(losses, 0.0)
    gradients = tape.gradient(total, floats, unconnected_gradients="zero")
    assert all(np.all(gradient.numpy() == 0.0) for gradient in gradients.values())


def test_background_alone_has_classification_losses_only():
    outputs = make_outputs(((0, 0, -1),), ((0, 0, -1),), (False, False))
    losses = as_floats(DetectionLosses()(outputs, ONE))
    assert losses["rpn_box"] == losses["box_regression"] == losses["mask"] == 0.0
    assert losses["rpn_objectness"] == pytest.approx(math.log(2) + math.log(4), rel=1e-5)
    assert losses["box_class"] == pytest.approx(math.log(3) + 50, rel=1e-5)


def keypoint_outputs():
    """Two positives, two keypoints, heatmaps of 1 x 2; one keypoint of the second is not valid."""
    logits = [[[[0.0, 0.0]], [[0.0, math.log(3.0)]]], [[[math.log(3.0), 0.0]], [[50.0, 0.0]]]]
    cells = tf.constant([[0, 1], [1, 0]])
    return make_outputs() | {
        "keypoint_losses": keypoint_losses(tf.constant(logits), cells),
        "keypoint_valid": tf.constant([[True, True], [True, False]]),
    }


def test_the_keypoint_loss_by_hand():
    outputs = keypoint_outputs()
    losses = as_floats(DetectionLosses()(outputs, ONE | {"keypoint": 1.0}))
    # The target's cell at p = 1/2, 3/4 and 1/4.
    assert losses["keypoint"] == pytest.approx(
        math.log(2) + math.log(4 / 3) + math.log(4), rel=1e-5
    )
    counts = DetectionLosses.counts(outputs, 256)
    assert float(counts["keypoint"]) == 3.0
    mean = as_floats(DetectionLosses()(outputs, counts))
    assert mean["keypoint"] == pytest.approx(losses["keypoint"] / 3, rel=1e-5)


def test_no_keypoint_is_0_with_finite_gradients():
    outputs = keypoint_outputs() | {"keypoint_valid": tf.zeros([2, 2], tf.bool)}
    losses = outputs["keypoint_losses"]
    with tf.GradientTape() as tape:
        tape.watch(losses)
        loss = DetectionLosses()(outputs, DetectionLosses.counts(outputs, 256))["keypoint"]
    assert float(loss) == 0.0 and not np.any(tape.gradient(loss, losses))


def test_no_masks_at_all():
    """What a step without positives has, where shapes follow the data."""
    outputs = make_outputs() | {
        "mask_losses": mask_losses(tf.zeros([0, 28, 28]), tf.zeros([0, 28, 28])),
        "mask_valid": tf.zeros([0], tf.bool),
    }
    losses = DetectionLosses()(outputs, DetectionLosses.counts(outputs, 256))
    assert float(losses["mask"]) == 0.0


def test_the_stages_of_a_cascade_each_have_their_losses():
    outputs = make_outputs()
    for key in ("class_targets", "class_logits", "box_deltas", "box_delta_targets"):
        outputs[key + "_stage2"] = outputs[key]
    # Two of the three have become background: only they differ.
    outputs["class_targets_stage2"] = tf.constant([[0, 0, 0]])
    counts = DetectionLosses.counts(outputs, 256)
    assert as_floats(counts) == {"rpn": 256.0, "rois": 2.0, "rois_stage2": 3.0, "mask": 1.0}
    losses = as_floats(DetectionLosses()(outputs, counts))
    assert losses["box_class"] == pytest.approx((math.log(3) + 50) / 2, rel=1e-5)
    assert losses["box_regression"] == pytest.approx((1.5 + 0.125) / 2, rel=1e-5)
    # Logits 0 0 0, 0 50 0 and 50 0 0, each background.
    assert losses["box_class_stage2"] == pytest.approx((math.log(3) + 50 + 0) / 3, rel=1e-5)
    assert losses["box_regression_stage2"] == 0.0
