"""All that is counted of an experiment's data: splits, objects, anchors, batches, faults."""

import dataclasses

import numpy as np

from rethink_tf.data.records import store
from rethink_tf.looking import anchors, batch_fill, objects, suspicious
from rethink_tf.own_data import anchor_fit


@dataclasses.dataclass(frozen=True, eq=False)
class Reach:
    """How anchors reach the objects of training.

    Attributes:
        what: which anchors.
        grid: `anchors.AnchorGrid`, or None for shapes alone.
        shape_ious: float64 [N], IoU with the best shape around the object's own centre.
        ious: float64 [N], IoU with the best anchor where it lies; None for shapes alone.
    """

    what: str
    grid: anchors.AnchorGrid | None
    shape_ious: np.ndarray
    ious: np.ndarray | None


@dataclasses.dataclass(frozen=True, eq=False)
class Measured:
    """What was counted.

    Attributes:
        tables: {name of the split: `objects.ObjectTable`}, training first.
        manifests: {name of the split: its manifest}.
        boxes: float64 [N, 4], the training objects in pixels of the network's input, as drawn for
            the first epoch, those without area (cut off by a crop) left out.
        rows: int64 [N], their rows in the training table.
        reaches: list of `Reach`: as it is, as suggested, and of free shapes.
        fills: list of `batch_fill.Fill`.
        findings: {name of the split: list of `suspicious.Finding`}.
        warnings: texts on whole splits.
    """

    tables: dict
    manifests: dict
    boxes: np.ndarray
    rows: np.ndarray
    reaches: list
    fills: list
    findings: dict
    warnings: list


def read_tables(opened):
    """Reads the objects of an experiment's splits.

    Args:
        opened: `opening.Opened`.

    Returns:
        {name of the split: `objects.ObjectTable`}, training first.
    """
    return {
        "training": objects.read_objects(opened.train, opened.train_index),
        "evaluation": objects.read_objects(opened.evaluation, opened.evaluation_index),
    }


def measure(opened, tables, suggestion):
    """Counts all that needs no image.

    Args:
        opened: `opening.Opened`.
        tables: of `read_tables`.
        suggestion: `suggestion.Suggestion`.

    Returns:
        `Measured`.
    """
    run, table = opened.settings, tables["training"]
    splits = {"training": opened.train, "evaluation": opened.evaluation}
    boxes, sizes, rows = _boxes_as_fed(opened, table)
    fills = batch_fill.measure(
        opened.pipeline,
        opened.train_index,
        run.batch_size,
        run.seed,
        opened.model.coarsest_stride,
        opened.is_compiled,
        run.accumulate_steps,
    )
    warnings = [
        f"{name}: {text}"
        for name, each in tables.items()
        if (text := suspicious.may_be_swapped(each))
    ]
    return Measured(
        tables=tables,
        manifests={name: store.load_manifest(each.directory) for name, each in splits.items()},
        boxes=boxes,
        rows=rows,
        reaches=_reaches(opened, suggestion, table, boxes, sizes),
        fills=fills,
        findings={name: suspicious.find(each) for name, each in tables.items()},
        warnings=warnings,
    )


def _boxes_as_fed(opened, table):
    """Returns boxes, the content that each lies in, and rows, as of `Measured`."""
    count = np.arange(len(table.index))
    drawn, shapes = opened.pipeline.training_slots(
        table.index, opened.settings.seed, opened.model.coarsest_stride, opened.is_compiled
    )
    geometry = drawn.geometry(count, np.zeros_like(count), shapes)
    return anchors.resized_objects(table, geometry)


def _reaches(opened, suggestion, table, boxes, sizes):
    """Returns list of `Reach`; the suggested sizes of images are other ones than those of now."""
    grid = anchors.AnchorGrid.of(opened.model)
    found = [_reach("as it is", grid, boxes, sizes)]
    if suggestion.grid:
        if suggestion.sides:
            boxes_then, sizes_then, _ = anchors.objects_at_side(table, *suggestion.sides)
        else:
            boxes_then, sizes_then = boxes, sizes
        as_suggested = _reach("as suggested", suggestion.grid, boxes_then, sizes_then)
        if not np.array_equal(as_suggested.ious, found[0].ious):
            found.append(as_suggested)
    shapes = boxes[:, 2:] - boxes[:, :2]
    if len(shapes):
        free = anchor_fit.k_means(shapes, len(grid.shapes))
        best = anchor_fit.shape_iou(shapes, free).max(1)
        found.append(Reach(f"{len(free)} free shapes by k-means", None, best, None))
    return found


def _reach(what, grid, boxes, sizes):
    shapes = boxes[:, 2:] - boxes[:, :2]
    best = anchor_fit.shape_iou(shapes, grid.shapes).max(1)
    return Reach(what, grid, best, anchors.best_ious(boxes, sizes, grid))
