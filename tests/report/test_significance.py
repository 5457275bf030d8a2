"""Statistics of runs, against values by hand and tables."""

import math

import pytest

from rethink_tf.report import significance


def test_the_interval_of_three_seeds_by_hand():
    found = significance.summarize([36.0, 37.0, 38.0])
    # t of 2 degrees of freedom at 97.5 %: 4.303; deviation 1.
    assert (found.count, found.mean, found.deviation) == (3, 37.0, 1.0)
    reach = 4.302653 / math.sqrt(3)
    assert (found.low, found.high) == pytest.approx((37 - reach, 37 + reach), rel=1e-6)
    one = significance.summarize([36.0])
    assert one.mean == 36 and math.isnan(one.low) and math.isnan(one.deviation)
    assert math.isnan(significance.summarize([]).mean)


def test_differences_are_paired_by_seed():
    first, second = {1: 30.0, 2: 40.0, 3: 50.0}, {2: 41.0, 1: 31.2, 3: 51.1, 4: 0.0}
    found = significance.paired_difference(first, second)
    # 1.2, 1.0, 1.1, although the arms' own deviations are 10.
    assert found.count == 3 and found.mean == pytest.approx(1.1)
    assert found.deviation == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([], "no seed that both have"),
        ([0.2], "one seed, below 0.3 points: nothing can be said"),
        ([-0.4], "random is ahead of trained with one seed"),
        ([0.2, -0.1, 0.1], r"no difference shown (3 seeds)"),
        ([0.9, 1.0, 1.1], "trained is ahead of random (3 seeds)"),
        ([-0.9, -1.0, -1.1], "random is ahead of trained (3 seeds)"),
    ],
)
def test_words_follow_the_interval(values, words):
    difference = significance.summarize(values)
    assert significance.verdict(difference, ("random", "trained")).startswith(words)


def test_the_arms_cross_between_two_schedules():
    # From -3 to +1: three quarters of the way from 2 to 4, in logarithms.
    assert significance.crossing([1, 2, 4], [-5, -3, 1]) == pytest.approx(2**1.75)
    assert significance.crossing([1, 2, 4], [-5, 0, 1]) == pytest.approx(2)
    # It falls behind again: it crosses for good later on.
    assert significance.crossing([1, 2, 4, 8], [-1, 1, -1, 1]) == pytest.approx(4 * math.sqrt(2))
    assert significance.crossing([1, 2], [-2, -1]) is None
    assert significance.crossing([1, 2], [1, 2]) is None


def test_labels_saved_by_hand():
    counts, baseline = [100, 1000, 10_000], [10.0, 20.0, 30.0]
    # 20 with 100 images is what the baseline has with 1,000: 9 times as many more.
    saved = significance.labels_saved(counts, baseline, [20.0, 25.0, 30.0])
    assert saved[:1] + saved[2:] == pytest.approx([9, 0])
    assert saved[1] == pytest.approx(math.sqrt(10) - 1)
    beyond = significance.labels_saved(counts, baseline, [5.0, 31.0, 30.0])
    assert [math.isnan(each) for each in beyond] == [True, True, False]
