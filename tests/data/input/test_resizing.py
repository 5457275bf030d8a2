"""Tests of rethink_tf/data/input/resizing.py."""

import numpy as np
import pytest

from rethink_tf.data.input.resizing import LargeScaleJitter, ShorterSide, content_sizes, shrink


def geometry(resizing, stored, draws):
    """What is said of one image, as plain lists."""
    stored, draws = np.array(stored).reshape(1, 2), np.array(draws).reshape(1, -1)
    return {key: value[0].tolist() for key, value in resizing.geometry(stored, draws).items()}


@pytest.mark.parametrize(
    ("sampling", "draw", "side"),
    [
        ("range", 0.0, 640),
        ("range", 0.999999, 800),
        ("range", 0.5, 720),  # the 81st of 161
        ("choice", 0.49, 640),
        ("choice", 0.5, 800),
    ],
)
def test_shorter_side_by_hand(sampling, draw, side):
    resizing = ShorterSide((640, 800), sampling, 1333)

    found = geometry(resizing, (500, 500), draw)

    assert found == {"size": [side, side]}


def test_every_length_of_a_range_is_as_likely():
    resizing = ShorterSide((20, 24), "range", 100)
    draws = np.linspace(0, 1, 1000, endpoint=False).reshape(1000, 1)

    sizes = resizing.geometry(np.full([1000, 2], 10), draws)["size"]

    assert np.unique(sizes[..., 0], return_counts=True)[1].tolist() == [200] * 5


def test_one_length_needs_no_sampling_and_may_have_it():
    # An overlay binds one length over an experiment's range.
    for sampling in (None, "range", "choice"):
        assert geometry(ShorterSide(8, sampling, 20), (4, 6), 0.7) == {"size": [8, 12]}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((640, 800), None, 1333), "min_side_sampling is not given"),
        (((640, 800), "linear", 1333), "min_side_sampling is 'linear'"),
        (((640, 720, 800), "range", 1333), "a range has a first and a last length"),
        (((800, 640), "range", 1333), "ascending"),
        (((), "choice", 1333), "min_side is"),
        (((0, 9), "range", 1333), "at least 1 pixel"),
        ((900, None, 800), "max_side 800 is below min_side 900"),
    ],
)
def test_unclear_sides_are_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        ShorterSide(*arguments)


@pytest.mark.parametrize(
    ("draws", "size", "view"),
    [
        # Of 100 x 200 the crop of 64 x 80 holds 40 x 80, at scale 1.
        ((0.5, 0.9, 0.9), [40, 80], [0, 0, 40, 80]),
        ((0.0, 0.9, 0.9), [20, 40], [0, 0, 20, 40]),
        # Scale 1.5: 60 x 120, of which 40 columns are too many; 0.9 of them are left out left.
        ((1.0, 0.9, 0.9), [60, 120], [0, 36, 60, 116]),
        ((1.0, 0.2, 0.0), [60, 120], [0, 0, 60, 80]),
    ],
)
def test_jitter_by_hand(draws, size, view):
    jitter = LargeScaleJitter(0.5, 1.5, (64, 80))

    assert geometry(jitter, (100, 200), draws) == {"size": size, "view": view}


def test_views_are_inside_of_the_image_and_as_large_as_they_can_be():
    jitter = LargeScaleJitter(0.1, 2.0, (96, 64))
    rng = np.random.default_rng(0)
    stored = rng.integers(1, 300, [1500, 2])

    found = jitter.geometry(stored, rng.uniform(size=[1500, 3]))

    low, high = found["view"][..., :2], found["view"][..., 2:]
    assert (low >= 0).all() and (high <= found["size"]).all() and found["size"].min() >= 1
    np.testing.assert_array_equal(high - low, np.minimum(found["size"], (96, 64)))
    # Both offsets take their smallest and their largest value, each on its own.
    both = (found["size"] > (96, 64)).all(-1)
    share = (low / np.maximum(found["size"] - (96, 64), 1))[both]
    assert len(share) > 50 and share.min() < 0.05 and share.max() > 0.95
    assert abs(np.corrcoef(share.T)[0, 1]) < 0.3


def test_the_largest_sizes_and_what_is_made_smaller():
    stored = np.array([[100, 200], [300, 100]])
    side = ShorterSide((64, 80), "range", 200)
    assert side.largest(stored).tolist() == [[80, 160], [200, 67]]
    jitter = LargeScaleJitter(0.5, 1.5, (64, 80))
    assert jitter.largest(stored).tolist() == [[60, 80], [64, 32]]
    geometry = jitter.geometry(stored, np.array([[1.0, 0.5, 0.5]] * 2))
    np.testing.assert_array_equal(content_sizes(geometry), jitter.largest(stored))
    small = shrink(geometry, np.array([[48, 64], [64, 32]]))
    np.testing.assert_array_equal(content_sizes(small), [[48, 64], [64, 32]])
    np.testing.assert_array_equal(small["view"][:, :2], geometry["view"][:, :2])


def test_bad_jitter_is_an_error():
    with pytest.raises(ValueError, match="min_scale is 2 and max_scale 1"):
        LargeScaleJitter(2, 1)
    with pytest.raises(ValueError, match="crop_size is"):
        LargeScaleJitter(crop_size=(0, 64))
