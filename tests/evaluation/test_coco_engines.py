"""faster-coco-eval and pycocotools on the same data: every number of one is the other's."""

import contextlib
import io
import sys

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from rethink_tf.evaluation import coco_columns, coco_engines, coco_metrics

SIZE = (60, 80)


def ellipse(generator):
    """Returns a random polygon in the image and its box."""
    height, width = SIZE
    center = generator.random(2) * [width, height]
    radii = np.exp(generator.uniform(np.log(2), np.log(30), 2))
    angle = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    points = center + radii * np.stack([np.cos(angle), np.sin(angle)], -1)
    points = np.clip(points, 0, [width, height])
    low, high = points.min(0), points.max(0)
    return points.reshape(-1).round(2).tolist(), [*low.tolist(), *(high - low).tolist()]


def run_lengths(polygons):
    return coco_mask.merge(coco_mask.frPyObjects(polygons, *SIZE))


def uncompressed(mask):
    column = np.concatenate([[0], mask.reshape(-1, order="F"), [2]])
    return {
        "size": list(mask.shape),
        "counts": np.diff(np.concatenate([[0], np.flatnonzero(np.diff(column))])).tolist(),
    }


def make_truth(seed, num_images=12, num_classes=4, mean_objects=5, crowd_share=0.15):
    """Crowds, objects in two parts, compressed masks, missing areas, images without objects."""
    generator = np.random.default_rng(seed)
    annotations = []
    for image_id in range(num_images):
        for _ in range(generator.poisson(mean_objects) if image_id % 5 else 0):
            polygon, box = ellipse(generator)
            kind = generator.random()
            segmentation = [polygon]
            if kind < 0.2:
                segmentation.append(ellipse(generator)[0])
            elif kind < 0.4:
                segmentation = coco_mask.frPyObjects([polygon], *SIZE)[0]
            entry = {
                # Neither in order, nor free of 0.
                "id": 1000 - len(annotations) if annotations else 0,
                "image_id": 7 * image_id,
                "category_id": int(3 * generator.integers(1, num_classes + 1)),
                "bbox": box,
                "area": box[2] * box[3] / 2,
                "segmentation": segmentation,
            }
            if generator.random() < crowd_share:
                mask = coco_mask.decode(coco_mask.frPyObjects([polygon], *SIZE)[0])
                entry |= {"iscrowd": 1, "segmentation": uncompressed(mask)}
            if generator.random() < 0.2:
                del entry["area"]
            annotations.append(entry)
    images = [{"id": 7 * i, "height": SIZE[0], "width": SIZE[1]} for i in range(num_images)]
    # Out of order, with a class that nothing is of.
    categories = [{"id": 3 * k, "name": f"class {k}"} for k in range(num_classes + 1, 0, -1)]
    return {"images": images[::-1], "annotations": annotations, "categories": categories}


def make_results(seed, truth, count=30, crowded_image=None):
    """Moved objects and others, with many equal scores; none in every fourth image."""
    generator = np.random.default_rng(seed)
    ids = [entry["id"] for entry in truth["categories"]]
    results = []
    for image in truth["images"]:
        near = [a for a in truth["annotations"] if a["image_id"] == image["id"]]
        number = 150 if image["id"] == crowded_image else count * (image["id"] % 4 != 1)
        for _ in range(number):
            polygon, category = ellipse(generator)[0], int(generator.choice(ids))
            if near and generator.random() < 0.7:
                other = near[generator.integers(len(near))]
                category = other["category_id"]
                if isinstance(other["segmentation"], list):
                    noise = generator.normal(0, 1.5, len(other["segmentation"][0]))
                    polygon = np.array(other["segmentation"][0]) + noise
                    polygon = np.clip(polygon, 0, np.tile([SIZE[1], SIZE[0]], 12)).tolist()
            if image["id"] == crowded_image:
                category = ids[0]
            lengths = run_lengths([polygon])
            points = np.reshape(polygon, [-1, 2])
            results.append(
                {
                    "image_id": image["id"],
                    "category_id": category,
                    "bbox": [*points.min(0).tolist(), *np.ptp(points, 0).tolist()],
                    "score": float(generator.integers(0, 8)) / 8,
                    "segmentation": {"size": list(SIZE), "counts": lengths["counts"].decode()},
                }
            )
    return results


