"""Going on from a run whose schedule has another length, from before the first drop of both.

Until its first drop a run of 2x is one of 3x: the longer one needs not begin again. Each run keeps
the checkpoint of its first drop for ever, in `branches/`.
"""

import os

from rethink_tf import config_record
from rethink_tf.training import checkpoint_files

FOLDER = "branches"


def describe(schedule, cascade_from):
    """Returns what two schedules must share to begin alike, as numbers for a record.

    Args:
        schedule: Keras learning rate schedule with `num_steps`.
        cascade_from: int, the first step that trains the later stages of a cascade.
    """
    return {
        "num_steps": schedule.num_steps,
        "peak_learning_rate": schedule.peak_learning_rate,
        "warmup_steps": schedule.warmup_steps,
        "warmup_factor": schedule.warmup_factor,
        "drop_steps": list(getattr(schedule, "drop_steps", ())),
        "cascade_from": cascade_from,
    }


def branch_step(described):
    """Returns the last step up to which runs of longer schedules are the same; 0 for none.

    Args:
        described: dict of `describe`.
    """
    # A cosine falls from the warm-up on, in its own time.
    steps = [*described["drop_steps"], described["cascade_from"]]
    return min((step for step in steps if step), default=0) if described["drop_steps"] else 0


def find(folder, described, workers=None):
    """Returns the newest checkpoint of a run that a run of another length goes on from.

    Args:
        folder: str, MODEL_DIR of the other run.
        described: dict of `describe`, of this run.
        workers: `Workers`, or None where one process runs it all.

    Returns:
        str, the checkpoint's path without ".index".

    Raises:
        ValueError: if the other run differs in more than the length of its schedule, or has no
            checkpoint from before the first drops. It is raised on every worker.
    """
    then = (config_record.read(folder) or {}).get("schedule")
    if not then:
        raise ValueError(
            f"run.continue_from: {folder} holds no run whose config.json says its schedule."
        )
    found = config_record.differences(folder, config_record.OF_LENGTH)
    differing = [f"{name}: {old} there, {new} now" for name, old, new in found]
    differing += [
        f"{name} of the schedule: {then[name]:g} there, {described[name]:g} now"
        for name in ("peak_learning_rate", "warmup_steps", "warmup_factor")
        if then[name] != described[name]
    ]
    if differing:
        raise ValueError(
            f"run.continue_from: the run in {folder} differs in more than the length of its "
            f"schedule: {'; '.join(differing)}."
        )
    limit = min(branch_step(then), branch_step(described))
    candidates = [
        checkpoint_files.find_newest(os.path.join(folder, name), workers, at_most=limit)
        for name in (FOLDER, "checkpoints")
    ]
    candidates = [path for path in candidates if path]
    if not candidates or not limit:
        raise ValueError(
            f"run.continue_from: {folder} has no checkpoint of step {limit} or before, where the "
            "learning rate or the cascade first changes in one of the two runs."
        )
    return max(candidates, key=checkpoint_files.step_of)
