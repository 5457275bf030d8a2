"""The kinds of errors and what each costs: by hand, and against the authors' own package."""

import importlib.util
import json

import numpy as np
import pytest
from drawn_study import make_data

from rethink_tf.errors import tide, worst
from rethink_tf.evaluation import coco_columns, comparing

CATEGORIES = [{"id": 3, "name": "a"}, {"id": 7, "name": "b"}]


def find(truth, results, iou_type="bbox"):
    truth = coco_columns.GroundTruth(truth)
    found, kept = coco_columns.Results(results, truth), comparing.kept_images(truth)
    every = np.arange(len(truth.categories))
    detections = comparing.counted_detections(iou_type, truth, found, kept, every)
    return tide.find(truth.instances(iou_type, kept), detections, len(every))


def by_hand():
    """One detection of each kind, and an object that is missed."""
    objects = [(c, [x, 0, 10, 10], 0) for c, x in ((3, 0), (7, 20), (3, 40), (3, 60), (7, 80))]
    objects.append((3, [0, 50, 30, 30], 1))
    found = [
        (3, [0, 0, 10, 10], 0.9, tide.NONE),
        (3, [0, 0, 10, 9], 0.8, tide.DUPLICATE),
        (3, [20, 0, 10, 9], 0.7, tide.CLASSIFICATION),
        (3, [20, 0, 10, 8], 0.65, tide.CLASSIFICATION),  # only the better one can be right
        (3, [40, 0, 10, 4], 0.6, tide.LOCALISATION),  # IoU 0.4
        (7, [60, 0, 10, 3], 0.5, tide.BOTH),
        (7, [0, 30, 5, 5], 0.4, tide.BACKGROUND),
        (3, [2, 55, 5, 5], 0.3, tide.NONE),  # in the crowd region
    ]
    truth = {
        "images": [{"id": 5, "height": 99, "width": 99}],
        "categories": CATEGORIES,
        "annotations": [
            {"id": n, "image_id": 5, "category_id": c, "bbox": b, "iscrowd": crowd}
            for n, (c, b, crowd) in enumerate(objects, start=1)
        ],
    }
    results = [{"image_id": 5, "category_id": c, "bbox": b, "score": s} for c, b, s, _ in found]
    return truth, results, [kind for *_, kind in found]


def test_every_kind_by_hand():
    truth, results, kinds = by_hand()
    shuffled = np.random.default_rng(0).permutation(len(results))
    errors = find(truth, [results[row] for row in shuffled])
    assert errors.kinds.tolist() == kinds
    assert shuffled[errors.rows].tolist() == list(range(len(kinds)))
    assert errors.found.tolist() == [0, *[-1] * 7]
    assert errors.found_by.tolist() == [0, -1, -1, -1, -1]
    # That of "both" and the last one; the other two would be found by a fix.
    assert errors.missed.tolist() == [False, False, False, True, True]
    assert errors.ignored.tolist() == [False] * 7 + [True]


def test_what_each_kind_costs_by_hand():
    """AP50 of a is 1/3 of precision 1 (34 of 101 recalls), of b 0."""
    truth, results, _ = by_hand()
    lost = tide.lost(find(truth, results))
    assert lost.ap == pytest.approx(100 * 34 / 101 / 2)

    def points(a, b):
        """Gain of sums of precision at 101 recalls of both categories."""
        return pytest.approx(100 * (a - 34 + b) / 101 / 2)

    # b has an object of 2 found, above its wrong detections, and a one wrong detection less.
    assert lost.by_kind["classification"] == points(34, 51)
    # a has 2 of 3, the second after three wrong ones: 2 of 5.
    assert lost.by_kind["localisation"] == points(34 + 33 * 0.4, 0)
    for name in ("both", "duplicate", "background"):
        assert lost.by_kind[name] == 0
    # a has 2 objects left, 1 of them found; b has 1, not found.
    assert lost.by_kind["missed"] == points(51, 0)
    assert lost.false_positives == 0
    # b, of which nothing is found, has no object left, and its wrong detections are 0.
    assert lost.false_negatives == points(101, 0)


# tidecv 1.0.1 on `drawn_study.make_data(2, blur)`: AP50, the six kinds, false positives, negatives.
OF_TIDECV = {
    1.0: [54.1788, 15.8172, 2.3542, 2.4585, 0.5287, 10.7111, 2.7788, 27.0094, 13.8634],
    3.0: [14.1135, 1.8484, 37.4477, 0.8005, 0.0, 5.3550, 3.4766, 23.0152, 24.5040],
    6.0: [2.0185, 0.2152, 29.5918, 0.1834, 0.0, 3.0381, 1.1277, 9.3677, 6.7868],
}


