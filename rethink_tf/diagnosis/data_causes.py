"""Causes of a low AP that the data have: objects, classes, boxes and masks of the records.

Each function takes `run_files.RunFiles` and returns a `Finding`, or None.
"""

import collections

import numpy as np

from rethink_tf.data.records import categories
from rethink_tf.data.sources import box_forms
from rethink_tf.diagnosis.finding import Finding

# Shares from which on something is no detail of the data any more.
_MOST, _MANY = 0.8, 0.1
_FEW_MASKS = 0.05
_SMALL = 8  # pixels, half the size at which detectors of a finest stride of 4 find something
_CONVERT = (
    "correct the annotation file and convert it again (python -m rethink_tf.data.coco --strict "
    "names the first fault), then train in a new MODEL_DIR"
)


def no_evaluation_objects(run):
    """The evaluation has nothing to find."""
    evaluation = run.data.get("evaluation", {})
    if evaluation.get("num_objects") != 0 and run.last.get("box/AP", 0) >= 0:
        return None
    return Finding(
        100,
        f"{evaluation.get('num_objects', 0)} objects in {evaluation.get('num_images', 0)} images "
        f"of {evaluation.get('directory', 'the evaluation data')} "
        f"({run.path('data.json')}); the AP is {run.last.get('box/AP', -1):g}",
        "without an object to find no AP is defined (it is given as -1)",
        'evaluate images that have objects: run.evaluation_split = "..."; the directory\'s '
        "manifest.json says what was skipped when it was converted",
    )


def images_without_objects(run):
    """Hardly any image shows an object."""
    split = run.splits.get("training")
    if split is None or split.num_objects is None or not len(split.num_objects):
        return None
    share = float((split.num_objects == 0).mean())
    if share < _MOST:
        return None
    return Finding(
        round(100 * share) - 20,
        f"{share:.0%} of {len(split.num_objects):,} training images have no object "
        f"({split.path('index.npz')})",
        "nearly all that the detector sees is background, and it learns to say so everywhere",
        "leave them out with --gin_param=Pipeline.keep_empty=False; if they should have objects, "
        "manifest.json says what was skipped",
    )


def objects_left_out(run):
    """A large part of the objects or images was skipped when the data were converted."""
    worst = None
    for split in run.splits.values():
        manifest = split.manifest
        skipped = manifest.get("skipped") or {}
        for kind, kept in (("image", "num_images"), ("annotation", "num_objects")):
            reasons = {name: number for name, number in skipped.items() if name.startswith(kind)}
            lost = sum(reasons.values())
            share = lost / max(lost + (manifest.get(kept) or 0), 1)
            if share > _MANY and (worst is None or share > worst[0]):
                worst = share, split, kind, lost, max(reasons, key=reasons.get)
    if worst is None:
        return None
    share, split, kind, lost, reason = worst
    return Finding(
        round(20 + 70 * share),
        f"{lost:,} {kind}s ({share:.0%}) of {split.directory} were left out, most of them as "
        f"{reason} ({split.path('manifest.json')})",
        "what was left out is neither trained on nor evaluated, and where only the objects are "
        "gone, their images teach that there is background",
        f"look at skipped_entries there; {_CONVERT}",
    )


def classes_without_training(run):
    """Objects are evaluated whose classes no training image shows."""
    if not {"training", "evaluation"} <= run.splits.keys():
        return None
    trained, evaluated = (
        {each["id"]: each for each in run.splits[use].manifest["categories"]}
        for use in ("training", "evaluation")
    )
    numbers = {key: each.get("num_objects") or 0 for key, each in evaluated.items()}
    unknown = {
        each["name"]: numbers[key]
        for key, each in evaluated.items()
        if numbers[key] and not (trained.get(key) or {}).get("num_objects")
    }
    share = sum(unknown.values()) / max(sum(numbers.values()), 1)
    if share < 2 * _MANY:
        return None
    return Finding(
        round(20 + 75 * share),
        f"{share:.0%} of the objects to find are of classes without one in the training images: "
        f"{_listed(unknown)} ({run.splits['training'].path('manifest.json')})",
        "a class that is never shown is never found, and COCO's AP is the mean over the classes",
        "put images of these classes into the training split, or give both splits the classes "
        "that they share",
    )


def categories_differ(run):
    """Records, or detections, have other classes than the weights."""
    own = run.categories
    if own is None:
        return None
    path, entries = own
    for split in run.splits.values():
        found = categories.difference(
            entries, split.manifest["categories"], (path, split.directory)
        )
        if found:
            return Finding(
                97,
                f"{path} and {split.path('manifest.json')} have different categories: "
                + " ".join(found.split()),
                "the weights know classes by their order alone, so that objects count as others",
                "number the classes of all annotation files alike, convert them again, and train "
                "in a new MODEL_DIR",
            )
    known = {each["id"] for each in entries}
    strange = {each["category_id"] for each in run.detections} - known
    if strange:
        return Finding(
            96,
            f"detections have the category ids {sorted(strange)[:10]} ({run.results_path}), which "
            f"{path} lacks",
            "detections of a class that is not annotated match nothing",
            "evaluate by the run's own categories: --mode=evaluate with its gin files",
        )
    return None


