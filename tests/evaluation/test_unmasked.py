"""Mask metrics where some objects have no mask, by both engines."""

import copy

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from rethink_tf.evaluation import coco_engines, coco_metrics

SIZE = (100, 120)


def polygon(x, y, w, h):
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def rle(x, y, w, h):
    mask = np.zeros(SIZE, np.uint8)
    mask[y : y + h, x : x + w] = 1
    encoded = coco_mask.encode(np.asfortranarray(mask))
    return encoded | {"counts": encoded["counts"].decode()}


def thing(number, image_id, box, category_id=1, **more):
    return {"id": number, "image_id": image_id, "category_id": category_id, "bbox": list(box)} | {
        "area": box[2] * box[3],
        "iscrowd": 0,
        "segmentation": polygon(*box),
        **more,
    }


def found(image_id, box, score, category_id=1, mask=None):
    return {"image_id": image_id, "category_id": category_id, "bbox": list(box), "score": score} | {
        "segmentation": rle(*(mask or box))
    }


A, B, C = (10, 10, 40, 30), (60, 50, 50, 40), (70, 5, 30, 30)


@pytest.fixture
def truth():
    """Image 1: A with a mask, B without one. Image 2: C without one, another class with one."""
    return {
        "images": [{"id": k, "height": SIZE[0], "width": SIZE[1]} for k in (1, 2)],
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
        "annotations": [
            thing(1, 1, A),
            thing(2, 1, B, segmentation=[]),
            thing(3, 2, C, segmentation=None),
            thing(4, 2, A, category_id=2),
        ],
    }


@pytest.fixture(params=[coco_engines.by_pycocotools, coco_engines.by_faster_coco_eval])
def engine(request, monkeypatch):
    if request.param is coco_engines.by_faster_coco_eval:
        pytest.importorskip("faster_coco_eval")
    monkeypatch.setattr(coco_engines, "choose", lambda: ("engine", request.param))


def masks_of(truth, results):
    metrics = coco_metrics.evaluate(copy.deepcopy(truth), results, ("bbox", "segm"))
    return {key: value for key, value in metrics.items() if key.startswith("mask/")}


def test_they_are_neither_found_nor_missed(truth, engine):
    """The metrics are those of a data set in which these objects, and what is on them, are not."""
    others = [
        found(1, A, 0.9, mask=(10, 10, 40, 27)),
        found(2, A, 0.8, category_id=2),
        found(2, (5, 60, 20, 20), 0.95),  # on nothing: wrong in any case
    ]
    on_them = [
        found(1, B, 0.99),
        found(1, (62, 52, 50, 40), 0.97, mask=(62, 52, 10, 10)),  # a second one, of a small mask
        found(2, (66, 2, 40, 36), 0.98),  # larger than C by a half
    ]
    with_masks = copy.deepcopy(truth)
    with_masks["annotations"] = [truth["annotations"][0], truth["annotations"][3]]
    expected = masks_of(with_masks, others)

    assert masks_of(truth, others) == expected  # not missed
    assert masks_of(truth, others + on_them) == expected  # no false positives
    assert 0 < expected["mask/AP"] < 1
    # By boxes all of them count.
    boxes = coco_metrics.evaluate(truth, others + on_them, ("bbox",))
    assert boxes["box/AR100"] > 0.8
    assert coco_metrics.evaluate(truth, others, ("bbox",))["box/AR100"] < 0.7


def test_an_object_with_a_mask_in_its_place_counts(truth, engine):
    """A detection is of the object that its box overlaps most."""
    truth["annotations"].append(thing(5, 1, (64, 54, 44, 34)))
    wrong_mask = found(1, (64, 54, 44, 34), 0.9, mask=(64, 54, 5, 5))
    metrics = masks_of(truth, [found(1, A, 0.8), wrong_mask])
    without = masks_of(truth, [found(1, A, 0.8)])
    assert metrics["mask/AP_per_class/a"] < without["mask/AP_per_class/a"]
    # Of another class, or far away, it is wrong as ever.
    for other in (found(1, B, 0.9, category_id=2), found(1, (60, 5, 50, 40), 0.9)):
        results = [found(1, A, 0.8), found(2, A, 0.8, category_id=2)]
        assert masks_of(truth, [*results, other])["mask/AP"] < masks_of(truth, results)["mask/AP"]


def test_a_crowd_without_a_mask_is_its_box(truth, engine):
    truth["annotations"] = [thing(1, 1, A), thing(2, 1, B, segmentation=[], iscrowd=1)]
    inside = [found(1, (62, 52, 10, 10), 0.95), found(1, (80, 60, 12, 10), 0.94)]
    metrics = masks_of(truth, [found(1, A, 0.9), *inside])
    assert metrics["mask/AP"] == pytest.approx(1.0)
    truth["annotations"][1]["segmentation"] = polygon(*B)
    assert masks_of(truth, [found(1, A, 0.9), *inside]) == metrics
