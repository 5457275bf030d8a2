"""Learning rates by step: the paper's rule, other stepwise schedules, epochs too, and a cosine.

A schedule is a Keras learning rate schedule (step -> rate) that also knows its `num_steps`. Steps
count updates of the weights from 0: the rate of step s is the one that the update after s others
uses. Steps are compared as int64, so that drops fall on their very step however long the run.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import gin
import tensorflow as tf
import tf_keras

# He et al. 2018 (arXiv:1811.08883), section 3, after Detectron: for 16 images a step.
IMAGES_PER_STEP = 16
STEPS_OF_1X = 90_000
LEARNING_RATE = 0.02
TAILS = (60_000, 20_000)  # steps from a drop of the rate to the end, however long the schedule
WARMUP_STEPS = 500
WARMUP_FACTOR = 1.0 / 3.0


class Schedule(NamedTuple):
    """The numbers of a stepwise schedule.

    Attributes:
        num_steps: updates in all.
        drop_steps: first steps with a lower rate, ascending.
        peak_learning_rate: rate after the warm-up.
        warmup_steps: first step with the peak rate.
    """

    num_steps: int
    drop_steps: tuple[int, ...]
    peak_learning_rate: float
    warmup_steps: int


def paper_schedule(
    multiple: float,
    images_per_step: int,
    num_steps: int | None = None,
    warmup_steps: int | None = None,
    base_learning_rate: float = LEARNING_RATE,
    tails: Sequence[int] = TAILS,
) -> Schedule:
    """Returns the paper's schedule of "n x" for any number of images a step.

    For 16 images: n * 90,000 steps at 0.02, a tenth of it in the last 60,000 and again in the last
    20,000. For another number of images the rate changes in proportion, the counts in inverse
    proportion; the warm-up alone keeps its length, as in Detectron2.

    Args:
        multiple: n of "n x"; not necessarily whole.
        images_per_step: global batch size.
        num_steps: length of a run shorter or longer than the rule's, with drops at the same
            fractions of it; None: by the rule.
        warmup_steps: None: 500, or a tenth of a given `num_steps` where that is less.
        base_learning_rate: the rate for 16 images.
        tails: steps of 16 images from each drop to the end, descending. The paper's do not fit
            runs as short as those on PASCAL VOC or on a thousand images.

    Raises:
        ValueError: a number is not positive, the tails do not descend, the rule's schedule is no
            longer than its longest tail, or the warm-up is longer than the schedule.

    Source: arXiv:1811.08883, section 3; the rule for batch sizes is Goyal et al.'s
    (arXiv:1706.02677), as Detectron and Detectron2 apply it. (6, 16) gives 540,000 steps, drops at
    480,000 and 520,000, rate 0.02; (9, 64) gives 202,500, drops at 187,500 and 197,500, rate 0.08.
    """
    _check_positive(multiple=multiple, images_per_step=images_per_step, rate=base_learning_rate)
    shrink = IMAGES_PER_STEP / images_per_step
    rule_steps = round(multiple * STEPS_OF_1X * shrink)
    _check_tails(tails)
    tails = [round(tail * shrink) for tail in tails]
    if rule_steps <= max(tails, default=0):
        raise ValueError(
            f"A {multiple:g}x schedule with {images_per_step} images a step has {rule_steps:,} "
            f"steps, no more than the {tails[0]:,} of its lowered rates: take a larger multiple, "
            "with num_steps for a short run, or shorter tails."
        )
    drops = [rule_steps - tail for tail in tails]
    if num_steps is None:
        num_steps = rule_steps
    else:
        _check_positive(num_steps=num_steps)
        drops = [round(drop * num_steps / rule_steps) for drop in drops]
    peak = base_learning_rate * images_per_step / IMAGES_PER_STEP
    return Schedule(num_steps, tuple(drops), peak, _warmup_steps(warmup_steps, num_steps))


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
        _check_positive(num_steps=num_steps, peak_learning_rate=peak_learning_rate)
        if not 0 <= warmup_factor <= 1:
            raise ValueError(f"warmup_factor is {warmup_factor}; it must be between 0 and 1.")
        self.num_steps = int(num_steps)
        self.peak_learning_rate = float(peak_learning_rate)
        self.warmup_steps = _warmup_steps(warmup_steps, self.num_steps)
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
        drop_fractions: Sequence[float] = (8 / 9, 26 / 27),
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
        if drop_steps is None:
            drop_steps = [round(fraction * self.num_steps) for fraction in drop_fractions]
        self.drop_steps = tuple(int(step) for step in drop_steps)
        self.decay_factor = float(decay_factor)
        _check_positive(decay_factor=decay_factor)
        bounds = [0, *self.drop_steps, self.num_steps]
        if sorted(bounds) != bounds:
            raise ValueError(
                f"drop_steps are {list(self.drop_steps)}; they must ascend from 0 to num_steps, "
                f"{self.num_steps}."
            )

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
    """The stepwise schedule that `paper_schedule` gives for (multiple, images_per_step)."""

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
        """Applies the rule; arguments and errors as in `paper_schedule` and `StepwiseSchedule`."""
        rule = paper_schedule(
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
        """Returns the first of the last `steps` steps, which are counted for 16 images.

        As the drops do, it moves with the images a step and with a `num_steps` that is given.

        Args:
            steps: length of the tail for 16 images a step.

        Returns:
            The step; negative if the schedule has fewer.
        """
        multiple, images = self._arguments["multiple"], self._arguments["images_per_step"]
        shrink = IMAGES_PER_STEP / images
        rule_steps = round(multiple * STEPS_OF_1X * shrink)
        return round((rule_steps - round(steps * shrink)) * self.num_steps / rule_steps)

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
        drop_fractions: Sequence[float] = (8 / 9, 26 / 27),
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
        _check_positive(
            epochs=epochs, images_per_epoch=images_per_epoch, images_per_step=images_per_step
        )
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
            num_steps = round(epochs * images_per_epoch / images_per_step)
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


def _warmup_steps(given: int | None, num_steps: int) -> int:
    """Returns the warm-up's length; a default never fills more than a tenth of a short run."""
    if given is None:
        return min(WARMUP_STEPS, num_steps // 10)
    if not 0 <= given <= num_steps:
        raise ValueError(
            f"The warm-up of {given:,} steps does not fit into the schedule of {num_steps:,}: "
            "give a smaller warmup_steps or a larger num_steps."
        )
    return int(given)


def _check_tails(tails: Sequence[int]) -> None:
    if list(tails) != sorted(tails, reverse=True) or min(tails, default=1) < 0:
        raise ValueError(
            f"tails are {list(tails)}; each is a number of steps from a drop to the end, so they "
            "must descend and be at least 0."
        )


def _check_positive(**numbers: float) -> None:
    for name, number in numbers.items():
        if not number > 0:
            raise ValueError(f"{name} is {number}; it must be above 0.")
