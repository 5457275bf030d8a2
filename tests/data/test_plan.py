"""Tests of rethink_tf/data/plan.py."""

import itertools
import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rethink_tf.data import plan

LANDSCAPE_AND_PORTRAIT = ((832, 1344), (1344, 832))


def take(training_plan, count, start_step=0):
    return list(itertools.islice(training_plan.batches(start_step), count))


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (480, 640, (800, 1067)),  # 640 * 800 / 480 = 1066.67
        (640, 480, (1067, 800)),
        (426, 640, (800, 1202)),  # 640 * 800 / 426 = 1201.88
        (300, 640, (625, 1333)),  # 1706.67 is above 1333: 800 * 1333 / 1706.67 = 624.84
        (1600, 1600, (800, 800)),
        (1, 4000, (1, 1333)),  # 0.33 pixels are one
    ],
)
def test_resized_shape_by_hand(height, width, expected):
    assert plan.resized_shapes([height], [width], 800, 1333).tolist() == [list(expected)]


def test_resized_shapes_take_one_side_an_image():
    shapes = plan.resized_shapes([100, 100], [200, 200], [50, 80], 120)

    assert shapes.tolist() == [[50, 100], [60, 120]]


def test_shrinks_to_the_bucket_but_never_grows():
    shapes = np.array([[800, 1000], [100, 50], [10, 4000]])

    assert plan.shrink_to_bucket(shapes, (400, 600)).tolist() == [[400, 500], [100, 50], [2, 600]]


def test_default_buckets_are_whole_cells_of_p6():
    assert plan.default_buckets(800, 1333) == LANDSCAPE_AND_PORTRAIT
    assert plan.default_buckets(128, 128) == ((128, 128),)


def test_buckets_by_orientation_and_least_padding():
    shapes = np.array([[800, 1067], [1067, 800], [800, 800], [820, 800], [832, 833]])
    square_too = [*LANDSCAPE_AND_PORTRAIT, (832, 832)]

    # The square image fits both equally well: the first counts.
    assert plan.assign_buckets(shapes, LANDSCAPE_AND_PORTRAIT).tolist() == [0, 1, 0, 1, 0]
    assert plan.assign_buckets(shapes, square_too).tolist() == [0, 1, 2, 2, 0]


def test_image_that_fits_no_bucket_goes_where_it_shrinks_least():
    assert plan.assign_buckets(np.array([[2000, 1000]]), [(900, 900), (1000, 600)]).tolist() == [1]


def test_draws_depend_on_seed_step_and_image_alone():
    together = plan.draw_uniforms(3, 7, np.array([11, 12, 13]), 2)

    np.testing.assert_array_equal(together[1:2], plan.draw_uniforms(3, 7, np.array([12]), 2))
    assert len(np.unique(together)) == 6
    assert not np.isclose(together, plan.draw_uniforms(4, 7, np.array([11, 12, 13]), 2)).any()
    assert not np.isclose(together, plan.draw_uniforms(3, 8, np.array([11, 12, 13]), 2)).any()


def test_draws_are_uniform():
    draws = plan.draw_uniforms(0, 0, np.arange(4000), 1)

    assert draws.min() >= 0 and draws.max() < 1
    counts = np.histogram(draws, 10, (0, 1))[0]
    assert abs(counts - 400).max() < 80  # four deviations of sqrt(400 * 0.9) = 19


def test_draws_are_the_same_on_every_machine():
    # A stream that changed would silently end the resuming of old runs.
    np.testing.assert_allclose(
        plan.draw_uniforms(1, 2, np.array([3]), 2),
        [[0.4013534253509715, 0.72328567470703]],
        rtol=0,
        atol=1e-15,
    )


def test_epoch_has_each_record_once_and_seeds_differ():
    bucket_of_row = np.array([0, 1] * 8)

    first = take(plan.TrainingPlan(bucket_of_row, 4, seed=5), 4)

    assert sorted(np.concatenate([rows for _, _, rows in first])) == list(range(16))
    for step, (number, bucket, rows) in enumerate(first):
        assert number == step and (bucket_of_row[rows] == bucket).all()
    other = take(plan.TrainingPlan(bucket_of_row, 4, seed=6), 4)
    assert any((a[2] != b[2]).any() for a, b in zip(first, other, strict=True))


