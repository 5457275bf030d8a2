"""COCO metrics against the COCO API's own numbers, hand values, and bad input."""

import copy
import decimal
import json
import pathlib

import numpy as np
import pytest

from rethink_tf.evaluation import coco_metrics
from rethink_tf.evaluation.pasting import encode_mask

SHARED = pathlib.Path(__file__).resolve().parents[2] / ".." / "shared"
ORACLE = SHARED / "data" / "coco_eval_oracle"


def square(y1, x1, y2, x2, size=(100, 120)):
    mask = np.zeros(size, np.uint8)
    mask[y1:y2, x1:x2] = 1
    return encode_mask(mask)


def annotation(number, image_id, category_id, y1, x1, y2, x2, **more):
    return {
        "id": number,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": (x2 - x1) * (y2 - y1),
        "iscrowd": 0,
        "segmentation": [[x1, y1, x2, y1, x2, y2, x1, y2]],
        **more,
    }


def detection(image_id, category_id, y1, x1, y2, x2, score=0.9):
    return coco_metrics.detections_to_coco(
        image_id,
        [[y1, x1, y2, x2]],
        [score],
        [category_id],
        segmentation=[square(y1, x1, y2, x2)],
    )[0]


@pytest.fixture
def truth():
    """Two images; classes 3 (two objects), 7 (one object, id 0) and 9 (none)."""
    return {
        "images": [{"id": 5, "height": 100, "width": 120}, {"id": 6, "height": 100, "width": 120}],
        "categories": [
            {"id": 9, "name": "absent"},
            {"id": 3, "name": "cat"},
            {"id": 7, "name": "dog"},
        ],
        "annotations": [
            annotation(0, 5, 7, 10, 10, 50, 60),
            annotation(1, 5, 3, 0, 0, 20, 20),
            annotation(2, 6, 3, 40, 50, 80, 100),
        ],
    }


@pytest.fixture
def perfect():
    return [
        detection(5, 7, 10, 10, 50, 60),
        detection(5, 3, 0, 0, 20, 20),
        detection(6, 3, 40, 50, 80, 100),
    ]


@pytest.mark.skipif(not ORACLE.exists(), reason="../shared/data/coco_eval_oracle is absent")
@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_all_official_numbers(iou_type):
    kind = {"bbox": "fakebbox100", "segm": "fakesegm100"}[iou_type]
    # Numbers as written, so that each is compared to as many digits as the file gives.
    expected = json.loads((ORACLE / "expected.json").read_text(), parse_float=decimal.Decimal)
    results = coco_metrics.read_results(ORACLE / f"instances_val2014_{kind}_results.json")
    metrics = coco_metrics.evaluate(
        ORACLE / "instances_val2014_100.json", results, iou_types=[iou_type]
    )
    prefix = coco_metrics.METRIC_PREFIXES[iou_type]
    assert list(expected[iou_type]) == list(coco_metrics.METRIC_NAMES)
    for name, value in expected[iou_type].items():
        digits = -value.as_tuple().exponent
        error = abs(metrics[f"{prefix}/{name}"] - float(value))
        assert error <= 0.5 * 10.0**-digits + 1e-14, (name, metrics[f"{prefix}/{name}"], value)


def test_perfect_detections(truth, perfect):
    metrics = coco_metrics.evaluate(truth, perfect)
    for prefix in ("box", "mask"):
        assert metrics[f"{prefix}/AP"] == pytest.approx(1.0)
        assert metrics[f"{prefix}/AR1"] == pytest.approx(1.0)
        assert metrics[f"{prefix}/APl"] == -1.0  # no large object
        assert metrics[f"{prefix}/AP_per_class/cat"] == pytest.approx(1.0)
        # Its annotation has the id 0, which pycocotools alone would take for "not matched".
        assert metrics[f"{prefix}/AP_per_class/dog"] == pytest.approx(1.0)
        assert metrics[f"{prefix}/AP_per_class/absent"] == -1.0
    assert all(type(value) is float for value in metrics.values())
    assert list(metrics)[:12] == [f"box/{name}" for name in coco_metrics.METRIC_NAMES]


def test_one_of_two_found(truth, perfect):
    # Precision 1 up to recall 0.5: 51 of the 101 recall points.
    metrics = coco_metrics.evaluate(truth, perfect[:2])
    assert metrics["box/AP_per_class/cat"] == pytest.approx(51 / 101)
    assert metrics["box/AP"] == pytest.approx((51 / 101 + 1) / 2)
    assert metrics["mask/AR100"] == pytest.approx(0.75)


