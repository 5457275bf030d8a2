"""The surest errors of each kind, cut out of their images."""

import numpy as np

from rethink_tf.errors import inputs, measures, tide, worst
from rethink_tf.report import pictures

_COUNT = 4  # of each kind
_MARGIN = 0.3  # around what is shown, as a share of its longer side
_MAX_SIDE = 360  # pixels of a picture on the page


def draw(case: inputs.Case, measured: measures.Measured) -> list[tuple[str, list[tuple[str, str]]]]:
    """Draws the errors of each kind that score highest, and the largest missed objects.

    Of an image one of each kind. Detections are orange; the objects of errors of class or place,
    and those that are missed, are green.

    Args:
        case: what is analysed.
        measured: of boxes or masks.

    Returns:
        (caption, [(title, data URI)]) each, as `page.render` takes them.
    """
    if case.read_image is None:
        return []
    errors, found = measured.errors, []
    for kind, (name, meaning) in tide.KINDS.items():
        rows = np.flatnonzero(errors.kinds == kind)
        rows = rows[np.argsort(-errors.scores[rows], kind="stable")]
        cut = [
            _cut(case, measured, errors.images[row], row, errors.targets[row])
            for row in _one_an_image(rows, errors.images)
        ]
        found.append((f"{name}: {meaning}.", [each for each in cut if each]))
    rows = np.flatnonzero(errors.missed)
    rows = rows[np.argsort(-measured.objects.areas[errors.object_rows[rows]], kind="stable")]
    cut = [
        _cut(case, measured, errors.object_images[row], -1, row)
        for row in _one_an_image(rows, errors.object_images)
    ]
    found.append((f"{tide.MISSED}: {tide.MISSED_MEANS}.", [each for each in cut if each]))
    return [(caption, row) for caption, row in found if row]


def _one_an_image(rows, images):
    """Returns the first rows of different images, in their order."""
    _, first = np.unique(images[rows], return_index=True)
    return rows[np.sort(first)][:_COUNT].tolist()


def _cut(case, measured, position, row, target):
    """Returns (title, data URI) of a detection and an object, -1 for none of one; None if unread.

    Args:
        case: what is analysed.
        measured: of boxes or masks.
        position: of the image.
        row: of the detection, in `tide.Errors`.
        target: of the object, likewise.
    """
    entry = case.truth.images[sorted(case.truth.image_positions)[int(position)]]
    image = worst.read(case, entry)
    if image is None:
        return None
    errors, parts, texts = measured.errors, {}, []
    if row >= 0:
        texts.append(f"{case.names[errors.categories[row]]} {errors.scores[row]:.2f}")
        parts[pictures.FOUND_COLOUR] = measured.detections.take(errors.rows[[row]])
    if target >= 0:
        texts.append(f"object: {case.names[errors.object_categories[target]]}")
        parts[pictures.TRUTH_COLOUR] = measured.objects.take(errors.object_rows[[target]])
    drawn = [worst.drawable(each, [""], case.drawable_names) for each in parts.values()]
    boxes = np.concatenate([each.boxes for each in drawn])
    top, left, bottom, right = _frame(boxes, image.shape[:2])
    masks = None
    if drawn[0].masks is not None:
        # The mask of a detection alone: that of its object would hide it.
        masks = [each.masks[0][top:bottom, left:right] * (i == 0) for i, each in enumerate(drawn)]
    colours = {f"part {i}": colour for i, colour in enumerate(parts)}
    picture = pictures.draw_objects(
        image[top:bottom, left:right],
        boxes - [top, left, top, left],
        list(colours),
        masks=masks,
        notes=[""] * len(drawn),
        colours=colours,
    )
    texts.append(f"image {entry['id']}")
    return ", ".join(texts), pictures.jpeg_uri(picture, _MAX_SIDE)


def _frame(boxes, size):
    """Returns top, left, bottom, right of a square around boxes, moved and cut to fit an image."""
    low, high, size = boxes[:, :2].min(0), boxes[:, 2:].max(0), np.array(size)
    side = np.ceil(max((1 + 2 * _MARGIN) * (high - low).max(), 32))
    start = np.floor(np.clip((low + high - side) / 2, 0, np.maximum(size - side, 0))).astype(int)
    end = np.minimum(start + side, size).astype(int)
    return (*start.tolist(), *end.tolist())
