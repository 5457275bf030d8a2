"""The tables of a study, as rows of texts: the page shows them, and they are files of their own.

AP is in points of percent. The last checkpoint of each run is compared, never the best.
"""

import csv
import dataclasses
import io
import math
from collections.abc import Sequence

from rethink_tf.metrics_file import DONE
from rethink_tf.report import collecting, significance
from rethink_tf.report.collecting import StudyRun

# What a line of metrics has beside the headline, and what it is called here.
_PARTS = {"AP50": "IoU 0.5", "AP75": "IoU 0.75", "APs": "small", "APm": "medium", "APl": "large"}
# Bindings in which arms differ because one of them starts from weights.
_OF_INITIALIZATION = ("init_checkpoint", "freeze_at", "pixel_std", "pixel_mean")


@dataclasses.dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        title: what it shows.
        name: of its file, without an ending.
        header: one text a column.
        rows: one text a cell.
        note: below it, or "".
    """

    title: str
    name: str
    header: list[str]
    rows: list[list[str]]
    note: str = ""

    def markdown(self) -> str:
        """Returns the table in Markdown."""
        lines = [self.header, ["---"] * len(self.header), *self.rows]
        text = "\n".join("| " + " | ".join(_escaped(row)) + " |" for row in lines)
        return f"## {self.title}\n\n{text}\n" + (f"\n{self.note}\n" if self.note else "")

    def csv(self) -> str:
        """Returns the table in CSV."""
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\n").writerows([self.header, *self.rows])
        return buffer.getvalue()


def all_tables(runs: Sequence[StudyRun]) -> list[Table]:
    """Returns the tables of a study, those without rows left out.

    Args:
        runs: of the study.
    """
    metrics = collecting.metrics_of(runs)
    tables = [comparison(runs, metric) for metric in metrics]
    tables += [by_part(runs, metric) for metric in metrics if metric != "voc/mAP"]
    tables += [costs(runs), settings(runs)]
    return [table for table in tables if table.rows]


def comparison(runs: Sequence[StudyRun], metric: str) -> Table:
    """Arms x schedules: values by seed, mean and deviation, and the difference to the first arm.

    Args:
        runs: of the study.
        metric: such as "mask/AP".
    """
    arms = unique(run.arm for run in runs)
    header = ["subset", "schedule", *arms]
    header += [f"{arm} - {arms[0]}" for arm in arms[1:]]
    header += ["what it shows"] if len(arms) > 1 else []
    rows = []
    for subset, schedule in unique((run.subset, run.schedule) for run in _by_length(runs)):
        cell = [run for run in runs if (run.subset, run.schedule) == (subset, schedule)]
        values = {arm: values_by_seed(cell, arm, metric) for arm in arms}
        states = {arm: [run.state for run in cell if run.arm == arm] for arm in arms}
        row = [subset, schedule, *(_values_text(values[arm], states[arm]) for arm in arms)]
        differences = [significance.paired_difference(values[arms[0]], values[a]) for a in arms[1:]]
        row += [_difference_text(each) for each in differences]
        if differences:
            words = [
                significance.verdict(each, (arms[0], arm))
                for each, arm in zip(differences, arms[1:], strict=True)
            ]
            row.append("; ".join(words))
        rows.append(row)
    return Table(
        f"{metric} in percent",
        metric.replace("/", "_"),
        header,
        rows,
        "Mean and standard deviation over seeds, then each seed's value; differences are paired by "
        f"seed, with their {significance.LEVEL:.0%} t-interval. It speaks of training again on the "
        "same images, not of other test images. Seeds differ by 0.1 to 0.3 on COCO, and by 2 and "
        "more on small sets.",
    )


def by_part(runs: Sequence[StudyRun], metric: str) -> Table:
    """The longest schedule's AP by IoU threshold and object size.

    Args:
        runs: of the study.
        metric: such as "mask/AP".
    """
    arms, rows = unique(run.arm for run in runs), []
    prefix = metric.rpartition("/")[0]
    for subset, cell in longest_of_subsets(runs):
        for part, name in _PARTS.items():
            values = {arm: values_by_seed(cell, arm, f"{prefix}/{part}") for arm in arms}
            if not any(values.values()):
                continue
            texts = [_mean_text(values[arm]) for arm in arms]
            differences = [
                _difference_text(significance.paired_difference(values[arms[0]], values[arm]))
                for arm in arms[1:]
            ]
            rows.append([subset, cell[0].schedule, name, *texts, *differences])
    header = ["subset", "schedule", "part", *arms, *(f"{arm} - {arms[0]}" for arm in arms[1:])]
    return Table(f"{metric} by IoU and object size", f"{prefix}_parts", header, rows)


def costs(runs: Sequence[StudyRun]) -> Table:
    """What each run has cost: steps, images, hours and its state."""
    rows = []
    for run in runs:
        start = f"{run.parent} at {run.start_step:,}" if run.parent else "the start"
        own = run.num_steps - run.start_step
        hours = f"{run.seconds / 3600:.3f}" if run.seconds else "?"
        images = f"{own * run.batch_size:,}"
        rows.append([run.name, run.state, start, f"{own:,}", images, hours])
    header = ["run", "state", "from", "steps of its own", "images", "hours of its processes"]
    done = sum(run.state == DONE for run in runs)
    return Table("Runs", "runs", header, rows, f"{done} of {len(runs)} runs are done.")


def settings(runs: Sequence[StudyRun]) -> Table:
    """What the arms' settings differ in; what else than the initialization does is marked."""
    arms = unique(run.arm for run in runs)
    bound = {}
    for arm in arms:
        recorded = (collecting.read_bindings(run) for run in runs if run.arm == arm)
        bound[arm] = next((each for each in recorded if each), None)
    if None in bound.values():
        return Table("Settings", "settings", [], [])
    names = sorted(set().union(*bound.values()))
    rows = []
    for name in names:
        values = [bound[arm].get(name, "-") for arm in arms]
        if len(set(values)) > 1 and not name.endswith(("model_dir", "branch_steps")):
            is_start = name.endswith(_OF_INITIALIZATION)
            rows.append([name, *values, "yes" if is_start else "**no**"])
    return Table(
        "What the arms differ in",
        "settings",
        ["binding", *arms, "part of the initialization"],
        rows,
        "Where it says no, the arms differ in more than the weights they start from.",
    )