def both(monkeypatch, truth, results, **more):
    """Returns the metrics of both engines."""
    fast = coco_metrics.evaluate(truth, results, **more)
    with monkeypatch.context() as blocked:
        blocked.setitem(sys.modules, "faster_coco_eval", None)
        blocked.setitem(sys.modules, "faster_coco_eval.faster_eval_api_cpp", None)
        slow = coco_metrics.evaluate(truth, results, **more)
    return fast, slow


@pytest.mark.parametrize("seed", range(4))
def test_all_numbers_are_equal(monkeypatch, seed):
    truth = make_truth(seed)
    fast, slow = both(monkeypatch, truth, make_results(seed, truth))
    assert len(fast) == 2 * (12 + 5) and len(set(fast.values())) > 15
    assert fast == pytest.approx(slow, abs=1e-9)
    part = [image["id"] for image in truth["images"][2:9]]
    fast, slow = both(monkeypatch, truth, make_results(seed, truth), image_ids=part)
    assert fast == pytest.approx(slow, abs=1e-9)


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize(
    "data",
    [
        {"num_classes": 1},
        {"num_classes": 40, "mean_objects": 3},
        {"crowd_share": 1.0},
        {"crowd_share": 0.0, "mean_objects": 25},
        {"mean_objects": 0},
    ],
)
def test_all_of_precision_and_recall_is_equal(iou_type, data):
    truth = coco_columns.GroundTruth(make_truth(1, **data))
    crowded = 7  # more detections of one class in this image than count
    found = coco_columns.Results(make_results(2, make_truth(1, **data), 20, crowded), truth)
    kept = np.ones(len(truth.images), bool)
    arguments = (
        iou_type,
        truth.instances(iou_type, kept),
        found.instances(iou_type, kept, np.arange(len(truth.categories))),
        len(truth.images),
        len(truth.categories),
    )
    fast = coco_engines.by_faster_coco_eval(*arguments).eval
    slow = coco_engines.by_pycocotools(*arguments).eval
    for key in ("precision", "recall"):
        assert fast[key].shape == slow[key].shape
        np.testing.assert_allclose(fast[key], slow[key], rtol=0, atol=1e-9)


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_numbers_are_those_of_pycocotools_as_its_users_call_it(iou_type):
    truth = make_truth(5)
    for number, entry in enumerate(truth["annotations"], start=1):
        # What it needs and ours does not.
        entry |= {"id": number, "iscrowd": entry.get("iscrowd", 0), "area": entry.get("area", 9.0)}
    results = make_results(6, truth)
    for result in results:
        if iou_type == "segm":
            del result["bbox"]  # else it takes areas from the box
    metrics = coco_metrics.evaluate(truth, results, [iou_type])
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        evaluator = COCOeval(coco, coco.loadRes(results), iou_type)
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    np.testing.assert_allclose(list(metrics.values())[:12], evaluator.stats, rtol=0, atol=1e-9)


def test_tables_of_any_size_give_the_same(monkeypatch):
    truth = make_truth(3, num_classes=9)
    results = make_results(3, truth)
    whole = coco_metrics.evaluate(truth, results)
    for cells in (1, 20):
        monkeypatch.setattr(coco_engines, "_CELLS_AT_ONCE", cells)
        assert coco_metrics.evaluate(truth, results) == whole


def test_the_log_says_which_is_used(monkeypatch, caplog):
    truth = make_truth(0, num_images=2)
    with caplog.at_level("DEBUG", logger="absl"):
        both(monkeypatch, truth, [])
    assert "by faster-coco-eval 1.8" in caplog.text
    assert "by pycocotools (faster-coco-eval" in caplog.text


def test_collections_of_garbage_go_on_afterwards():
    import gc

    truth = make_truth(0, num_images=2)
    assert gc.isenabled()
    coco_metrics.evaluate(truth, [])
    assert gc.isenabled()
    with pytest.raises(ValueError):
        coco_metrics.evaluate(truth, [{}])
    assert gc.isenabled()
