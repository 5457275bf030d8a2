"""What the folders of a study's runs say: which are done, which collapsed, how fast they were."""

import json
import os
from collections.abc import Sequence

from rethink_tf import files, metrics_file
from rethink_tf.metrics_file import COLLAPSED, OPEN
from rethink_tf.report import collecting
from rethink_tf.study.planning import Run


def states_of(runs: Sequence[Run]) -> list[str]:
    """Returns the state of each run of a plan.

    What would go on from a run that collapsed before the checkpoint of its branch has collapsed
    with it.
    """
    by_name, states = {run.name: run for run in runs}, {}
    for run in runs:
        state = metrics_file.state(run.model_dir, run.num_steps)
        if state == OPEN and run.parent and states[run.parent] == COLLAPSED:
            branches = os.path.join(by_name[run.parent].model_dir, "branches")
            if not files.exists(os.path.join(branches, f"step-{run.start_step}.index")):
                state = COLLAPSED
        states[run.name] = state
    return list(states.values())


def note_time(study_dir: str, run: Run, images: int, seconds: float) -> None:
    """Notes how long a process took for so many images, its start and evaluations included."""
    line = {"run": run.name, "images": images, "seconds": round(seconds, 3)}
    files.append_line(os.path.join(study_dir, collecting.TIMES_FILE), json.dumps(line))


def measured_rate(study_dir: str) -> float | None:
    """Returns the images a second of all that was run, or None before the first run."""
    lines = (files.read_text(os.path.join(study_dir, collecting.TIMES_FILE)) or "").splitlines()
    noted = [json.loads(line) for line in lines if line.endswith("}")]
    seconds = sum(each["seconds"] for each in noted)
    return sum(each["images"] for each in noted) / seconds if seconds else None
