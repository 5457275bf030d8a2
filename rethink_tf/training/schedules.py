"""Learning rates by step: the paper's rule, other stepwise schedules, epochs too, and a cosine.

A schedule is a Keras learning rate schedule (step -> rate) that also knows its `num_steps`. Steps
count updates of the weights from 0: the rate of step s is the one that the update after s others
uses. Steps are compared as int64, so that drops fall on their very step however long the run.
"""

import math
from collections.abc import Sequence
from typing import Any

import gin
import tensorflow as tf
import tf_keras

from rethink_tf.training import schedule_rules
from rethink_tf.training.schedule_rules import (
    IMAGES_PER_STEP,
    LEARNING_RATE,
    TAILS,
    WARMUP_FACTOR,
    check_positive,
    warmup_length,
)


class WarmupSchedule(tf_keras.optimizers.schedules.LearningRateSchedule):
    """A linear rise to the peak rate, then what the subclass says.

    Attributes:
        num_steps: updates in all; the rate stays at its last value after them.
        peak_learning_rate: rate after the warm-up.
        warmup_steps: first step with the peak rate.
        warmup_factor: rate of step 0, as a share of the peak.
    """

    def __init__(
        self,
        num_steps: int,
        peak_learning_rate: float,
        warmup_steps: int | None,
        warmup_factor: float,
    ):
        check_positive(num_steps=num_steps, peak_learning_rate=peak_learning_rate)
        if not 0 <= warmup_factor <= 1:
            raise ValueError(f"warmup_factor is {warmup_factor}; it must be between 0 and 1.")
        self.num_steps = int(num_steps)
        self.peak_learning_rate = float(peak_learning_rate)
        self.warmup_steps = warmup_length(warmup_steps, self.num_steps)
        self.warmup_factor = float(warmup_factor)

    def after_warmup(self, step: tf.Tensor) -> tf.Tensor:
        """Returns the rate, float32, as if there were no warm-up; step is int64."""
        raise NotImplementedError("a subclass says how the rate goes on")

    def start_of_last(self, steps: int) -> int:
        """Returns the first of the last `steps` steps; negative if the schedule has fewer."""
        return self.num_steps - steps

    def __call__(self, step) -> tf.Tensor:
        """Returns the float32 rate of the update that follows `step` (integer scalar) others."""
        step = tf.cast(tf.convert_to_tensor(step), tf.int64)
        risen = tf.cast(step, tf.float32) / float(max(self.warmup_steps, 1))
        factor = self.warmup_factor + (1.0 - self.warmup_factor) * risen
        after = self.after_warmup(step)
        return tf.where(step < self.warmup_steps, factor * self.peak_learning_rate, after)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {
            "num_steps": self.num_steps,
            "peak_learning_rate": self.peak_learning_rate,
            "warmup_steps": self.warmup_steps,
            "warmup_factor": self.warmup_factor,
        }


@gin.register
@tf_keras.saving.register_keras_serializable(package="rethink_tf")
class StepwiseSchedule(WarmupSchedule):
    """Warm-up, then a constant rate that is multiplied by `decay_factor` at each drop."""

    def __init__(
        self,
        num_steps: int,
        peak_learning_rate: float,
        drop_steps: Sequence[int] | None = None,
        drop_fractions: Sequence[float] = schedule_rules.DROP_FRACTIONS,
        warmup_steps: int | None = None,
        warmup_factor: float = WARMUP_FACTOR,
        decay_factor: float = 0.1,
    ):
        """Checks the numbers.

        Args:
            num_steps: updates in all.
            peak_learning_rate: rate after the warm-up.
            drop_steps: first steps of the lower rates, ascending, at most num_steps; None: by
                drop_fractions.
            drop_fractions: the same as shares of num_steps; by default the paper's 6x has them.
            warmup_steps: None: 500, or a tenth of num_steps where that is less.
            warmup_factor: rate of step 0, as a share of the peak.
            decay_factor: what a drop multiplies the rate by (the paper's 35k images: 0.02).

        Raises:
            ValueError: a number is out of its range, or the warm-up is longer than the schedule.
        """
        super().__init__(num_steps, peak_learning_rate, warmup_steps, warmup_factor)
        self.drop_steps = schedule_rules.drops_of(self.num_steps, drop_steps, drop_fractions)
        self.decay_factor = float(decay_factor)
        check_positive(decay_factor=decay_factor)

    def after_warmup(self, step: tf.Tensor) -> tf.Tensor:
        """Returns the rate, float32, as if there were no warm-up; step is int64."""
        # A table made in Python: each rate is rounded to float32 once, not once a drop.
        num_rates = len(self.drop_steps) + 1
        rates = [self.peak_learning_rate * self.decay_factor**drop for drop in range(num_rates)]
        passed = tf.reduce_sum(tf.cast(step >= tf.constant(self.drop_steps, tf.int64), tf.int32))
        return tf.gather(tf.constant(rates, tf.float32), passed)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        own = {"drop_steps": list(self.drop_steps), "decay_factor": self.decay_factor}
        return super().get_config() | own


