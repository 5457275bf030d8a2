"""Box head: the detections from hand-made outputs, the sample of RoIs, the layers."""

import numpy as np
import pytest
import tensorflow as tf

from rethink_tf.models.box_head import BoxHead

SIZE = np.array([[100, 100]], np.int32)
BOX, NEAR, FAR = [10.0, 10, 50, 50], [10.0, 10, 50, 48], [60.0, 60, 90, 90]


def detect(head, probabilities, proposals, deltas=None, valid=None, size=SIZE):
    """Detects in one image; probabilities [P, C + 1], background first."""
    count, num_classes = len(proposals), head.num_classes
    deltas = np.zeros((count, num_classes, 4)) if deltas is None else deltas
    candidates = head.decode(
        tf.math.log(tf.constant([probabilities], tf.float32)),
        tf.constant([deltas], tf.float32),
        tf.constant([proposals], tf.float32),
        tf.constant([[True] * count if valid is None else valid]),
        size,
    )
    return {key: value[0].numpy() for key, value in head.suppress(candidates).items()}


def test_detections_by_hand():
    head = BoxHead(2, max_detections=5)
    found = detect(
        head,
        [
            [0.07, 0.9, 0.03],  # class 2 is below the threshold
            [0.2, 0.3, 0.5],  # class 1 is suppressed by the first (IoU 0.95), class 2 is not
            [0.9, 0.04, 0.06],
        ],
        [BOX, NEAR, FAR],
    )
    np.testing.assert_allclose(found["scores"], [0.9, 0.5, 0.06, 0, 0], rtol=1e-5)
    assert found["classes"].tolist() == [1, 2, 2, 0, 0]
    assert found["classes"].dtype == np.int32
    np.testing.assert_allclose(found["boxes"], [BOX, NEAR, FAR, [0] * 4, [0] * 4], rtol=1e-5)


def test_each_class_has_its_own_deltas_in_weighted_units():
    head = BoxHead(2, max_detections=2)
    deltas = np.zeros((1, 2, 4))
    deltas[0, 0] = [10 * 0.25, 0, 5 * np.log(2.0), 0]  # a quarter of the height down, twice as high
    deltas[0, 1] = [0, 10 * 0.5, 0, 0]  # half of the width to the right
    found = detect(head, [[0.1, 0.5, 0.4]], [BOX], deltas)
    # 40 x 40 around (30, 30): to (40, 30), 80 high; to (30, 50).
    np.testing.assert_allclose(found["boxes"], [[0, 10, 80, 50], [10, 30, 50, 70]], atol=1e-4)


def test_boxes_are_clipped_and_those_left_without_area_are_dropped():
    head = BoxHead(1, max_detections=3)
    deltas = np.zeros((2, 1, 4))
    deltas[1, 0] = [0, -10 * 3, 0, 0]  # far out on the left
    found = detect(head, [[0.1, 0.9], [0.1, 0.9]], [FAR, BOX], deltas, size=tf.constant([[80, 70]]))
    np.testing.assert_allclose(found["boxes"], [[60, 60, 80, 70], [0] * 4, [0] * 4])
    assert found["classes"].tolist() == [1, 0, 0]


def test_padding_proposals_are_not_detected():
    head = BoxHead(1, max_detections=2)
    found = detect(head, [[0.1, 0.9], [0.4, 0.6]], [BOX, FAR], valid=[False, True])
    np.testing.assert_allclose(found["scores"], [0.6, 0.0], rtol=1e-5)


