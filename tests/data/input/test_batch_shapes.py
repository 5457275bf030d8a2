"""Tests of rethink_tf/data/input/batch_shapes.py."""

import numpy as np
import pytest

from rethink_tf.data.input import batch_shapes
from rethink_tf.data.input.batch_shapes import BatchShapes


def test_tight_shapes_by_hand():
    shapes = BatchShapes()
    sizes = np.array([[800, 1067], [786, 1100]])
    assert shapes.cover(sizes) == (800, 1120) and shapes.only is None
    assert shapes.areas(sizes).tolist() == [800 * 1088, 800 * 1120]
    np.testing.assert_array_equal(shapes.limit(sizes), sizes)
    # 1067 ends at 1088 as 1060 does; the network sees no difference.
    assert shapes.fills(np.array([[800, 1067], [769, 1060]]), (800, 1088))
    assert not shapes.fills(sizes, (800, 1120))
    assert BatchShapes(multiple=16).cover(sizes) == (800, 1104)


def test_given_shapes_and_the_one_around_them():
    shapes = BatchShapes([(256, 320), (320, 256)])
    assert shapes.cover(np.array([[200, 320], [256, 10]])) == (256, 320)
    assert shapes.cover(np.array([[200, 320], [257, 10]])) == (320, 320)
    assert BatchShapes([(64, 64), (32, 48)]).fixed.tolist() == [[64, 64], [32, 48]]
    assert BatchShapes([(64, 96)]).only == (64, 96)
    # Shrunk to the shape where they shrink least; the others stay.
    found = shapes.limit(np.array([[512, 400], [640, 640], [100, 320], [10, 3200]]))
    assert found.tolist() == [[320, 250], [256, 256], [100, 320], [1, 320]]


def test_groups_by_hand():
    sizes = np.array([[32, 64], [64, 32], [32, 60], [60, 32], [64, 64], [64, 64]])
    order = batch_shapes.group(sizes, 2, BatchShapes())
    assert sorted(map(sorted, order.reshape(-1, 2).tolist())) == [[0, 2], [1, 3], [4, 5]]
    # With given shapes full batches first; what is left over shares the one around.
    fixed = BatchShapes([(32, 64), (64, 32)])
    order = batch_shapes.group(np.array([[32, 64]] * 3 + [[64, 32]] * 3), 2, fixed)
    kinds = sorted(
        tuple(sorted(row // 3 for row in pair)) for pair in order.reshape(-1, 2).tolist()
    )
    assert kinds == [(0, 0), (0, 1), (1, 1)]


def test_a_few_shapes_hold_everything_with_little_padding():
    generator = np.random.default_rng(0)
    landscape = generator.integers(0, 2, 500) == 1
    sizes = np.where(landscape[:, np.newaxis], [[480, 640]], [[640, 480]])
    sizes[:20] = [[224, 896]]
    assert batch_shapes.choose_shapes(sizes, (640, 1000), 4, 32) == [
        (224, 896),
        (480, 640),
        (640, 480),
        (640, 1024),
    ]
    assert batch_shapes.choose_shapes(sizes, (640, 1000), 1, 32) == [(640, 1024)]
    scaled = (sizes * generator.uniform(0.5, 1.0, [500, 1])).astype(int)
    shares = []
    for count in (2, 4, 8):
        shapes = BatchShapes(batch_shapes.choose_shapes(scaled, (640, 1000), count, 32))
        assert len(shapes.fixed) <= count
        assert (shapes.areas(scaled) >= scaled.prod(1)).all()
        shares.append(scaled.prod(1).sum() / shapes.areas(scaled).sum())
    assert shares[0] < shares[1] < shares[2] and shares[2] > 0.8


@pytest.mark.parametrize("fixed", [None, [(800, 1344), (1344, 800), (640, 640)]])
def test_every_image_is_in_one_batch(fixed):
    sizes = np.random.default_rng(1).integers(1, 800, (300, 2))
    order = batch_shapes.group(sizes, 4, BatchShapes(fixed))
    assert sorted(order.tolist()) == list(range(300))
