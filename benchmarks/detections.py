"""Synthetic ground truth and detections in COCO's form, for the benchmark of evaluation.

Objects are star-shaped: a radius that varies smoothly with the angle, stretched to the object's
box. Detections are such objects moved and redrawn a little, or others elsewhere. Nothing here uses
the project's own code for masks.
"""

import dataclasses

import numpy as np
from pycocotools import mask as coco_mask

# Shares of detections that lie at an object, of those that have the object's class, and of the
# others that have the class of some object of the image.
_AT_OBJECT, _RIGHT_CLASS, _CLASS_OF_IMAGE = 0.5, 0.8, 0.6
# Of annotations in two parts.
_IN_PARTS = 0.1
_VERTICES = 24
_HARMONICS = 5


@dataclasses.dataclass(frozen=True)
class Statistics:
    """What the data are like.

    Fields:
        num_images: int.
        num_objects: float, an image in the mean (Poisson: some images are empty).
        num_classes: int; the ids are 1 to num_classes.
        crowd_share: float, of the annotations.
        sides: (long, short) of the images, pixels; half of them are landscape.
        smallest: float, side of an object as a share of the image's; evenly in the logarithm.
        largest: float, the same.
    """

    num_images: int = 5000
    num_objects: float = 7.0
    num_classes: int = 80
    crowd_share: float = 0.01
    sides: tuple = (640, 480)
    smallest: float = 0.04
    largest: float = 0.8


def make_ground_truth(seed, statistics):
    """Draws images and their annotations.

    Args:
        seed: int.
        statistics: `Statistics`.

    Returns:
        dict in COCO's form (polygons of one or two parts, crowds as uncompressed run lengths), and
        the outlines float [V, 2] of its annotations, in their order.
    """
    generator = np.random.default_rng([seed, 0])
    images, annotations, outlines = [], [], []
    for image_id in range(1, statistics.num_images + 1):
        width, height = statistics.sides if generator.random() < 0.5 else statistics.sides[::-1]
        images.append({"id": image_id, "height": height, "width": width})
        classes = generator.integers(1, statistics.num_classes + 1, 3)
        count = generator.poisson(statistics.num_objects)
        drawn = _draw_outlines(generator, count)
        boxes = _draw_boxes(generator, statistics, count, height, width)
        for box, outline in zip(boxes, drawn, strict=True):
            polygons = [_place(outline, box)]
            if generator.random() < _IN_PARTS:
                polygons.append(_place(outline, [*box[:2], *(0.4 * box[2:])]))
            polygons = [polygon.round(2).tolist() for polygon in polygons]
            lengths = coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
            crowd = generator.random() < statistics.crowd_share
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": int(generator.choice(classes)),
                    "bbox": box.round(2).tolist(),
                    "area": float(coco_mask.area(lengths)),
                    "iscrowd": int(crowd),
                    "segmentation": _uncompressed(lengths) if crowd else polygons,
                }
            )
        outlines += list(drawn)
    categories = [{"id": k, "name": f"class {k}"} for k in range(1, statistics.num_classes + 1)]
    truth = {"images": images, "annotations": annotations, "categories": categories}
    return truth, outlines


def make_results(seed, statistics, ground_truth, outlines, num_detections, with_masks):
    """Draws detections of the images of a ground truth.

    Args:
        seed: int.
        statistics: `Statistics` of the ground truth.
        ground_truth: of `make_ground_truth`.
        outlines: the same.
        num_detections: int, an image.
        with_masks: bool, whether a detection has a "segmentation" (compressed run lengths) and no
            "bbox", as Detectron2 hands masks to pycocotools, or a "bbox" alone.

    Returns:
        list of dicts in COCO's result form. Scores have three digits, so that many are equal.
    """
    generator = np.random.default_rng([seed, 1])
    objects = {image["id"]: [] for image in ground_truth["images"]}
    for row, annotation in enumerate(ground_truth["annotations"]):
        objects[annotation["image_id"]].append(row)
    results = []
    for image in ground_truth["images"]:
        near = [ground_truth["annotations"][row] for row in objects[image["id"]]]
        size, count = (image["height"], image["width"]), num_detections
        boxes = _draw_boxes(generator, statistics, count, *size)
        classes = generator.integers(1, statistics.num_classes + 1, count)
        scores = generator.beta(0.5, 3, count)
        at_object = (generator.random(count) < _AT_OBJECT) & (len(near) > 0)
        if near:
            picked = generator.integers(0, len(near), count)
            own = np.array([each["bbox"] for each in near])[picked]
            noise = generator.normal(0, 0.1, own.shape) * generator.random([count, 1])
            own = own + noise * np.tile(own[:, 2:], 2)
            boxes = np.where(at_object[:, np.newaxis], own, boxes)
            keeps = np.where(at_object, _RIGHT_CLASS, _CLASS_OF_IMAGE) > generator.random(count)
            classes = np.where(keeps, np.array([e["category_id"] for e in near])[picked], classes)
            scores = np.where(at_object & keeps, np.sqrt(scores), scores)
        boxes[:, 2:] = np.maximum(boxes[:, 2:], 1.0)
        found = [
            {"image_id": image["id"], "category_id": category_id, "score": score}
            for category_id, score in zip(classes.tolist(), scores.round(3).tolist(), strict=True)
        ]
        if with_masks:
            drawn = _draw_outlines(generator, count)
            if near:
                own = np.stack([outlines[row] for row in objects[image["id"]]])[picked]
                own = own + generator.normal(0, 0.02, own.shape)
                drawn = np.where(at_object[:, np.newaxis, np.newaxis], own, drawn)
            placed = [_place(*each) for each in zip(drawn, boxes, strict=True)]
            for result, lengths in zip(found, coco_mask.frPyObjects(placed, *size), strict=True):
                counts = lengths["counts"].decode("ascii")
                result["segmentation"] = {"size": list(size), "counts": counts}
        else:
            for result, box in zip(found, boxes.round(2).tolist(), strict=True):
                result["bbox"] = box
        results += found
    return results


