"""The schedule of a run whose images a step change on the way."""

from typing import Any

import tensorflow as tf
import tf_keras

from rethink_tf.training.schedules import WarmupSchedule


class RescaledSchedule(tf_keras.optimizers.schedules.LearningRateSchedule):
    """A schedule from a step on where the images a step have changed, by the linear rule.

    The rate changes in proportion to the images a step, the steps that are left in inverse
    proportion. Attributes are those of the schedule in steps of the whole run.

    Source: Goyal et al. 2017, arXiv:1706.02677.
    """

    def __init__(
        self,
        schedule: WarmupSchedule,
        step: int,
        images: int,
        images_per_step: int,
        images_per_step_before: int,
    ):
        """Takes what was done so far.

        Args:
            schedule: in steps of `images_per_step_before` images.
            step: of the change.
            images: that the run had trained on by then.
            images_per_step: from the change on.
            images_per_step_before: those that the schedule's numbers are for.
        """
        self._schedule, self._step, self._images = schedule, step, images
        self._size, self._size_before = images_per_step, images_per_step_before
        self._scale = images_per_step / images_per_step_before
        self.num_steps = self._moved(schedule.num_steps)
        self.warmup_steps = max(self._moved(schedule.warmup_steps), 0)
        self.warmup_factor = schedule.warmup_factor
        self.peak_learning_rate = schedule.peak_learning_rate * self._scale
        if hasattr(schedule, "drop_steps"):
            self.drop_steps = tuple(self._moved(drop) for drop in schedule.drop_steps)
            self.decay_factor = schedule.decay_factor

    def start_of_last(self, steps: int) -> int:
        """Returns the first of the last `steps` steps, counted as the schedule counts them."""
        return self._moved(self._schedule.start_of_last(steps))

    def _moved(self, step: int) -> int:
        """Returns the first step of the run at or after a step of the schedule."""
        return self._step - (self._images - step * self._size_before) // self._size

    def __call__(self, step) -> tf.Tensor:
        """Returns the float32 rate of the update that follows `step` (integer scalar) others."""
        since = tf.cast(tf.convert_to_tensor(step), tf.int64) - self._step
        return self._scale * self._schedule(
            (self._images + since * self._size) // self._size_before
        )

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {
            "schedule": self._schedule,
            "step": self._step,
            "images": self._images,
            "images_per_step": self._size,
            "images_per_step_before": self._size_before,
        }
