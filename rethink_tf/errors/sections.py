"""What the page of an analysis shows: its first lines, figures and tables."""

from collections.abc import Sequence

import numpy as np

from rethink_tf.errors import inputs, measures, tide, worst
from rethink_tf.evaluation import comparing, matches
from rethink_tf.report import figures, further_tables
from rethink_tf.report.sections import MAX_CATEGORIES
from rethink_tf.report.study_tables import Table

_SPECIAL = {
    "false positives": "if no wrong detection scored higher than a right one",
    "false negatives": "if there were no objects but those that are found",
}


def summary(
    case: inputs.Case, found: Sequence[measures.Measured], shown: worst.Shown | None
) -> list[str]:
    """Returns the paragraphs at the top.

    Args:
        case: what is analysed.
        found: what was measured.
        shown: what the pictures show, None for none.
    """
    lines = []
    for each in found:
        values = ", ".join(f"{name} {_percent(each.metrics[name])}" for name in ("AP", "AP50"))
        lines.append(f"{each.name.capitalize()}: {values}")
        if each.lost:
            gains = {name: np.nan_to_num(gain) for name, gain in each.lost.by_kind.items()}
            name = max(gains, key=gains.get)
            if gains[name]:
                lines[-1] += f"; most is lost by **{name}** ({gains[name]:.1f} points of AP50)"
    counts = f"{len(case.truth.images):,} images, {len(case.found.images):,} detections"
    texts = [f"{counts}. " + ". ".join(lines) + "."]
    if any(each.name == "keypoints" for each in found):
        texts.append(
            "Keypoints are compared by their similarity (OKS): AP, precision over recall and sizes "
            "are given. The kinds of errors are of IoU, and are those of the boxes."
        )
    if shown and len(case.found.images):
        texts.append(
            f"At a score of {shown.score:.2f} or more, where the harmonic mean of both is highest, "
            f"{shown.precision:.0%} of the detections are right, and they find {shown.recall:.0%} "
            "of the objects (IoU 0.5)."
        )
    return texts


def all_figures(
    case: inputs.Case, found: Sequence[measures.Measured], confusion: np.ndarray
) -> list[tuple[str, str]]:
    """Returns (caption, SVG) of each figure; arguments as of `all_tables`."""
    drawn, split = [], {each.name: each.lost for each in found if each.lost}
    if split:
        values = {name: np.nan_to_num([*lost.by_kind.values()]) for name, lost in split.items()}
        names = [*next(iter(split.values())).by_kind]
        caption = (
            "What each kind of error costs: how much AP50 would gain if it alone were right (TIDE)."
        )
        drawn.append((caption, figures.bars(names, values, "points of AP50 lost")))
    for each in found:
        curves = list(each.curves.values())
        if not curves:
            continue
        mean = {key: np.mean([own[key] for own in curves], 0) for key in curves[0]}
        caption = f"Precision over recall ({each.name}), mean over {len(curves):,} categories."
        drawn.append((caption, figures.precision_recall({"mean": mean}, each.name)))
    if len(case.names) <= MAX_CATEGORIES:
        caption = (
            "Which objects are taken for which, by boxes that score "
            f"{matches.CONFUSION_SCORE:g} or more: shade by share of the row."
        )
        drawn.append((caption, figures.confusion(confusion, case.names)))
    return drawn


def small_figures(
    found: Sequence[measures.Measured],
) -> list[tuple[str, str, list[tuple[str, str]]]]:
    """Returns precision over recall of each category, as `page.render` takes it.

    Args:
        found: what was measured.
    """
    note = (
        "Solid at IoU 0.5, dashed at 0.75, dotted the mean of 0.5 to 0.95; both axes from 0 to 1."
    )
    return [
        (
            f"Precision over recall by category ({each.name})",
            note,
            [
                (
                    f"{name}: AP {_percent(float(curves['0.5 to 0.95'].mean()))}",
                    figures.small_precision_recall(curves),
                )
                for name, curves in each.curves.items()
            ],
        )
        for each in found
        if each.curves
    ]


