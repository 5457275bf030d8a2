"""Matching by hand-made overlaps, and the sampling of positives and negatives."""

import numpy as np
import pytest
import tensorflow as tf

from rethink_tf.ops import matching


def match(candidates, objects, valid=None, below=0.3, above=0.7, keep_best=False):
    """Runs `matching.match` on one image and returns labels and matches as lists."""
    valid = [True] * len(objects) if valid is None else valid
    labels, matches = matching.match(
        tf.constant([candidates], tf.float32),
        tf.constant([objects], tf.float32),
        tf.constant([valid]),
        below,
        above,
        keep_best,
    )
    assert labels.dtype == matches.dtype == tf.int32
    return labels.numpy()[0].tolist(), matches.numpy()[0].tolist()


def strip(height):
    """A box that covers height / 10 of the object [0, 0, 10, 10]."""
    return [0, 0, height, 10]


OBJECT = strip(10)


def test_thresholds_negative_ignored_positive():
    # IoU 0.2, 0.3 (not below), 0.6, 0.7 (from here on), 1.
    heights = [2, 3, 6, 7, 10]
    labels, matches = match([strip(h) for h in heights], [OBJECT])
    assert labels == [0, -1, -1, 1, 1]
    assert matches == [0] * 5


def test_equal_thresholds_leave_nothing_ignored():
    labels, _ = match([strip(4), strip(5), strip(6)], [OBJECT], below=0.5, above=0.5)
    assert labels == [0, 1, 1]


def test_the_match_is_the_object_of_highest_overlap():
    objects = [[0, 0, 10, 10], [0, 0, 10, 20]]
    labels, matches = match([[0, 0, 10, 11], [0, 0, 10, 19]], objects)
    assert labels == [1, 1]
    assert matches == [0, 1]


def test_best_candidates_are_positive_on_a_tie_too():
    candidates = [strip(2), [8, 0, 10, 10], strip(1)]  # IoU 0.2, 0.2, 0.1
    assert match(candidates, [OBJECT])[0] == [0, 0, 0]
    assert match(candidates, [OBJECT], keep_best=True)[0] == [1, 1, 0]


def test_a_best_candidate_keeps_its_own_match():
    # The one candidate is the best of both objects but overlaps the second more.
    objects = [[0, 0, 2, 10], [0, 0, 6, 10]]
    labels, matches = match([OBJECT], objects, keep_best=True)
    assert labels == [1] and matches == [1]


def test_an_object_without_overlap_makes_nothing_positive():
    far = [[50, 50, 60, 60]]
    assert match([strip(2), OBJECT], far, keep_best=True)[0] == [0, 0]


def test_padding_rows_match_nothing_whatever_they_hold():
    objects = [OBJECT, [0, 0, 2, 10]]
    labels, matches = match([strip(2), strip(10)], objects, [True, False], keep_best=True)
    assert labels == [0, 1] and matches == [0, 0]
    # Objects of no area that are not marked as padding are no best match of anything either.
    labels, _ = match([strip(2)], [[0, 0, 0, 0]], [True], keep_best=True)
    assert labels == [0]


@pytest.mark.parametrize("keep_best", [False, True])
def test_without_objects_all_is_negative(keep_best):
    labels, matches = match([strip(2), OBJECT], [[0, 0, 0, 0]], [False], keep_best=keep_best)
    assert labels == [0, 0] and matches == [0, 0]


def test_candidates_may_be_shared_by_the_batch():
    candidates = tf.constant([[strip(10), strip(2)]], tf.float32)
    objects = tf.constant([[strip(10)], [strip(2)], [[0, 0, 0, 0]]], tf.float32)
    valid = tf.constant([[True], [True], [False]])
    labels, _ = matching.match(candidates, objects, valid, 0.5, 0.5)
    np.testing.assert_array_equal(labels, [[1, 0], [0, 1], [0, 0]])


@pytest.mark.parametrize("thresholds", [(0.7, 0.3), (-0.1, 0.5), (0.5, 1.1)])
def test_thresholds_out_of_order_are_an_error(thresholds):
    with pytest.raises(ValueError, match="thresholds.*got"):
        match([OBJECT], [OBJECT], None, *thresholds)


def sample(labels, num_samples, fraction, draws=None):
    draws = np.linspace(0.9, 0.0, len(labels)) if draws is None else draws
    indices, sampled = matching.sample(
        tf.constant([labels]), tf.constant([draws], tf.float32), num_samples, fraction
    )
    return indices.numpy()[0].tolist(), sampled.numpy()[0].tolist()


LABELS = [0, 1, -1, 1, 0, 1, 0, 0]  # three positives, four negatives, one ignored


def test_positives_come_first_each_kind_by_falling_draw():
    indices, sampled = sample(LABELS, 4, 0.5)
    assert sampled == [1, 1, 0, 0]
    assert indices == [1, 3, 0, 4]
    draws = np.linspace(0.0, 0.9, 8)  # the last are drawn first now; a draw of 0 still counts
    indices, sampled = sample(LABELS, 8, 0.25, draws)
    assert sampled == [1, 1, 0, 0, 0, 0, -1, -1]
    assert indices[:6] == [5, 3, 7, 6, 4, 0]


def test_negatives_fill_the_places_of_missing_positives():
    indices, sampled = sample([0, 0, 1, 0, 0, 0], 4, 0.5)
    assert sampled == [1, 0, 0, 0] and indices[0] == 2


def test_positives_do_not_fill_the_places_of_missing_negatives():
    indices, sampled = sample([1, 1, 1, 1, 0, -1], 4, 0.5)
    assert sampled == [1, 1, 0, -1] and indices[:3] == [0, 1, 4]


@pytest.mark.parametrize(
    ("fraction", "expected"),
    [(0.0, [0, 0, 0, 0, -1, -1]), (1.0, [1, 1, 1, 0, 0, 0]), (0.2, [1, 0, 0, 0, 0, -1])],
)
def test_extreme_fractions(fraction, expected):
    assert sample(LABELS, 6, fraction)[1] == expected


def test_fewer_candidates_than_wanted_give_fewer_places():
    indices, sampled = sample([0, 1, -1], 512, 0.25)
    assert len(indices) == 3 and sampled == [1, 0, -1] and indices[:2] == [1, 0]


def test_nothing_usable_leaves_every_place_empty():
    assert sample([-1, -1, -1], 2, 0.5)[1] == [-1, -1]


@pytest.mark.parametrize("seed", range(5))
def test_a_sample_repeats_nothing_and_keeps_its_labels(seed):
    generator = np.random.default_rng(seed)
    labels = generator.integers(-1, 2, (3, 50))
    draws = generator.random((3, 50))
    indices, sampled = matching.sample(
        tf.constant(labels, tf.int32), tf.constant(draws, tf.float32), 24, 0.25
    )
    assert indices.shape == sampled.shape == (3, 24)
    for image in range(3):
        used = sampled[image].numpy() >= 0
        rows = indices[image].numpy()[used]
        assert len(set(rows)) == used.sum()
        np.testing.assert_array_equal(labels[image][rows], sampled[image].numpy()[used])
        positives = min(6, (labels[image] == 1).sum())
        assert (sampled[image].numpy() == 1).sum() == positives
        assert used.sum() == min(24, positives + (labels[image] == 0).sum())
