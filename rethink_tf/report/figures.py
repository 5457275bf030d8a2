"""The figures of a study, as SVG texts that read on light and dark pages."""

import io
import re
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

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
    axes.grid(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure, axes


def _svg(figure):
    # Above the axes, where it hides nothing.
    figure.legend(loc="outside upper left", ncols=4)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = re.sub(r"<metadata>.*?</metadata>", "", buffer.getvalue(), flags=re.DOTALL)
    return text[text.index("<svg") :]