def boxes_outside(run):
    """Many boxes left their images, as corners taken for sizes do."""
    worst = None
    for split in run.splits.values():
        total = (split.manifest.get("num_objects") or 0) + (split.manifest.get("num_crowds") or 0)
        lost = (split.manifest.get("skipped") or {}).get("box_outside_image", 0)
        cut = (split.manifest.get("num_clipped") or 0) + lost
        share = cut / max(total + lost, 1)
        if share > 2 * _MANY and (worst is None or share > worst[0]):
            worst = share, split, cut, total + lost
    if worst is None:
        return None
    share, split, cut, total = worst
    return Finding(
        round(30 + 65 * share),
        f"{cut:,} of {total:,} boxes ({share:.0%}) reached beyond their images "
        f"({split.path('manifest.json')}: num_clipped, skipped)",
        "so many do where corners [x1, y1, x2, y2] are taken for [x, y, width, height], or x for y",
        f"'bbox' must be [x, y, width, height] in pixels of the stored image: {_CONVERT}",
    )


def boxes_contradict_masks(run):
    """Boxes lie elsewhere than the masks of their own objects."""
    for split in run.splits.values():
        images = split.images
        rows = box_forms.with_masks([e for e in split.objects if e["image_id"] in images], images)
        if not rows:
            continue
        shares = box_forms.agreement(rows, images)
        if shares[box_forms.OWN_FORM] >= 0.5:
            continue
        likely = max(shares, key=shares.get)
        return Finding(
            98,
            f"{1 - shares[box_forms.OWN_FORM]:.0%} of {len(rows):,} boxes lie elsewhere than their "
            f"masks; read as {likely}, {shares[likely]:.0%} agree "
            f"({split.path('ground_truth.json')})",
            "the detector is taught, or measured by, boxes where there is no object",
            f"'bbox' must be {box_forms.OWN_FORM}: {_CONVERT}",
        )
    return None


def objects_too_small(run):
    """Most objects have a few pixels in the network's input, or far less than an anchor."""
    split = run.splits.get("evaluation") or run.splits.get("training")
    shorter, longer = run.value("Pipeline.min_side"), run.value("Pipeline.max_side")
    if not run.is_low or split is None or not shorter:
        return None
    shorter = float(np.median(shorter))  # of a range, its middle
    images, sizes = split.images, []
    for each in split.objects:
        image = images.get(each["image_id"])
        if image:
            sides = sorted((image["height"], image["width"]))
            scale = min(shorter / sides[0], (longer or np.inf) / sides[1])
            sizes.append(scale * (each["bbox"][2] * each["bbox"][3]) ** 0.5)
    if not sizes or np.median(sizes) >= _SMALL:
        return None
    anchors = np.ravel(run.value("RPN.anchor_sizes", [])) * run.value("RPN.anchor_scale", 1.0)
    smallest = f"; the smallest anchor has {min(anchors):g}" if len(anchors) else ""
    return Finding(
        65,
        f"half of the {len(sizes):,} objects have fewer than {np.median(sizes):.1f} pixels a side "
        f"in images of Pipeline.min_side = {shorter:g}{smallest} "
        f"({split.path('ground_truth.json')})",
        "an object of one or two cells of the finest map has next to no features",
        "larger images (Pipeline.min_side and max_side; of own_data.gin the macro SIDE) and "
        "smaller RPN.anchor_sizes, or images cut into tiles",
    )


def masks_missing(run):
    """A mask head is trained, and hardly any object has a mask."""
    if "mask/AP" not in run.last:
        return None
    for split in run.splits.values():
        total, masks = split.manifest.get("num_objects"), split.manifest.get("num_masks")
        if not total or masks is None or masks > _FEW_MASKS * total:
            continue
        return Finding(
            75,
            f"{masks:,} of {total:,} objects of {split.directory} have a mask "
            f"({split.path('manifest.json')})",
            "masks are trained by, and compared with, those alone",
            "--gin_file=overlays/boxes_only.gin trains boxes alone; else give the objects a "
            "'segmentation' and convert the data again",
        )
    return None


def _listed(numbers):
    """Names with their numbers, the largest first, at most five."""
    shown = [f"{name} ({number:,})" for name, number in collections.Counter(numbers).most_common(5)]
    return ", ".join(shown) + (", ..." if len(numbers) > len(shown) else "")