def test_the_best_are_kept_where_there_are_too_many():
    head = BoxHead(1, max_detections=3)
    proposals = [[0.0, 10.0 * i, 8.0, 10.0 * i + 8] for i in range(6)]
    scores = [0.3, 0.8, 0.5, 0.9, 0.4, 0.6]
    found = detect(head, [[1 - s, s] for s in scores], proposals)
    np.testing.assert_allclose(found["scores"], [0.9, 0.8, 0.6], rtol=1e-5)
    np.testing.assert_allclose(found["boxes"], [proposals[3], proposals[1], proposals[5]])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_spoil_their_own_box_only(bad):
    head = BoxHead(1, max_detections=2)
    deltas = np.zeros((3, 1, 4))
    deltas[0, 0, 2] = bad
    probabilities = [[0.1, 0.9], [0.3, 0.7], [float("nan"), 0.5]]
    found = detect(head, probabilities, [BOX, FAR, BOX], deltas)
    np.testing.assert_allclose(found["boxes"], [FAR, [0] * 4])
    assert found["classes"].tolist() == [1, 0]


def sample(head, proposals, objects, classes, proposal_valid=None):
    """Samples in one image; candidates are drawn in their order."""
    valid = [True] * len(proposals) if proposal_valid is None else proposal_valid

    def draw(count):
        return tf.linspace([0.9], [0.0], count, axis=1)

    sampled = head.sample(
        tf.constant([proposals]),
        tf.constant([valid]),
        tf.constant([objects]),
        tf.constant([classes]),
        draw,
    )
    return {key: value[0].numpy() for key, value in sampled.items()}


def test_sample_by_hand():
    head = BoxHead(3, num_samples=8, positive_fraction=0.5)
    sampled = sample(head, [FAR, NEAR], [[0.0, 60, 20, 99], BOX, [0.0] * 4], [3, 2, 0])
    # NEAR is an object of class 2; the objects themselves are candidates, FAR is background; the
    # padding row is no candidate.
    assert sampled["class_targets"].tolist() == [2, 3, 2, 0, -1]
    rois = sampled["rois"]
    np.testing.assert_array_equal(rois[:4], [NEAR, [0.0, 60, 20, 99], BOX, FAR])
    assert sampled["roi_matches"].tolist()[:3] == [1, 0, 1]
    # 38 to 40 wide: the centre moves by 1 of 38.
    expected = [0, 10 * 1 / 38, 0, 5 * np.log(40 / 38)]
    np.testing.assert_allclose(sampled["box_delta_targets"][0], expected, rtol=1e-4, atol=1e-5)
    assert not sampled["box_delta_targets"][1:3].any()


def test_sample_counts():
    head = BoxHead(3, num_samples=4, positive_fraction=0.25)
    sampled = sample(head, [NEAR, NEAR, FAR, FAR, FAR], [BOX], [1])
    assert sampled["class_targets"].tolist() == [1, 0, 0, 0]


def test_sample_without_objects_is_background():
    head = BoxHead(3, num_samples=4)
    sampled = sample(head, [NEAR, FAR, [0.0] * 4], [[0.0] * 4], [0], [True, True, False])
    assert sampled["class_targets"].tolist() == [0, 0, -1, -1]
    assert np.isfinite(sampled["box_delta_targets"]).all()


def test_the_head_of_two_fcs_and_that_of_convolutions():
    rois = tf.zeros([2, 5, 7, 7, 32])
    two_fcs = BoxHead(3, num_convs=0, num_fcs=2, fc_channels=16)
    logits, deltas = two_fcs(rois)
    assert logits.shape == (2, 5, 4) and deltas.shape == (2, 5, 3, 4)
    shapes = [tuple(v.shape) for v in two_fcs.trainable_variables if len(v.shape) == 2]
    assert shapes == [(7 * 7 * 32, 16), (16, 16), (16, 4), (16, 12)]
    four_convs = BoxHead(3, conv_channels=32, fc_channels=16)
    logits, deltas = four_convs(rois, training=True)
    assert logits.shape == (2, 5, 4) and deltas.shape == (2, 5, 3, 4)
    kernels = [v for v in four_convs.trainable_variables if len(v.shape) == 4]
    assert [tuple(kernel.shape) for kernel in kernels] == [(3, 3, 32, 32)] * 4