def all_tables(
    case: inputs.Case, found: Sequence[measures.Measured], confusion: np.ndarray
) -> list[Table]:
    """Returns the tables.

    Args:
        case: what is analysed.
        found: what was measured.
        confusion: int [K + 1, K + 1]; see `evaluation.matches`.
    """
    tables = [_of_kinds([each for each in found if each.errors]), _of_sizes(case, found)]
    tables += [_of_categories(case, each) for each in found]
    rows = further_tables.most_confused(confusion, case.names)
    tables.append(
        Table(
            "Categories taken for another",
            "confusions",
            further_tables.CONFUSED,
            rows,
            further_tables.CONFUSED_NOTE,
        )
    )
    return [table for table in tables if table.rows]


def _of_kinds(found):
    counts = {each.name: np.bincount(each.errors.kinds, minlength=6) for each in found}
    rows = []
    for kind, (name, meaning) in tide.KINDS.items():
        rows.append([name, *_gains(found, name), *_counts(found, counts, kind), meaning])
    missed = [f"{int(each.errors.missed.sum()):,}" for each in found]
    rows.append([tide.MISSED, *_gains(found, tide.MISSED), *missed, tide.MISSED_MEANS])
    special = zip(
        _SPECIAL.items(),
        (
            [each.lost.false_positives for each in found],
            [each.lost.false_negatives for each in found],
        ),
        strict=True,
    )
    for (name, meaning), gains in special:
        rows.append([name, *(_points(gain) for gain in gains), *["" for _ in found], meaning])
    names = [each.name for each in found]
    return Table(
        "Kinds of errors",
        "errors",
        ["error", *(f"AP50 lost ({n})" for n in names), *(f"count ({n})" for n in names), "what"],
        rows if found else [],
        "Each kind is fixed alone, the others left as they are: what is lost does not add up. Of "
        f"each image the {tide.MAX_DETECTIONS} detections that score highest count. After Bolya et "
        "al. 2020, arXiv:2008.08115.",
    )


def _gains(found, name):
    return [_points(each.lost.by_kind[name]) for each in found]


def _counts(found, counts, kind):
    return [f"{counts[each.name][kind]:,}" for each in found]


def _of_sizes(case, found):
    objects = case.truth.instances("bbox", comparing.kept_images(case.truth))
    areas = objects.areas[objects.crowds == 0]
    sizes = np.searchsorted([32**2, 96**2], areas, side="right")
    rows = []
    for position, (metric, name) in enumerate(measures.SIZES.items()):
        values = [_percent(each.metrics.get(metric, -1.0)) for each in found]
        rows.append([name, f"{int((sizes == position).sum()):,}", *values])
    return Table(
        "AP by size of the objects",
        "sizes",
        ["size", "objects", *(f"AP ({each.name})" for each in found)],
        rows,
        "Small is below 32 x 32 pixels of the stored image, large from 96 x 96 on, by the "
        "annotation's area.",
    )


def _of_categories(case, measured):
    errors, rows = measured.errors, []
    header = ["category", "AP", "AP50"]
    if errors:
        header += ["objects", "found", *(name for name, _ in tide.KINDS.values()), tide.MISSED]
    for position, name in enumerate(case.names):
        curves = measured.curves.get(name)
        values = [curves["0.5 to 0.95"], curves["IoU 0.5"]] if curves else [np.array([-1.0])] * 2
        row = [name, *(_percent(float(each.mean())) for each in values)]
        counts = _counts_of_category(errors, position) if errors else []
        if curves or any(counts):
            rows.append(row + [f"{count:,}" for count in counts])
    note = "Errors are counted by the category of the detection, missed ones by that of the object."
    return Table(
        f"By category ({measured.name})",
        f"categories_{measured.name}",
        header,
        rows,
        note if errors else "",
    )


def _counts_of_category(errors, position):
    of_category = errors.object_categories == position
    kinds = errors.kinds[errors.categories == position]
    counts = [of_category.sum(), (of_category & (errors.found_by >= 0)).sum()]
    counts += [(kinds == kind).sum() for kind in tide.KINDS]
    counts.append((of_category & errors.missed).sum())
    return [int(count) for count in counts]


def _points(gain):
    """Returns a gain as text; "-" where a fix has taken all objects out."""
    return "-" if np.isnan(gain) else f"{gain:.2f}"


def _percent(value):
    return f"{100 * value:.1f}" if value >= 0 else "-"
