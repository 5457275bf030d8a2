"""The errors of detections, each of one kind, and the AP that is lost by each kind: TIDE.

Source: Bolya, Foley, Hays and Hoffman 2020, "TIDE: A General Toolbox for Identifying Object
Detection Errors" (arXiv:2008.08115), and its package tidecv 1.0.1, whose order of the kinds, rules
of equality and fixes these are. An overlap is IoU, of boxes or of masks.

Letters: D detections that are compared (the 100 of each image that score highest), N objects
without crowd regions, K categories.
"""

import dataclasses

import numpy as np
from pycocotools import mask as coco_mask

from rethink_tf.evaluation import box_pairs
from rethink_tf.report import matches

POSITIVE_IOU = 0.5  # t_f of the paper: an object is found from here on
BACKGROUND_IOU = 0.1  # t_b: below, a detection has nothing to do with an object
MAX_DETECTIONS = 100
# pycocotools 2.0.11 fails on longer lists of masks with NumPy 2.
_MASKS_AT_ONCE = 255

NONE, CLASSIFICATION, LOCALISATION, BOTH, DUPLICATE, BACKGROUND = range(6)
# {kind: (name, what it means)}; the kinds of detections, in the order of the paper.
KINDS = {
    CLASSIFICATION: ("classification", "IoU 0.5 or more with an object of another category"),
    LOCALISATION: ("localisation", "IoU from 0.1 to 0.5 with an object of its category"),
    BOTH: ("both", "IoU from 0.1 to 0.5 with an object of another category"),
    DUPLICATE: ("duplicate", "a detection that scores higher has found its object"),
    BACKGROUND: ("background", "IoU of 0.1 or less with every object"),
}
MISSED = "missed"
MISSED_MEANS = "not found, and no error of category or place is about it"


@dataclasses.dataclass(frozen=True)
class Errors:
    """Detections and objects, with what is wrong with them.

    Attributes:
        num_categories: int K.
        images: int64 [D], positions of images, ascending.
        categories: int64 [D].
        scores: float64 [D], falling within an image.
        rows: int64 [D], places in the `Instances` of detections.
        found: int64 [D], the object that a detection has found, -1 for none.
        kinds: int8 [D], of `KINDS`; NONE for right ones and those that count for nothing.
        targets: int64 [D], the object that an error of class or place is about, else -1.
        ignored: bool [D], detections in a crowd region, which count for nothing.
        object_images: int64 [N].
        object_categories: int64 [N].
        object_rows: int64 [N], places in the `Instances` of objects.
        found_by: int64 [N], the detection that has found an object, -1 for none.
        missed: bool [N].
    """

    num_categories: int
    images: np.ndarray
    categories: np.ndarray
    scores: np.ndarray
    rows: np.ndarray
    found: np.ndarray
    kinds: np.ndarray
    targets: np.ndarray
    ignored: np.ndarray
    object_images: np.ndarray
    object_categories: np.ndarray
    object_rows: np.ndarray
    found_by: np.ndarray
    missed: np.ndarray


