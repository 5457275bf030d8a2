"""The figures of studies and of data, as SVG texts that read on light and dark pages."""

import io
import re
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogFormatter

from rethink_tf.metrics_file import COLLAPSED, DONE
from rethink_tf.report.collecting import StudyRun

# Okabe and Ito's colours, which the colour-blind tell apart, without those that a page hides.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_GREY = "#888888"
_STYLE = {
    "svg.fonttype": "none",  # texts stay texts, in the font of the page
    "svg.hashsalt": "rethink_tf",  # equal figures are equal files
    "font.size": 11,
    "text.color": _GREY,
    "axes.labelcolor": _GREY,
    "axes.edgecolor": _GREY,
    "xtick.color": _GREY,
    "ytick.color": _GREY,
    "grid.color": _GREY,
    "grid.alpha": 0.25,
    "legend.frameon": False,
}


def over_steps(runs: Sequence[StudyRun], metric: str, subset: str) -> str:
    """Returns AP over iterations: a line an arm and schedule, each seed thin, their mean strong.

    Points are the last checkpoints of the schedules; a cross is where a run collapsed.

    Args:
        runs: of the study.
        metric: such as "mask/AP".
        subset: whose runs are shown.
    """
    with matplotlib.rc_context(_STYLE):
        figure, axes = _axes("iterations", f"{metric} (%)")
        for colour, arm in zip(_cycle(), dict.fromkeys(run.arm for run in runs), strict=False):
            own = [run for run in runs if run.arm == arm and run.subset == subset]
            label = arm
            for schedule in dict.fromkeys(run.schedule for run in own):
                group = [run for run in own if run.schedule == schedule]
                curves = [_curve(run, metric) for run in group]
                for steps, values in curves:
                    axes.plot(steps, values, color=colour, alpha=0.5, linewidth=0.9)
                ends = [values[-1] for run, (_, values) in zip(group, curves, strict=True)
                        if run.state == DONE and len(values)]  # fmt: skip
                if ends:
                    end = group[0].num_steps
                    axes.plot(end, np.mean(ends), "o", color=colour, label=label)
                    axes.annotate(schedule, (end, np.mean(ends)), (0, 6), fontsize=8,
                                  textcoords="offset points", ha="center")  # fmt: skip
                    label = None
                for run, (steps, values) in zip(group, curves, strict=True):
                    if run.state == COLLAPSED:
                        place = (steps[-1], values[-1]) if len(steps) else (0, 0)
                        axes.plot(*place, "x", color=colour, label=label and f"{arm} (collapsed)")
                        label = None
        return _svg(figure)


def by_schedule(
    runs: Sequence[StudyRun],
    metric: str,
    subset: str,
    references: Mapping[str, Mapping[str, float]] | None = None,
) -> str:
    """Returns the last AP over the length of the schedule, a line an arm with its deviation.

    Args:
        runs: of the study.
        metric: such as "mask/AP".
        subset: whose runs are shown.
        references: {name: {schedule: value in percent}}, drawn dotted in the arms' colours.
    """
    with matplotlib.rc_context(_STYLE):
        figure, axes = _axes("iterations of the schedule", f"{metric} (%)")
        for colour, arm in zip(_cycle(), dict.fromkeys(run.arm for run in runs), strict=False):
            own = [run for run in runs if run.arm == arm and run.subset == subset and run.last]
            if not own:
                continue
            lengths = sorted({run.num_steps for run in own})
            values = [
                [100 * run.last[metric] for run in own if run.num_steps == length]
                for length in lengths
            ]
            means = np.array([np.mean(each) for each in values])
            reach = np.array([np.std(each, ddof=1) if len(each) > 1 else 0 for each in values])
            axes.errorbar(
                lengths, means, reach, fmt="o-", color=colour, label=arm, capsize=3, linewidth=1.2
            )
        lengths = {run.schedule: run.num_steps for run in runs}
        for colour, (name, values) in zip(_cycle(), (references or {}).items(), strict=False):
            points = sorted((lengths[each], value) for each, value in values.items())
            axes.plot(*zip(*points, strict=True), ":", color=colour, label=name, linewidth=1.2)
        return _svg(figure)