def test_image_ids_restrict_both_sides(truth, perfect):
    metrics = coco_metrics.evaluate(truth, perfect[:2], image_ids=[5])
    assert metrics["box/AP"] == metrics["mask/AP"] == pytest.approx(1.0)
    assert coco_metrics.evaluate(truth, perfect, image_ids=[])["box/AP"] == -1.0
    with pytest.raises(ValueError, match=r"\[77\]"):
        coco_metrics.evaluate(truth, perfect, image_ids=[5, 77])


def test_inputs_are_not_changed(truth, perfect):
    before = copy.deepcopy((truth, perfect))
    coco_metrics.evaluate(truth, perfect)
    assert (truth, perfect) == before


def test_areas_come_from_box_and_mask():
    # A thin cross in a box of 60 x 60: medium as a box (3600), small as a mask (119 pixels).
    cross = np.zeros((100, 120), np.uint8)
    cross[30, 0:60] = cross[0:60, 30] = 1
    entry = annotation(1, 5, 3, 0, 0, 60, 60, segmentation=encode_mask(cross), area=119)
    truth = {
        "images": [{"id": 5, "height": 100, "width": 120}],
        "categories": [{"id": 3, "name": "cross"}],
        "annotations": [entry],
    }
    found = {"image_id": 5, "category_id": 3, "score": 0.5, "segmentation": encode_mask(cross)}
    # Wrong ones with a higher score count only in their own range of areas.
    wrong = detection(5, 3, 60, 60, 100, 100, score=0.9)  # 1600: medium
    result = dict(found, bbox=[0, 0, 60, 60])
    metrics = coco_metrics.evaluate(truth, [result, wrong])
    assert metrics["mask/APs"] == pytest.approx(1.0)
    assert metrics["mask/AP"] == pytest.approx(0.5)
    assert metrics["box/APs"] == pytest.approx(1.0)
    without_area = copy.deepcopy(truth)
    del without_area["annotations"][0]["area"]
    metrics = coco_metrics.evaluate(without_area, [found, wrong])
    assert metrics["mask/APs"] == pytest.approx(1.0)
    assert metrics["mask/APm"] == -1.0
    assert metrics["box/APs"] == -1.0  # the box around the mask is medium
    assert metrics["box/APm"] == pytest.approx(0.5)


def test_crowd_is_ignored(truth, perfect):
    crowd = np.zeros((100, 120), np.uint8)
    crowd[60:, 60:] = 1
    lengths = {"size": [100, 120], "counts": []}
    column = np.concatenate([[0], crowd.T.reshape(-1), [0]])
    change = np.flatnonzero(np.diff(column))
    lengths["counts"] = np.diff(np.concatenate([[0], change, [crowd.size]])).tolist()
    truth["annotations"].append(
        annotation(8, 5, 7, 60, 60, 100, 120, iscrowd=1, segmentation=lengths)
    )
    inside = detection(5, 7, 70, 70, 90, 90, score=0.99)
    metrics = coco_metrics.evaluate(truth, perfect + [inside])
    assert metrics["box/AP"] == metrics["mask/AP"] == pytest.approx(1.0)
    truth["annotations"].pop()
    metrics = coco_metrics.evaluate(truth, perfect + [inside])
    assert metrics["box/AP_per_class/dog"] == pytest.approx(0.5)


def test_no_detections(truth):
    metrics = coco_metrics.evaluate(truth, [])
    assert metrics["box/AP"] == metrics["mask/AR100"] == 0.0
    assert metrics["box/APl"] == metrics["mask/AP_per_class/absent"] == -1.0


def test_no_ground_truth_objects(truth, perfect):
    truth["annotations"] = []
    metrics = coco_metrics.evaluate(truth, perfect)
    assert set(metrics.values()) == {-1.0}


def test_ground_truth_without_masks(truth, perfect):
    for entry in truth["annotations"]:
        del entry["segmentation"]
    metrics = coco_metrics.evaluate(truth, perfect)
    assert metrics["box/AP"] == pytest.approx(1.0)
    assert {value for key, value in metrics.items() if key.startswith("mask/")} == {-1.0}
    assert len(metrics) == 2 * (12 + 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 77}, "no image with id 77"),
        ({"category_id": 1}, "no category with id 1"),
        ({"score": float("nan")}, "score is nan"),
        ({"bbox": [0.0, 0.0, float("inf"), 1.0]}, "bbox"),
        ({"segmentation": square(0, 0, 4, 4, size=(120, 100))}, r"image \[100, 120\]"),
        ({"segmentation": [[0, 0, 5, 0, 5, 5]]}, "compressed run lengths"),
    ],
)
def test_bad_results_are_refused(truth, perfect, change, message):
    perfect[1].update(change)
    with pytest.raises(ValueError, match=message) as raised:
        coco_metrics.evaluate(truth, perfect)
    assert "result 1" in str(raised.value)


