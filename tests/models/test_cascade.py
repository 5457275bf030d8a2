"""Cascade: refined boxes, labels, scores and gradients by hand; the whole detector, tiny."""

import functools

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from detector_steps import assert_same_step, train_step, with_parts_of, with_plan

from rethink_tf.models import cascade
from rethink_tf.models.box_head import BoxHead
from rethink_tf.models.cascade import CascadeBoxHead

SIZE = np.array([[100, 100]], np.int32)
BOX = [20.0, 20, 60, 60]  # 40 x 40 around (40, 40)
STAGES = ("", "_stage2", "_stage3")


def test_refined_boxes_by_hand():
    deltas = np.zeros((1, 5, 4), np.float32)
    deltas[0, 0] = [10 * 0.25, 0, 5 * np.log(1.5), 0]  # 10 down, 60 high: 20..80
    deltas[0, 1] = [0, 10 * 1.0, 0, 0]  # 40 to the right, of which 0 to 100 is left
    deltas[0, 2] = [0, 10 * 3.0, 0, 0]  # out of the image
    deltas[0, 3, 0] = np.nan
    rois, valid = cascade.refine(
        tf.constant([[BOX, BOX, BOX, BOX, [0.0] * 4]]),
        tf.constant([[True, True, True, True, False]]),
        tf.constant(deltas),
        (10.0, 10.0, 5.0, 5.0),
        tf.constant([[100, 90]]),
    )
    expected = [[20.0, 20, 80, 60], [20, 60, 60, 90], [0] * 4, [0] * 4, [0] * 4]
    np.testing.assert_allclose(rois[0], expected, rtol=1e-5)
    assert valid[0].numpy().tolist() == [True, True, False, False, False]


def test_labels_by_hand():
    """The same RoIs for thresholds 0.5 and 0.6; all of them stay in their places."""
    objects = tf.constant([[BOX, [60.0, 60, 90, 90], [0.0] * 4]])
    classes = tf.constant([[2, 1, 0]])
    rois = tf.constant(
        [[[20.0, 20, 60, 42], [20.0, 20, 60, 44], BOX, [0.0, 60, 20, 99], [0.0] * 4]]
    )  # IoU 0.55, 0.6, 1, 0, and an empty place
    valid = tf.constant([[True, True, True, True, False]])
    weights = (20.0, 20.0, 10.0, 10.0)
    found = {
        threshold: BoxHead(3, positive_from=threshold, box_weights=weights).label(
            rois, valid, objects, classes
        )
        for threshold in (0.5, 0.59)
    }
    assert found[0.5]["class_targets"][0].numpy().tolist() == [2, 2, 2, 0, -1]
    assert found[0.59]["class_targets"][0].numpy().tolist() == [0, 2, 2, 0, -1]
    for labelled in found.values():
        np.testing.assert_array_equal(labelled["rois"], rois)
        # 24 wide around 32, to 40 wide around 40.
        expected = [0, 20 * 8 / 24, 0, 10 * np.log(40 / 24)]
        np.testing.assert_allclose(labelled["box_delta_targets"][0, 1], expected, rtol=1e-5)
        np.testing.assert_allclose(labelled["box_delta_targets"][0, 2], [0] * 4, atol=1e-6)


def make_head(num_classes=2, **options):
    """A cascade without convolutions whose outputs are set by its biases, and a pooling for it."""
    options = {"num_convs": 0, "fc_channels": 4, "score_threshold": 0.01} | options
    head = CascadeBoxHead(num_classes, functools.partial(BoxHead, max_detections=4, **options))
    features = tf.random.stateless_normal([1, 1, 7, 7, 3], [1, 2])

    def pool(boxes, size):
        return features[:, :, :size, :size] * tf.reduce_mean(boxes, -1)[..., None, None, None] / 50

    head.candidates(pool, tf.constant([[BOX]]), tf.constant([[True]]), SIZE)
    return head, pool


def set_outputs(stage, probabilities, deltas):
    for layer, bias in ((stage.class_logits, np.log(probabilities)), (stage.deltas, deltas)):
        layer.kernel.assign(tf.zeros_like(layer.kernel))
        layer.bias.assign(bias)


