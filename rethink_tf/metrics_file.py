"""`metrics.jsonl` of a run: a line for each evaluation, and one for each event beside them."""

import json
import os
import time

from absl import logging

from rethink_tf import files

# What `state` says of a run.
DONE, COLLAPSED, OPEN = "done", "collapsed", "open"
# Events: a loss that was not finite ended the run, or the run went back (run.on_non_finite).
COLLAPSE, SKIP = "not_finite", "skip"


def path_in(model_dir):
    """Returns the path of the file of a run."""
    return os.path.join(model_dir, "metrics.jsonl")


def matches_path(model_dir, step):
    """Returns the path of what a run's evaluation of a step has matched (`evaluation.matches`)."""
    return os.path.join(model_dir, "results", f"matches-{step}.npz")


def results_path(model_dir, step, is_augmented=False):
    """Returns the path of the detections of a run's evaluation of a step, in COCO's form."""
    name = f"detections-{step}{'-augmented' * is_augmented}.json"
    return os.path.join(model_dir, "results", name)


def append(model_dir, line):
    """Adds a line.

    Args:
        model_dir: str.
        line: dict: "step" and the metrics of an evaluation, or "event" and what belongs to it.
    """
    files.append_line(path_in(model_dir), json.dumps(line))


def append_collapse(model_dir, step, terms=()):
    """Notes that the loss of a step is not finite, which has ended the run; `state` reads it.

    Args:
        model_dir: str.
        step: int.
        terms: strs, the names of what was not finite.
    """
    line = {"event": COLLAPSE, "step": step, "terms": list(terms), "time": time.time()}
    append(model_dir, line)


def read_evaluations(model_dir):
    """Returns the evaluations of a run, the oldest first.

    Half a line, which a run that was killed leaves, is passed over with a warning: its evaluation
    is repeated.

    Args:
        model_dir: str.

    Returns:
        list of dict; empty where there is no file.
    """
    return [line for line in _read_lines(model_dir) if "event" not in line]


def read_events(model_dir):
    """Returns what happened to a run beside its evaluations, as `read_evaluations` does."""
    return [line for line in _read_lines(model_dir) if "event" in line]


def state(model_dir, num_steps):
    """Returns DONE, COLLAPSED (a loss was not finite) or OPEN.

    A run is done with the evaluation after its last step.

    Args:
        model_dir: str.
        num_steps: int, of its schedule.
    """
    if num_steps in evaluated_steps(model_dir):
        return DONE
    is_collapsed = any(event["event"] == COLLAPSE for event in read_events(model_dir))
    return COLLAPSED if is_collapsed else OPEN


def _read_lines(model_dir):
    found = []
    for line in (files.read_text(path_in(model_dir)) or "").splitlines():
        try:
            fields = json.loads(line)
            is_whole = fields["step"] >= 0
        except (ValueError, TypeError, KeyError):
            logging.warning("%s has a line that is not whole: %r", path_in(model_dir), line[:80])
            continue
        if is_whole:
            found.append(fields)
    return found


def evaluated_steps(model_dir, is_augmented=False):
    """Returns the steps that a run has evaluated.

    Args:
        model_dir: str.
        is_augmented: bool, whether evaluations with test augmentation are meant, or the others.
    """
    return {
        line["step"]
        for line in read_evaluations(model_dir)
        if line.get("test_augmentation", False) == is_augmented
    }
