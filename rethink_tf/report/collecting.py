"""Reads what the runs of a study left: their evaluations, states, times and settings."""

import dataclasses
import json
import os
from collections.abc import Iterable

from rethink_tf import files, metrics_file

PLAN_FILE = "study.json"
# One line for each process that ended well.
TIMES_FILE = "times.jsonl"


@dataclasses.dataclass(frozen=True)
class StudyRun:
    """One run of a study, as it stands.

    Attributes:
        name: "arm/subset/schedule/seed-N".
        arm: its name.
        subset: its name.
        schedule: its name.
        seed: of the run.
        model_dir: its folder.
        num_steps: of its schedule.
        start_step: the step it went on from.
        batch_size: images a step.
        parent: name of the run it went on from, or None.
        state: of `metrics_file`.
        evaluations: lines of metrics by step, those of its parent up to start_step included.
        seconds: that its processes took; 0 where it is not known.
    """

    name: str
    arm: str
    subset: str
    schedule: str
    seed: int
    model_dir: str
    num_steps: int
    start_step: int
    batch_size: int
    parent: str | None
    state: str
    evaluations: list[dict]
    seconds: float

    @property
    def last(self) -> dict | None:
        """Metrics of the last checkpoint, never of the best; None of a run that is not done."""
        return self.evaluations[-1] if self.state == metrics_file.DONE else None


def keeps_branch(model_dir: str, step: int) -> bool:
    """Whether a run has the checkpoint of a step that others go on from."""
    return files.exists(os.path.join(model_dir, "branches", f"step-{step}.index"))


def states_of(runs: Iterable) -> dict[str, str]:
    """Returns the state of each run by its name.

    What would go on from a run that collapsed before the checkpoint of its branch has collapsed
    with it.

    Args:
        runs: of a plan, each after its parent, with the first attributes of `StudyRun`.
    """
    by_name, states = {run.name: run for run in runs}, {}
    for run in by_name.values():
        state = metrics_file.state(run.model_dir, run.num_steps)
        if state == metrics_file.OPEN and states.get(run.parent) == metrics_file.COLLAPSED:
            if not keeps_branch(by_name[run.parent].model_dir, run.start_step):
                state = metrics_file.COLLAPSED
        states[run.name] = state
    return states


def read_study(folder: str) -> list[StudyRun]:
    """Returns the runs of a study.

    Args:
        folder: its `study_dir`.

    Raises:
        ValueError: if it holds no study, or its plan is damaged.
    """
    path = os.path.join(folder, PLAN_FILE)
    if not files.exists(path):
        raise ValueError(
            f"{folder} holds no {PLAN_FILE}: give the folder of a study (python -m "
            "rethink_tf.study writes it)."
        )
    plan = files.read_json(path, "start the study again: it writes the file anew")
    try:
        planned = {run["name"]: run | _place(folder, run) for run in plan["runs"]}
        fields = [field.name for field in dataclasses.fields(StudyRun)][:10]
        seconds = _seconds_of(folder)
        runs = [
            StudyRun(
                **{name: run[name] for name in fields},
                state=metrics_file.OPEN,
                evaluations=_evaluations(run, planned),
                seconds=seconds.get(run["name"], 0.0),
            )
            for run in planned.values()
        ]
        states = states_of(runs)
        return [dataclasses.replace(run, state=states[run.name]) for run in runs]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no plan of a study ({error!r}): start it again.") from error


def _place(folder, run):
    """Returns where a run lies now: the study may have been moved, or have a relative path."""
    there = os.path.join(folder, "runs", *run["name"].split("/"))
    return {"model_dir": there if files.exists(there) else run["model_dir"]}


def read_references(folder: str) -> dict[str, dict[str, float]]:
    """Returns {name: {schedule: box AP in percent}}, what others published of a study's runs.

    Args:
        folder: as of `read_study`, which checks it.
    """
    path = os.path.join(folder, PLAN_FILE)
    return files.read_json(path, "start the study again").get("references", {})


def read_bindings(run: StudyRun) -> dict[str, str] | None:
    """Returns what was bound for a run, {full name: text}; None before its first start."""
    path = os.path.join(run.model_dir, "config.json")
    if not files.exists(path):
        return None
    return files.read_json(path, "start the run again")["bindings"]


def metrics_of(runs: Iterable[StudyRun]) -> list[str]:
    """Returns the AP of boxes, masks and keypoints that the runs have, such as "mask/AP"."""
    found = {name for run in runs for line in run.evaluations for name in line}
    return [name for name in ("box/AP", "mask/AP", "keypoints/AP", "voc/mAP") if name in found]


def _evaluations(run, planned):
    """The lines of a run by step; of a step that was evaluated again the last one."""
    lines = metrics_file.read_evaluations(run["model_dir"])
    by_step = {line["step"]: line for line in lines if not line.get("test_augmentation")}
    if parent := planned.get(run["parent"]):
        before = {line["step"]: line for line in _evaluations(parent, planned)}
        by_step |= {step: line for step, line in before.items() if step <= run["start_step"]}
    return [by_step[step] for step in sorted(by_step) if step <= run["num_steps"]]


def _seconds_of(folder):
    seconds = {}
    for text in (files.read_text(os.path.join(folder, TIMES_FILE)) or "").splitlines():
        line = json.loads(text) if text.endswith("}") else {}
        if line:
            seconds[line["run"]] = seconds.get(line["run"], 0.0) + line["seconds"]
    return seconds