def samples_seen(names: Sequence[str], counts: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """Returns bars of what arms have seen, pre-training and training one on the other.

    Args:
        names: of the bars, such as "random 6x".
        counts: {"images", "objects", "pixels": (pre-training, training) each}; nan is left out.

    Source: He et al. 2018 (arXiv:1811.08883), figure 2.
    """
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(5.6, 1.0 + 0.28 * len(names) * len(counts)), layout="constrained")
        for axes, (kind, pairs) in zip(
            np.atleast_1d(figure.subplots(len(counts))), counts.items(), strict=True
        ):
            before, own = np.nan_to_num(np.array(pairs, float)).T
            places = np.arange(len(names))
            axes.barh(places, before, color=COLOURS[1], label="pre-training")
            axes.barh(places, own, left=before, color=COLOURS[0], label="training")
            axes.set_yticks(places, names)
            axes.invert_yaxis()
            axes.set_xlabel(kind)
            axes.xaxis.set_major_formatter(EngFormatter())
            _open_frame(axes)
        return _svg(figure, axes)


def over_images(points: Mapping[str, Sequence[tuple[int, Sequence[float]]]], metric: str) -> str:
    """Returns AP over the number of training images on a logarithmic axis, a line an arm.

    Args:
        points: {arm: (images, AP in percent by seed) each}.
        metric: such as "mask/AP".
    """
    with matplotlib.rc_context(_STYLE):
        figure, axes = _axes("training images", f"{metric} (%)")
        for colour, (arm, own) in zip(_cycle(), points.items(), strict=False):
            counts = [count for count, _ in own]
            means = [np.mean(values) for _, values in own]
            reach = [np.std(values, ddof=1) if len(values) > 1 else 0 for _, values in own]
            axes.errorbar(counts, means, reach, fmt="o-", color=colour, label=arm, capsize=3)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(EngFormatter())
        return _svg(figure)


def precision_recall(curves: Mapping[str, Mapping[str, Sequence[float]]], metric: str) -> str:
    """Returns precision over recall, means over categories: a colour an arm, a style a threshold.

    Args:
        curves: {arm: {name of the threshold: precision at 101 recalls}}.
        metric: such as "mask".
    """
    with matplotlib.rc_context(_STYLE):
        figure, axes = _axes("recall", f"precision ({metric})")
        recalls = np.linspace(0, 1, 101)
        for colour, (arm, own) in zip(_cycle(), curves.items(), strict=False):
            for style, (name, values) in zip(("-", "--", ":"), own.items(), strict=False):
                label = f"{arm}, {name}"
                axes.plot(recalls, values, style, color=colour, label=label, linewidth=1.2)
        axes.set_ylim(0, 1.02)
        return _svg(figure)


def small_precision_recall(curves: Mapping[str, Sequence[float]]) -> str:
    """Returns precision over recall without labels, small enough for many on a page.

    Args:
        curves: {name of the threshold: precision at 101 recalls}, at most three.
    """
    # By hand: matplotlib takes a minute for the categories of LVIS, and 10 kB each.
    parts = [f'<path d="M0 0V60H100M0 30H100M50 0V60" stroke="{_GREY}" stroke-opacity="0.4"/>']
    for colour, dashes, values in zip(
        COLOURS, ("1 0", "4 2", "1 2"), curves.values(), strict=False
    ):
        points = " ".join(f"{recall},{60 - 60 * each:.1f}" for recall, each in enumerate(values))
        parts.append(f'<polyline points="{points}" stroke="{colour}" stroke-dasharray="{dashes}"/>')
    return f'<svg viewBox="-1 -1 102 62" fill="none">{"".join(parts)}</svg>'


def bars(names: Sequence[str], values: Mapping[str, Sequence[float]], quantity: str) -> str:
    """Returns horizontal bars, side by side for each name.

    Args:
        names: from top to bottom.
        values: {what they are of: one value a name}.
        quantity: its name.
    """
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(5.6, 1.2 + 0.34 * len(names)), layout="constrained")
        axes = figure.add_subplot()
        places, height = np.arange(len(names)), 0.8 / len(values)
        for index, (colour, (label, own)) in enumerate(zip(_cycle(), values.items(), strict=False)):
            drawn = axes.barh(places + index * height, own, height, color=colour, label=label)
            axes.bar_label(drawn, fmt="%.1f", padding=3, fontsize=8, color=_GREY)
        axes.set_yticks(places + 0.4 - height / 2, names)
        axes.invert_yaxis()
        axes.set_xlabel(quantity)
        axes.margins(x=0.12)
        _open_frame(axes)
        return _svg(figure)


