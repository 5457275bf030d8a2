"""What one evaluation has matched, image by image, as arrays of a small file.

Whoever has them computes AP of any choice of the images again without boxes and masks, as a
bootstrap over images does; `report.matches` reads the file. A few MB for 500,000 detections.

Letters: D detections, N objects, I images, K categories, T IoU thresholds. For each kind of
comparison P, "box", "mask" or "keypoints", the file has:

    P_image, P_category     int32 [D], positions in image_ids and category_ids
    P_score                 float64 [D]
    P_matched, P_ignored    uint8 [T, ceil(D / 8)], bits: whether a detection has found an object;
                            whether it counts neither as right nor as wrong
    P_object_image, P_object_category   int32 [N], of the objects to be found

Detections stand by category, image and falling score, as pycocotools matches them. Beside them:
image_ids int64 [I], category_ids int64 [K], category_names str [K], and confusion
int64 [K + 1, K + 1], objects by their category (rows) and that of the detection with it (columns);
the last row is of detections without an object, the last column of objects that were missed.
"""

import io

import numpy as np

from rethink_tf import files
from rethink_tf.evaluation import box_pairs, coco_engines

# A pair of a detection and an object, for the confusion matrix; what `samples` draws.
CONFUSION_SCORE = 0.5
CONFUSION_IOU = 0.5


def collect(truth, names, compared, objects, detections):
    """Matches, and returns the arrays of the file.

    Args:
        truth: `coco_columns.GroundTruth`.
        names: {category id: name}.
        compared: {iou_type: (P, what `comparing.compared_instances` returns)}.
        objects: `coco_columns.Instances` by box, all of them.
        detections: `coco_columns.Instances` by box, all of them.

    Returns:
        {name: array}.
    """
    ids = sorted(truth.category_positions)
    arrays = {
        "image_ids": np.array(sorted(truth.image_positions), np.int64),
        "category_ids": np.array(ids, np.int64),
        "category_names": np.array([names[each] for each in ids], np.str_),
        "confusion": confusion(objects, detections, len(ids)),
    }
    for iou_type, (prefix, instances) in compared.items():
        if instances is not None:
            found = _of_kind(iou_type, *instances, len(truth.images))
            arrays |= {f"{prefix}_{name}": values for name, values in found.items()}
    return arrays


def _of_kind(iou_type, objects, detections, present, num_images):
    """Returns the arrays of one kind of comparison, without P."""
    cells = coco_engines.cells_of_matches(iou_type, objects, detections, num_images, len(present))
    place = [(cell["image_id"], present[cell["category_id"]]) for cell in cells]
    place = np.array(place, np.int32).reshape([-1, 2])
    of_detections = np.repeat(place, [len(cell["dtScores"]) for cell in cells], axis=0)
    counts = [int((np.asarray(cell["gtIgnore"]) == 0).sum()) for cell in cells]
    of_objects = np.repeat(place, counts, axis=0)
    matched = np.concatenate([cell["dtMatches"] > 0 for cell in cells], axis=1)
    ignored = np.concatenate([cell["dtIgnore"] > 0 for cell in cells], axis=1)
    return {
        "image": of_detections[:, 0],
        "category": of_detections[:, 1],
        "score": np.concatenate([np.asarray(cell["dtScores"], np.float64) for cell in cells]),
        "matched": np.packbits(matched, axis=1),
        "ignored": np.packbits(ignored, axis=1),
        "object_image": of_objects[:, 0],
        "object_category": of_objects[:, 1],
    }


def confusion(objects, detections, num_categories):
    """Counts which category a detection gives to which object, by their boxes.

    Within an image the pairs of any categories are taken from the largest IoU on, each object and
    each detection once. Crowd regions, and detections that have half of their area in one, are
    left out.

    Args:
        objects: `coco_columns.Instances` by box.
        detections: `coco_columns.Instances` by box; those below `CONFUSION_SCORE` are left out.
        num_categories: int K.

    Returns:
        int64 [K + 1, K + 1]; see this module's docstring.
    """
    matrix = np.zeros([num_categories + 1] * 2, np.int64)
    detections = detections.take(np.flatnonzero(detections.scores >= CONFUSION_SCORE))
    orders = [np.argsort(each.images, kind="stable") for each in (detections, objects)]
    for image in np.union1d(detections.images, objects.images):
        rows, columns = (
            box_pairs.rows_of(image, each.images, order)
            for each, order in zip((detections, objects), orders, strict=True)
        )
        is_crowd = objects.crowds[columns] > 0
        rows = rows[~_in_crowd(detections.shapes[rows], objects.shapes[columns[is_crowd]])]
        columns = columns[~is_crowd]
        pairs = _pairs(box_pairs.iou(detections.shapes[rows], objects.shapes[columns]))
        found, missed = detections.categories[rows], objects.categories[columns]
        np.add.at(matrix, (missed[pairs[:, 1]], found[pairs[:, 0]]), 1)
        np.add.at(matrix, (num_categories, np.delete(found, pairs[:, 0])), 1)
        np.add.at(matrix, (np.delete(missed, pairs[:, 1]), num_categories), 1)
    return matrix


def _in_crowd(boxes, crowds):
    """Returns bool [D], which boxes have half of their area in a crowd's box."""
    low = np.maximum(boxes[:, np.newaxis, :2], crowds[np.newaxis, :, :2])
    ends = [each[..., :2] + each[..., 2:] for each in (boxes[:, np.newaxis], crowds[np.newaxis])]
    inside = np.maximum(np.minimum(*ends) - low, 0).prod(-1)
    return (inside >= CONFUSION_IOU * boxes[:, np.newaxis, 2:].prod(-1)).any(1)


def _pairs(overlaps):
    """Returns int [pairs, 2], rows and columns of IoU [D, N], the largest first, each once."""
    rows, columns = np.nonzero(overlaps >= CONFUSION_IOU)
    order = np.argsort(-overlaps[rows, columns], kind="stable")
    taken, pairs = (set(), set()), []
    for row, column in zip(rows[order].tolist(), columns[order].tolist(), strict=True):
        if row not in taken[0] and column not in taken[1]:
            taken[0].add(row)
            taken[1].add(column)
            pairs.append((row, column))
    return np.array(pairs, np.int64).reshape([-1, 2])


def write(path, arrays):
    """Writes the arrays of `collect`, whole or not at all.

    Args:
        path: the file; its folder is made where it is missing.
        arrays: {name: array}.
    """
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    files.write_whole(path, buffer.getvalue())