def test_scores_are_averaged_and_boxes_are_the_last():
    head, pool = make_head()
    set_outputs(head.stages[0], [0.1, 0.6, 0.3], [10 * 0.25, 0, 0, 0])  # 10 down
    set_outputs(head.stages[1], [0.2, 0.2, 0.6], [0, 20 * 0.25, 0, 0])  # 10 to the right
    set_outputs(head.stages[2], [0.3, 0.1, 0.6], [0, 0, 15 * np.log(1.5), 0])  # 60 high
    proposals, valid = tf.constant([[BOX, [0.0] * 4]]), tf.constant([[True, False]])
    found = head.suppress(head.candidates(pool, proposals, valid, SIZE))
    np.testing.assert_allclose(found["scores"], [[0.5, 0.3, 0, 0]], rtol=1e-5)
    assert found["classes"].numpy().tolist() == [[2, 1, 0, 0]]
    # Both classes have the one box: 20..60 down by 10, and by 10 on either side.
    expected = [[20, 30, 80, 70]] * 2 + [[0] * 4] * 2
    np.testing.assert_allclose(found["boxes"][0], expected, rtol=1e-5)

    head.stages_trained.assign(1)
    found = head.suppress(
        tf.function(head.candidates, autograph=False)(pool, proposals, valid, SIZE)
    )
    np.testing.assert_allclose(found["scores"], [[0.6, 0.3, 0, 0]], rtol=1e-5)
    np.testing.assert_allclose(found["boxes"][0, 0], [30, 20, 70, 60], rtol=1e-5)


def train_stages(head, pool, features_scale, num_stages=None):
    """Returns the outputs of a training pass on two RoIs, one of them an object."""
    objects, classes = tf.constant([[BOX]]), tf.constant([[1]])
    rois = tf.constant([[BOX, [50.0, 50, 90, 90]]])
    sampled = head.stages[0].label(rois, tf.constant([[True, True]]), objects, classes)

    def scaled_pool(boxes, size):
        return pool(boxes, size) * features_scale

    pooled = scaled_pool(rois, head.roi_size)
    return head.train(pooled, sampled, scaled_pool, objects, classes, SIZE, num_stages)


def test_gradients_of_features_are_shared_and_those_of_the_heads_are_whole():
    head, pool = make_head()
    scale = tf.Variable(1.0)
    kernels = [stage.fcs[0].kernel for stage in head.stages]
    gradients = {}
    for num_stages in (1, None):
        with tf.GradientTape(persistent=True) as tape:
            outputs = train_stages(head, pool, scale, num_stages)
            losses = {s: tf.reduce_sum(v**2) for s, v in logits(outputs).items()}
        for suffix, loss in losses.items():
            gradients[num_stages, suffix] = tape.gradient(loss, [scale, *kernels])
    alone, first = gradients[1, ""], gradients[None, ""]
    assert abs(alone[0]) > 0
    np.testing.assert_allclose(first[0], alone[0] / 3, rtol=1e-5)
    np.testing.assert_allclose(first[1], alone[1], rtol=1e-5)
    # A stage's loss reaches its own head and the features, but not the heads before it.
    for place, suffix in enumerate(STAGES, start=1):
        reached = [g is not None and bool(tf.norm(g) > 0.0) for g in gradients[None, suffix][1:]]
        assert reached == [stage == place for stage in (1, 2, 3)]
        assert abs(gradients[None, suffix][0]) > 0


def logits(outputs):
    return {key[12:]: value for key, value in outputs.items() if key.startswith("class_logits")}