def find(objects, detections, num_categories):
    """Finds the errors.

    Args:
        objects: `coco_columns.Instances` by box or mask, crowd regions among them.
        detections: `coco_columns.Instances` of the same kind, of any number an image.
        num_categories: int K.

    Returns:
        `Errors`.
    """
    object_rows = np.flatnonzero(objects.crowds == 0)
    object_rows = object_rows[np.argsort(objects.images[object_rows], kind="stable")]
    numbers = np.full(len(objects.images), -1)
    numbers[object_rows] = np.arange(len(object_rows))
    orders = [
        np.lexsort([-detections.scores, detections.images]),
        np.argsort(objects.images, kind="stable"),
    ]
    parts, found_by = [], np.full(len(object_rows), -1)
    usable, count = np.zeros(len(object_rows), bool), 0
    for image in np.unique(detections.images).tolist():
        rows = box_pairs.rows_of(image, detections.images, orders[0])[:MAX_DETECTIONS]
        columns = box_pairs.rows_of(image, objects.images, orders[1])
        found, kinds, targets, ignored = _of_image(objects, detections, rows, columns)
        found, targets = (
            np.where(each >= 0, numbers[columns][each], -1) if len(columns) else each
            for each in (found, targets)
        )
        found_by[found[found >= 0]] = count + np.flatnonzero(found >= 0)
        usable[targets[targets >= 0]] = True
        parts.append((rows, found, kinds, targets, ignored))
        count += len(rows)
    rows, found, kinds, targets, ignored = (
        np.concatenate([np.zeros(0, each), *(part[position] for part in parts)])
        for position, each in enumerate([np.int64, np.int64, np.int8, np.int64, bool])
    )
    return Errors(
        num_categories=num_categories,
        images=detections.images[rows],
        categories=detections.categories[rows],
        scores=detections.scores[rows],
        rows=rows,
        found=found,
        kinds=kinds,
        targets=targets,
        ignored=ignored,
        object_images=objects.images[object_rows],
        object_categories=objects.categories[object_rows],
        object_rows=object_rows,
        found_by=found_by,
        missed=(found_by < 0) & ~usable,
    )


def _of_image(objects, detections, rows, columns):
    """Returns found, kinds, targets (places in `columns`, -1 for none) and ignored of one image."""
    overlaps = _overlaps(objects, detections, rows, columns)
    own = detections.categories[rows][:, np.newaxis] == objects.categories[columns]
    is_crowd = objects.crowds[columns] > 0
    in_crowd = ((overlaps > POSITIVE_IOU) & own & is_crowd).any(1)
    overlaps = np.where(is_crowd, 0.0, overlaps)
    of_own, of_others = overlaps * own, overlaps * ~own
    found = _match(of_own)
    ignored = in_crowd & (found < 0)
    kinds, targets = np.zeros(len(rows), np.int8), np.full(len(rows), -1)
    if not len(columns):
        kinds[:] = BACKGROUND
        return found, kinds, targets, ignored
    is_used = np.isin(np.arange(len(columns)), found)
    best, best_other = of_own.max(1), of_others.max(1)
    # The first rule that holds.
    kinds = np.select(
        [
            found >= 0,
            (best >= BACKGROUND_IOU) & (best <= POSITIVE_IOU),
            best_other >= POSITIVE_IOU,
            (of_own * is_used).max(1) >= POSITIVE_IOU,
            overlaps.max(1) <= BACKGROUND_IOU,
        ],
        [NONE, LOCALISATION, CLASSIFICATION, DUPLICATE, BACKGROUND],
        BOTH,
    ).astype(np.int8)
    targets = np.select(
        [kinds == LOCALISATION, kinds == CLASSIFICATION],
        [of_own.argmax(1), of_others.argmax(1)],
        -1,
    )
    # In a crowd region only what a fix would turn into a right one is an error.
    kinds[ignored & (targets < 0)] = NONE
    return found, kinds, targets, ignored


def _match(of_own):
    """Returns int64 [D], for each detection in turn the free object of the largest IoU, or -1."""
    found, free = np.full(len(of_own), -1), of_own.copy()
    if of_own.size:
        for row in np.flatnonzero(of_own.max(1) >= POSITIVE_IOU).tolist():
            column = int(free[row].argmax())
            if free[row, column] >= POSITIVE_IOU:
                found[row] = column
                free[:, column] = 0.0
    return found


def _overlaps(objects, detections, rows, columns):
    """Returns IoU float64 [D, N]; with a crowd region the share of the detection inside of it."""
    own, parts = detections.take(rows).shapes, []
    for start in range(0, len(columns), _MASKS_AT_ONCE):
        some = objects.take(columns[start : start + _MASKS_AT_ONCE])
        parts.append(coco_mask.iou(own, some.shapes, some.crowds))
    return np.concatenate(parts, 1) if parts else np.zeros([len(rows), 0])


