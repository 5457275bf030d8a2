"""Tests of rethink_tf/exporting/comparing.py."""

import numpy as np

from rethink_tf.exporting import comparing


def detections(*rows):
    boxes, scores, ids = zip(*rows, strict=True)
    return {
        "boxes": np.array(boxes, np.float32),
        "scores": np.array(scores),
        "category_ids": np.array(ids),
    }


def test_detections_of_the_same_object_are_compared_whatever_their_order():
    expected = detections(
        ([0, 0, 100, 100], 0.9, 1), ([0, 0, 100, 100], 0.8, 2), ([50, 50, 90, 90], 0.3, 1)
    )
    found = detections(
        ([0, 0, 100, 100], 0.75, 2), ([0, 0, 100, 100.5], 0.9, 1), ([5, 5, 9, 9], 0.3, 1)
    )
    comparison = comparing.Comparison()

    comparison.add(found, expected)
    comparison.add(detections(([1, 1, 2, 2], 0.5, 1)), detections(([1, 1, 2, 2], 0.5, 1)))

    assert (comparison.images, comparison.detections) == (2, 4)
    assert (comparison.missing, comparison.further) == (1, 1)
    np.testing.assert_allclose(comparison.differences["boxes"], 0.5)
    np.testing.assert_allclose(comparison.differences["scores"], 0.05)
    assert "lacks 1 of them and finds 1 others" in comparison.summary()
    assert "boxes 5.0e-01 pixels, scores 5.0e-02" in comparison.summary()


def test_images_without_detections_agree():
    empty = {
        "boxes": np.zeros([0, 4]),
        "scores": np.zeros(0),
        "category_ids": np.zeros(0, int),
        "masks": np.zeros([0, 28, 28]),
    }
    comparison = comparing.Comparison()

    comparison.add(empty, empty)

    assert comparison.missing == comparison.further == 0
    assert comparison.differences == {"boxes": 0.0, "scores": 0.0, "masks": 0.0}
