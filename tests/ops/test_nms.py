"""Non-maximum suppression against a plain greedy loop, compiled and not; voting by hand."""

import numpy as np
import pytest
import tensorflow as tf

from rethink_tf.ops import nms


def iou(a, b):
    height = min(a[2], b[2]) - max(a[0], b[0])
    width = min(a[3], b[3]) - max(a[1], b[1])
    both = max(height, 0.0) * max(width, 0.0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return both / (sum(areas) - both) if both > 0.0 else 0.0


def greedy(boxes, scores, max_output, threshold, classes=None):
    kept = []
    for row in np.argsort(-scores, kind="stable"):
        if scores[row] <= nms.NO_SCORE or len(kept) == max_output:
            break
        rivals = [k for k in kept if classes is None or classes[k] == classes[row]]
        if all(iou(boxes[row], boxes[k]) <= threshold for k in rivals):
            kept.append(row)
    return kept


def random_boxes(generator, images, count):
    corners = generator.uniform(0, 60, (images, count, 2))
    sides = generator.uniform(5, 40, (images, count, 2))
    return np.concatenate([corners, corners + sides], axis=-1).astype(np.float32)


def assert_kept(indices, valid, expected):
    for image, rows in enumerate(expected):
        assert valid[image].numpy().tolist() == [
            place < len(rows) for place in range(len(valid[0]))
        ]
        assert indices[image].numpy()[: len(rows)].tolist() == rows


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("max_output", [5, 100])
def test_same_as_the_greedy_loop(jit_compile, max_output):
    """With 100 places for 40 boxes, 5 of them padding, most places stay empty."""
    generator = np.random.default_rng(0)
    boxes, scores = random_boxes(generator, 3, 40), generator.normal(size=(3, 40)) * 10
    scores = scores.astype(np.float32)
    scores[:, 10:15] = nms.NO_SCORE
    function = tf.function(nms.suppress, jit_compile=jit_compile)
    indices, valid = function(tf.constant(boxes), tf.constant(scores), max_output, 0.5)
    assert indices.shape == valid.shape == (3, max_output)
    expected = [greedy(*image, max_output, 0.5) for image in zip(boxes, scores, strict=True)]
    assert_kept(indices, valid, expected)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_classes_do_not_suppress_each_other(jit_compile):
    generator = np.random.default_rng(1)
    boxes = random_boxes(generator, 2, 60)
    scores = generator.random((2, 60), np.float32)
    classes = generator.integers(1, 4, (2, 60)).astype(np.int32)
    function = tf.function(nms.suppress_per_class, jit_compile=jit_compile)
    indices, valid = function(boxes, scores, classes, 50, 0.3)
    per_image = zip(boxes, scores, classes, strict=True)
    expected = [greedy(b, s, 50, 0.3, c) for b, s, c in per_image]
    assert_kept(indices, valid, expected)
    assert len(expected[0]) > len(greedy(boxes[0], scores[0], 50, 0.3))


def test_the_same_box_in_two_classes():
    boxes = tf.constant([[[0.0, 0, 800, 1300]] * 4])
    scores = tf.constant([[0.9, 0.8, 0.7, 0.6]])
    classes = tf.constant([[80, 1, 80, 79]])
    indices, valid = nms.suppress_per_class(boxes, scores, classes, 4, 0.5)
    assert_kept(indices, valid, [[0, 1, 3]])


def test_an_overlap_of_exactly_the_threshold_is_kept():
    boxes = tf.constant([[[0.0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 10, 6]]])  # IoU 0.5 and 0.6
    indices, valid = nms.suppress(boxes, tf.constant([[3.0, 2, 1]]), 3, 0.5)
    assert_kept(indices, valid, [[0, 1]])


@pytest.mark.parametrize("jit_compile", [False, True])
def test_nothing_but_padding(jit_compile):
    boxes, scores = tf.zeros([2, 6, 4]), tf.fill([2, 6], nms.NO_SCORE)
    function = tf.function(nms.suppress, jit_compile=jit_compile)
    indices, valid = function(boxes, scores, 4, 0.5)
    assert indices.shape == (2, 4) and not valid.numpy().any()
    # What stands in empty places must still be a row that can be gathered.
    assert (indices.numpy() >= 0).all() and (indices.numpy() < 6).all()


def test_votes_by_hand():
    """Boxes of 10 x 20: moved by d pixels, the IoU with the kept one is (20 - d) / (20 + d)."""

    def box(left):
        return [0.0, left, 10.0, left + 20.0]

    boxes = tf.constant([[box(100), box(101), box(98), box(104), box(100), [0.0] * 4]])
    scores = tf.constant([[0.8, 0.4, 0.2, 0.7, 0.6, nms.NO_SCORE]])
    classes = tf.constant([[1, 1, 1, 1, 2, 1]])
    kept, kept_classes = tf.constant([[box(100), box(100), [0.0] * 4]]), tf.constant([[1, 2, 0]])
    # 0.905 and 0.818 agree at 0.8, 0.667 does not, nor does the other class.
    moved = nms.vote(kept, kept_classes, boxes, scores, classes, 0.8).numpy()[0]
    left = (100 * 0.8 + 101 * 0.4 + 98 * 0.2) / 1.4
    np.testing.assert_allclose(moved, [box(left), box(100), [0] * 4], rtol=1e-6)
    exact = nms.vote(kept, kept_classes, boxes, scores, classes, 1.0)
    np.testing.assert_array_equal(exact, kept)


def test_votes_as_in_a_loop():
    generator = np.random.default_rng(2)
    boxes, scores = random_boxes(generator, 2, 30), generator.uniform(0.1, 1, (2, 30))
    scores, classes = scores.astype(np.float32), generator.integers(1, 3, (2, 30)).astype(np.int32)
    kept, kept_classes = boxes[:, :5], classes[:, :5]
    moved = tf.function(nms.vote, jit_compile=True)(
        kept, kept_classes, tf.constant(boxes), scores, classes, 0.3
    )
    for image, row in np.ndindex(2, 5):
        agree = [
            k
            for k in range(30)
            if classes[image, k] == kept_classes[image, row]
            and iou(kept[image, row], boxes[image, k]) >= 0.3
        ]
        assert row in agree
        expected = np.average(boxes[image, agree], axis=0, weights=scores[image, agree])
        np.testing.assert_allclose(moved[image, row], expected, rtol=1e-5)


def test_a_batch_of_open_size_is_suppressed_alike():
    rng = np.random.default_rng(4)
    corners = rng.uniform(0, 50, [3, 30, 2])
    boxes = np.concatenate([corners, corners + rng.uniform(5, 30, [3, 30, 2])], -1)
    boxes, scores = boxes.astype(np.float32), rng.uniform(0, 1, [3, 30]).astype(np.float32)
    spec = [tf.TensorSpec([None, 30, 4]), tf.TensorSpec([None, 30])]

    run = tf.function(lambda *inputs: nms.suppress(*inputs, 40, 0.3), spec)

    for found, expected in zip(
        run(boxes, scores), nms.suppress(boxes, scores, 40, 0.3), strict=True
    ):
        np.testing.assert_array_equal(found, expected)
