"""The two ways to COCO's precision and recall: faster-coco-eval, and pycocotools.

Both match detections with objects and accumulate as COCO's own evaluation does; here they are only
fed. Letters: I images, K categories, T IoU thresholds, R recalls, A ranges of areas, M numbers of
detections an image, as in pycocotools.
"""

import contextlib
import copy
import io
import itertools

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from rethink_tf.evaluation import keypoints

# Pairs of an image and a category that faster-coco-eval sees at once, and categories: it takes
# about 1 kB for each pair and 200 kB for each category.
_CELLS_AT_ONCE = 1 << 16
_CATEGORIES_AT_ONCE = 1 << 7
# What pycocotools reads of an annotation.
_SHAPE_KEYS = {"bbox": "bbox", "segm": "segmentation", "keypoints": "keypoints"}


def choose():
    """Chooses faster-coco-eval where it is installed.

    Returns:
        (name, function): what a log may say, and `by_faster_coco_eval` or `by_pycocotools`, which
        take and return the same.
    """
    try:
        # Its evaluator too: another version might lack it.
        import faster_coco_eval
        from faster_coco_eval.faster_eval_api_cpp import COCOevalEvaluateAccumulate  # noqa: F401
    except ImportError:
        return (
            "pycocotools (faster-coco-eval, of the extra fasteval, gives the same sooner)",
            by_pycocotools,
        )
    return f"faster-coco-eval {faster_coco_eval.__version__}", by_faster_coco_eval


