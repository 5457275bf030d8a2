"""AP of any choice of the images, from what a run's last evaluation has matched.

`evaluation.matches` describes the file. Letters: D detections, I images, K categories, R recalls,
T IoU thresholds.
"""

import dataclasses
import io
import zipfile
from collections.abc import Sequence

import numpy as np

from rethink_tf import files, metrics_file
from rethink_tf.report.collecting import StudyRun

RECALLS = np.linspace(0.0, 1.0, 101)
_PREFIXES = ("box", "mask", "keypoints")


class Matches:
    """Detections of one kind with whether they are right, sorted once for any number of draws.

    Attributes:
        image_ids: int64 [I].
        names: str [K], of the categories.
    """

    def __init__(self, arrays, prefix: str):
        """Sorts by category and falling score, equal scores in the order of the images.

        Args:
            arrays: {name: array} of the file.
            prefix: "box", "mask" or "keypoints".
        """
        of_kind = {
            name: arrays[f"{prefix}_{name}"]
            for name in "image category score matched ignored object_image object_category".split()
        }
        self.image_ids, self.names = arrays["image_ids"], arrays["category_names"]
        order = np.lexsort([-of_kind["score"], of_kind["category"]])
        self._image, category = of_kind["image"][order], of_kind["category"][order]
        count = len(order)
        matched, self._ignored = (
            np.unpackbits(of_kind[name], axis=1, count=count).astype(bool)[:, order]
            for name in ("matched", "ignored")
        )
        self._object_image = of_kind["object_image"]
        self._object_category = of_kind["object_category"]
        # Right detections only: the precision is needed nowhere else.
        threshold, self._rows = np.nonzero(matched & ~self._ignored)
        num_categories = len(self.names)
        self._category = category[self._rows]
        # A segment is a threshold and a category; their rights stand together.
        self._segment = threshold * num_categories + self._category
        self._first, inverse = np.unique(self._segment, return_index=True, return_inverse=True)[1:]
        self._first_of_row = self._first[inverse]
        self._start = np.searchsorted(category, np.arange(num_categories))[self._category]
        self._spans = [
            slice(*np.searchsorted(threshold, [index, index + 1])) if ignored.any() else None
            for index, ignored in enumerate(self._ignored)
        ]
        self._drawn = {}

    def precision(self, weights=None) -> np.ndarray:
        """Returns the highest precision at or beyond each recall, as COCO's evaluation has it.

        Args:
            weights: int [I], how many times each image is drawn; None for once each. The copies of
                an image count as images of their own.

        Returns:
            float64 [T, K, R]; nan of categories without an object in the drawn images.
        """
        highest, reached, counts, objects = self._up_to_recalls(weights)
        found = np.zeros([len(self._ignored), len(self.names), len(RECALLS)])
        # Each right detection fills the recalls from those before it to its own.
        place = self._segment * len(RECALLS) + reached - np.cumsum(counts)
        place = np.repeat(place, counts) + np.arange(counts.sum())
        found.reshape(-1)[place] = np.repeat(highest, counts)
        found[:, objects == 0] = np.nan
        return found

    def average_precision(self, weights=None) -> float:
        """Returns AP over all thresholds, a fraction of 1; nan without any object.

        Args:
            weights: as of `precision`.
        """
        highest, _, counts, objects = self._up_to_recalls(weights)
        total = np.count_nonzero(objects) * len(self._ignored) * len(RECALLS)
        return float(highest @ counts) / total if total else float("nan")

    def _up_to_recalls(self, weights):
        """Returns what each right detection gives, and the objects of each category, int [K].

        Returns:
            The highest precision at or beyond it; how many recalls the rights up to it reach; how
            many it is the first to reach; the objects.
        """
        num_categories = len(self.names)
        if weights is None:
            weights = np.ones(len(self.image_ids), np.int64)
        weight = weights[self._image]
        counted = self._up_to_rows(weight, slice(None))
        for ignored, span in zip(self._ignored, self._spans, strict=True):
            if span is not None:
                counted[span] -= self._up_to_rows(weight * ignored, span)
        sums = np.append(0, np.cumsum(weight[self._rows]))
        right = sums[1:] - sums[self._first_of_row]
        # pycocotools adds the same against a division by 0.
        precision = right / (counted + np.spacing(1))
        # The maximum from the right within a segment: a later one lies below an earlier one.
        lowered = precision - 2.0 * self._segment
        highest = np.maximum.accumulate(lowered[::-1])[::-1] + 2.0 * self._segment

        objects = np.bincount(
            self._object_category, weights[self._object_image], num_categories
        ).astype(np.int64)
        # How many recalls 0, 1, ... rights reach: a stretch of a table for each category.
        sizes = objects + 2
        stretch = np.cumsum(sizes) - sizes
        first_to_reach = np.bincount(
            (stretch[:, np.newaxis] + _needed(objects)).ravel(), minlength=sizes.sum()
        )
        before = np.repeat(len(RECALLS) * np.arange(num_categories), sizes)
        reached = (np.cumsum(first_to_reach) - before)[stretch[self._category] + right]
        counts = np.diff(reached, prepend=0)
        counts[self._first] = reached[self._first]
        return highest, reached, counts, objects

    def drawn(self, draws: int, seed: int) -> np.ndarray:
        """Returns AP on draws of as many images, with replacement, float64 [draws]; kept.

        Args:
            draws: how many.
            seed: of the draws, which are the same for all runs on as many images.
        """
        if (draws, seed) not in self._drawn:
            generator, count = np.random.default_rng(seed), len(self.image_ids)
            self._drawn[draws, seed] = np.array(
                [
                    self.average_precision(
                        np.bincount(generator.integers(0, count, count), minlength=count)
                    )
                    for _ in range(draws)
                ]
            )
        return self._drawn[draws, seed]

    def _up_to_rows(self, weight, span):
        """Returns the sums of a weight [D] up to right detections, from their category's first."""
        sums = np.append(0, np.cumsum(weight))
        return sums[self._rows[span] + 1] - sums[self._start[span]]