@gin.register
@tf_keras.saving.register_keras_serializable(package="rethink_tf")
class PaperSchedule(StepwiseSchedule):
    """The stepwise schedule that `schedule_rules.paper_schedule` gives."""

    def __init__(
        self,
        multiple: float,
        images_per_step: int,
        num_steps: int | None = None,
        warmup_steps: int | None = None,
        base_learning_rate: float = LEARNING_RATE,
        warmup_factor: float = WARMUP_FACTOR,
        decay_factor: float = 0.1,
        tails: Sequence[int] = TAILS,
    ):
        """Applies the rule; arguments and errors are its own and those of `StepwiseSchedule`."""
        rule = schedule_rules.paper_schedule(
            multiple, images_per_step, num_steps, warmup_steps, base_learning_rate, tails
        )
        self._arguments = {
            "multiple": multiple,
            "images_per_step": images_per_step,
            "num_steps": num_steps,
            "warmup_steps": warmup_steps,
            "base_learning_rate": base_learning_rate,
            "warmup_factor": warmup_factor,
            "decay_factor": decay_factor,
            "tails": list(tails),
        }
        self.images_per_step = images_per_step
        super().__init__(
            num_steps=rule.num_steps,
            peak_learning_rate=rule.peak_learning_rate,
            drop_steps=rule.drop_steps,
            warmup_steps=rule.warmup_steps,
            warmup_factor=warmup_factor,
            decay_factor=decay_factor,
        )

    def start_of_last(self, steps: int) -> int:
        """Returns the first of the last `steps` steps, as `schedule_rules.start_of_last` does."""
        known = {name: self._arguments[name] for name in ("multiple", "images_per_step")}
        return schedule_rules.start_of_last(steps, **known, num_steps=self._arguments["num_steps"])

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return dict(self._arguments)


@gin.register
@tf_keras.saving.register_keras_serializable(package="rethink_tf")
class EpochSchedule(StepwiseSchedule):
    """A stepwise schedule of so many passes over the images, for any number of images a step.

    The drops and the end of the warm-up are at fixed shares of the run, however long it is.
    """

    def __init__(
        self,
        epochs: float,
        images_per_epoch: int,
        images_per_step: int,
        num_steps: int | None = None,
        base_learning_rate: float = LEARNING_RATE,
        drop_fractions: Sequence[float] = schedule_rules.DROP_FRACTIONS,
        warmup_fraction: float = 0.0,
        warmup_factor: float = WARMUP_FACTOR,
        decay_factor: float = 0.1,
    ):
        """Counts the steps.

        Args:
            epochs: passes over the images; not necessarily whole.
            images_per_epoch: images of a pass.
            images_per_step: global batch size.
            num_steps: length of a run shorter or longer than that; None: epochs * images_per_epoch
                / images_per_step.
            base_learning_rate: the rate for 16 images; it changes in proportion to the batch.
            drop_fractions: shares of the run at which the rate drops, ascending.
            warmup_fraction: share of the run that the warm-up takes.
            warmup_factor: rate of step 0, as a share of the peak.
            decay_factor: what a drop multiplies the rate by.

        Raises:
            ValueError: a number is out of its range.
        """
        rule_steps = schedule_rules.steps_of_epochs(epochs, images_per_epoch, images_per_step)
        if not 0 <= warmup_fraction <= 1:
            raise ValueError(f"warmup_fraction is {warmup_fraction}; it must be between 0 and 1.")
        self._arguments = {
            "epochs": epochs,
            "images_per_epoch": images_per_epoch,
            "images_per_step": images_per_step,
            "num_steps": num_steps,
            "base_learning_rate": base_learning_rate,
            "drop_fractions": list(drop_fractions),
            "warmup_fraction": warmup_fraction,
            "warmup_factor": warmup_factor,
            "decay_factor": decay_factor,
        }
        self.images_per_step = images_per_step
        if num_steps is None:
            num_steps = rule_steps
        super().__init__(
            num_steps=num_steps,
            peak_learning_rate=base_learning_rate * images_per_step / IMAGES_PER_STEP,
            drop_fractions=drop_fractions,
            warmup_steps=round(warmup_fraction * num_steps),
            warmup_factor=warmup_factor,
            decay_factor=decay_factor,
        )

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return dict(self._arguments)


@gin.register
@tf_keras.saving.register_keras_serializable(package="rethink_tf")
class CosineSchedule(WarmupSchedule):
    """Warm-up, then half a cosine from the peak down to `final_factor` of it.

    Source: Loshchilov and Hutter 2017, arXiv:1608.03983, without restarts.
    """

    def __init__(
        self,
        num_steps: int,
        peak_learning_rate: float,
        warmup_steps: int | None = None,
        warmup_factor: float = WARMUP_FACTOR,
        final_factor: float = 0.0,
    ):
        """Checks the numbers; `final_factor` is in 0..1, others are as in `StepwiseSchedule`."""
        super().__init__(num_steps, peak_learning_rate, warmup_steps, warmup_factor)
        if not 0 <= final_factor <= 1:
            raise ValueError(f"final_factor is {final_factor}; it must be between 0 and 1.")
        self.final_factor = float(final_factor)

    def after_warmup(self, step: tf.Tensor) -> tf.Tensor:
        """Returns the rate, float32, as if there were no warm-up; step is int64."""
        length = max(self.num_steps - self.warmup_steps, 1)
        done = tf.cast(tf.clip_by_value(step - self.warmup_steps, 0, length), tf.float32) / length
        # From 1 at the end of the warm-up to 0 at the last step.
        share = 0.5 * (1.0 + tf.cos(math.pi * done))
        return self.peak_learning_rate * (self.final_factor + (1.0 - self.final_factor) * share)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return super().get_config() | {"final_factor": self.final_factor}
