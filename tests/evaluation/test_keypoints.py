"""Keypoint AP: pycocotools called directly, both engines, files and tables."""

import contextlib
import io
import sys

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from rethink_tf.data.records.keypoints import read_keypoints
from rethink_tf.evaluation import coco_metrics
from rethink_tf.evaluation import keypoints as keypoint_lib


def make_truth(seed, num_keypoints=17, num_images=15):
    """Persons of many sizes, crowds, persons without a labelled keypoint, images with nobody."""
    generator = np.random.default_rng(seed)
    annotations = []
    for image_id in range(1, num_images + 1):
        for _ in range(generator.poisson(3) if image_id % 5 else 0):
            corner, size = generator.uniform(0, 200, 2), np.exp(generator.uniform(2.5, 5.5, 2))
            keypoints = np.zeros((num_keypoints, 3))
            keypoints[:, :2] = corner + generator.uniform(0, 1, (num_keypoints, 2)) * size
            keypoints[:, 2] = generator.choice(3, num_keypoints, p=[0.3, 0.2, 0.5])
            kind = generator.random()
            if kind < 0.2:
                keypoints[:, 2] = 0
            keypoints[keypoints[:, 2] == 0] = 0
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": int(generator.integers(1, 3)),
                    "bbox": [*corner, *size],
                    "area": 0.6 * float(size.prod()),
                    "iscrowd": int(kind > 0.9),
                    "keypoints": keypoints.ravel().tolist(),
                    "num_keypoints": int((keypoints[:, 2] > 0).sum()),
                }
            )
    images = [{"id": i, "height": 500, "width": 500} for i in range(1, num_images + 1)]
    categories = [{"id": i, "name": name} for i, name in ((1, "person"), (2, "cat"), (3, "none"))]
    return {"images": images, "annotations": annotations, "categories": categories}


def make_results(seed, truth, count=25):
    """Moved objects and others, with equal scores; more than 20 in an image."""
    generator = np.random.default_rng(seed)
    results = []
    for image in truth["images"]:
        near = [a for a in truth["annotations"] if a["image_id"] == image["id"]]
        for _ in range(count if image["id"] % 4 else 0):
            like = near[generator.integers(len(near))] if near else truth["annotations"][0]
            points = np.reshape(like["keypoints"], [-1, 3]).copy()
            corner, size = np.split(np.array(like["bbox"]), 2)
            points[points[:, 2] == 0, :2] = corner + generator.uniform(0, 1, 2) * size
            points[:, :2] += generator.normal(0, np.sqrt(like["area"]) / 12, points[:, :2].shape)
            points[:, 2] = generator.random(len(points))
            results.append(
                {
                    "image_id": image["id"],
                    "category_id": like["category_id"],
                    "score": float(generator.integers(0, 8)) / 8,
                    "keypoints": points.ravel().tolist(),
                }
            )
    return results


