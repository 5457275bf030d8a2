"""How well anchors reach the objects of a data set, on the grid that the RPN lays them on.

Pure NumPy, exact: along an axis the overlap of an object and an anchor falls with the distance of
their centres, so that of all anchors of one shape the one at the nearest cell has the highest IoU.

Letters: N objects, L levels, A anchors a cell.
"""

import dataclasses

import numpy as np

from rethink_tf.data.input import resizing
from rethink_tf.ops import anchors as anchor_ops

_AT_ONCE = 20_000  # objects


@dataclasses.dataclass(frozen=True)
class AnchorGrid:
    """The anchors of an RPN.

    Attributes:
        strides: L ints, pixels.
        sizes: L tuples of sizes, pixels.
        ratios: height / width.
        multiple: int, the network's coarsest stride, which content is rounded up to, pixels.
        positive_from: float, the IoU from which an anchor is an object.
    """

    strides: tuple
    sizes: tuple
    ratios: tuple
    multiple: int
    positive_from: float

    @classmethod
    def of(cls, model):
        """Returns the anchors of a detector; it needs no variables."""
        rpn = model.rpn
        return cls(
            tuple(2**level for level in rpn.levels),
            rpn.anchor_sizes,
            rpn.aspect_ratios,
            model.coarsest_stride,
            rpn.positive_from,
        )

    @property
    def shapes(self):
        """float64 [L * A, 2], (height, width) of all, fine to coarse, pixels."""
        boxes = [anchor_ops.cell_anchors(sizes, self.ratios) for sizes in self.sizes]
        boxes = np.concatenate(boxes).astype(np.float64)
        return boxes[:, 2:] - boxes[:, :2]


def best_ious(boxes, image_sizes, grid):
    """Returns the IoU of each object with the anchor that overlaps it most.

    Args:
        boxes: float [N, 4], (y1, x1, y2, x2), pixels of the network's input.
        image_sizes: int [N, 2], (height, width) of the content that each lies in, pixels.
        grid: `AnchorGrid`.

    Returns:
        float64 [N].
    """
    best = np.zeros(len(boxes))
    for start in range(0, len(boxes), _AT_ONCE):
        some = slice(start, start + _AT_ONCE)
        best[some] = _best_of_some(np.asarray(boxes[some], float), image_sizes[some], grid)
    return best


def _best_of_some(boxes, image_sizes, grid):
    content = -(-image_sizes // grid.multiple) * grid.multiple
    centres, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    best = np.zeros(len(boxes))
    for stride, sizes in zip(grid.strides, grid.sizes, strict=True):
        last = -(-content // stride) - 1
        nearest = np.clip(np.floor(centres / stride + 0.5), 0, last) * stride
        offset = np.abs(centres - nearest)[:, np.newaxis]
        corners = anchor_ops.cell_anchors(sizes, grid.ratios).astype(np.float64)
        shapes = corners[:, 2:] - corners[:, :2]
        own = sides[:, np.newaxis]
        overlap = np.minimum(np.minimum(own, shapes), (own + shapes) / 2 - offset)
        both = np.maximum(overlap, 0).prod(-1)
        areas = own.prod(-1) + shapes.prod(-1)
        best = np.maximum(best, (both / np.maximum(areas - both, 1e-12)).max(1))
    return best


def resized_objects(table, geometry):
    """Brings the objects of a split into the pixels of the network's input.

    Args:
        table: `objects.ObjectTable` of I images.
        geometry: of the images, as a class of `data.input.resizing` says.

    Returns:
        boxes float64 [M, 4], cut at the view where only a part of the image is taken; int64 [M, 2],
        the content that each lies in; and int64 [M], their rows in the table: those without area,
        which no view shows, are left out.
    """
    scale = geometry["size"] / table.image_sizes
    boxes = table.boxes * np.tile(scale, 2)[table.row]
    sizes = geometry["size"]
    if "view" in geometry:
        view = geometry["view"][table.row]
        start, sizes = np.tile(view[:, :2], 2), geometry["view"][:, 2:] - geometry["view"][:, :2]
        boxes = np.clip(boxes - start, 0, np.tile(sizes[table.row], 2))
    rows = np.flatnonzero((boxes[:, 2:] > boxes[:, :2]).all(-1))
    return boxes[rows], sizes[table.row[rows]], rows


def objects_at_side(table, min_side, max_side):
    """Returns what `resized_objects` does, for one shorter and one longest side, pixels."""
    draws = np.zeros([len(table.image_sizes), 1])
    rule = resizing.ShorterSide(min_side, None, max_side)
    return resized_objects(table, rule.geometry(table.image_sizes, draws))