def make_small_masks(seed, statistics, num_images, num_detections, size=28):
    """Draws what a mask head predicts.

    Args:
        seed: int.
        statistics: `Statistics`.
        num_images: int.
        num_detections: int, an image.
        size: int S, side of a mask.

    Returns:
        For each image: masks float32 [num_detections, S, S], probabilities; boxes float32
        [num_detections, 4], (y1, x1, y2, x2), pixels; and the image's (height, width).
    """
    generator = np.random.default_rng([seed, 2])
    axis = (np.arange(size) + 0.5) / size - 0.5
    radius = np.hypot(axis[:, np.newaxis], axis)
    angle = np.arctan2(axis[:, np.newaxis], axis)
    drawn = []
    for _ in range(num_images):
        height, width = statistics.sides[::-1] if generator.random() < 0.5 else statistics.sides
        edge = _draw_radii(generator, num_detections, angle.reshape(-1)).reshape([-1, size, size])
        # About two cells from 0.1 to 0.9.
        logits = (edge - radius) * 2.2 * size / 2 + generator.normal(0, 0.3, edge.shape)
        boxes = _draw_boxes(generator, statistics, num_detections, height, width)
        boxes = np.concatenate([boxes[:, 1::-1], boxes[:, 1::-1] + boxes[:, :1:-1]], -1)
        masks = 1 / (1 + np.exp(-logits))
        drawn.append((masks.astype(np.float32), boxes.astype(np.float32), (height, width)))
    return drawn


def _draw_radii(generator, count, angle):
    """Returns float [count, angles], about 0.45, of closed outlines."""
    order = np.arange(1, _HARMONICS + 1)[:, np.newaxis]
    phase = generator.uniform(0, 2 * np.pi, [count, _HARMONICS, 1])
    weight = generator.normal(0, 0.04, [count, _HARMONICS, 1])
    return 0.45 + (weight * np.cos(order * angle + phase)).sum(1)


def _draw_outlines(generator, count):
    """Returns points float [count, V, 2], (x, y), in a box from 0 to 1."""
    angle = np.linspace(0, 2 * np.pi, _VERTICES, endpoint=False)
    radius = _draw_radii(generator, count, angle)[..., np.newaxis]
    return np.clip(np.stack([np.cos(angle), np.sin(angle)], -1) * radius + 0.5, 0, 1)


def _draw_boxes(generator, statistics, count, height, width):
    """Returns float [count, 4], (x, y, width, height), pixels."""
    logarithms = np.log([statistics.smallest, statistics.largest])
    size = np.exp(generator.uniform(*logarithms, [count, 2])) * [width, height]
    return np.concatenate([generator.random([count, 2]) * ([width, height] - size), size], -1)


def _place(outline, box):
    """Returns the outline in a box (x, y, width, height), as COCO's flat list of coordinates."""
    return (np.asarray(box[:2]) + outline * np.asarray(box[2:])).reshape(-1)


def _uncompressed(lengths):
    """Returns run lengths as a list, which is how COCO writes crowds."""
    mask = coco_mask.decode(lengths).reshape(-1, order="F")
    change = np.flatnonzero(np.diff(np.append(0, mask)))
    counts = np.diff(np.concatenate([[0], change, [mask.size]]))
    return {"size": [int(side) for side in lengths["size"]], "counts": counts.tolist()}