def by_pycocotools(truth, results, sigmas=None):
    """The numbers of pycocotools as its users call it."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        evaluator = COCOeval(coco, coco.loadRes(results), "keypoints")
        if sigmas is not None:
            evaluator.params.kpt_oks_sigmas = sigmas
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator.stats


@pytest.mark.parametrize("num_keypoints", [17, 5])
@pytest.mark.parametrize("seed", range(3))
def test_numbers_are_those_of_pycocotools(monkeypatch, seed, num_keypoints):
    truth = make_truth(seed, num_keypoints)
    results = make_results(seed, truth)
    sigmas = None if num_keypoints == 17 else np.full(num_keypoints, 0.05)
    expected = by_pycocotools(truth, results, sigmas)
    fast = coco_metrics.evaluate(truth, results, ["keypoints"])
    summary = {
        f"keypoints/{name}": fast[f"keypoints/{name}"]
        for name in coco_metrics.metric_names("keypoints")
    }
    np.testing.assert_allclose(list(summary.values()), expected, rtol=0, atol=1e-9)
    assert len(summary) == 10 and len(set(summary.values())) > 6
    assert fast["keypoints/AP_per_class/none"] == -1.0
    with monkeypatch.context() as blocked:
        blocked.setitem(sys.modules, "faster_coco_eval", None)
        blocked.setitem(sys.modules, "faster_coco_eval.faster_eval_api_cpp", None)
        slow = coco_metrics.evaluate(truth, results, ["keypoints"])
    assert fast == pytest.approx(slow, abs=1e-9)


def test_similarity_is_that_of_pycocotools():
    truth = make_truth(7)
    results = make_results(8, truth, count=6)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        evaluator = COCOeval(coco, coco.loadRes(results), "keypoints")
        evaluator.params.imgIds, evaluator.params.catIds = sorted(coco.imgs), [1, 2, 3]
        evaluator._prepare()
    compared = 0
    for image_id, category_id in list(evaluator._gts):
        objects, found = (each[image_id, category_id] for each in (evaluator._gts, evaluator._dts))
        found = sorted(found, key=lambda one: -one["score"])
        if not found:
            continue
        similarity = keypoint_lib.similarity(
            np.array([one["keypoints"] for one in found]),
            np.array([one["keypoints"] for one in objects]),
            np.array([one["bbox"] for one in objects]),
            np.array([one["area"] for one in objects]),
        )
        expected = evaluator.computeOks(image_id, category_id)
        np.testing.assert_allclose(similarity, expected, rtol=1e-9)
        compared += expected.size
    assert compared > 50


def test_the_ground_truth_itself_scores_1_and_boxes_besides():
    truth = make_truth(3)
    results = []
    for image in truth["images"]:
        near = [a for a in truth["annotations"] if a["image_id"] == image["id"]]
        near = [a for a in near if not a["iscrowd"]]
        # Positions in pixels of the image, as the detector gives them: (y, x), half a pixel more.
        keypoints = read_keypoints(near, 17)
        x, y, width, height = np.reshape([a["bbox"] for a in near], [-1, 4]).T
        # What is not labelled may lie anywhere, but for persons of whom nothing is: near them. They
        # come last, so that they take no other's place.
        scores = np.where((keypoints[..., 2] > 0).any(axis=1), 1.0, 0.5)
        middle = np.stack([y + height / 2, x + width / 2, np.ones(len(near))], -1)
        keypoints = np.where(keypoints[..., 2:] > 0, keypoints, middle[:, np.newaxis])
        results += coco_metrics.detections_to_coco(
            image["id"],
            np.stack([y, x, y + height, x + width], -1),
            scores,
            [a["category_id"] for a in near],
            keypoints=keypoint_lib.to_coco(keypoints),
        )
    assert set(results[0]) == {"image_id", "category_id", "bbox", "score", "keypoints"}
    first = next(a for a in truth["annotations"] if not a["iscrowd"] and a["num_keypoints"])
    result = next(r for r in results if r["bbox"] == pytest.approx(first["bbox"]))
    shown = np.reshape(first["keypoints"], [-1, 3])
    found = np.reshape(result["keypoints"], [-1, 3])
    np.testing.assert_allclose(found[shown[:, 2] > 0], shown[shown[:, 2] > 0])
    metrics = coco_metrics.evaluate(truth, results, ["bbox", "keypoints"])
    assert metrics["keypoints/AP"] == metrics["box/AP"] == 1.0
    lines = coco_metrics.format_table(metrics).splitlines()
    assert lines[2].split() == list(coco_metrics.KEYPOINT_METRIC_NAMES)
    assert lines[3].split()[:3] == ["keypoints", "1.000", "1.000"]
    assert lines[5].split() == "AP by class box keypoints".split() * 3


@pytest.mark.parametrize(
    ("fields", "headline"),
    [
        ((), "box/AP"),
        (("masks",), "mask/AP"),
        (("keypoints",), "keypoints/AP"),
        (("keypoints", "masks"), "keypoints/AP"),
        (("ages",), "box/AP"),
    ],
)
def test_the_best_checkpoint_is_chosen_by_what_is_found_last(fields, headline):
    truth = make_truth(3)
    for each in truth["annotations"]:
        each["segmentation"] = [[0, 0, 9, 0, 9, 9]]
    measure = coco_metrics.CocoMetrics(truth, fields)
    metrics = measure.evaluate([])
    assert measure.headline == headline and metrics[headline] == 0.0
    assert ("mask/AP" in metrics) == ("masks" in fields)
    assert ("keypoints/AP" in metrics) == ("keypoints" in fields)


def test_a_ground_truth_without_keypoints(caplog):
    truth = make_truth(0)
    results = make_results(0, truth)
    for each in truth["annotations"]:
        del each["keypoints"], each["num_keypoints"]
    metrics = coco_metrics.evaluate(truth, results, ["keypoints"])
    assert set(metrics.values()) == {-1.0} and "has no keypoints" in caplog.text


@pytest.mark.parametrize("bad", [None, [1.0] * 6, [np.nan] * 51, "text"])
def test_bad_results_are_named(bad):
    truth = make_truth(0)
    results = make_results(0, truth)
    results[4] = results[4] | {"keypoints": bad}
    if bad is None:
        del results[4]["keypoints"]
    with pytest.raises(ValueError, match=r"result 4 \(image 1\): 'keypoints' must be 51 finite"):
        coco_metrics.evaluate(truth, results, ["keypoints"])


def test_a_ground_truth_of_several_numbers_of_keypoints():
    truth = make_truth(0)
    truth["annotations"][2]["keypoints"] = [1, 2, 2]
    with pytest.raises(
        ValueError, match=r"annotation 3 of image .* has 3 numbers .* others have 51"
    ):
        coco_metrics.evaluate(truth, [], ["keypoints"])
