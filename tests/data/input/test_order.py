"""Tests of rethink_tf/data/input/order.py."""

import itertools
import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rethink_tf.data.input import order
from rethink_tf.data.input.batch_shapes import BatchShapes


def make_plan(num_records, size, seed, fixed=None):
    """A plan of images of 64 to 640 pixels a side, drawn by the row and the epoch."""

    def sizes(rows, passes):
        draws = order.draw_uniforms(9, passes, rows, 2)
        return (64 + draws * 577).astype(np.int64)

    return order.TrainingPlan(num_records, size, seed, sizes, BatchShapes(fixed))


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
    assert order.resized_shapes([height], [width], 800, 1333).tolist() == [list(expected)]


def test_resized_shapes_take_one_side_an_image():
    shapes = order.resized_shapes([100, 100], [200, 200], [50, 80], 120)

    assert shapes.tolist() == [[50, 100], [60, 120]]


def test_draws_depend_on_seed_epoch_and_image_alone():
    together = order.draw_uniforms(3, 7, np.array([11, 12, 13]), 2)
    mixed = order.draw_uniforms(3, np.array([6, 7, 8]), np.array([12, 12, 12]), 2)
    np.testing.assert_array_equal(mixed[1], together[1])

    np.testing.assert_array_equal(together[1:2], order.draw_uniforms(3, 7, np.array([12]), 2))
    assert len(np.unique(together)) == 6
    assert not np.isclose(together, order.draw_uniforms(4, 7, np.array([11, 12, 13]), 2)).any()
    assert not np.isclose(together, order.draw_uniforms(3, 8, np.array([11, 12, 13]), 2)).any()


def test_draws_are_uniform():
    draws = order.draw_uniforms(0, 0, np.arange(4000), 1)

    assert draws.min() >= 0 and draws.max() < 1
    counts = np.histogram(draws, 10, (0, 1))[0]
    assert abs(counts - 400).max() < 80  # four deviations of sqrt(400 * 0.9) = 19


def test_draws_are_the_same_on_every_machine():
    # A stream that changed would silently end the resuming of old runs.
    np.testing.assert_allclose(
        order.draw_uniforms(1, 2, np.array([3]), 2),
        [[0.4013534253509715, 0.72328567470703]],
        rtol=0,
        atol=1e-15,
    )


def test_epoch_has_each_record_once_and_seeds_differ():
    first = take(make_plan(16, 4, seed=5), 8)

    assert sorted(np.concatenate([rows for _, rows, _ in first[:4]])) == list(range(16))
    assert [step for step, _, _ in first] == list(range(8))
    assert [passes.tolist() for _, _, passes in first] == [[0] * 4] * 4 + [[1] * 4] * 4
    assert any((a[1] != b[1]).any() for a, b in zip(first[:4], first[4:], strict=True))
    other = take(make_plan(16, 4, seed=6), 4)
    assert any((a[1] != b[1]).any() for a, b in zip(first, other, strict=False))


@settings(deadline=None, max_examples=40)
@given(
    count=st.integers(1, 40),
    size=st.integers(1, 9),
    seed=st.integers(0, 2**40),
    start=st.integers(0, 30),
    fixed=st.sampled_from([None, [(640, 640)], [(320, 640), (640, 320)]]),
)
def test_resumed_plan_goes_on_as_the_uninterrupted_one(count, size, seed, start, fixed):
    whole = take(make_plan(count, size, seed, fixed), start + 5)
    resumed = take(make_plan(count, size, seed, fixed), 5, start_step=start)

    for one, other in zip(whole[start:], resumed, strict=True):
        assert one[0] == other[0]
        np.testing.assert_array_equal(one[1:], other[1:])


