"""The whole detector, tiny: its two forms, its compiled form, and what must not matter to it."""

import contextlib
import dataclasses

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from detector_steps import assert_same_step, train_step, with_parts_of, with_plan
from tensorflow.python.framework import config as framework_config

from rethink_tf import execution
from rethink_tf.models.detector import MaskRCNN
from rethink_tf.ops import roi_align

LOSSES = {"rpn_objectness", "rpn_box", "box_class", "box_regression", "mask"}


@pytest.fixture
def with_shapes(tiny_detector):
    """Returns a function that gives the detector static shapes or not; undone after the test."""
    with contextlib.ExitStack() as stack:
        yield lambda static: stack.enter_context(with_plan(tiny_detector, static_shapes=static))


def without_objects(batch):
    return batch | {key: tf.zeros_like(batch[key]) for key in ("boxes", "classes", "masks")}


@pytest.fixture(scope="module")
def reference_step(tiny_detector, tiny_batch):
    assert not tiny_detector.plan.static_shapes
    created = len(tiny_detector.variables)
    step = train_step(tiny_detector, tiny_batch)
    # Those of `create_variables`, no more: a checkpoint restored before step 1 holds all.
    assert len(tiny_detector.variables) == created
    return step


def test_every_loss_is_there_and_every_variable_has_a_gradient(
    tiny_detector, tiny_batch, reference_step
):
    losses, gradients = reference_step
    assert set(losses) == LOSSES
    assert all(np.isfinite(loss) and loss > 0 for loss in losses.values())
    missing = [
        variable.name
        for variable, gradient in zip(tiny_detector.trainable_variables, gradients, strict=True)
        if gradient is None
    ]
    assert not missing
    norms = [tf.norm(tf.convert_to_tensor(gradient)) for gradient in gradients]
    assert all(np.isfinite(norm) for norm in norms)


def test_static_shapes_give_the_same_step(with_shapes, tiny_batch, reference_step):
    detector = with_shapes(True)
    step = train_step(detector, tiny_batch)
    assert_same_step(step, reference_step, detector.trainable_variables)


def test_the_crops_give_the_same_step(tiny_detector, tiny_batch, reference_step):
    """With determinism, as on a CPU, RoIAlign takes another form."""
    framework_config.enable_op_determinism()
    try:
        with with_plan(tiny_detector, roi_align=roi_align.CROP):
            step = train_step(tiny_detector, tiny_batch)
    finally:
        framework_config.disable_op_determinism()
    assert_same_step(step, reference_step, tiny_detector.trainable_variables)


def test_tensorflows_own_operations_give_the_same_step(tiny_detector, tiny_batch, reference_step):
    """What GPUs and TPUs run: no kernels for CPUs, nothing computed again, nothing in order."""
    before = tiny_detector.plan
    assert before.convolution == "cpu" and before.recomputes
    own = execution.ExecutionPlan()
    own.give_to(tiny_detector)
    try:
        with with_plan(tiny_detector, **dataclasses.asdict(own)):
            step = train_step(tiny_detector, tiny_batch)
    finally:
        before.give_to(tiny_detector)
    assert_same_step(step, reference_step, tiny_detector.trainable_variables)


def test_the_compiled_step_is_the_same(with_shapes, tiny_batch, reference_step):
    detector = with_shapes(True)
    compiled = tf.function(train_step, jit_compile=True)
    step = compiled(detector, tiny_batch)
    # XLA adds up in another order; the small gradients of normalization feel it most.
    assert_same_step(step, reference_step, detector.trainable_variables, tolerance=1e-3)
    # The same program serves a batch without objects.
    losses, gradients = compiled(detector, without_objects(tiny_batch))
    assert losses["mask"] == losses["rpn_box"] == losses["box_regression"] == 0.0
    assert all(np.isfinite(tf.norm(tf.convert_to_tensor(gradient))) for gradient in gradients)


