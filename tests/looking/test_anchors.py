"""How anchors reach objects: against all anchors of the RPN, and views of large-scale jitter."""

import types

import numpy as np
import tensorflow as tf

from rethink_tf.looking import anchors, feeding
from rethink_tf.models.rpn import RPN
from rethink_tf.ops import boxes as box_ops


def test_the_nearest_anchor_of_each_shape_is_the_best_of_all():
    rng = np.random.default_rng(0)
    rpn = RPN(channels=8, anchor_sizes=((9,), (20,), (43,), (70,), (150,)), positive_from=0.6)
    model = types.SimpleNamespace(rpn=rpn, coarsest_stride=32)
    content, shape = (100, 130), (128, 192)
    corners = rng.uniform(-3, 90, [40, 2])
    boxes = np.concatenate([corners, corners + rng.uniform(1, 80, [40, 2])], -1).astype(np.float32)
    grid = anchors.AnchorGrid.of(model)
    found = anchors.best_ious(boxes, np.tile(content, [40, 1]), grid)

    # All anchors of the cells that are content: 100 x 130 rounded up to 128 x 160.
    every = rpn.make_anchors(
        {level: (-(-128 // 2**level), -(-160 // 2**level)) for level in rpn.levels}
    )
    iou = box_ops.pairwise_iou(tf.concat(list(every.values()), 0), tf.constant(boxes)).numpy()
    np.testing.assert_allclose(found, iou.max(0), atol=1e-5)

    # And what is drawn: positive by their IoU are those from 0.6 on, of objects that reach it.
    taken, is_by_iou, has_anchor = feeding.positive_anchors(model, shape, content, boxes)
    assert is_by_iou.sum() == (iou.max(1) >= 0.6).sum()
    assert has_anchor[found >= 0.6].any()
    best = box_ops.pairwise_iou(tf.constant(taken), tf.constant(boxes)).numpy()
    # Every object has its best anchor among them.
    np.testing.assert_allclose(best.max(0), found, atol=1e-5)


def test_an_image_without_objects_has_no_positive_anchor():
    rpn = RPN(channels=8)
    model = types.SimpleNamespace(rpn=rpn, coarsest_stride=32)
    found = feeding.positive_anchors(model, (64, 64), (50, 60), np.zeros([0, 4], np.float32))
    assert [len(each) for each in found] == [0, 0, 0]


def test_objects_are_resized_and_cut_at_the_view():
    table = types.SimpleNamespace(
        boxes=np.array([[10.0, 20, 30, 60], [0, 0, 5, 5]]),
        row=np.array([0, 1]),
        image_sizes=np.array([[100, 200], [50, 50]]),
    )
    geometry = {"size": np.array([[50, 400], [50, 50]])}
    boxes, sizes, rows = anchors.resized_objects(table, geometry)
    np.testing.assert_allclose(boxes, [[5, 40, 15, 120], [0, 0, 5, 5]])
    np.testing.assert_array_equal(sizes, [[50, 400], [50, 50]])
    geometry["view"] = np.array([[10, 100, 50, 300], [20, 20, 50, 50]])
    boxes, sizes, rows = anchors.resized_objects(table, geometry)
    # The second object is not in its view.
    np.testing.assert_allclose(boxes, [[0, 0, 5, 20]])
    np.testing.assert_array_equal(sizes, [[40, 200]])
    assert rows.tolist() == [0]
