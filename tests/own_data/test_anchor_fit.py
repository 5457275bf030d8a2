"""The fit of anchors' shapes: hand values, a search of everything, and when ratios are changed."""

import itertools

import numpy as np
import pytest

from rethink_tf.own_data import anchor_fit
from rethink_tf.own_data.settings import own_data_settings


def boxes_of(ratios, count, seed=0):
    """Shapes around some ratios, of many sizes."""
    rng = np.random.default_rng(seed)
    ratios = np.exp(rng.normal(np.log(rng.choice(ratios, count)), 0.05))
    return anchor_fit.ratio_shapes(ratios) * rng.uniform(10, 200, [count, 1])


def test_the_iou_of_shapes_around_one_centre():
    shapes = [[10, 20], [4, 4]]
    # 10 x 10 of 200 + 100 - 100, 4 x 4 of 100, and a shape with itself.
    expected = [[100 / 200, 1.0], [16 / 100, 16 / 200]]
    np.testing.assert_allclose(anchor_fit.shape_iou(shapes, [[10, 10], [10, 20]]), expected)
    assert anchor_fit.mean_best_iou(shapes, [[10, 10], [10, 20]]) == pytest.approx(1.16 / 2)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_search_of_all_groupings_finds_nothing_better(seed):
    rng = np.random.default_rng(seed)
    shapes = np.exp(rng.uniform(np.log(8), np.log(90), [7, 2]))
    sides = np.geomspace(8, 90, 25)
    grid = np.array(list(itertools.product(sides, sides)))
    iou = anchor_fit.shape_iou(shapes, grid)
    # Every pair of anchors of a grid.
    best = max(np.maximum(iou[:, [row]], iou[:, row:]).mean(0).max() for row in range(len(grid)))
    found = anchor_fit.k_means(shapes, 2)
    assert anchor_fit.mean_best_iou(shapes, found) > best - 0.01
    assert found.shape == (2, 2) and found[0].prod() <= found[1].prod()


def test_fewer_shapes_than_anchors_are_the_anchors():
    np.testing.assert_allclose(
        anchor_fit.k_means([[8, 8], [16, 32], [8, 8]], 5), [[8, 8], [16, 32]]
    )


def test_ratios_change_only_where_the_usual_ones_leave_many_objects_out():
    assert anchor_fit.fit_ratios(boxes_of([0.5, 1.0, 2.0], 300)) is None
    assert anchor_fit.fit_ratios(boxes_of([0.8, 1.2], 300)) is None
    # A twentieth of the objects is no reason.
    some = np.concatenate([boxes_of([1.0], 285), boxes_of([6.0], 15)])
    assert anchor_fit.fit_ratios(some) is None
    found = anchor_fit.fit_ratios(boxes_of([0.15, 1.0, 6.0], 300))
    np.testing.assert_allclose(found, [0.15, 1.0, 6.0], rtol=0.05)
    # One ratio alone gives no three different ones: then there is nothing to take.
    assert anchor_fit.fit_ratios(np.full([50, 2], [60.0, 10.0])) is None


def test_own_data_takes_the_fitted_ratios():
    statistics = {
        "num_images": 20,
        "num_held_out": 0,
        "height": 600,
        "width": 800,
        "aspect_ratio": 1.3,
        "object_sizes": [0.1, 0.2, 0.4],
        "max_objects": 5,
        "has_masks": False,
    }
    of_old_runs = own_data_settings("/data", statistics, 2)
    usual = own_data_settings("/data", statistics | {"aspect_ratios": None}, 2)
    fitted = own_data_settings("/data", statistics | {"aspect_ratios": [0.2, 1.0, 5.0]}, 2)
    assert "RPN.aspect_ratios" not in of_old_runs and of_old_runs == usual
    assert fitted == usual | {"RPN.aspect_ratios": (0.2, 1.0, 5.0)}