def test_box_only_detections(truth, perfect):
    for result in perfect:
        del result["segmentation"]
    metrics = coco_metrics.evaluate(truth, perfect, iou_types=["bbox"])
    assert metrics["box/AP"] == pytest.approx(1.0)
    assert not any(key.startswith("mask/") for key in metrics)
    with pytest.raises(ValueError, match="segm"):
        coco_metrics.evaluate(truth, perfect)


def test_unknown_iou_type_and_bad_ground_truth(truth, tmp_path):
    with pytest.raises(ValueError, match="found .*captions"):
        coco_metrics.evaluate(truth, [], iou_types=["captions"])
    path = tmp_path / "truth.json"
    path.write_text('{"images": []}')
    with pytest.raises(ValueError, match=r"truth\.json .*annotations"):
        coco_metrics.evaluate(path, [])
    path.write_text('{"images": [')
    with pytest.raises(ValueError, match=r"truth\.json is not JSON"):
        coco_metrics.evaluate(path, [])


def test_class_names(truth, perfect):
    metrics = coco_metrics.evaluate(truth, perfect, class_names={3: "dog"})
    assert metrics["box/AP_per_class/dog (id 3)"] == pytest.approx(1.0)
    assert metrics["box/AP_per_class/dog (id 7)"] == pytest.approx(1.0)


def test_nothing_is_printed(truth, perfect, capsys):
    del truth["annotations"][0]["area"]
    coco_metrics.evaluate(truth, perfect)
    assert capsys.readouterr().out == ""


def test_detections_to_coco():
    boxes = np.array([[1.0, 2.0, 4.0, 8.0], [0.5, 0.25, 1.0, 3.0]], np.float32)
    results = coco_metrics.detections_to_coco(
        np.int64(9), boxes, np.array([0.5, 0.25], np.float32), np.array([3, 90], np.int32)
    )
    assert results == [
        {"image_id": 9, "category_id": 3, "bbox": [2.0, 1.0, 6.0, 3.0], "score": 0.5},
        {"image_id": 9, "category_id": 90, "bbox": [0.25, 0.5, 2.75, 0.5], "score": 0.25},
    ]
    assert json.loads(json.dumps(results)) == results
    assert coco_metrics.detections_to_coco(1, np.zeros([0, 4]), [], [], segmentation=[]) == []
    with pytest.raises(ValueError, match=r"image 1: .*\[2, 1, 2\]"):
        coco_metrics.detections_to_coco(1, boxes, [0.5], [1, 2])


def test_results_file_round_trip(tmp_path, perfect):
    path = tmp_path / "results" / "step_10.json"
    coco_metrics.write_results(path, perfect)
    assert coco_metrics.read_results(path) == perfect
    coco_metrics.write_results(path, [])
    assert coco_metrics.read_results(path) == []
    with pytest.raises(ValueError):
        coco_metrics.write_results(path, [{"score": float("nan")}])
    # The old file stands, and nothing half written lies beside it.
    assert coco_metrics.read_results(path) == []
    assert [entry.name for entry in path.parent.iterdir()] == ["step_10.json"]


def test_reading_other_files_is_refused(tmp_path):
    path = tmp_path / "results.json"
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"results\.json must hold a list"):
        coco_metrics.read_results(path)
    path.write_text("[{")
    with pytest.raises(ValueError, match=r"results\.json is not JSON"):
        coco_metrics.read_results(path)


def test_table(truth, perfect):
    lines = coco_metrics.format_table(coco_metrics.evaluate(truth, perfect[:2])).splitlines()
    assert lines[0].split() == list(coco_metrics.METRIC_NAMES)
    # AP of cats is 51/101, of dogs 1; the cat that was found is the small object of the two.
    assert lines[1].split()[:7] == ["box", "0.752", "0.752", "0.752", "1.000", "0.500", "-"]
    assert lines[2].split()[0] == "mask"
    assert lines[4].split() == "AP by class box mask".split() * 3
    assert lines[5].split() == "cat 0.505 0.505 dog 1.000 1.000 absent - -".split()
    assert len(lines) == 6


def test_table_of_many_classes_runs_down_the_columns():
    metrics = {f"box/{name}": 0.5 for name in coco_metrics.METRIC_NAMES}
    metrics.update({f"box/AP_per_class/class {index}": index / 10 for index in range(7)})
    lines = coco_metrics.format_table(metrics).splitlines()
    assert lines[4].split() == "class 0 0.000 class 3 0.300 class 6 0.600".split()
    assert lines[6].split() == "class 2 0.200 class 5 0.500".split()
    assert len(coco_metrics.format_table({}).splitlines()) == 1
