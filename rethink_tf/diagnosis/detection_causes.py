"""Causes of a low AP that the last evaluation's detections show, beside the ground truth.

Each function takes `run_files.RunFiles` and returns a `Finding`, or None. Letters: T objects, D
detections of an image.
"""

import collections

import numpy as np

from rethink_tf.data.sources import box_forms, run_lengths
from rethink_tf.diagnosis import data_causes
from rethink_tf.diagnosis.finding import Finding
from rethink_tf.diagnosis.run_files import LOW_AP

# So many images, and so many detections of each by score, tell enough.
_MAX_IMAGES, _MAX_DETECTIONS = 500, 20
# A class is told by this many found objects, of which this share is called something else.
_MIN_FOUND, _MIXED_UP = 3, 0.6


def nothing_detected(run):
    """No proposal, or next to none, scores above the threshold of detections."""
    num_images = run.data.get("evaluation", {}).get("num_images")
    if not run.last or not num_images:
        return None
    # Runs of before these numbers were kept have the detections.
    number = run.last.get("detections", len(run.detections))
    found = {each["image_id"] for each in run.detections}
    with_some = run.last.get("images_with_detections", len(found))
    if not run.is_low or with_some >= 0.2 * num_images:
        return None
    threshold = run.value("BoxHead.score_threshold", run.value("CascadeBoxHead.score_threshold"))
    return Finding(
        70 if not number else 45,
        f"{number:,} detections in {with_some:,} of {num_images:,} images scored above "
        f"BoxHead.score_threshold = {threshold} (metrics.jsonl, step {run.last['step']})",
        "every proposal is taken for background: the box head has seen too few positive RoIs, or "
        "its classes are not learnt yet",
        "train longer, and see the other findings. To see what is below the threshold, evaluate "
        f'with run.init_checkpoint = "{run.path("checkpoints")}" and BoxHead.score_threshold = '
        "0.001 into another MODEL_DIR",
    )


def classes_mixed_up(run):
    """Objects are found where they are, and called by another class, each by one of its own."""
    called = collections.defaultdict(collections.Counter)
    for objects, boxes, found, classes in _images(run):
        overlaps = _overlaps(boxes, found)
        for row, entry in enumerate(objects):
            right = overlaps[row] >= box_forms.AGREEMENT
            if right.any():
                # The best by score: detections are sorted.
                called[entry["category_id"]][classes[int(np.argmax(right))]] += 1
    number = sum(sum(counts.values()) for counts in called.values())
    moved = {}
    for category, counts in called.items():
        name, times = counts.most_common(1)[0]
        total = sum(counts.values())
        if name != category and total >= _MIN_FOUND and times >= _MIXED_UP * total:
            moved[category] = name, times, total
    targets = {name for name, _, _ in moved.values()} & called.keys()
    share = sum(times for _, times, _ in moved.values()) / max(number, 1)
    # A detector that calls all of them by one class has not learnt them yet; classes that no object
    # has are another cause.
    if len(moved) < 2 or len(targets) < len(moved) or share < 0.3:
        return None
    names = {each["id"]: each["name"] for each in run.categories[1]} if run.categories else {}
    shown = [
        f"{names.get(key, key)} as {names.get(name, name)} ({times} of {total})"
        for key, (name, times, total) in sorted(moved.items())[:5]
    ]
    return Finding(
        96,
        f"objects are found under other classes: {', '.join(shown)} ({run.results_path} beside "
        f"{run.splits['evaluation'].path('ground_truth.json')})",
        "the training and the evaluation data number or name their classes otherwise, and a "
        "detection of another class matches nothing",
        "compare 'categories' of the two annotation files, number them alike and convert again",
    )


