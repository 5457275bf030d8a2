"""Columns against pycocotools' own conversions, and the entries that errors name."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from rethink_tf.evaluation import coco_columns, coco_metrics, pasting

SIZE = (40, 50)
SQUARE = [5, 5, 25, 5, 25, 25, 5, 25]
TRIANGLE = [30, 2, 48, 10, 31, 30]


@pytest.fixture
def truth():
    annotation = {
        "id": 4,
        "image_id": 3,
        "category_id": 2,
        "bbox": [5, 5, 20, 20],
        "segmentation": [SQUARE],
    }
    return {
        "images": [{"id": 9, "height": 40, "width": 50}, {"id": 3, "height": 40, "width": 50}],
        "categories": [{"id": 8, "name": "b"}, {"id": 2, "name": "a"}],
        "annotations": [
            annotation,
            annotation | {"id": 5, "image_id": 9, "category_id": 8, "iscrowd": 1, "area": 7},
            # Of a class and of an image that are not listed.
            annotation | {"id": 6, "category_id": 77},
            annotation | {"id": 7, "image_id": 77},
        ],
    }


def result(**more):
    mask = np.zeros(SIZE, np.uint8)
    mask[5:25, 5:25] = 1
    lengths = pasting.encode_mask(mask)
    found = {"image_id": 3, "category_id": 2, "score": 0.5, "segmentation": lengths}
    return found | {"bbox": [5.0, 5.0, 20.0, 20.0]} | more


def test_columns_of_the_ground_truth(truth):
    columns = coco_columns.GroundTruth(truth)
    assert columns.image_positions == {3: 0, 9: 1} and columns.category_positions == {2: 0, 8: 1}
    boxes = columns.instances("bbox", np.array([True, True]))
    assert boxes.images.tolist() == [0, 1] and boxes.categories.tolist() == [0, 1]
    assert boxes.areas.tolist() == [400, 7] and boxes.crowds.tolist() == [0, 1]
    assert boxes.shapes.tolist() == [[5, 5, 20, 20]] * 2
    masks = columns.instances("segm", np.array([True, False]))
    assert masks.images.tolist() == [0]
    assert masks.areas.tolist() == [coco_mask.area(masks.shapes[0])]


@pytest.mark.parametrize(
    "segmentation",
    [
        [SQUARE],
        [SQUARE, TRIANGLE],
        [SQUARE, SQUARE],
        {"size": list(SIZE), "counts": [100, 40, 1860]},
        coco_mask.frPyObjects([TRIANGLE], *SIZE)[0],
    ],
)
def test_masks_are_those_of_pycocotools(segmentation):
    expected = segmentation
    if isinstance(segmentation, list):
        expected = coco_mask.merge(coco_mask.frPyObjects(segmentation, *SIZE))
    elif isinstance(segmentation["counts"], list):
        expected = coco_mask.frPyObjects(segmentation, *SIZE)
    assert coco_columns.compress(segmentation, *SIZE) == expected


def test_areas_of_more_masks_than_pycocotools_takes_at_once():
    masks = [result()["segmentation"]] * 600
    assert coco_columns.mask_areas(masks).tolist() == [400.0] * 600
    assert coco_columns.mask_areas([]).shape == (0,)


def test_columns_of_results(truth):
    columns = coco_columns.GroundTruth(truth)
    without_box = result(image_id=9, category_id=8)
    del without_box["bbox"]
    found = coco_columns.Results([result(score=np.float32(0.25)), without_box], columns)
    boxes = found.instances("bbox", np.array([True, True]), [0, 1])
    assert boxes.images.tolist() == [0, 1] and boxes.categories.tolist() == [0, 1]
    assert boxes.scores.tolist() == [0.25, 0.5]
    assert boxes.shapes.tolist() == [[5, 5, 20, 20]] * 2 and boxes.areas.tolist() == [400, 400]
    masks = found.instances("segm", np.array([False, True]), [0, 1])
    assert masks.areas.tolist() == [400] and masks.shapes == [without_box["segmentation"]]


def test_no_results(truth):
    columns = coco_columns.GroundTruth(truth)
    found = coco_columns.Results([], columns)
    assert found.instances("bbox", np.array([True, True]), [0, 1]).shapes.shape == (0, 4)
    assert found.instances("segm", np.array([True, True]), [0, 1]).shapes == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"score": None}, "the score is None"),
        ({"score": "high"}, "the score is high"),
        ({"bbox": [1, 2, 3]}, r"bbox must be .* found \[1, 2, 3\]"),
        ({"bbox": None}, "bbox must be .* found None"),
        ({"bbox": [1, 2, -3, 4]}, "bbox must be"),
        ({"image_id": "3"}, "no image with id 3"),
        ({"segmentation": None}, "compressed run lengths"),
        ({"segmentation": {"counts": "0"}}, "mask's size is None"),
        ({"segmentation": {"counts": [3, 4], "size": [40, 50]}}, "compressed run lengths"),
    ],
)
def test_the_wrong_entry_is_named(truth, change, message):
    results = [result(), result(), result(**change), result(score=float("nan"))]
    if "segmentation" in change:
        del results[-1]
    with pytest.raises(ValueError, match=rf"^result 2 .*{message}"):
        coco_metrics.evaluate(truth, results)


@pytest.mark.parametrize("key", ["image_id", "category_id", "score"])
def test_a_missing_key_is_named(truth, key):
    entry = result()
    del entry[key]
    with pytest.raises(ValueError, match=f"result 1 has no '{key}'"):
        coco_metrics.evaluate(truth, [result(), entry])


def test_neither_box_nor_mask(truth):
    entry = result()
    del entry["bbox"], entry["segmentation"]
    with pytest.raises(ValueError, match=r"result 1 \(image 3\) has no 'bbox'"):
        coco_metrics.evaluate(truth, [result(), entry], ["bbox"])


def test_images_without_size(truth):
    for image in truth["images"]:
        del image["height"]
    assert coco_metrics.evaluate(truth, [result()], ["bbox"])["box/AP50"] == pytest.approx(1.0)
    with pytest.raises(ValueError, match="no 'height' and 'width'"):
        coco_metrics.evaluate(truth, [result()], ["segm"])


def test_a_ground_truth_can_be_measured_again(truth):
    columns = coco_columns.GroundTruth(truth)
    first = coco_metrics.evaluate(columns, [result()])
    assert first == coco_metrics.evaluate(columns, [result()])
    assert first == coco_metrics.evaluate(truth, [result()])
    assert first["mask/AP_per_class/a"] == pytest.approx(1.0)
    assert (
        columns.instances("segm", np.array([True, True])).shapes[0]
        is (columns.instances("segm", np.array([True, True])).shapes[0])
    )
