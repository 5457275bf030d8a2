"""Anchors: hand values of sizes, places and order."""

import math

import numpy as np
import tensorflow as tf

from rethink_tf.ops import anchors as anchor_ops


def test_cell_anchors_have_the_area_and_the_ratio():
    cell = anchor_ops.cell_anchors([32, 64], [0.5, 1.0, 2.0])
    assert cell.shape == (6, 4) and cell.dtype == np.float32
    np.testing.assert_allclose(cell[:, :2], -cell[:, 2:])  # centred on the origin
    sides = cell[:, 2:] - cell[:, :2]
    np.testing.assert_allclose(sides[:, 0] * sides[:, 1], [32**2] * 3 + [64**2] * 3, rtol=1e-5)
    np.testing.assert_allclose(sides[:, 0] / sides[:, 1], [0.5, 1, 2] * 2, rtol=1e-5)
    # Ratio 2 of size 32: 32 * sqrt(2) high, 32 / sqrt(2) wide.
    half = [32 * math.sqrt(2) / 2, 32 / math.sqrt(2) / 2]
    np.testing.assert_allclose(cell[2], [-half[0], -half[1], half[0], half[1]], rtol=1e-6)


def test_level_anchors_run_over_rows_then_columns_then_the_cell():
    anchors = anchor_ops.level_anchors(2, 3, 16, [8], [1.0, 4.0])
    assert anchors.shape == (2 * 3 * 2, 4)
    centers = 0.5 * (anchors[:, :2] + anchors[:, 2:]).numpy()
    cells = [(0, 0), (0, 16), (0, 32), (16, 0), (16, 16), (16, 32)]
    np.testing.assert_allclose(centers, np.repeat(cells, 2, axis=0), atol=1e-6)
    np.testing.assert_allclose(anchors[10], [16 - 4, 32 - 4, 16 + 4, 32 + 4])
    np.testing.assert_allclose(anchors[11], [16 - 8, 32 - 2, 16 + 8, 32 + 2])  # 16 x 4


def test_sizes_of_the_map_may_be_tensors():
    by_tensors = anchor_ops.level_anchors(tf.constant(3), tf.constant(2), 4, [32], [1.0])
    np.testing.assert_array_equal(by_tensors, anchor_ops.level_anchors(3, 2, 4, [32], [1.0]))


def test_positions_are_those_of_the_image_on_its_own():
    """Two anchors a cell, maps of 2 x 3 and 1 x 2 cells; the images have less content."""
    sizes = [tf.constant([[2, 3], [1, 2], [0, 0]]), tf.constant([[1, 2], [1, 1], [0, 0]])]
    found = anchor_ops.positions(sizes, [(2, 3), (1, 2)], 2).numpy()
    np.testing.assert_array_equal(found[0], range(16))
    fine, coarse = [0, 1, 2, 3, -1, -1] + [-1] * 6, [4, 5, -1, -1]
    np.testing.assert_array_equal(found[1], fine + coarse)
    assert (found[2] == -1).all()
    maps = [tuple(tf.constant(side) for side in each) for each in [(2, 3), (1, 2)]]
    np.testing.assert_array_equal(anchor_ops.positions(sizes, maps, 2), found)