def confusion(matrix: np.ndarray, names: Sequence[str]) -> str:
    """Returns a confusion matrix, each row as shares of its objects.

    Args:
        matrix: int [K + 1, K + 1]; see `evaluation.matches`.
        names: K names of categories.
    """
    with matplotlib.rc_context(_STYLE):
        side = max(3.9, 0.9 + 0.32 * len(matrix))
        # As wide as the other figures, whose texts are then of one size on a page.
        figure = Figure(figsize=(max(5.6, side), side), layout="constrained")
        axes = figure.add_subplot()
        shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for row, column in zip(*np.nonzero(matrix), strict=True):
            colour = "white" if shares[row, column] > 0.5 else "#222222"
            text = f"{matrix[row, column]:,}"
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=7)
        places = np.arange(len(matrix))
        axes.set_xticks(places, [*names, "missed"], rotation=90)
        axes.set_yticks(places, [*names, "no object"])
        axes.set_xlabel("detection")
        axes.set_ylabel("object")
        return _svg(figure)


def training_curves(curves: Mapping[str, tuple[Sequence, Sequence]], quantity: str) -> str:
    """Returns a quantity of training over iterations, a line a run.

    Args:
        curves: {name of the run: (steps, values)}.
        quantity: its name, such as "loss".
    """
    with matplotlib.rc_context(_STYLE):
        figure, axes = _axes("iterations", quantity)
        for colour, (name, (steps, values)) in zip(_cycle(), curves.items(), strict=False):
            axes.plot(steps, values, color=colour, label=name, linewidth=1.0)
        return _svg(figure)


def distribution(
    series: Mapping[str, Sequence[float]],
    quantity: str,
    scale: str,
    marks: Sequence[float] = (),
) -> str:
    """Returns how values are distributed: bars of shares, a colour a series, and marks.

    Args:
        series: {name: values}, some of them not empty.
        quantity: what the values are, with their unit.
        scale: "log" of values above 0, "count" of whole numbers from 0 on, "share" of 0 to 1.
        marks: values that dashed lines stand at, the anchors' own.
    """
    every = np.concatenate([*(np.asarray(each, float) for each in series.values()), marks])
    high = every.max()
    edges = {
        "log": lambda: np.geomspace(every.min() / 1.02, high * 1.02, 41),
        "count": lambda: np.arange(0, high + 1 + (step := high // 40 + 1), step) - 0.5,
        "share": lambda: np.linspace(0, 1, 41),
    }[scale]()
    with matplotlib.rc_context(_STYLE):
        figure, axes = _axes(quantity, "share (%)")
        for colour, (name, values) in zip(_cycle(), series.items(), strict=False):
            counts, _ = np.histogram(values, edges)
            heights = 100 * counts / max(len(values), 1)
            axes.stairs(heights, edges, color=colour, label=name, fill=True, alpha=0.5)
        for number, mark in enumerate(marks):
            label = None if number else "anchors"
            axes.axvline(mark, color=_GREY, linestyle="--", linewidth=1, label=label)
        if scale == "log":
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.xaxis.set_minor_formatter(LogFormatter())  # by default powers of ten
        return _svg(figure)


def _curve(run, metric):
    points = [(line["step"], 100 * line[metric]) for line in run.evaluations if metric in line]
    steps, values = zip(*points, strict=True) if points else ((), ())
    return np.array(steps), np.array(values)


def _cycle():
    while True:
        yield from COLOURS


def _axes(x, y):
    figure = Figure(figsize=(5.6, 3.9), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    _open_frame(axes)
    return figure, axes


def _open_frame(axes):
    axes.grid(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _svg(figure, labelled=None):
    """Returns the SVG; its legend is of the axes `labelled`, None for all."""
    handles, labels = (labelled or figure.axes[0]).get_legend_handles_labels()
    if handles:
        # Above the axes, where it hides nothing.
        figure.legend(handles, labels, loc="outside upper left", ncols=2 if len(labels) > 3 else 3)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = re.sub(r"<metadata>.*?</metadata>", "", buffer.getvalue(), flags=re.DOTALL)
    return text[text.index("<svg") :]