def test_the_pass_says_what_is_trained():
    head, pool = make_head()
    assert int(head.stages_trained) == 3
    assert set(logits(train_stages(head, pool, 1.0, 1))) == {""}
    assert int(head.stages_trained) == 1
    assert set(logits(train_stages(head, pool, 1.0))) == set(STAGES)
    assert int(head.stages_trained) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"positive_from": (0.5, 0.4, 0.7)}, r"threshold, 0\.4, must be above .* before, 0\.5"),
        ({"positive_from": (0.5, 0.5, 0.7)}, r"threshold, 0\.5, must be above .* before, 0\.5"),
        ({"positive_from": (0.5, 0.6)}, "positive_from has 2 stages.* box_weights has 3"),
        ({"positive_from": (), "box_weights": ()}, "positive_from has 0 stages"),
        ({"positive_from": (0.5, 0.6, 1.2)}, "above 0 and at most 1"),
        ({"positive_from": (0.5,), "box_weights": ((1.0, 1.0, 0.0, 1.0),)}, "all above 0"),
        ({"positive_from": (0.5,), "box_weights": ((1.0, 1.0),)}, "a stage has four"),
    ],
)
def test_stages_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        CascadeBoxHead(3, **options)


@pytest.fixture(scope="module")
def detector(tiny_detector):
    """The tiny detector's parts with a cascade; enlarged outputs, so that boxes move."""
    stage = functools.partial(
        BoxHead, num_convs=1, conv_channels=32, fc_channels=32, num_samples=16, max_detections=20
    )
    stage = functools.partial(stage, score_threshold=0.0)
    tf_keras.utils.set_random_seed(4)
    model = with_parts_of(tiny_detector, box_head=functools.partial(CascadeBoxHead, stage=stage))
    for head in model.box_head.stages:
        head.class_logits.kernel.assign(head.class_logits.kernel * 50)
        head.deltas.kernel.assign(head.deltas.kernel * 300)
    return model


def test_the_detector_trains_alike_in_every_form(detector, tiny_batch):
    variables = detector.trainable_variables
    step = train_step(detector, tiny_batch)
    losses, gradients = step
    box_losses = {name + s for name in ("box_class", "box_regression") for s in STAGES}
    assert set(losses) == {"rpn_objectness", "rpn_box", "mask"} | box_losses
    assert all(np.isfinite(loss) and loss > 0 for loss in losses.values())
    assert not [v.name for v, g in zip(variables, gradients, strict=True) if g is None]
    with with_plan(detector, static_shapes=True):
        assert_same_step(train_step(detector, tiny_batch), step, variables, tolerance=1e-3)
        compiled = tf.function(train_step, jit_compile=True)
        assert_same_step(compiled(detector, tiny_batch), step, variables, tolerance=1e-3)
        empty = {key: tf.zeros_like(tiny_batch[key]) for key in ("boxes", "classes", "masks")}
        losses, _ = compiled(detector, tiny_batch | empty)
        assert all(losses["box_regression" + s] == 0.0 < losses["box_class" + s] for s in STAGES)


def test_the_compiled_prediction_is_the_same_before_and_after_the_switch(detector, tiny_batch):
    inputs = {key: tiny_batch[key] for key in ("image", "image_size")}
    compiled = tf.function(lambda: detector(inputs), jit_compile=True, autograph=False)
    found = {}
    for stages in (1, 3):
        detector.box_head.stages_trained.assign(stages)
        found[stages] = detector(inputs)
        with with_plan(detector, static_shapes=True):
            for key, value in compiled().items():
                np.testing.assert_allclose(value, found[stages][key], rtol=1e-4, atol=1e-3)
    assert found[1]["boxes"].shape == found[3]["boxes"].shape == (2, 20, 4)
    assert not np.allclose(found[1]["boxes"], found[3]["boxes"], atol=0.1)


def test_a_stage_that_has_diverged_does_not_crash(detector, tiny_batch):
    kernel = detector.box_head.stages[0].deltas.kernel
    good = kernel.numpy()
    kernel.assign(tf.fill(kernel.shape, np.nan))
    try:
        losses, _ = train_step(detector, tiny_batch)
        assert np.isnan(losses["box_regression"]) and losses["box_class_stage2"] == 0.0
        found = detector({key: tiny_batch[key] for key in ("image", "image_size")})
        assert not found["classes"].numpy().any()
    finally:
        kernel.assign(good)
