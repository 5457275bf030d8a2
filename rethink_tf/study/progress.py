"""How fast the runs of a study were, for the hours of the next plan."""

import json
import os

from rethink_tf import files
from rethink_tf.report import collecting
from rethink_tf.study.planning import Run


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
