"""The tables and figures of the page on an experiment's data."""

import collections

import numpy as np

from rethink_tf.looking import suspicious
from rethink_tf.report import figures
from rethink_tf.report.study_tables import Table

MAX_CLASSES, MAX_ROWS = 100, 50
# COCO's, square roots of areas, pixels.
_SMALL, _LARGE = 32, 96
_QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


def all_tables(opened, measured, suggestion, search):
    """Returns the tables of the page.

    Args:
        opened: `opening.Opened`.
        measured: `measuring.Measured`.
        suggestion: `suggestion.Suggestion`.
        search: `similar.Search`.

    Returns:
        list of `Table`, those without rows left out.
    """
    found = [
        _splits(opened, measured),
        _suspicious(measured),
        _duplicates(measured, search),
        _suggestion(suggestion),
        _fit(measured),
        _reach(measured),
        _quantiles(measured),
        _fills(measured),
        _classes(measured),
        _converted(measured),
    ]
    return [table for table in found if table.rows]


def all_figures(measured):
    """Returns (caption, SVG) of each figure.

    Args:
        measured: `measuring.Measured`.
    """
    per_image = {name: table.per_image for name, table in measured.tables.items()}
    found = [("Objects an image.", figures.distribution(per_image, "objects", "count"))]
    sides = measured.boxes[:, 2:] - measured.boxes[:, :2]
    if not len(sides):
        return found
    grid = measured.reaches[0].grid
    sizes = sorted({size for level in grid.sizes for size in level})
    shown = {
        "Sizes of objects as the network is fed them, and the anchors' sizes.": (
            {"training objects": np.sqrt(sides.prod(-1))},
            "square root of the box's area (pixels)",
            "log",
            sizes,
        ),
        "Aspect ratios of objects, and the anchors' ratios.": (
            {"training objects": sides[:, 0] / sides[:, 1]},
            "height / width",
            "log",
            grid.ratios,
        ),
        "How well the best anchor overlaps each object.": (
            {each.what: each.ious for each in measured.reaches if each.grid},
            "IoU",
            "share",
        ),
    }
    return found + [(text, figures.distribution(*each)) for text, each in shown.items()]


def suspicious_rows(measured):
    """Returns header and rows of all suspicious objects, for a file."""
    header = ["split", "what", "image", "file", "class", "box (y1, x1, y2, x2)", "other class"]
    rows = []
    for split, findings in measured.findings.items():
        table = measured.tables[split]
        for each in findings:
            first = each.objects[0]
            others = [table.names[table.category[row]] for row in each.objects[1:]]
            row = table.row[first]
            name = table.names[table.category[first]]
            rows.append(
                [split, each.kind, str(table.index.image_id[row]), table.file_names[row], name]
                + [_box(table.boxes[first]), ", ".join(others)]
            )
    return header, rows


def duplicate_rows(measured, search):
    """Returns header and rows of all near-duplicates, for a file."""
    header = ["between", "image", "file", "image", "file", "correlation", "mirrored"]
    rows = []
    for pair in search.pairs:
        places = [search.images[each] for each in (pair.first, pair.second)]
        row = [search.between(pair)]
        for split, number in places:
            table = measured.tables[split]
            row += [str(table.index.image_id[number]), table.file_names[number]]
        rows.append([*row, f"{pair.correlation:.3f}", "yes" if pair.is_mirrored else ""])
    return header, rows


def _splits(opened, measured):
    header = ["", "images", "objects", "crowds", "images without", "an image", "at most"]
    header += ["above max_objects", "with masks", "labelled keypoints", "stored size, median"]
    rows = []
    for name, table in measured.tables.items():
        counts = table.per_image
        height, width = np.median(table.image_sizes, 0)
        masks = np.isfinite(table.mask_bounds).all(-1).sum()
        rows.append(
            [name, f"{len(counts):,}", f"{counts.sum():,}", f"{table.num_crowds:,}"]
            + [f"{(counts == 0).sum():,}", f"{counts.mean():.1f}", f"{counts.max(initial=0):,}"]
            + [f"{(counts > opened.pipeline.max_objects).sum():,}", f"{masks:,}"]
            + [f"{table.num_keypoints.sum():,}", f"{height:.0f} x {width:.0f}"]
        )
    note = f"An image keeps its {opened.pipeline.max_objects} largest (Pipeline.max_objects)."
    return Table("The splits", "splits", header, rows, note)


