"""What may be said of differences between runs: intervals over seeds, and a rule for words.

Two sources of noise are kept apart: training again (seeds) and other test images. Of few seeds the
t-interval is wide, and of one there is none.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import special

LEVEL = 0.95
# One run's AP differs from another seed's by 0.1 to 0.3 points on COCO (in percent), as published
# comparisons of seeds say, and by 2 and more on small sets.
SEED_NOISE = 0.3


@dataclasses.dataclass(frozen=True)
class Summary:
    """Several values of one quantity.

    Attributes:
        count: n, how many.
        mean: of them; nan of none.
        deviation: standard deviation of a sample (n - 1); nan of fewer than two.
        low: of the t-interval of the mean; nan of fewer than two values.
        high: the same.
    """

    count: int
    mean: float
    deviation: float
    low: float
    high: float


def summarize(values: Sequence[float], level: float = LEVEL) -> Summary:
    """Returns mean, deviation and the t-interval of the mean.

    Args:
        values: one a seed.
        level: of the interval, in (0, 1).

    Source: Student 1908: mean +- t * deviation / sqrt(n), t of n - 1 degrees of freedom.
    """
    values = np.asarray(values, np.float64)
    count = len(values)
    mean = float(values.mean()) if count else math.nan
    if count < 2:
        return Summary(count, mean, math.nan, math.nan, math.nan)
    deviation = float(values.std(ddof=1))
    # The quantile of `scipy.stats.t`, whose import would take a third of a report's time.
    quantile = float(special.stdtrit(count - 1, (1 + level) / 2))
    reach = quantile * deviation / math.sqrt(count)
    return Summary(count, mean, deviation, mean - reach, mean + reach)


def paired_difference(
    first: Mapping[int, float], second: Mapping[int, float], level: float = LEVEL
) -> Summary:
    """Returns the summary of second - first over the seeds that both have.

    Args:
        first: {seed: value} of one arm.
        second: {seed: value} of the other.
        level: of the interval.
    """
    shared = sorted(first.keys() & second.keys())
    return summarize([second[seed] - first[seed] for seed in shared], level)


def verdict(difference: Summary, names: tuple[str, str]) -> str:
    """Returns what a difference of AP, in points of percent, allows to say in words.

    Args:
        difference: of second - first.
        names: of first and second.
    """
    first, second = names
    if not difference.count:
        return "no seed that both have"
    ahead, behind = (second, first) if difference.mean > 0 else (first, second)
    if difference.count == 1:
        if abs(difference.mean) < SEED_NOISE:
            return f"one seed, below {SEED_NOISE} points: nothing can be said"
        return f"{ahead} is ahead of {behind} with one seed; how much seeds differ is not known"
    if difference.low <= 0 <= difference.high:
        return f"no difference shown ({difference.count} seeds)"
    return f"{ahead} is ahead of {behind} ({difference.count} seeds)"


def crossing(steps: Sequence[float], differences: Sequence[float]) -> float | None:
    """Returns where a difference that is negative at first reaches 0 and stays there, or None.

    Between two of the points it is taken as linear in the logarithm of the steps.

    Args:
        steps: ascending, above 0.
        differences: at each.
    """
    negative = [index for index, value in enumerate(differences) if value < 0]
    if not negative or negative[-1] + 1 == len(differences):
        return None
    before = negative[-1]
    share = -differences[before] / (differences[before + 1] - differences[before])
    low, high = math.log(steps[before]), math.log(steps[before + 1])
    return math.exp(low + share * (high - low))


def labels_saved(
    counts: Sequence[float], baseline: Sequence[float], reached: Sequence[float]
) -> list[float]:
    """Returns how many more images the baseline needs for what the other arm reaches, as a share.

    It is nan where the baseline never reaches it, within what was measured, or has it from the
    start; linear in the logarithm of the number of images.

    Args:
        counts: numbers of images, ascending.
        baseline: AP of the arm from random weights at each.
        reached: AP of the other arm at each.

    Source: Newell and Deng 2020 (arXiv:2003.14323), utility U = n_baseline / n - 1.
    """
    logs, rising = np.log(counts), np.maximum.accumulate(baseline)
    saved = []
    for count, value in zip(counts, reached, strict=True):
        if not rising[0] <= value <= rising[-1]:
            saved.append(math.nan)
            continue
        # The first count that reaches it: of equal values the smallest.
        after = int(np.searchsorted(rising, value))
        if rising[after] == value or after == 0:
            needed = logs[after]
        else:
            share = (value - rising[after - 1]) / (rising[after] - rising[after - 1])
            needed = logs[after - 1] + share * (logs[after] - logs[after - 1])
        saved.append(math.exp(needed) / count - 1)
    return saved
