"""Tests of rethink_tf/data/records/subsets.py."""

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rethink_tf.data.records import subsets


def test_ranks_by_the_stated_hash():
    ids = [1, 2, 3, 4, 5]
    ranked = sorted(ids, key=lambda i: hashlib.blake2b(b"%d" % i, digest_size=8).hexdigest())

    assert subsets.select_image_ids(ids, 2) == sorted(ranked[:2])


@settings(deadline=None, max_examples=50)
@given(st.sets(st.integers(0, 10**9), min_size=2, max_size=60), st.data())
def test_smaller_subset_lies_inside_larger_in_any_order(ids, data):
    small = data.draw(st.integers(1, len(ids) - 1))
    order = data.draw(st.permutations(sorted(ids)))

    smaller = subsets.select_image_ids(order, small)
    larger = subsets.select_image_ids(sorted(ids), small + 1)

    assert len(smaller) == small
    assert set(smaller) < set(larger) <= ids


def test_choice_does_not_follow_the_ids():
    chosen = subsets.select_image_ids(range(10_000), 1_000)

    # A fair draw of 1,000 of 10,000 has 500 below the middle, with a deviation of 15.
    assert 430 < sum(image_id < 5_000 for image_id in chosen) < 570


def test_more_than_there_are_is_an_error():
    with pytest.raises(ValueError, match="4 images was asked for, the data set has 3"):
        subsets.select_image_ids([1, 2, 3], 4)


@pytest.mark.parametrize("number", [0, -1])
def test_empty_subset_is_an_error(number):
    with pytest.raises(ValueError, match="at least one"):
        subsets.select_image_ids([1, 2, 3], number)


def test_repeated_id_is_an_error():
    with pytest.raises(ValueError, match="image id 2 comes twice"):
        subsets.select_image_ids([1, 2, 2], 1)
