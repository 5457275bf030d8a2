"""AP from a file of matches against pycocotools, on the images as they are and drawn again."""

import contextlib
import dataclasses
import io

import numpy as np
import pytest
from drawn_study import CATEGORIES, NUM_IMAGES, arrays_of, make_data
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from rethink_tf import metrics_file
from rethink_tf.evaluation import coco_metrics
from rethink_tf.evaluation import matches as writing
from rethink_tf.report import collecting, matches


def drawn(truth, results, weights):
    """The data set whose images are there as many times as they are drawn."""
    images, annotations, found = [], [], []
    for image, weight in zip(truth["images"], weights, strict=True):
        for copy in range(weight):
            number = image["id"] * 100 + copy
            images.append(image | {"id": number})
            for entries, made in ((truth["annotations"], annotations), (results, found)):
                own = [each for each in entries if each["image_id"] == image["id"]]
                made += [each | {"image_id": number} for each in own]
    numbered = [each | {"id": number} for number, each in enumerate(annotations, start=1)]
    return truth | {"images": images, "annotations": numbered}, found


def by_pycocotools(truth, results, iou_type):
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        evaluator = COCOeval(coco, coco.loadRes([dict(each) for each in results]), iou_type)
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator.stats[0]


@pytest.mark.parametrize("kind", ["box", "mask"])
def test_ap_is_that_of_pycocotools_on_any_draw(kind):
    truth, results = make_data(2)
    found = matches.Matches(arrays_of(truth, results), kind)
    iou_type = {"box": "bbox", "mask": "segm"}[kind]
    expected = by_pycocotools(truth, results, iou_type)
    assert 0.05 < expected < 0.9
    assert found.average_precision() == pytest.approx(expected, abs=1e-9)
    generator = np.random.default_rng(5)
    for _ in range(6):
        weights = np.bincount(generator.integers(0, NUM_IMAGES, NUM_IMAGES), minlength=NUM_IMAGES)
        expected = by_pycocotools(*drawn(truth, results, weights), iou_type)
        assert found.average_precision(weights) == pytest.approx(expected, abs=1e-9)


def test_nothing_found_is_zero_and_nothing_to_find_is_nan():
    truth, _ = make_data(2)
    found = matches.Matches(arrays_of(truth, []), "box")
    assert found.average_precision() == 0
    assert np.isnan(found.average_precision(np.zeros(NUM_IMAGES, np.int64)))


def test_the_bootstrap_is_paired_and_repeatable():
    good, bad = (
        [matches.Matches(arrays_of(*make_data(seed, blur)), "box") for seed in (2, 3)]
        for blur in (1.0, 5.0)
    )
    interval = matches.bootstrap(bad, good, 60, 0.95, seed=4)
    assert interval == matches.bootstrap(bad, good, 60, 0.95, seed=4)
    assert interval != matches.bootstrap(bad, good, 60, 0.95, seed=5)
    assert 0 < interval.low < interval.difference < interval.high
    means = [np.mean([each.average_precision() for each in part]) for part in (bad, good)]
    assert interval.difference == pytest.approx(means[1] - means[0])
    same = matches.bootstrap(good, good, 10, 0.95)
    assert (same.low, same.high) == (0, 0)
    truth, results = make_data(2)
    fewer = truth | {"images": truth["images"][2:]}
    other = matches.Matches(arrays_of(fewer, results), "box")
    with pytest.raises(ValueError, match="different images"):
        matches.bootstrap(good, [other], 10, 0.95)


def test_the_confusion_matrix_by_hand():
    truth = {"images": [{"id": 1, "height": 99, "width": 99}], "categories": CATEGORIES}
    boxes = [(3, [0, 0, 10, 10], 0), (7, [20, 0, 10, 10], 0), (3, [40, 0, 10, 10], 0),
             (3, [60, 0, 30, 30], 1)]  # fmt: skip
    truth["annotations"] = [
        {"id": n, "image_id": 1, "category_id": c, "bbox": b, "area": b[2] * b[3], "iscrowd": crowd}
        for n, (c, b, crowd) in enumerate(boxes, start=1)
    ]
    found = [(3, [0, 0, 10, 10], 0.9), (9, [20, 0, 10, 9], 0.8), (7, [0, 50, 9, 9], 0.7),
             (3, [60, 0, 9, 9], 0.9), (3, [40, 0, 10, 10], 0.4)]  # fmt: skip
    results = [{"image_id": 1, "category_id": c, "bbox": b, "score": s} for c, b, s in found]
    matrix = coco_metrics.CocoMetrics(truth).matches(results)["confusion"]
    # One right; b taken for "never"; one missed (its score is too low); one of nothing.
    assert matrix.tolist() == [[1, 0, 0, 1], [0, 0, 1, 0], [0, 0, 0, 0], [0, 1, 0, 0]]


def test_a_file_is_read_as_it_was_written_and_a_damaged_one_is_named(tmp_path):
    names = [field.name for field in dataclasses.fields(collecting.StudyRun)]
    known = {"model_dir": str(tmp_path), "num_steps": 4}
    run = collecting.StudyRun(**{name: known.get(name) for name in names})
    assert matches.read(run) is None
    arrays = arrays_of(*make_data(2))
    path = metrics_file.matches_path(str(tmp_path), 4)
    writing.write(path, arrays)
    read = matches.read(run)
    assert read.keys() == arrays.keys() and matches.kinds(read) == ["box", "mask"]
    assert all(np.array_equal(read[name], arrays[name]) for name in arrays)
    with open(path, "r+b") as file:
        file.truncate(200)
    with pytest.raises(ValueError, match=r"matches-4\.npz is damaged .* --mode=evaluate"):
        matches.read(run)
