"""What a run's folder says of the run's past beside its checkpoints, in `history.json`.

The images a step that it was trained with, which `run.on_change` may change, and the data that
`run.on_non_finite` left out. Both decide which images come at a step, and which learning rate.
"""

import dataclasses
import json
import os

from absl import logging

from rethink_tf import files
from rethink_tf.training import rescaling

FILE = "history.json"


@dataclasses.dataclass
class History:
    """The past of a run, up to the step that it goes on from.

    Attributes:
        batches: list of dict: from "step" on, the run takes "batch_size" images a step. The first
            is of step 0.
        skips: list of dict: at "step", the images of so many "steps" were left out.
    """

    batches: list
    skips: list = dataclasses.field(default_factory=list)

    @property
    def batch_size(self):
        """The images a step from the last change on."""
        return self.batches[-1]["batch_size"]

    def images(self, step):
        """Returns how many images the first `step` steps trained on; it is at or after all changes.

        Args:
            step: int.
        """
        ends = [each["step"] for each in self.batches[1:]] + [step]
        return sum(
            (end - each["step"]) * each["batch_size"]
            for each, end in zip(self.batches, ends, strict=True)
        )

    def data_position(self, step):
        """Returns the position in the order of the data at a step, in batches of now.

        Args:
            step: int, at or after all changes.
        """
        skipped = sum(each["steps"] * each["batch_size"] for each in self.skips)
        return round((self.images(step) + skipped) / self.batch_size)

    def continue_schedule(self, schedule):
        """Returns the schedule of the whole run by the linear rule, where the batch has changed.

        Args:
            schedule: as the gin files say, in steps of its `images_per_step` or, where it has none,
                of the images a step that the run began with.
        """
        if len(self.batches) == 1:
            return schedule
        base = getattr(schedule, "images_per_step", None) or self.batches[0]["batch_size"]
        change = self.batches[-1]["step"]
        return rescaling.RescaledSchedule(
            schedule, change, self.images(change), self.batch_size, base
        )

    def skip(self, step, steps):
        """Leaves out the images of the next steps.

        Args:
            step: int, that the run goes on from.
            steps: int.
        """
        self.skips.append({"step": step, "steps": steps, "batch_size": self.batch_size})

    def write(self, model_dir):
        """Writes `history.json`; to be called by one process.

        Args:
            model_dir: str.
        """
        text = json.dumps(dataclasses.asdict(self), indent=1)
        files.write_whole(os.path.join(model_dir, FILE), text + "\n")


def read(model_dir, step, batch_size, began_with=None):
    """Returns the history of a run that goes on.

    What happened after the step, which a lost checkpoint may have taken away, is forgotten.

    Args:
        model_dir: str.
        step: int, that the run goes on from.
        batch_size: int, images a step from now on.
        began_with: int, images a step of a run that has no `history.json`; None for batch_size.

    Returns:
        `History`, with a change at the step if there is one.

    Raises:
        ValueError: if the file is damaged.
    """
    path = os.path.join(model_dir, FILE)
    text = files.read_text(path)
    if text is None:
        history = History([{"step": 0, "batch_size": began_with or batch_size}])
    else:
        try:
            found = json.loads(text)
            history = History(
                [each for each in found["batches"] if each["step"] <= step],
                [each for each in found["skips"] if each["step"] <= step],
            )
            history.data_position(step)
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise ValueError(
                f"{path} is damaged ({error}): bring back a whole one, or take the newest "
                "checkpoint as run.init_checkpoint of a run in another MODEL_DIR."
            ) from error
    if history.batch_size != batch_size:
        logging.warning(
            "From step %d on the run takes %d images a step in place of %d: by the linear rule the "
            "learning rate is multiplied by %g, and the steps that are left are divided by it.",
            step,
            batch_size,
            history.batch_size,
            batch_size / history.batch_size,
        )
        history.batches = [each for each in history.batches if each["step"] < step]
        if not history.batches or history.batch_size != batch_size:
            history.batches.append({"step": step, "batch_size": batch_size})
    return history
