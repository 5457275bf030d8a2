"""The numbers of schedules, by rule; pure Python, for plans that are made without TensorFlow.

Steps count updates of the weights from 0.
"""

from collections.abc import Sequence
from typing import NamedTuple

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
    check_positive(multiple=multiple, images_per_step=images_per_step, rate=base_learning_rate)
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
        check_positive(num_steps=num_steps)
        drops = [round(drop * num_steps / rule_steps) for drop in drops]
    peak = base_learning_rate * images_per_step / IMAGES_PER_STEP
    return Schedule(num_steps, tuple(drops), peak, warmup_length(warmup_steps, num_steps))


DROP_FRACTIONS = (8 / 9, 26 / 27)  # the paper's 6x has them


def start_of_last(
    steps: int, multiple: float, images_per_step: int, num_steps: int | None = None
) -> int:
    """Returns the first of the last `steps` steps of a `paper_schedule`, counted for 16 images.

    As the drops do, it moves with the images a step and with a `num_steps` that is given.

    Args:
        steps: length of the tail for 16 images a step.
        multiple: as of `paper_schedule`.
        images_per_step: the same.
        num_steps: the same.

    Returns:
        The step; negative if the schedule has fewer.
    """
    shrink = IMAGES_PER_STEP / images_per_step
    rule_steps = round(multiple * STEPS_OF_1X * shrink)
    start = rule_steps - round(steps * shrink)
    return start if num_steps is None else round(start * num_steps / rule_steps)


def drops_of(
    num_steps: int,
    drop_steps: Sequence[int] | None = None,
    drop_fractions: Sequence[float] = DROP_FRACTIONS,
) -> tuple[int, ...]:
    """Returns the first steps of the lower rates of a stepwise schedule.

    Args:
        num_steps: updates in all.
        drop_steps: the steps; None: by drop_fractions.
        drop_fractions: the same as shares of num_steps.

    Raises:
        ValueError: if they do not ascend from 0 to num_steps.
    """
    if drop_steps is None:
        drop_steps = [round(fraction * num_steps) for fraction in drop_fractions]
    drops = tuple(int(step) for step in drop_steps)
    bounds = [0, *drops, num_steps]
    if sorted(bounds) != bounds:
        raise ValueError(
            f"drop_steps are {list(drops)}; they must ascend from 0 to num_steps, {num_steps}."
        )
    return drops


def steps_of_epochs(epochs: float, images_per_epoch: int, images_per_step: int) -> int:
    """Returns how many steps so many passes over the images take."""
    check_positive(
        epochs=epochs, images_per_epoch=images_per_epoch, images_per_step=images_per_step
    )
    return round(epochs * images_per_epoch / images_per_step)


def warmup_length(given: int | None, num_steps: int) -> int:
    """Returns the warm-up's length; a default never fills more than a tenth of a short run.

    Args:
        given: steps, or None for the default.
        num_steps: of the schedule.

    Raises:
        ValueError: if it does not fit into the schedule.
    """
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


def check_positive(**numbers: float) -> None:
    """Raises ValueError for a number that is not above 0, by its name."""
    for name, number in numbers.items():
        if not number > 0:
            raise ValueError(f"{name} is {number}; it must be above 0.")