def boxes_in_another_form(run):
    """Detections lie where the ground truth would, had its boxes another order."""
    hits = collections.Counter()
    number = 0
    for objects, _, found, _ in _images(run):
        images = run.splits["evaluation"].images
        sides = [images[objects[0]["image_id"]][side] for side in ("width", "height")]
        stated = np.array([each["bbox"] for each in objects], np.float64)
        sizes = np.tile(np.array(sides, np.float64), [len(objects), 2])
        number += len(objects)
        for name, corners in box_forms.FORMS.items():
            best = _overlaps(corners(stated, sizes), found).max(1)
            hits[name] += int((best >= box_forms.AGREEMENT).sum())
    own, (likely, most) = hits[box_forms.OWN_FORM], (hits.most_common(1) or [(None, 0)])[0]
    if number < _MIN_FOUND or most < 0.4 * number or own > most / 3:
        return None
    return Finding(
        97,
        f"{most} of {number} objects lie where a detection does if 'bbox' is read as {likely}, "
        f"and {own} as {box_forms.OWN_FORM} ({run.splits['evaluation'].path('ground_truth.json')} "
        f"beside {run.results_path})",
        "the evaluation data's boxes have another order than those that the run was trained on",
        f"write the evaluation's boxes as {box_forms.OWN_FORM}, convert them again, and evaluate "
        "with --mode=evaluate",
    )


def masks_empty(run):
    """Boxes are found, and their masks are not: empty, or elsewhere."""
    box, mask = run.last.get("box/AP", 0), run.last.get("mask/AP")
    if mask is None or box < 5 * LOW_AP or mask > 0.1 * box or data_causes.masks_missing(run):
        return None
    areas = [_area(each) for each in run.detections[:1000] if "segmentation" in each]
    empty = float(np.mean([area == 0 for area in areas])) if areas else 0.0
    truth = run.splits["evaluation"].objects[:1000] if "evaluation" in run.splits else []
    areas = [_area(each) for each in truth if isinstance(each.get("segmentation"), dict)]
    bare = float(np.mean([area == 0 for area in areas])) if areas else 0.0
    return Finding(
        85,
        f"box AP is {box:.3f} and mask AP {mask:.3f} (metrics.jsonl, step {run.last['step']}); "
        f"{empty:.0%} of the detected masks are empty ({run.results_path}) and {bare:.0%} of the "
        "annotated ones",
        "the mask head learns from the objects' masks alone: where these are empty or lie "
        "elsewhere than their boxes, so do its own",
        "look at the run's pictures/: they show annotated and detected masks. Correct "
        "'segmentation', or train boxes alone with --gin_file=overlays/boxes_only.gin",
    )


def _images(run):
    """Yields objects, corners [T, 4], detected corners [D, 4] and class ids of an image each."""
    split = run.splits.get("evaluation")
    if split is None or not run.detections or not split.objects:
        return
    objects, found = collections.defaultdict(list), collections.defaultdict(list)
    for each in split.objects:
        objects[each["image_id"]].append(each)
    for each in run.detections:
        found[each["image_id"]].append(each)
    chosen = sorted(found.keys() & objects.keys() & split.images.keys())[:_MAX_IMAGES]
    for image_id in chosen:
        best = sorted(found[image_id], key=lambda each: -each["score"])[:_MAX_DETECTIONS]
        yield (
            objects[image_id],
            _corners(objects[image_id]),
            _corners(best),
            [each["category_id"] for each in best],
        )


def _corners(entries):
    boxes = np.array([each["bbox"] for each in entries], np.float64)
    return box_forms.FORMS[box_forms.OWN_FORM](boxes, None)


def _overlaps(boxes, found):
    """Returns float64 [T, D], the IoU of corners [T, 4] and [D, 4]."""
    first = np.repeat(boxes, len(found), axis=0)
    return box_forms.iou(first, np.tile(found, [len(boxes), 1])).reshape([len(boxes), len(found)])


def _area(entry):
    """Pixels of a mask of run lengths; of one that is none, 0."""
    try:
        return sum(run_lengths.read_counts(entry["segmentation"])[1::2])
    except (ValueError, TypeError, KeyError):
        return 0