def _suspicious(measured):
    names = list(measured.tables)
    header = ["what", *names, "meaning"]
    counts = {
        name: collections.Counter(each.kind for each in findings)
        for name, findings in measured.findings.items()
    }
    rows = [
        [kind, *(f"{counts[name][kind]:,}" for name in names), meaning]
        for kind, meaning in suspicious.KINDS.items()
    ]
    note = "Reasons to look. suspicious.csv lists all of them."
    return Table("Suspicious boxes", "suspicious", header, rows, note)


def _duplicates(measured, search):
    header, rows = duplicate_rows(measured, search)
    more = f" Of {len(rows):,} pairs the first {MAX_ROWS}." if len(rows) > MAX_ROWS else ""
    note = f"{search.said}{more} near_duplicates.csv lists all of them."
    return Table("Near-duplicate images", "near_duplicates", header, rows[:MAX_ROWS], note)


def _suggestion(suggestion):
    rows = [
        [each.name, each.text, "the same" if each.now == each.text else each.now, each.reason]
        for each in suggestion.bindings
    ]
    note = " ".join(f"Left as it is: {each}." for each in suggestion.left_out)
    header = ["binding", "suggested", "now", "reason"]
    return Table("What own_data.gin would take", "suggestion", header, rows, note)


def _fit(measured):
    header = ["anchors", "mean best IoU", "IoU from 0.5", "from 0.7"]
    header += ["on the grid: mean", "from 0.5", "from 0.7"]
    rows = []
    for each in measured.reaches:
        own = _shares(each.shape_ious)
        on_grid = ["-"] * 3 if each.ious is None else _shares(each.ious)
        rows.append([each.what, *own, *on_grid])
    note = (
        "Shares of the training objects. First with anchors around the object's own centre, then "
        "where the RPN lays them: those of a level are its stride apart. The suggested anchors are "
        "for the suggested sizes of images. Free shapes are a bound: the RPN has one set of ratios "
        "for all levels."
    )
    return Table("Anchors and objects", "anchor_fit", header, rows, note)


def _shares(ious):
    if not len(ious):
        return ["-"] * 3
    return [f"{ious.mean():.3f}", *(_percent((ious >= limit).mean()) for limit in (0.5, 0.7))]


def _reach(measured):
    sides = np.sqrt((measured.boxes[:, 2:] - measured.boxes[:, :2]).prod(-1))
    limits = {
        "all": np.ones(len(sides), bool),
        f"small, below {_SMALL} pixels": sides < _SMALL,
        "medium": (sides >= _SMALL) & (sides < _LARGE),
        f"large, from {_LARGE} pixels": sides >= _LARGE,
    }
    best = measured.reaches[0].ious
    rows = [[name, f"{mask.sum():,}", *_unreached(best[mask])] for name, mask in limits.items()]
    header = ["training objects, as fed", "objects", "no anchor at 0.5", "no anchor at 0.7"]
    note = "An object that no anchor reaches at 0.7 is learnt from its best anchors alone."
    return Table("Objects that no anchor reaches", "unreached", header, rows, note)


def _unreached(ious):
    if not len(ious):
        return ["-", "-"]
    return [_percent((ious < limit).mean()) for limit in (0.5, 0.7)]