def values_by_seed(runs: Sequence[StudyRun], arm: str, metric: str) -> dict[int, float]:
    """Returns {seed: value in percent} of the runs of an arm that are done.

    A value of -1, which says that there is nothing to measure, is none.
    """
    found = {run.seed: run.last.get(metric, -1) for run in runs if run.arm == arm and run.last}
    return {seed: 100 * value for seed, value in found.items() if value >= 0}


def _values_text(values, states):
    lost = [f"{states.count(state)} {state}" for state in unique(states) if state != DONE]
    if not values:
        return ", ".join(lost) or "-"
    each = ", ".join(f"{value:.2f}" for _, value in sorted(values.items()))
    return "; ".join([f"{_mean_text(values)} ({each})", *lost])


def _mean_text(values):
    found = significance.summarize(list(values.values()))
    if not found.count:
        return "-"
    return f"{found.mean:.2f}" + (f" ± {found.deviation:.2f}" if found.count > 1 else "")


def _difference_text(found):
    if not found.count:
        return "-"
    if math.isnan(found.low):
        return f"{found.mean:+.2f} (one seed)"
    return f"{found.mean:+.2f} [{found.low:+.2f}, {found.high:+.2f}]"


def _by_length(runs):
    return sorted(runs, key=lambda run: run.num_steps)


def longest_of_subsets(runs: Sequence[StudyRun]) -> list[tuple[str, list[StudyRun]]]:
    """Returns (subset, its runs of the longest schedule) of each subset of the data."""
    found = []
    for subset in unique(run.subset for run in runs):
        longest = max(run.num_steps for run in runs if run.subset == subset)
        found.append((subset, [r for r in runs if (r.subset, r.num_steps) == (subset, longest)]))
    return found


def of_shared_length(runs: Sequence[StudyRun]) -> list[StudyRun]:
    """Returns the runs of the longest schedule that all subsets have, of none each's longest."""
    lengths = {}
    for run in runs:
        lengths.setdefault(run.subset, set()).add(run.num_steps)
    shared = set.intersection(*lengths.values()) if lengths else None
    chosen = {subset: max(shared or own) for subset, own in lengths.items()}
    return [run for run in runs if run.num_steps == chosen[run.subset]]


def unique(values):
    """Returns a list of values, each once, in the order of their first."""
    return list(dict.fromkeys(values))


def _escaped(row):
    return [cell.replace("|", "\\|") for cell in row]