@settings(deadline=None, max_examples=40)
@given(count=st.integers(1, 40), size=st.integers(1, 9), fixed=st.sampled_from([None, [(99, 640)]]))
def test_no_size_starves_and_none_comes_too_often(count, size, fixed):
    """Two epochs: each record twice, but for those that are left over, fewer than a batch."""
    steps = 2 * count // size
    batches = take(make_plan(count, size, 0, fixed), steps + 30)
    places = [
        place for _, rows, passes in batches for place in zip(rows.tolist(), passes, strict=True)
    ]
    # Drawn for another epoch each time.
    assert len(set(places)) == len(places)
    seen = Counter(row for row, _ in places[: steps * size])
    assert sum(seen.values()) == steps * size
    assert max(seen.values(), default=0) <= 2
    missing = sum(2 - seen[row] for row in range(count))
    assert missing == 2 * count - steps * size < size
    # At any time a record may be one left over, or one whose batch of the epoch is still to come.
    seen = Counter(row for row, _ in places)
    assert max(seen.values()) - min(seen[row] for row in range(count)) <= 2 + size // count


def test_rare_sizes_come_as_often_as_others():
    """The tall ones are 3 of 200, far fewer than a batch."""

    def sizes(rows, passes):
        return np.where(rows[:, np.newaxis] < 3, [640, 96], [96, 640])

    for fixed in (None, [(96, 640), (640, 96)]):
        training_plan = order.TrainingPlan(200, 16, 1, sizes, BatchShapes(fixed))
        batches = take(training_plan, 25)
        seen = Counter(np.concatenate([rows for _, rows, _ in batches]).tolist())
        assert [seen[row] for row in range(200)] == [2] * 200
        # The batches of an epoch with tall images: one, or two where its end parts them.
        with_tall = sum((rows < 3).any() for _, rows, _ in batches)
        assert 2 <= with_tall <= 4


def test_images_of_like_sizes_meet_and_the_order_of_batches_is_random():
    training_plan = make_plan(64 * 16, 16, 3)
    batches, shapes = take(training_plan, 64), BatchShapes()
    sizes = [training_plan._sizes(rows, passes) for _, rows, passes in batches]
    areas = [np.prod(shapes.cover(each)) for each in sizes]
    content = np.concatenate(sizes).prod(1).sum()
    assert content / (16 * sum(areas)) > 0.75
    mixed = np.random.default_rng(0).permutation(np.concatenate(sizes)).reshape(64, 16, 2)
    assert content / sum(16 * np.prod(shapes.cover(each)) for each in mixed) < 0.4
    assert abs(np.corrcoef(areas, range(64))[0, 1]) < 0.4


def test_bad_numbers_are_errors():
    with pytest.raises(ValueError, match="no record to train on"):
        make_plan(0, 4, 0)
    with pytest.raises(ValueError, match="seed -1"):
        make_plan(3, 4, -1)
    with pytest.raises(ValueError, match="start_step is -1"):
        next(make_plan(3, 4, 0).batches(-1))


def test_coco_resumes_at_its_last_step_in_a_moment():
    started = time.perf_counter()

    step, rows, _ = next(make_plan(118_287, 16, 1).batches(539_999))

    assert step == 539_999 and len(set(rows.tolist())) == 16
    assert time.perf_counter() - started < 2.0  # some 50 ms on an idle core


def test_evaluation_has_each_record_once_with_its_like_and_fills_up():
    sizes = np.array([[32, 64], [64, 32], [30, 60], [32, 64], [64, 32], [33, 65], [64, 32]])
    batches = order.evaluation_batches(sizes, 2, BatchShapes())
    assert sorted(batches.ravel()) == [-1, *range(7)]
    assert {frozenset(batch) for batch in batches.tolist()} >= {frozenset([5, -1])} or (
        batches[(batches == 5).any(1)].ravel().tolist().count(5) == 1
    )
    portrait = {1, 4, 6}
    mixed = [batch for batch in batches.tolist() if 0 < len(portrait & set(batch)) < 2]
    assert all(-1 in batch or 5 in batch for batch in mixed)