def _quantiles(measured):
    table = measured.tables["training"]
    sides = measured.boxes[:, 2:] - measured.boxes[:, :2]
    values = {
        "image height, stored (pixels)": table.image_sizes[:, 0],
        "image width, stored (pixels)": table.image_sizes[:, 1],
        "objects an image": table.per_image,
        "object's size, as fed (pixels)": np.sqrt(sides.prod(-1)),
        "object's size / image's shorter side": _relative_sizes(table),
        "object's height / width": sides[:, 0] / sides[:, 1],
    }
    rows = [
        [name, *(f"{each:.3g}" for each in np.quantile(found, _QUANTILES))]
        for name, found in values.items()
        if len(found)
    ]
    header = ["training", *("least" if q == 0 else "most" if q == 1 else f"{q:.0%}"
                            for q in _QUANTILES)]  # fmt: skip
    note = "Sizes of objects are square roots of the boxes' areas."
    return Table("Quantiles", "quantiles", header, rows, note)


def _relative_sizes(table):
    area = (table.boxes[:, 2:] - table.boxes[:, :2]).prod(-1)
    return np.sqrt(area) / table.image_sizes.min(-1)[table.row]


def _fills(measured):
    rows = []
    for fill in measured.fills:
        shapes = [f"{h} x {w} ({count / fill.num_batches:.0%})" for (h, w), count in fill.shapes]
        more = f" and {len(shapes) - 5} more" if len(shapes) > 5 else ""
        rows.append(
            [fill.what, _percent(fill.content), f"{fill.pixels_per_image / 1e6:.3f}"]
            + [str(len(shapes)), ", ".join(shapes[:5]) + more]
        )
    header = ["shapes", "filled by images", "megapixels an image", "how many", "the commonest"]
    count = measured.fills[0].num_batches
    note = f"Of the first {count:,} batches, before any image is read."
    return Table("Shapes of batches", "batch_shapes", header, rows, note)


def _classes(measured):
    train, test = measured.tables["training"], measured.tables["evaluation"]
    fed = train.category[measured.rows]
    sides = measured.boxes[:, 2:] - measured.boxes[:, :2]
    size, ratio = np.sqrt(sides.prod(-1)), sides[:, 0] / sides[:, 1]
    counts = {key: int((train.category == key).sum()) for key in train.names}
    rows = []
    for key in sorted(counts, key=lambda each: -counts[each]):
        own, mask = train.category == key, fed == key
        middle = [f"{np.median(each[mask]):.3g}" if mask.any() else "-" for each in (size, ratio)]
        rows.append(
            [train.names[key], f"{counts[key]:,}", f"{len(np.unique(train.row[own])):,}"]
            + [f"{(test.category == key).sum():,}", *middle]
            + _unreached(measured.reaches[0].ious[mask])
        )
    header = ["class", "training objects", "in images", "evaluation objects"]
    header += ["median size (pixels)", "median height / width", "no anchor at 0.5", "at 0.7"]
    empty = [row[0] for row in rows if row[1] == "0"]
    note = f"{len(rows):,} classes."
    note += f" Here are the first {MAX_CLASSES}." if len(rows) > MAX_CLASSES else ""
    note += f" Nothing to learn from: {', '.join(empty[:20])}." if empty else ""
    return Table("Classes", "classes", header, rows[:MAX_CLASSES], note)


def _converted(measured):
    rows = []
    for name, manifest in measured.manifests.items():
        for what, key in (("left out", "skipped"), ("kept otherwise than stated", "noted")):
            entries = {each["reason"]: each["entry"] for each in manifest.get(f"{key}_entries", [])}
            for reason, count in (manifest.get(key) or {}).items():
                rows.append([name, what, reason, f"{count:,}", entries.get(reason, "")])
        if manifest.get("num_clipped"):
            clipped = f"{manifest['num_clipped']:,}"
            rows.append([name, "cut at the border", "box reached out of the image", clipped, ""])
    header = ["split", "what", "reason", "entries", "such as"]
    note = "The last entry of each reason; manifest.json in the records' folders has all."
    return Table("What the conversion did", "conversion", header, rows, note)


def _percent(share):
    return f"{100 * share:.1f}%"


def _box(box):
    return ", ".join(f"{each:.1f}" for each in box)