def _needed(objects):
    """Returns int64 [K, R], the fewest right detections that reach each recall, at least one."""
    objects = np.maximum(objects, 1)[:, np.newaxis]
    needed = np.floor(RECALLS * objects).astype(np.int64) - 1
    for _ in range(2):
        # By the same division as pycocotools, whose rounding decides at equality.
        needed += needed / objects < RECALLS
    return np.maximum(needed, 1)


def read(run: StudyRun) -> dict[str, np.ndarray] | None:
    """Returns {name: array} of what a run's last evaluation has matched, None where it kept none.

    Raises:
        ValueError: if the file is damaged; names it.
    """
    path = metrics_file.matches_path(run.model_dir, run.num_steps)
    content = files.read_bytes(path)
    if content is None:
        return None
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            return dict(arrays)
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} is damaged ({error}): evaluate the run's last checkpoint again by "
            "--mode=evaluate."
        ) from error


def kinds(arrays) -> list[str]:
    """Returns what a file has compared, of "box", "mask" and "keypoints"."""
    return [prefix for prefix in _PREFIXES if f"{prefix}_score" in arrays]


@dataclasses.dataclass(frozen=True)
class Interval:
    """A difference of AP over other draws of the test images.

    Attributes:
        difference: of the images as they are, second - first.
        low: of the percentile interval.
        high: the same.
    """

    difference: float
    low: float
    high: float


def bootstrap(
    first: Sequence[Matches],
    second: Sequence[Matches],
    draws: int,
    level: float,
    seed: int = 0,
) -> Interval:
    """Returns the paired bootstrap over images of a difference of AP, in fractions of 1.

    Both are measured on the same draws of as many images, with replacement. Of several seeds the
    mean AP is compared: the runs stay what they are, the images change.

    Args:
        first: a run's matches each, of the same images as all others.
        second: the same.
        draws: how many, above 0.
        level: of the interval, in (0, 1).
        seed: of the draws.

    Raises:
        ValueError: if the runs were evaluated on different images.

    Source: Efron and Tibshirani 1993, chapter 13: the percentile interval.
    """
    runs = [*first, *second]
    if any(not np.array_equal(runs[0].image_ids, each.image_ids) for each in runs):
        raise ValueError("The runs were evaluated on different images: they can't be paired.")

    def difference(measure):
        means = [np.mean([measure(each) for each in part], axis=0) for part in (first, second)]
        return means[1] - means[0]

    found = difference(lambda each: each.drawn(draws, seed))
    # A draw without any object says nothing.
    low, high = np.nanquantile(found, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(difference(Matches.average_precision)), float(low), float(high))
