"""The benchmark of growth: which sizes a point changes, its exponent, and the plots."""

import pytest

from benchmarks import growth, models, train_step


def test_exponents_of_known_growth():
    start = {"size": 2, "seconds": 6}
    for seconds, expected in ((24, 1), (96, 2), (6, 0)):
        after = {"size": 8, "seconds": seconds}
        assert growth.exponent(start, after, "seconds") == pytest.approx(expected)
    assert growth.exponent(start, start, "seconds") is None


@pytest.mark.parametrize("axis", growth.AXES)
def test_points_change_what_they_name(axis):
    flags = growth.make_parser().parse_args([])
    known = set(vars(flags)) | {"replicas"}
    first, last = growth.POINTS[axis][0], growth.POINTS[axis][-1]
    changed = growth.changes(axis, last)
    assert set(changed) <= known and last in changed.values()
    assert first < last and vars(flags)[f"{axis}_points"] == growth.POINTS[axis]


def test_base_is_smaller_than_the_step_that_is_compared():
    ours = growth.make_parser().parse_args([])
    compared = train_step.make_parser().parse_args([])
    assert ours.height < compared.height and ours.rois < compared.rois
    assert ours.precisions == models.PRECISIONS[:1]


def test_a_plot_an_axis(tmp_path):
    points = [{"size": size, "seconds": size / 2, "peak_bytes": 1e9 + size} for size in (1, 2, 4)]
    path = tmp_path / "new" / "growth_images.svg"
    growth.plot(path, "images", {"float32": {"points": points}})
    text = path.read_text()
    assert growth.LABELS["images"] in text and "Seconds a step" in text