@pytest.mark.parametrize("static_shapes", [False, True])
def test_a_batch_without_objects_trains(with_shapes, tiny_batch, static_shapes):
    """Eagerly, each kernel on its own: that of oneDNN for a deconvolution of nothing is wrong."""
    losses, gradients = train_step(with_shapes(static_shapes), without_objects(tiny_batch))
    assert losses["mask"] == losses["rpn_box"] == losses["box_regression"] == 0.0
    assert np.isfinite(losses["rpn_objectness"]) and losses["rpn_objectness"] > 0.0
    assert np.isfinite(losses["box_class"]) and losses["box_class"] > 0.0
    for gradient in gradients:
        if gradient is not None:
            assert np.isfinite(tf.norm(tf.convert_to_tensor(gradient)))


def test_padding_rows_do_not_matter(tiny_detector, tiny_batch, reference_step):
    padding = tiny_batch["classes"] == 0
    garbage = {
        "boxes": tf.where(padding[..., tf.newaxis], [7.0, 9.0, 41.0, 33.0], tiny_batch["boxes"]),
        "masks": tf.where(
            padding[..., tf.newaxis, tf.newaxis], tf.constant(255, tf.uint8), tiny_batch["masks"]
        ),
    }
    step = train_step(tiny_detector, tiny_batch | garbage)
    assert_same_step(step, reference_step, tiny_detector.trainable_variables)
    more = {
        key: tf.pad(tiny_batch[key], [[0, 0], [0, 3]] + [[0, 0]] * (len(tiny_batch[key].shape) - 2))
        for key in ("boxes", "classes", "masks")
    }
    # More rows make room for more RoIs (up to num_samples), which stay empty here.
    step = train_step(tiny_detector, tiny_batch | more)
    assert_same_step(step, reference_step, tiny_detector.trainable_variables)


def test_objects_without_a_mask_train_boxes_alone(tiny_detector, tiny_batch, reference_step):
    expected = reference_step[0]
    has_mask = tiny_batch["classes"] > 0
    losses, _ = train_step(tiny_detector, tiny_batch | {"has_mask": tf.zeros_like(has_mask)})
    assert losses["mask"] == 0.0
    for name in expected.keys() - {"mask"}:
        np.testing.assert_allclose(losses[name], expected[name], rtol=1e-5, err_msg=name)
    # The second object's mask counts for nothing, and is no part of the mean either.
    one = tiny_batch | {"has_mask": has_mask & [[True, False, False, False]]}
    losses, _ = train_step(tiny_detector, one)
    other = tf.where(one["has_mask"][..., tf.newaxis, tf.newaxis], tiny_batch["masks"], 255)
    again, _ = train_step(tiny_detector, one | {"masks": other})
    assert losses["mask"] == again["mask"] and losses["mask"] > 0.0
    assert losses["mask"] != expected["mask"]


def test_the_order_of_the_batch_does_not_matter(tiny_detector, tiny_batch, reference_step):
    reversed_batch = {key: tf.reverse(value, [0]) for key, value in tiny_batch.items()}
    step = train_step(tiny_detector, reversed_batch)
    assert_same_step(step, reference_step, tiny_detector.trainable_variables)


def test_the_step_and_the_image_change_the_sample(tiny_detector, tiny_batch, reference_step):
    for changed in (
        train_step(tiny_detector, tiny_batch, seed=(1, 21)),
        train_step(tiny_detector, tiny_batch | {"image_id": tf.constant([139, 286], tf.int64)}),
    ):
        assert not np.isclose(
            changed[0]["rpn_objectness"], reference_step[0]["rpn_objectness"], rtol=1e-6
        )