def numbers_of(lost):
    return [lost.ap, *lost.by_kind.values(), lost.false_positives, lost.false_negatives]


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize("blur", OF_TIDECV)
def test_the_numbers_are_those_of_the_authors_package(blur, iou_type):
    lost = tide.lost(find(*make_data(2, blur), iou_type))
    assert numbers_of(lost) == pytest.approx(OF_TIDECV[blur], abs=1e-4)


def by_tidecv(truth, results, iou_type, folder):
    from tidecv import TIDE, datasets

    paths = [str(folder / name) for name in ("truth.json", "results.json")]
    for path, content in zip(paths, (truth, results), strict=True):
        with open(path, "w") as file:
            json.dump(content, file, default=bytes.decode)
    made = TIDE(mode=TIDE.BOX if iou_type == "bbox" else TIDE.MASK)
    run = made.evaluate(datasets.COCO(paths[0]), datasets.COCOResult(paths[1]))
    gains = [*run.fix_main_errors().values(), *run.fix_special_errors().values()]
    return [run.ap, *gains], list(run.count_errors().values())


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_cocos_fake_results(shared_dir, tmp_path, kind):
    folder = shared_dir / "data" / "coco_eval_oracle"
    truth = json.loads((folder / "instances_val2014_100.json").read_text())
    results = json.loads((folder / f"instances_val2014_fake{kind}100_results.json").read_text())
    # tidecv takes categories without an object into its mean.
    present = {each["category_id"] for each in truth["annotations"] if not each["iscrowd"]}
    results = [each for each in results if each["category_id"] in present]
    errors = find(truth, results, kind)
    lost, counts = tide.lost(errors), np.bincount(errors.kinds, minlength=6)[1:].tolist()
    counts.append(int(errors.missed.sum()))
    expected = json.loads((folder / "expected.json").read_text())
    assert lost.ap / 100 == pytest.approx(expected[kind]["AP50"], abs=1e-6)
    recorded = {
        "bbox": ([74, 1, 0, 1, 0, 106], [69.708, 15.569, 0.247, 0.0, 0.021, 0.0, 10.559]),
        "segm": ([69, 82, 5, 0, 4, 116], [56.241, 12.617, 12.595, 0.345, 0.0, 0.291, 9.512]),
    }
    assert counts == recorded[kind][0]
    # tidecv rounds the recalls otherwise than COCO's evaluation, and equal scores stand otherwise.
    assert numbers_of(lost)[:7] == pytest.approx(recorded[kind][1], abs=0.02)
    if importlib.util.find_spec("tidecv"):
        numbers, theirs = by_tidecv(truth, results, kind, tmp_path)
        assert counts == theirs
        assert numbers_of(lost) == pytest.approx(numbers, abs=0.03)


def test_nothing_to_find_and_nothing_found():
    truth, results, _ = by_hand()
    lost = tide.lost(find(truth, []))
    assert numbers_of(lost)[:6] == [0] * 6 and np.isnan(lost.by_kind["missed"])
    empty = find(truth | {"annotations": []}, results)
    assert set(empty.kinds.tolist()) == {tide.BACKGROUND}
    assert np.isnan(tide.lost(empty).ap)
    shown = worst.choose_score(find(truth, []))
    assert shown.unfound.all() and not len(shown.wrong)


def test_only_the_best_hundred_of_an_image_count():
    truth, results, _ = by_hand()
    low = [results[0] | {"score": 0.01 + 1e-5 * n} for n in range(200)]
    errors = find(truth, [*low, *results])
    assert len(errors.rows) == 100 and errors.kinds[:7].tolist() == by_hand()[2][:7]


def test_the_score_of_the_pictures_and_the_images_that_lose_most():
    truth, results, _ = by_hand()
    shown = worst.choose_score(find(truth, results))
    # 1 right of 1 detection and 5 objects; each further one is wrong.
    assert (shown.score, shown.precision, shown.recall) == (0.9, 1.0, 0.2)
    assert not shown.wrong.any() and shown.unfound.tolist() == [False, *[True] * 4]
    truth["images"] += [{"id": 6, "height": 99, "width": 99}, {"id": 1, "height": 9, "width": 9}]
    results += [results[0] | {"image_id": 6, "score": score} for score in (0.99, 0.98)]
    errors = find(truth, results)
    shown = worst.choose_score(errors)
    assert shown.score == 0.9
    # Image 5 has four objects that are not found, image 6 two wrong detections, image 1 nothing.
    assert worst.rank(errors, shown, 3).tolist() == [1, 2]
