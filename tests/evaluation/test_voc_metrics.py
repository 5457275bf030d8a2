"""VOC's mAP by hand values, against the devkit's steps one by one, and on bad input."""

import fractions

import numpy as np
import pytest

from rethink_tf.evaluation import voc_metrics

IMAGES = [{"id": i, "height": 100, "width": 100} for i in (1, 2, 3)]
CATEGORIES = [{"id": 5, "name": "cat"}, {"id": 2, "name": "ant"}, {"id": 9, "name": "dog"}]


def annotation(image_id, category_id, box, difficult=0, **more):
    """An object; the box is (x, y, width, height)."""
    return {
        "image_id": image_id,
        "category_id": category_id,
        "bbox": list(box),
        "difficult": difficult,
        **more,
    }


def detection(image_id, category_id, box, score):
    return {"image_id": image_id, "category_id": category_id, "bbox": list(box), "score": score}


def measure(annotations, results, **options):
    truth = {"images": IMAGES, "categories": CATEGORIES, "annotations": annotations}
    return voc_metrics.evaluate(truth, results, **options)


def cat(annotations, results, **options):
    return measure(annotations, results, **options)["voc/AP_per_class/cat"]


BOX, FAR, OTHER = (10, 10, 20, 20), (60, 60, 20, 20), (10, 60, 20, 20)


def test_both_rules_by_hand():
    """Four objects; hits and misses in order: hit, miss, hit, hit.

    Recall 1/4 1/4 2/4 3/4, precision 1 1/2 2/3 3/4; the envelope is 1 3/4 3/4 3/4.
    """
    objects = [annotation(i, 5, box) for i, box in ((1, BOX), (1, FAR), (2, BOX), (3, BOX))]
    results = [
        detection(2, 5, BOX, 0.7),
        detection(1, 5, BOX, 0.9),
        detection(1, 5, OTHER, 0.8),
        detection(3, 5, BOX, 0.6),
    ]
    assert cat(objects, results) == pytest.approx((1 + 3 / 4 + 3 / 4) / 4)
    # Recalls 0 0.1 0.2: 1; 0.3 to 0.7: 3/4; 0.8 to 1: not reached.
    eleven = (3 * 1 + 5 * 3 / 4) / 11
    assert cat(objects, results, rule="11_points") == pytest.approx(eleven)


def test_a_recall_of_three_tenths_is_reached_by_three_of_ten():
    objects = [annotation(1, 5, (10 * i, 0, 8, 8)) for i in range(10)]
    results = [detection(1, 5, (10 * i, 0, 8, 8), 0.9) for i in range(3)]
    # 0, 0.1, 0.2 and 0.3; the float 3 * 0.1 lies above 3 / 10.
    assert cat(objects, results, rule="11_points") == pytest.approx(4 / 11)


@pytest.mark.parametrize("rule", ["area", "11_points"])
def test_all_found_and_nothing_found(rule):
    objects = [annotation(1, 5, BOX), annotation(2, 5, FAR)]
    results = [detection(1, 5, BOX, 0.3), detection(2, 5, FAR, 0.2)]
    assert cat(objects, results, rule=rule) == pytest.approx(1)
    assert cat(objects, [], rule=rule) == 0
    # The right place in another image, and of another class.
    wrong = [detection(3, 5, BOX, 0.3), detection(2, 9, FAR, 0.2)]
    assert cat(objects, wrong, rule=rule) == 0


def test_a_second_detection_of_an_object_is_wrong():
    objects = [annotation(1, 5, BOX), annotation(2, 5, BOX)]
    results = [
        detection(1, 5, BOX, 0.9),
        detection(1, 5, BOX, 0.8),
        detection(2, 5, BOX, 0.7),
    ]
    assert cat(objects, results) == pytest.approx((1 + 2 / 3) / 2)


def test_a_second_detection_does_not_fall_to_the_next_object():
    # Both overlap the first object most; the second is free and near enough, and stays so.
    objects = [annotation(1, 5, (0, 0, 20, 20)), annotation(1, 5, (0, 4, 20, 20))]
    results = [detection(1, 5, (0, 0, 20, 20), 0.9), detection(1, 5, (0, 1, 20, 20), 0.8)]
    assert cat(objects, results) == pytest.approx(1 / 2)