@dataclasses.dataclass(frozen=True)
class Lost:
    """AP at IoU 0.5, and what it would gain, in points of percent.

    Attributes:
        ap: as it is.
        by_kind: {name: gain} if all errors of a kind were right: `KINDS`, and MISSED.
        false_positives: gain if no wrong detection scored higher than a right one.
        false_negatives: gain if there were no objects but those that are found.
    """

    ap: float
    by_kind: dict[str, float]
    false_positives: float
    false_negatives: float


def lost(errors):
    """Returns `Lost`: the kinds of errors are fixed one at a time, the others left as they are.

    An error of class or place becomes a right detection if its object is not found and no such
    error about it scores higher, else it goes, as do all of the other kinds; missed objects are
    taken out of the count. The mean is over the categories that have objects, as of COCO's AP.

    Args:
        errors: `Errors`.
    """
    counts = np.bincount(errors.object_categories, minlength=errors.num_categories)
    right = errors.found >= 0
    base = _Curve(errors.categories, errors.scores, right, ~errors.ignored, counts, counts > 0)
    ap = base.ap()
    gains = {name: _fixed(errors, base, kind).ap() for kind, (name, _) in KINDS.items()}
    missed = np.bincount(errors.object_categories[errors.missed], minlength=len(counts))
    gains[MISSED] = dataclasses.replace(base, counts=counts - missed).ap()
    unfound = np.bincount(errors.object_categories[errors.found_by < 0], minlength=len(counts))
    return Lost(
        ap,
        # A fix may move the recalls that precision is read at; tidecv takes losses for none, too.
        {name: max(value - ap, 0.0) for name, value in gains.items()},
        dataclasses.replace(base, scores=right.astype(np.float64)).ap() - ap,
        dataclasses.replace(base, counts=counts - unfound).ap() - ap,
    )


def _fixed(errors, base, kind):
    """Returns the `_Curve` without the errors of a kind."""
    is_kind = errors.kinds == kind
    becomes_right = is_kind & _chosen(errors)
    categories = base.categories.copy()
    categories[becomes_right] = errors.object_categories[errors.targets[becomes_right]]
    return dataclasses.replace(
        base,
        categories=categories,
        right=base.right | becomes_right,
        counted=(base.counted & ~is_kind) | becomes_right,
    )


def _chosen(errors):
    """Returns bool [D], which errors of class or place are the first about a free object."""
    rows = np.flatnonzero(errors.targets >= 0)
    rows = rows[errors.found_by[errors.targets[rows]] < 0]
    # Within an image the scores fall: the first row of an object is its best.
    _, first = np.unique(errors.targets[rows], return_index=True)
    chosen = np.zeros(len(errors.targets), bool)
    chosen[rows[first]] = True
    return chosen


@dataclasses.dataclass(frozen=True)
class _Curve:
    """Detections as AP counts them, arrays [D], and objects and the mean's categories [K]."""

    categories: np.ndarray
    scores: np.ndarray
    right: np.ndarray
    counted: np.ndarray
    counts: np.ndarray
    in_mean: np.ndarray

    def ap(self):
        """Returns AP at one threshold, in percent; nan without any object."""
        kept, num_categories = np.flatnonzero(self.counted), len(self.counts)
        objects = np.repeat(np.arange(num_categories), self.counts)
        arrays = {
            "image_ids": np.zeros(1, np.int64),
            "category_names": np.arange(num_categories),
            "box_image": np.zeros(len(kept), np.int64),
            "box_category": self.categories[kept],
            "box_score": self.scores[kept],
            "box_matched": np.packbits(self.right[np.newaxis, kept], axis=1),
            "box_ignored": np.packbits(np.zeros([1, len(kept)], bool), axis=1),
            "box_object_image": np.zeros(len(objects), np.int64),
            "box_object_category": objects,
        }
        values = matches.Matches(arrays, "box").precision()[0].mean(1)
        # Where a fix has taken all objects out, what is left of the detections is wrong.
        left = (self.counts > 0) | (
            np.bincount(self.categories[kept], minlength=num_categories) > 0
        )
        values = np.nan_to_num(values[self.in_mean & left])
        return 100 * float(values.mean()) if len(values) else np.nan