@settings(deadline=None, max_examples=40)
@given(
    counts=st.lists(st.integers(0, 13), min_size=1, max_size=3).filter(any),
    size=st.integers(1, 9),
    seed=st.integers(0, 2**40),
    start=st.integers(0, 30),
)
def test_resumed_plan_goes_on_as_the_uninterrupted_one(counts, size, seed, start):
    bucket_of_row = np.repeat(np.arange(len(counts)), counts)
    whole = take(plan.TrainingPlan(bucket_of_row, size, seed), start + 5)
    resumed = take(plan.TrainingPlan(bucket_of_row, size, seed), 5, start_step=start)

    for (step, bucket, rows), (step2, bucket2, rows2) in zip(whole[start:], resumed, strict=True):
        assert (step, bucket) == (step2, bucket2)
        np.testing.assert_array_equal(rows, rows2)


@settings(deadline=None, max_examples=30)
@given(counts=st.lists(st.integers(1, 11), min_size=1, max_size=3), size=st.integers(1, 9))
def test_records_come_equally_often_within_a_bucket(counts, size):
    bucket_of_row = np.repeat(np.arange(len(counts)), counts)
    seen = Counter()
    for _, _, rows in take(plan.TrainingPlan(bucket_of_row, size, 0), 40):
        seen.update(rows.tolist())

    for bucket in range(len(counts)):
        of_bucket = [seen[row] for row in np.flatnonzero(bucket_of_row == bucket)]
        assert max(of_bucket) - min(of_bucket) <= 1


def test_bucket_smaller_than_a_batch_fills_over_epochs():
    bucket_of_row = np.array([0] * 8 + [1])

    batches = take(plan.TrainingPlan(bucket_of_row, 4, 0), 9)

    # Four epochs give eight batches of bucket 0 and one of bucket 1, of the same record.
    assert Counter(bucket for _, bucket, _ in batches) == {0: 8, 1: 1}
    assert [rows.tolist() for _, bucket, rows in batches if bucket == 1] == [[8, 8, 8, 8]]


def test_fallbacks_are_others_of_the_same_bucket():
    bucket_of_row = np.array([0, 1, 0, 1, 0, 1, 0, 2])
    training_plan = plan.TrainingPlan(bucket_of_row, 2, 0)

    # Bucket 0 is rows 0 2 4 6, a third of it is 1; bucket 2 has row 7 alone.
    assert training_plan.fallbacks(np.array([0, 6, 3, 7])).tolist() == [
        [2, 4],
        [0, 2],
        [5, 1],
        [7, 7],
    ]


def test_bad_numbers_are_errors():
    with pytest.raises(ValueError, match="no record to train on"):
        plan.TrainingPlan(np.zeros(0, int), 4, 0)
    with pytest.raises(ValueError, match="seed -1"):
        plan.TrainingPlan(np.zeros(3, int), 4, -1)
    with pytest.raises(ValueError, match="start_step is -1"):
        next(plan.TrainingPlan(np.zeros(3, int), 4, 0).batches(-1))


def test_coco_resumes_at_its_last_step_in_a_moment():
    bucket_of_row = (np.arange(118_287) % 4 == 0).astype(int)
    started = time.perf_counter()

    step, _, rows = next(plan.TrainingPlan(bucket_of_row, 16, 1).batches(539_999))

    assert step == 539_999 and len(set(rows.tolist())) == 16
    assert time.perf_counter() - started < 2.0  # some 50 ms on an idle core


def test_evaluation_has_each_record_once_and_pads_each_bucket():
    batches = list(plan.evaluation_batches(np.array([0, 1, 0, 0, 1, 1]), 2))

    assert [(bucket, rows.tolist()) for bucket, rows in batches] == [
        (0, [0, 2]),
        (0, [3, -1]),
        (1, [1, 4]),
        (1, [5, -1]),
    ]
