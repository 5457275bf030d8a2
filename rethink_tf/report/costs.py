"""What arms have seen and cost, their pre-training included, and where they meet.

A run that goes on from another one has seen and cost what that one had up to there, too.
"""

import dataclasses
import math
import os
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from rethink_tf import files
from rethink_tf.report import collecting, run_data, significance
from rethink_tf.report.collecting import StudyRun

PRETRAINING_FILE = "pretraining.json"
COUNTS = ("images", "objects", "pixels")


@dataclasses.dataclass(frozen=True)
class Seen:
    """Samples, each time counted, and the time that they took; nan where it is not known.

    Attributes:
        images: that the network was trained on.
        objects: in them; an image of a classifier has one.
        pixels: of the images as the network saw them.
        seconds: of the processes.
    """

    images: float
    objects: float
    pixels: float
    seconds: float


NOTHING = Seen(0.0, 0.0, 0.0, 0.0)


def pretraining_of(folder: str) -> dict[str, Seen]:
    """Returns {arm: what its weights have seen before}, of the arms that start from weights.

    Study.pretraining says it, or `pretraining.json` in the folder of the checkpoint or in the one
    above. It is nan of an arm of whose weights neither says anything.

    Args:
        folder: `study_dir`.

    Raises:
        ValueError: if a pretraining.json lacks a number; names file and key.
    """
    path = os.path.join(folder, collecting.PLAN_FILE)
    plan = files.read_json(path, "start the study again")
    stated = plan.get("pretraining", {})
    found = {arm: _of_numbers(values, "", path) for arm, values in stated.items()}
    for arm, checkpoint in plan.get("init_checkpoints", {}).items():
        if arm not in found:
            found[arm] = _of_checkpoint(checkpoint)
    return found


def _of_checkpoint(checkpoint):
    above = os.path.dirname(checkpoint)
    for folder in (checkpoint, above, os.path.dirname(above)):
        path = os.path.join(folder, PRETRAINING_FILE)
        if files.exists(path):
            numbers = files.read_json(path, "write it again: the pre-training does at its end")
            return _of_numbers(numbers, "_seen", path)
    return Seen(*[math.nan] * 4)


def _of_numbers(numbers, ending, path):
    try:
        counts = [float(numbers[f"{name}{ending}"]) for name in COUNTS]
        return Seen(*counts, float(numbers.get("seconds", math.nan)))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} must have numbers under {', '.join(f'{each}{ending}' for each in COUNTS)}; "
            f"found {numbers} ({error!r})."
        ) from error


def seen_by(run: StudyRun, step: float, by_name: Mapping[str, StudyRun]) -> Seen:
    """Returns what a run, without its pre-training, has seen and cost up to a step.

    Args:
        run: of the study.
        step: up to num_steps.
        by_name: {name: run} of the study, for the runs that others go on from.
    """
    images = step * run.batch_size
    data = run_data.read(run.model_dir).get("training", {})
    per_image = data.get("num_objects", math.nan) / data.get("num_images", math.nan)
    pixels = data.get("pixels_per_image", math.nan)
    return Seen(images, images * per_image, images * pixels, _seconds(run, step, by_name))


def _seconds(run, step, by_name):
    if step <= run.start_step and run.parent:
        return _seconds(by_name[run.parent], step, by_name)
    own = run.seconds or math.nan
    share = (step - run.start_step) / (run.num_steps - run.start_step)
    before = _seconds(by_name[run.parent], run.start_step, by_name) if run.parent else 0.0
    return before + share * own


def reached_at(run: StudyRun, metric: str, target: float) -> float | None:
    """Returns the step at which a run's curve first reaches a target, linear between evaluations.

    Args:
        run: of the study.
        metric: such as "mask/AP".
        target: a fraction of 1.

    Returns:
        The step; None if it does not reach it.
    """
    before = (0, 0.0)
    for line in run.evaluations:
        value = line.get(metric, -1)
        if value >= target:
            if value == before[1]:
                return float(line["step"])
            share = (target - before[1]) / (value - before[1])
            return before[0] + max(share, 0.0) * (line["step"] - before[0])
        if value >= 0:
            before = (line["step"], value)
    return None


def targets(runs: Iterable[StudyRun], metric: str) -> list[float]:
    """Returns the APs whose cost is compared: what each arm reaches with the longest schedule.

    Args:
        runs: of one subset.
        metric: such as "mask/AP".

    Returns:
        list of fractions of 1: 90% of it and all of it; empty where an arm has no such run.
    """
    runs = list(runs)
    longest = max(run.num_steps for run in runs)
    lasts = {}
    for run in runs:
        if run.num_steps == longest and run.last and run.last.get(metric, -1) > 0:
            lasts.setdefault(run.arm, []).append(run.last[metric])
    if len(lasts) < len({run.arm for run in runs}):
        return []
    # The mean of the lowest arm, cut to whole thousandths: rounded up, it might not be reached.
    lowest = min(float(np.mean(values)) for values in lasts.values())
    return [math.floor(share * lowest * 1000) / 1000 for share in (0.9, 1.0)]


def crossings(
    runs: Sequence[StudyRun], metric: str, first: str, second: str
) -> tuple[dict[int, float], int, str]:
    """Returns where the arm that is behind at the shortest schedule draws level, seed by seed.

    Args:
        runs: of one subset.
        metric: such as "mask/AP".
        first: an arm.
        second: another one.

    Returns:
        ({seed: steps of the schedule}, how many seeds have two schedules or more of both, the arm
        that catches up: that of the first such seed).
    """
    found, count, behind = {}, 0, first
    for seed in sorted({run.seed for run in runs}):
        ends = {
            arm: {
                run.num_steps: run.last[metric]
                for run in runs
                if run.arm == arm
                and run.seed == seed
                and run.last
                and run.last.get(metric, -1) >= 0
            }
            for arm in (first, second)
        }
        steps = sorted(ends[first].keys() & ends[second].keys())
        if len(steps) < 2:
            continue
        differences = [ends[first][step] - ends[second][step] for step in steps]
        if not count:
            behind = first if differences[0] <= 0 else second
        count += 1
        signed = [each if behind == first else -each for each in differences]
        if (step := significance.crossing(steps, signed)) is not None:
            found[seed] = step
    return found, count, behind


def geometric_summary(steps: Sequence[float]) -> significance.Summary:
    """Returns mean and t-interval of steps, computed on their logarithms; the deviation is theirs.

    Args:
        steps: above 0, one a seed.
    """
    logs = significance.summarize([math.log(step) for step in steps])
    return significance.Summary(
        logs.count, math.exp(logs.mean), logs.deviation, math.exp(logs.low), math.exp(logs.high)
    )
