"""Tables on samples, costs, subsets and test images; those on AP are in `study_tables`."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from rethink_tf.metrics_file import DONE
from rethink_tf.report import collecting, costs, matches, run_data, significance
from rethink_tf.report.collecting import StudyRun
from rethink_tf.report.costs import Seen
from rethink_tf.report.study_tables import Table, of_shared_length, unique, values_by_seed

_MAX_CONFUSIONS = 15


def further_tables(runs, pretraining, draws) -> list[Table]:
    """Returns the tables, those without rows left out.

    Args:
        runs: of the study, `collecting.StudyRun`.
        pretraining: {arm: `costs.Seen`}.
        draws: of the bootstrap; 0 for none.
    """
    metrics = collecting.metrics_of(runs)
    tables = [samples_seen(runs, pretraining)]
    tables += [cost_to_target(runs, metric, pretraining) for metric in metrics]
    tables += [crossing(runs, metric) for metric in metrics]
    tables += [over_images(runs, metric) for metric in metrics]
    tables += [by_images_drawn(runs, draws), confusions(runs), provenance(runs)]
    return [table for table in tables if table.rows]


def totals(
    runs: Sequence[StudyRun], pretraining: Mapping[str, Seen]
) -> list[tuple[str, str, str, Seen, Seen]]:
    """Returns (subset, schedule, arm, pre-training, training) of each group's first run.

    Args:
        runs: of the study.
        pretraining: {arm: what its weights have seen}.
    """
    by_name, found = {run.name: run for run in runs}, {}
    for run in sorted(runs, key=lambda run: run.num_steps):
        before = pretraining.get(run.arm, costs.NOTHING)
        of_run = costs.seen_by(run, run.num_steps, by_name)
        found.setdefault((run.subset, run.schedule, run.arm), (before, of_run))
    return [(*key, *values) for key, values in found.items()]


def samples_seen(runs: Sequence[StudyRun], pretraining: Mapping[str, Seen]) -> Table:
    """Images, objects and pixels of each arm and schedule, pre-training included (figure 2).

    Args:
        runs: of the study.
        pretraining: {arm: what its weights have seen}.
    """
    rows = []
    for subset, schedule, arm, before, own in totals(runs, pretraining):
        pairs = [(getattr(before, name), getattr(own, name)) for name in costs.COUNTS]
        cells = [f"{_count(a + b)} ({_count(a)} + {_count(b)})" for a, b in pairs]
        rows.append([subset, schedule, arm, *cells])
    return Table(
        "Samples seen: pre-training + training",
        "samples_seen",
        ["subset", "schedule", "arm", "images", "objects", "pixels"],
        rows,
        "Each time that an image is seen counts. An image of a classifier counts as one object. "
        "? is what no file says: of weights, state Study.pretraining.",
    )


def cost_to_target(runs: Sequence[StudyRun], metric: str, pretraining: Mapping[str, Seen]) -> Table:
    """Iterations, images and hours until an arm's longest run first reaches an AP.

    Args:
        runs: of the study.
        metric: such as "mask/AP".
        pretraining: {arm: what its weights have seen}.
    """
    by_name, rows = {run.name: run for run in runs}, []
    for subset in unique(run.subset for run in runs):
        cell = [run for run in runs if run.subset == subset]
        longest = max(run.num_steps for run in cell)
        for target in costs.targets(cell, metric):
            for arm in unique(run.arm for run in cell):
                own = [run for run in cell if run.arm == arm and run.num_steps == longest]
                steps = [costs.reached_at(run, metric, target) for run in own]
                pairs = [(r, s) for r, s in zip(own, steps, strict=True) if s is not None]
                seen = [costs.seen_by(run, step, by_name) for run, step in pairs]
                before = pretraining.get(arm, costs.NOTHING)
                row = [subset, f"{100 * target:.1f}", arm, f"{len(pairs)} of {len(own)}"]
                if pairs:
                    images = float(np.mean([each.images for each in seen]))
                    seconds = float(np.mean([each.seconds for each in seen]))
                    row.append(f"{np.mean([step for _, step in pairs]):,.0f}")
                    row += [_count(images), _count(images + before.images)]
                    row += [_hours(seconds), _hours(seconds + before.seconds)]
                else:
                    row += ["-"] * 5
                rows.append(row)
    header = ["subset", "target (%)", "arm", "runs that reach it", "iterations", "images",
              "with pre-training", "hours", "with pre-training"]  # fmt: skip
    return Table(
        f"Cost until {metric} is first reached",
        f"{metric.replace('/', '_')}_cost",
        header,
        rows,
        "The longest schedule's curve, linear between evaluations, means over the runs that reach "
        "the target; targets are 90% and 100% of the lowest arm's last AP. Hours are those of the "
        "runs' processes: times the devices of a run they are device-hours.",
    )


def crossing(runs: Sequence[StudyRun], metric: str) -> Table:
    """The length of schedule at which two arms draw level, with its interval over seeds.

    Args:
        runs: of the study.
        metric: such as "mask/AP".
    """
    arms, rows = unique(run.arm for run in runs), []
    for subset in unique(run.subset for run in runs):
        cell = [run for run in runs if run.subset == subset]
        for arm in arms[1:]:
            found, count, behind = costs.crossings(cell, metric, arms[0], arm)
            if not count:
                continue
            other = arm if behind == arms[0] else arms[0]
            row = [subset, f"{behind} reaches {other}", f"{len(found)} of {count}"]
            summary = costs.geometric_summary(list(found.values())) if found else None
            row.append(f"{summary.mean:,.0f}" if found else "-")
            is_open = not found or math.isnan(summary.low)
            row.append("-" if is_open else f"{summary.low:,.0f} to {summary.high:,.0f}")
            rows.append(row)
    return Table(
        f"Where the arms' {metric} is equal",
        f"{metric.replace('/', '_')}_crossing",
        ["subset", "what", "seeds", "iterations", f"{significance.LEVEL:.0%} interval"],
        rows,
        "From the ends of the schedules, linear in the logarithm of their lengths; the interval is "
        "Student's, over the seeds that cross within the schedules.",
    )


def subset_points(
    runs: Sequence[StudyRun], metric: str
) -> dict[str, list[tuple[int, list[float]]]]:
    """Returns {arm: [(training images, APs in percent by seed)]}, one of each subset.

    Of the longest schedule that all subsets have, so that only the data differ; where they share
    none, of each one's longest.

    Args:
        runs: of the study.
        metric: such as "mask/AP".
    """
    found = {}
    compared = of_shared_length(runs)
    for subset, arm in unique((run.subset, run.arm) for run in compared):
        own = [run for run in compared if (run.subset, run.arm) == (subset, arm)]
        counts = [run_data.read(run.model_dir).get("training", {}).get("num_images") for run in own]
        values = values_by_seed(own, arm, metric)
        if values and any(counts):
            count = next(each for each in counts if each)
            found.setdefault(arm, []).append((count, list(values.values())))
    return {arm: sorted(points) for arm, points in found.items()}


def over_images(runs: Sequence[StudyRun], metric: str) -> Table:
    """AP by the number of training images, and the labels that an arm saves.

    Args:
        runs: of the study.
        metric: such as "mask/AP".
    """
    points = subset_points(runs, metric)
    arms = [arm for arm in unique(run.arm for run in runs) if arm in points]
    counts = sorted({count for each in points.values() for count, _ in each})
    if len(counts) < 2 or not arms:
        return Table("", "", [], [])
    means = {arm: {n: float(np.mean(v)) for n, v in points[arm]} for arm in arms}
    saved = {}
    for arm in arms[1:]:
        shared = sorted(means[arm].keys() & means[arms[0]].keys())
        curves = [[means[each][n] for n in shared] for each in (arms[0], arm)]
        saved[arm] = dict(zip(shared, significance.labels_saved(shared, *curves), strict=True))
    rows = []
    for count in counts:
        row = [f"{count:,}"]
        row += [f"{means[arm][count]:.2f}" if count in means[arm] else "-" for arm in arms]
        shares = [saved[arm].get(count, math.nan) for arm in arms[1:]]
        rows.append(row + ["-" if math.isnan(each) else f"{each:+.0%}" for each in shares])
    header = ["training images", *arms, *(f"labels saved by {arm}" for arm in arms[1:])]
    lengths = unique(f"{run.num_steps:,}" for run in of_shared_length(runs))
    return Table(
        f"{metric} by the number of training images",
        f"{metric.replace('/', '_')}_images",
        header,
        rows,
        f"After {' or '.join(lengths)} iterations. Labels saved: how many more images {arms[0]} "
        "needs for the same AP (utility of Newell and Deng 2020); - where it does not reach that "
        "AP with what was measured.",
    )


def by_images_drawn(runs: Sequence[StudyRun], draws: int) -> Table:
    """Differences to the first arm over other draws of the test images: a paired bootstrap.

    Args:
        runs: of the study.
        draws: of the bootstrap; 0 for none.
    """
    arms, rows = unique(run.arm for run in runs), []
    groups = unique((run.subset, run.schedule) for run in runs) if draws else []
    left_out = apart = 0
    for subset, schedule in groups:
        cell = [r for r in runs if (r.subset, r.schedule) == (subset, schedule) and r.state == DONE]
        loaded = {(run.arm, run.seed): matches.read(run) for run in cell}
        left_out += sum(arrays is None for arrays in loaded.values())
        held = {key: arrays for key, arrays in loaded.items() if arrays is not None}
        # The first arm's are compared with those of all others.
        measured = {
            (*key, kind): matches.Matches(arrays, kind)
            for key, arrays in held.items()
            for kind in matches.kinds(arrays)
        }
        for arm in arms[1:]:
            both = [seed for each, seed in held if each == arm and (arms[0], seed) in held]
            seeds = [seed for seed in both if _share_images(held, (arms[0], arm), seed, both[0])]
            apart += len(both) - len(seeds)
            if not seeds:
                continue
            kinds = (matches.kinds(held[each, seed]) for each in (arms[0], arm) for seed in seeds)
            for kind in sorted(set.intersection(*map(set, kinds))):
                pair = [[measured[each, seed, kind] for seed in seeds] for each in (arms[0], arm)]
                found = matches.bootstrap(*pair, draws, significance.LEVEL)
                text = f"[{100 * found.low:+.2f}, {100 * found.high:+.2f}]"
                count, difference = len(pair[0][0].image_ids), f"{100 * found.difference:+.2f}"
                rows.append([subset, schedule, f"{arm} - {arms[0]}", f"{kind}/AP",
                             str(len(seeds)), f"{count:,}", difference, text])  # fmt: skip
    note = (
        f"Paired bootstrap: {draws} draws of the test images, the same for both arms. It speaks of "
        "other test images for these very runs, not of training again: that is the t-interval over "
        "seeds."
    )
    if left_out:
        note += (
            f" {left_out} runs that are done have kept no matches and are left out here: evaluate "
            "their last checkpoint again by --mode=evaluate."
        )
    if apart:
        note += f" {apart} pairs of runs were evaluated on other images and are left out here."
    header = ["subset", "schedule", "difference", "metric", "seeds", "test images",
              "points", f"{significance.LEVEL:.0%} over images"]  # fmt: skip
    return Table("Differences on other test images", "bootstrap", header, rows, note)


def _share_images(held, arms, seed, first_seed):
    """Whether both arms' runs of a seed were evaluated on the images of the first one's."""
    images = held[arms[0], first_seed]["image_ids"]
    return all(np.array_equal(held[arm, seed]["image_ids"], images) for arm in arms)


def shown_runs(runs: Sequence[StudyRun]) -> list[StudyRun]:
    """Returns the run of each arm that curves and pictures show: longest, first seed, done.

    Args:
        runs: of the study; of several subsets the first with all data's name or else the last.
    """
    subset = "all" if any(run.subset == "all" for run in runs) else runs[-1].subset
    found = {}
    for run in sorted(runs, key=lambda run: (-run.num_steps, run.seed)):
        if run.subset == subset and run.state == DONE:
            found.setdefault(run.arm, run)
    return [found[arm] for arm in unique(run.arm for run in runs) if arm in found]


def confusions(runs: Sequence[StudyRun]) -> Table:
    """The pairs of categories that the arms take for each other most often.

    Args:
        runs: of the study.
    """
    rows = []
    for run in shown_runs(runs):
        arrays = matches.read(run)
        if arrays is None:
            continue
        matrix, names = arrays["confusion"], arrays["category_names"]
        inner = matrix[:-1, :-1] - np.diag(np.diag(matrix[:-1, :-1]))
        order = np.argsort(-inner, axis=None, kind="stable")[:_MAX_CONFUSIONS]
        for truth, found in zip(*np.unravel_index(order, inner.shape), strict=True):
            if inner[truth, found]:
                share = inner[truth, found] / matrix[truth].sum()
                row = [run.name, str(names[truth]), str(names[found])]
                rows.append([*row, f"{inner[truth, found]:,}", f"{share:.1%}"])
    return Table(
        "Categories taken for another",
        "confusions",
        ["run", "object", "taken for", "times", "of its objects"],
        rows,
        "Boxes that score 0.5 or more and overlap an object by IoU 0.5 or more, each once.",
    )


def provenance(runs: Sequence[StudyRun]) -> Table:
    """Which data the runs were trained and evaluated on."""
    rows = []
    for run in runs:
        for use, data in run_data.read(run.model_dir).items():
            counts = [f"{data[f'num_{name}']:,}" for name in ("images", "objects", "categories")]
            row = [run.subset, use, data["directory"], *counts]
            if row not in rows:
                rows.append(row)
    header = ["subset", "use", "records", "images", "objects", "categories"]
    return Table("Data", "data", header, rows)


def _count(value):
    if math.isnan(value):
        return "?"
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def _hours(seconds):
    return "?" if math.isnan(seconds) else f"{seconds / 3600:.3f}"
