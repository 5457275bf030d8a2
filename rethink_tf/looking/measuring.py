"""All that is counted of an experiment's data: splits, objects, anchors, batches, faults."""

import dataclasses

import numpy as np

from rethink_tf.data.input import resizing
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


def measure(opened, suggestion):
    """Counts all that needs no image.

    Args:
        opened: `opening.Opened`.
        suggestion: `suggestion.Suggestion` of it.

    Returns:
        `Measured`.
    """
    run = opened.settings
    splits = {"training": (opened.train, opened.train_index)}
    evaluated = (opened.evaluation, opened.evaluation_index)
    splits["evaluation"] = evaluated
    tables = {name: objects.read_objects(*each) for name, each in splits.items()}
    table = tables["training"]
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
        manifests={name: store.load_manifest(each.directory) for name, (each, _) in splits.items()},
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
    return _with_area(*anchors.resized_objects(table, geometry))


def _with_area(boxes, sizes):
    rows = np.flatnonzero((boxes[:, 2:] > boxes[:, :2]).all(-1))
    return boxes[rows], sizes[rows], rows


def _reaches(opened, suggestion, table, boxes, sizes):
    """Returns list of `Reach`; the suggested sizes of images are other ones than those of now."""
    grid = anchors.AnchorGrid.of(opened.model)
    found = [_reach("as it is", grid, boxes, sizes)]
    values = suggestion.values
    if "RPN.anchor_sizes" in values or "RPN.aspect_ratios" in values:
        other = dataclasses.replace(
            grid,
            sizes=values.get("RPN.anchor_sizes", grid.sizes),
            ratios=values.get("RPN.aspect_ratios", grid.ratios),
        )
        if "Pipeline.min_side" in values:
            sides = values["Pipeline.min_side"], None, values["Pipeline.max_side"]
            draws = np.zeros([len(table.index), 1])
            geometry = resizing.ShorterSide(*sides).geometry(table.image_sizes, draws)
            resized = _with_area(*anchors.resized_objects(table, geometry))
            as_suggested = _reach("as suggested", other, *resized[:2])
        else:
            as_suggested = _reach("as suggested", other, boxes, sizes)
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