def test_difficult_objects_count_neither_way():
    objects = [annotation(1, 5, BOX), annotation(1, 5, FAR, difficult=1), annotation(2, 5, BOX)]
    results = [
        detection(1, 5, FAR, 0.9),  # ignored,
        detection(1, 5, FAR, 0.8),  # however often
        detection(1, 5, BOX, 0.7),
        detection(2, 5, BOX, 0.6),
    ]
    assert cat(objects, results) == pytest.approx(1)
    assert cat(objects, results, rule="11_points") == pytest.approx(1)
    # Missing it costs nothing, either.
    assert cat(objects, results[2:]) == pytest.approx(1)
    # A wrong detection before the ignored ones counts as it does without them.
    wrong = [detection(3, 5, BOX, 0.95), *results]
    assert cat(objects, wrong) == pytest.approx((2 / 3 + 2 / 3) / 2)


def test_crowd_regions_are_taken_as_difficult():
    objects = [annotation(1, 5, BOX), annotation(1, 5, FAR, iscrowd=1)]
    del objects[0]["difficult"]
    results = [detection(1, 5, FAR, 0.9), detection(1, 5, BOX, 0.7)]
    assert cat(objects, results) == pytest.approx(1)


def test_equal_scores_keep_the_order_of_the_results():
    objects = [annotation(1, 5, BOX)]
    right, wrong = detection(1, 5, BOX, 0.5), detection(1, 5, FAR, 0.5)
    assert cat(objects, [right, wrong]) == pytest.approx(1)
    assert cat(objects, [wrong, right]) == pytest.approx(1 / 2)


def test_an_overlap_of_just_the_threshold_is_a_match():
    # Pixels 1..20 against 1..10 of the same rows: 200 / 400.
    objects = [annotation(1, 5, (0, 0, 20, 20))]
    assert cat(objects, [detection(1, 5, (0, 0, 10, 20), 0.5)]) == pytest.approx(1)
    assert cat(objects, [detection(1, 5, (0, 0, 9.99, 20), 0.5)]) == 0
    assert cat(objects, [detection(1, 5, (0, 0, 10, 20), 0.5)], iou_threshold=0.51) == 0


def test_classes_without_an_object_are_left_out_of_the_mean():
    objects = [
        annotation(1, 5, BOX),
        annotation(1, 2, BOX),
        annotation(2, 9, BOX, difficult=1),
    ]
    metrics = measure(objects, [detection(1, 5, BOX, 0.5), detection(2, 9, BOX, 0.5)])
    assert list(metrics) == [
        "voc/mAP",
        "voc/AP_per_class/ant",
        "voc/AP_per_class/cat",
        "voc/AP_per_class/dog",
    ]
    assert metrics["voc/AP_per_class/dog"] == -1  # its one object is difficult
    assert metrics["voc/AP_per_class/ant"] == 0
    assert metrics["voc/mAP"] == pytest.approx((1 + 0) / 2)
    assert all(type(value) is float for value in metrics.values())


def test_nothing_to_be_found():
    assert measure([], [detection(1, 5, BOX, 0.5)])["voc/mAP"] == -1
    assert measure([], [])["voc/mAP"] == -1


def devkit(objects, results, rule, threshold):
    """The devkit step by step, on its own 1-based boxes whose last pixel belongs to them.

    Args:
        objects: of one class, [(image id, (x1, y1, x2, y2), difficult)].
        results: [(image id, (x1, y1, x2, y2), score)].
        rule: "area" or "11_points".
        threshold: of the overlap.

    Returns:
        A `Fraction`; None without an object to be found.
    """
    total = sum(not difficult for _, _, difficult in objects)
    if not total:
        return None
    taken, tp, fp = set(), [], []
    for image, bb, _ in sorted(results, key=lambda each: -each[2]):
        best, at = fractions.Fraction(-1), None
        for k, (where, gt, _) in enumerate(objects):
            wide = min(bb[2], gt[2]) - max(bb[0], gt[0]) + 1
            high = min(bb[3], gt[3]) - max(bb[1], gt[1]) + 1
            if where != image or wide <= 0 or high <= 0:
                continue
            areas = [(b[2] - b[0] + 1) * (b[3] - b[1] + 1) for b in (bb, gt)]
            overlap = fractions.Fraction(wide * high, sum(areas) - wide * high)
            if overlap > best:
                best, at = overlap, k
        right = wrong = 0
        if best < threshold:
            wrong = 1
        elif not objects[at][2]:
            right, wrong = (0, 1) if at in taken else (1, 0)
            taken.add(at)
        tp.append(right)
        fp.append(wrong)
    curve = []
    for end in range(1, len(tp) + 1):
        hits, misses = sum(tp[:end]), sum(fp[:end])
        if hits + misses:
            pair = fractions.Fraction(hits, total), fractions.Fraction(hits, hits + misses)
            curve.append(pair)
    if rule == "11_points":
        points = [fractions.Fraction(k, 10) for k in range(11)]
        return sum(max([p for r, p in curve if r >= t], default=0) for t in points) / 11
    recall = [0, *(r for r, _ in curve), 1]
    precision = [0, *(p for _, p in curve), 0]
    for k in range(len(precision) - 2, -1, -1):
        precision[k] = max(precision[k], precision[k + 1])
    return sum((recall[k] - recall[k - 1]) * precision[k] for k in range(1, len(recall)))