def by_pycocotools(iou_type, truth, found, num_images, num_categories):
    """Measures with pycocotools.

    Args:
        iou_type: "bbox", "segm" or "keypoints".
        truth: `coco_columns.Instances` of the ground truth.
        found: `coco_columns.Instances` of detections.
        num_images: int I.
        num_categories: int K.

    Returns:
        pycocotools' `COCOeval` after its accumulation: `eval` holds precision
        float64 [T, R, K, A, M] and recall [T, K, A, M], -1 where nothing can be measured.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator = _evaluator(iou_type, truth, found, num_images, num_categories)
        evaluator.evaluate()
        evaluator.accumulate()
    return evaluator


def cells_of_matches(iou_type, truth, found, num_images, num_categories):
    """Matches with pycocotools, objects of all sizes, and accumulates nothing.

    Args:
        iou_type, truth, found, num_images, num_categories: as of `by_pycocotools`.

    Returns:
        list of pycocotools' dicts, one a pair of category and image that has anything in it, by
        category and image: image_id and category_id (positions), dtScores [D], dtMatches and
        dtIgnore [T, D], gtIgnore [G].
    """
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator = _evaluator(iou_type, truth, found, num_images, num_categories)
        evaluator.params.areaRng = evaluator.params.areaRng[:1]
        evaluator.evaluate()
    return [cell for cell in evaluator.evalImgs if cell]


def _evaluator(iou_type, truth, found, num_images, num_categories):
    """Returns pycocotools' evaluator before its first call."""
    evaluator = COCOeval(
        _as_coco(iou_type, truth, num_images, num_categories),
        _as_coco(iou_type, found, num_images, num_categories),
        iou_type,
    )
    if iou_type == "keypoints":
        evaluator.params.kpt_oks_sigmas = keypoints.sigmas(truth.shapes.shape[1] // 3)
    return evaluator


def _as_coco(iou_type, instances, num_images, num_categories):
    """Returns pycocotools' index of instances. (Its loadRes fails on an empty list.)"""
    shapes = instances.shapes if isinstance(instances.shapes, list) else instances.shapes.tolist()
    crowds = np.zeros(len(shapes), int) if instances.crowds is None else instances.crowds
    scores = np.zeros(len(shapes)) if instances.scores is None else instances.scores
    columns = [instances.images, instances.categories, instances.areas, crowds, scores]
    names = ["image_id", "category_id", "area", "iscrowd", "score"]
    if instances.boxes is not None:
        columns += [instances.boxes, instances.num_keypoints]
        names += ["bbox", "num_keypoints"]
    coco = COCO()
    coco.dataset = {
        # It reads an image's size also where the masks are run lengths, and does not use it.
        "images": [{"id": i, "height": 0, "width": 0} for i in range(num_images)],
        "categories": [{"id": k} for k in range(num_categories)],
        # It takes the id 0 for "no match".
        "annotations": [
            {"id": number, _SHAPE_KEYS[iou_type]: shape} | dict(zip(names, values, strict=True))
            for number, (shape, values) in enumerate(
                zip(shapes, _rows(*columns), strict=True), start=1
            )
        ],
    }
    coco.createIndex()
    return coco


def by_faster_coco_eval(iou_type, truth, found, num_images, num_categories):
    """Measures with faster-coco-eval. Takes and returns the same as `by_pycocotools`.

    Its C++ evaluator is given pairs of an image and a category that have something in them: within
    a category only the order of the images matters, so that a category's j-th image with anything
    of it is row j of a table of few empty cells. Overlaps are pycocotools', whose masks are read
    faster.
    """
    evaluator = COCOeval(iouType=iou_type)
    params = evaluator.params
    # By category, image, then from the highest score on, equal ones in their given order.
    found = found.take(np.lexsort([-found.scores, found.images, found.categories]))
    truth = truth.take(np.lexsort([truth.images, truth.categories]))
    keys = [each.categories * num_images + each.images for each in (found, truth)]
    pairs = np.unique(np.concatenate(keys))
    # Where each pair's instances begin, and each category's pairs.
    cuts = [np.append(np.searchsorted(each, pairs), len(each)) for each in keys]
    starts = np.searchsorted(pairs, np.arange(num_categories + 1) * num_images)

    num_areas, num_limits = len(params.areaRng), len(params.maxDets)
    shape = [len(params.iouThrs), len(params.recThrs), num_categories, num_areas, num_limits]
    precision, recall = np.full(shape, -1.0), np.full([shape[0], *shape[2:]], -1.0)
    for block in _blocks(np.diff(starts)):
        of_category = [slice(starts[k], starts[k + 1] + 1) for k in block.tolist()]
        found_cuts, truth_cuts = ([each[some].tolist() for some in of_category] for each in cuts)
        measured = _measure_block(params, found, found_cuts, truth, truth_cuts)
        precision[:, :, block], recall[:, block] = measured["precision"], measured["recall"]
    evaluator.eval = {"precision": precision, "recall": recall}
    return evaluator


def _blocks(num_pairs):
    """Yields categories, int64 arrays, that share a table: alike in their number of pairs."""
    order = np.argsort(-num_pairs, kind="stable")
    while len(order):
        count = max(1, _CELLS_AT_ONCE // max(1, int(num_pairs[order[0]])))
        count = min(count, _CATEGORIES_AT_ONCE)
        yield order[:count]
        order = order[count:]


def _measure_block(params, found, found_cuts, truth, truth_cuts):
    """Measures some categories.

    Args:
        params: of `COCOeval`.
        found: `Instances`, sorted by category, image and score.
        found_cuts: list of lists, for each category where its images' detections begin, and where
            the last image's end.
        truth: `Instances`, sorted by category and image.
        truth_cuts: as found_cuts, for the same images.

    Returns:
        dict of precision [T, R, k, A, M] and recall [T, k, A, M] of the k categories.
    """
    from faster_coco_eval.faster_eval_api_cpp import COCOevalEvaluateAccumulate, Dataset

    params = copy.copy(params)
    params.catIds = list(range(len(found_cuts)))
    params.imgIds = list(range(max(map(len, found_cuts)) - 1))
    limit, overlaps = params.maxDets[-1], [[[]] * len(params.catIds) for _ in params.imgIds]
    found_entries, truth_entries = [], []
    for category, (ours, theirs) in enumerate(zip(found_cuts, truth_cuts, strict=True)):
        # Their ids only mark a match: one for all keeps the evaluator's own table of matches small.
        columns = found.scores[ours[0] : ours[-1]], found.areas[ours[0] : ours[-1]]
        dicts = [{"id": 1, "score": s, "area": a} for s, a in _rows(*columns)]
        found_entries += _by_image(category, ours, dicts)
        columns = truth.crowds[theirs[0] : theirs[-1]], truth.areas[theirs[0] : theirs[-1]]
        dicts = [{"id": 1, "area": a, "iscrowd": c, "ignore": c} for c, a in _rows(*columns)]
        if truth.num_keypoints is not None:
            labelled = truth.num_keypoints[theirs[0] : theirs[-1]].tolist()
            dicts = [
                d | {"ignore": d["ignore"] or not n} for d, n in zip(dicts, labelled, strict=True)
            ]
        truth_entries += _by_image(category, theirs, dicts)
        spans = zip(itertools.pairwise(ours), itertools.pairwise(theirs), strict=True)
        for image, ((begin, end), (first, last)) in enumerate(spans):
            if begin < end and first < last:
                best = slice(begin, min(end, begin + limit))
                overlaps[image][category] = _overlaps(found, best, truth, slice(first, last))
    datasets = []
    for entries in (truth_entries, found_entries):
        datasets.append(Dataset())
        datasets[-1].load_tuple((len(entries), entries))
    return COCOevalEvaluateAccumulate(
        params, overlaps, *datasets, params.imgIds, params.catIds, True
    )


def _overlaps(found, best, truth, objects):
    """Returns the overlaps of some detections with some objects, as a list of lists."""
    shapes = found.shapes[best], truth.shapes[objects]
    if truth.boxes is None:
        return coco_mask.iou(*shapes, truth.crowds[objects]).tolist()
    return keypoints.similarity(*shapes, truth.boxes[objects], truth.areas[objects]).tolist()


def _rows(*columns):
    """Returns an iterator over the columns' rows as plain Python values."""
    return zip(*(column.tolist() for column in columns), strict=True)


def _by_image(category, cuts, dicts):
    """Returns (image, category, its dicts) of the images that have any."""
    return [
        (image, category, dicts[begin - cuts[0] : end - cuts[0]])
        for image, (begin, end) in enumerate(itertools.pairwise(cuts))
        if begin < end
    ]