def test_the_padded_region_of_an_image_does_not_matter(tiny_detector, tiny_batch, reference_step):
    image = tiny_batch["image"].numpy()
    image[1, 50:] = 255
    image[1, :, 40:] = 17
    clean = image.copy()
    clean[1, 50:] = 0
    clean[1, :, 40:] = 0
    step = train_step(tiny_detector, tiny_batch | {"image": tf.constant(clean)})
    assert_same_step(step, reference_step, tiny_detector.trainable_variables)
    found, expected = (
        tiny_detector(tiny_batch | {"image": tf.constant(pixels)}) for pixels in (image, clean)
    )
    for key in expected:
        np.testing.assert_array_equal(found[key], expected[key])


def test_predictions(with_shapes, tiny_batch):
    inputs = {key: tiny_batch[key] for key in ("image", "image_size")}
    found = with_shapes(False)(inputs)
    shapes = {"boxes": (2, 20, 4), "scores": (2, 20), "classes": (2, 20), "masks": (2, 20, 28, 28)}
    proposals = found.pop("proposals")
    assert proposals.shape[0] == 2 and proposals.shape[2] == 4
    assert {key: tuple(value.shape) for key, value in found.items()} == shapes
    assert found["classes"].dtype == tf.int32
    boxes, scores, classes, masks = (found[key].numpy() for key in shapes)
    used = classes > 0
    assert used.any(axis=1).all() and (classes <= 3).all() and len(set(classes[used])) > 1
    assert (np.diff(scores, axis=1) <= 0.0).all() and (scores[used] > 0.0).all()
    for image, (height, width) in enumerate([(64, 64), (50, 40)]):
        y1, x1, y2, x2 = boxes[image][used[image]].T
        assert (0 <= y1).all() and (y1 < y2).all() and (y2 <= height).all()
        assert (0 <= x1).all() and (x1 < x2).all() and (x2 <= width).all()
    assert masks.min() >= 0.0 and masks.max() <= 1.0 and np.ptp(masks[used]) > 0.01
    for value in (boxes, scores, masks):
        assert not value[~used].any()
    static = with_shapes(True)(inputs)
    np.testing.assert_array_equal(static["classes"], classes)
    for key in ("boxes", "scores", "masks"):
        np.testing.assert_allclose(static[key], found[key], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("static_shapes", [False, True])
def test_an_empty_image_has_no_detections(with_shapes, tiny_batch, static_shapes):
    """What fills up the last batch of an evaluation."""
    inputs = {"image": tiny_batch["image"], "image_size": tf.constant([[0, 0], [0, 0]])}
    found = with_shapes(static_shapes)(inputs)
    for value in found.values():
        assert not value.numpy().any()


def test_without_a_mask_head_it_is_faster_rcnn(tiny_detector, tiny_batch, reference_step):
    detector = with_parts_of(tiny_detector, mask_head=None)
    batch = {key: value for key, value in tiny_batch.items() if key != "masks"}
    losses, _ = train_step(detector, batch)
    assert set(losses) == LOSSES - {"mask"}
    for name, loss in losses.items():
        np.testing.assert_allclose(loss, reference_step[0][name], rtol=1e-5)
    assert set(detector(batch)) == {"boxes", "scores", "classes", "proposals"}


def test_pixels_are_normalized_by_mean_and_deviation(tiny_detector):
    received = []

    class Recorder(tf_keras.layers.Layer):
        coarsest_stride = 32

        def call(self, images, training=False, content=None):
            received.append(images)
            return tiny_detector.backbone(images)

    detector = MaskRCNN(
        3,
        Recorder,
        lambda: tiny_detector.fpn,
        lambda: tiny_detector.rpn,
        lambda num_classes: tiny_detector.box_head,
        mask_head=None,
        pixel_mean=(10.0, 20.0, 30.0),
        pixel_std=(1.0, 2.0, 4.0),
    )
    image = np.full((1, 64, 64, 3), 50, np.uint8)
    detector.features(tf.constant(image), tf.constant([[64, 32]]))
    expected = np.zeros((1, 64, 64, 3))
    expected[:, :, :32] = [40 / 1, 30 / 2, 20 / 4]  # the mean only where there is content
    np.testing.assert_allclose(received[0], expected)