@pytest.mark.parametrize("rule", ["area", "11_points"])
@pytest.mark.parametrize("seed", range(6))
def test_against_the_devkit_on_random_data(seed, rule):
    rng = np.random.default_rng(seed)

    def draw(count):
        corner = rng.integers(1, 12, [count, 2])
        return np.concatenate([corner, corner + rng.integers(0, 9, [count, 2])], 1).tolist()

    def convert(box):
        return [box[0] - 1, box[1] - 1, box[2] - box[0] + 1, box[3] - box[1] + 1]

    number, expected = 40 if seed else 3, {}
    annotations, results, by_class = [], [], {5: ([], []), 2: ([], []), 9: ([], [])}
    for box in draw(number):
        image, label = int(rng.integers(1, 4)), int(rng.choice([5, 2, 9]))
        difficult = int(rng.random() < 0.25)
        annotations.append(annotation(image, label, convert(box), difficult))
        by_class[label][0].append((image, box, difficult))
    for box in draw(3 * number):
        image, label = int(rng.integers(1, 4)), int(rng.choice([5, 2, 9]))
        score = float(rng.integers(0, 30)) / 30  # many are equal
        results.append(detection(image, label, convert(box), score))
        by_class[label][1].append((image, box, score))
    metrics = measure(annotations, results, rule=rule)
    for entry in CATEGORIES:
        value = devkit(*by_class[entry["id"]], rule, fractions.Fraction(1, 2))
        expected[entry["name"]] = -1.0 if value is None else float(value)
        found = metrics[f"voc/AP_per_class/{entry['name']}"]
        assert found == pytest.approx(expected[entry["name"]], abs=1e-12), entry
    present = [value for value in expected.values() if value >= 0]
    assert metrics["voc/mAP"] == pytest.approx(np.mean(present), abs=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rule": "2007"}, "rule is '2007'"),
        ({"iou_threshold": 0}, "iou_threshold is 0"),
        ({"results": [detection(4, 5, BOX, 0.5)]}, "no image with id 4"),
        ({"results": [detection(1, 1, BOX, 0.5)]}, "no category with id 1"),
        ({"results": [detection(1, 5, BOX, float("nan"))]}, "the score is nan"),
        ({"results": [detection(1, 5, (0, 0, -1, 5), 0.5)]}, "bbox must be finite"),
    ],
)
def test_bad_input_is_one_clear_error(options, message):
    options = {"annotations": [annotation(1, 5, BOX)], "results": []} | options
    with pytest.raises(ValueError, match=message):
        measure(**options)


def test_the_object_for_the_evaluator():
    truth = {"images": IMAGES, "categories": CATEGORIES, "annotations": [annotation(1, 5, BOX)]}
    metrics = voc_metrics.VocMetrics(ground_truth=truth, fields=("masks",), rule="11_points")
    found = metrics.evaluate([detection(1, 5, BOX, 0.5)])
    assert found[metrics.headline] == 1
    lines = metrics.format_table(found).splitlines()
    assert lines == ["mAP  1.000", "ant      -", "cat  1.000", "dog      -"]
    with pytest.raises(ValueError, match="rule is 'best'"):
        voc_metrics.VocMetrics(ground_truth=truth, rule="best")
