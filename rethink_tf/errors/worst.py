"""The images that lose the most, drawn with each error named.

What is drawn, and counted here, are the detections from one score on: that at which the harmonic
mean of precision and recall of all detections together is the highest. (AP counts the others, too,
most of which are wrong.) An image loses one for each object that none of them has found, and one
for each of them that is wrong.
"""

import dataclasses
from collections import Counter
from collections.abc import Mapping

import numpy as np
from absl import logging
from pycocotools import mask as coco_mask

from rethink_tf.errors import inputs, measures, tide
from rethink_tf.evaluation import coco_columns
from rethink_tf.report import pictures

_MAX_SIDE = 640  # pixels of a picture on the page


@dataclasses.dataclass(frozen=True)
class Shown:
    """What is drawn.

    Attributes:
        score: the lowest that is drawn.
        precision: of these detections.
        recall: of the objects, by these detections.
        wrong: bool [D] of `tide.Errors`, the detections drawn that are wrong.
        unfound: bool [N], the objects that none of them has found.
    """

    score: float
    precision: float
    recall: float
    wrong: np.ndarray
    unfound: np.ndarray


def choose_score(errors: tide.Errors) -> Shown:
    """Chooses from which score on detections are drawn.

    Args:
        errors: of the detections.
    """
    rows, num_objects = np.flatnonzero(~errors.ignored), len(errors.object_rows)
    if not len(rows):
        return Shown(0.0, 0.0, 0.0, np.zeros(len(errors.rows), bool), np.ones(num_objects, bool))
    rows = rows[np.argsort(-errors.scores[rows], kind="stable")]
    right, count = np.cumsum(errors.found[rows] >= 0), np.arange(1, len(rows) + 1)
    mean = 2 * right / (count + num_objects)
    # Of equal scores all are drawn, or none.
    mean[:-1][np.diff(errors.scores[rows]) == 0] = -1.0
    best = int(mean.argmax())
    score = float(errors.scores[rows[best]])
    drawn = errors.scores >= score
    return Shown(
        score,
        float(right[best] / count[best]),
        float(right[best] / max(num_objects, 1)),
        drawn & (errors.found < 0) & ~errors.ignored,
        (errors.found_by < 0) | ~drawn[errors.found_by],
    )


def rank(errors: tide.Errors, shown: Shown, num_images: int) -> np.ndarray:
    """Returns int64, positions of the images that lose something, the one that loses most first.

    Args:
        errors: of the detections.
        shown: of `choose_score`.
        num_images: of the ground truth.
    """
    losses = np.bincount(errors.images[shown.wrong], minlength=num_images)
    losses += np.bincount(errors.object_images[shown.unfound], minlength=num_images)
    order = np.argsort(-losses, kind="stable")
    return order[losses[order] > 0]


def draw(
    case: inputs.Case, measured: measures.Measured, shown: Shown, count: int
) -> list[tuple[str, list[tuple[str, str]]]]:
    """Draws the worst images, ground truth beside detections.

    One that does not read is named in the log, and the next takes its place.

    Args:
        case: what is analysed.
        measured: of boxes or masks.
        shown: of `choose_score`.
        count: how many images at most.

    Returns:
        (caption, [(title, data URI)]) each, as `page.render` takes them.
    """
    if case.read_image is None:
        logging.info("No pictures: --images says where the images are.")
        return []
    ids, drawn = sorted(case.truth.image_positions), []
    for position in rank(measured.errors, shown, len(ids)).tolist():
        if len(drawn) == count:
            break
        entry = case.truth.images[ids[position]]
        image = read(case, entry)
        if image is None:
            continue
        sides = _sides(measured, shown, position, case.drawable_names)
        colours = pictures.class_colours([name for each in sides for name in each.class_names])
        pair = [pictures.draw_objects(image, *each, colours=colours) for each in sides]
        titles = [
            "ground truth: named is what is not found",
            f"detections that score {shown.score:.2f} or more: named is what is wrong",
        ]
        uris = [pictures.jpeg_uri(each, _MAX_SIDE) for each in pair]
        name = entry.get("file_name")
        title = f"Image {entry['id']}" + (f" ({name})" if name else "")
        caption = _caption(measured.errors, shown, position)
        drawn.append((f"{title}: {caption}", list(zip(titles, uris, strict=True))))
    return drawn


def read(case: inputs.Case, entry: dict) -> np.ndarray | None:
    """Returns an image uint8 [H, W, 3]; None, with a warning, where it does not read.

    Args:
        case: what is analysed.
        entry: of the ground truth's images.
    """
    try:
        return case.read_image(entry)
    except inputs.NoImageError as error:
        logging.warning("No picture of image %s: %s.", entry["id"], error)
        return None


def _sides(measured, shown, position, names):
    """Returns the ground truth and the detections of an image as `pictures.Objects`."""
    errors = measured.errors
    own = np.flatnonzero(errors.object_images == position)
    notes = dict(
        zip(errors.object_rows[own].tolist(), _notes_of_objects(errors, shown, own), strict=True)
    )
    rows = np.flatnonzero(measured.objects.images == position)
    objects = measured.objects.take(rows)
    # What has no note is no object to be found.
    truth = drawable(objects, [notes.get(row, "crowd") for row in rows.tolist()], names)
    rows = np.flatnonzero((errors.images == position) & (errors.scores >= shown.score))
    notes = [
        "in a crowd" if is_ignored and not kind else tide.KINDS[kind][0] if kind else ""
        for kind, is_ignored in zip(
            errors.kinds[rows].tolist(), errors.ignored[rows].tolist(), strict=True
        )
    ]
    found = measured.detections.take(errors.rows[rows])
    return truth, drawable(found, notes, names)


def drawable(instances: coco_columns.Instances, notes: list, names: Mapping) -> pictures.Objects:
    """Returns what pictures show of objects or detections.

    Args:
        instances: by box or mask.
        notes: one text each.
        names: {position of the category: name}.
    """
    masks, shapes = None, instances.shapes
    if isinstance(shapes, list):
        masks = [coco_mask.decode(each) for each in shapes]
        shapes = np.array([_box_of(each) for each in masks])
    x, y, w, h = shapes.reshape([-1, 4]).T
    class_names = [names[each] for each in instances.categories.tolist()]
    boxes = np.stack([y, x, y + h, x + w], -1)
    return pictures.Objects(boxes, class_names, instances.scores, masks, notes=notes)


def _notes_of_objects(errors, shown, own):
    """Returns how each of these objects was found: "" where it is by a detection that is drawn."""
    notes = []
    for row in own.tolist():
        by = errors.found_by[row]
        if not shown.unfound[row]:
            notes.append("")
        elif by >= 0:
            notes.append(f"found at {errors.scores[by]:.2f}")
        else:
            notes.append(tide.MISSED if errors.missed[row] else "not found")
    return notes


def _box_of(mask):
    """Returns (x, y, width, height) around a mask."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return 0, 0, 0, 0
    return columns[0], rows[0], columns[-1] + 1 - columns[0], rows[-1] + 1 - rows[0]


def _caption(errors, shown, position):
    wrong = errors.kinds[(errors.images == position) & shown.wrong].tolist()
    unfound = int(shown.unfound[errors.object_images == position].sum())
    counts = Counter(tide.KINDS[kind][0] for kind in wrong)
    listed = ", ".join(f"{count} {name}" for name, count in counts.most_common())
    return (
        f"{unfound} objects not found, {len(wrong)} wrong detections"
        + (f" ({listed})" if listed else "")
        + "."
    )
