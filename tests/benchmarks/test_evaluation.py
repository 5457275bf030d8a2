"""Tests of benchmarks/evaluation.py and detections.py: both sides measure the same data."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from benchmarks import detections, evaluation


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize("library", evaluation.PEERS)
def test_both_sides_give_the_same_numbers(iou_type, library):
    flags = evaluation.make_parser().parse_args(
        ["--images=12", "--detections=25", "--classes=4", "--crowds=0.1", "--seed=3"]
    )
    ours = evaluation.metrics_work(flags, iou_type, "ours")[0]()
    peer, figures = evaluation.metrics_work(flags, iou_type, library)
    first = peer()
    assert len(ours["numbers"]) == 12 + 4 and 0.05 < ours["numbers"][0] < 0.95
    assert first["numbers"] == pytest.approx(ours["numbers"], abs=1e-9)
    # What the peer writes into the data does not stay there.
    assert peer()["numbers"] == first["numbers"]
    assert figures["results"] == 12 * 25


def test_data_follow_the_seed_and_the_statistics():
    statistics = detections.Statistics(num_images=30, num_classes=5, crowd_share=0.5)
    truth, outlines = detections.make_ground_truth(1, statistics)
    again, _ = detections.make_ground_truth(1, statistics)
    other, _ = detections.make_ground_truth(2, statistics)
    assert truth == again and truth != other
    assert len(outlines) == len(truth["annotations"])
    assert 30 * 5 < len(outlines) < 30 * 9
    crowds = [entry for entry in truth["annotations"] if entry["iscrowd"]]
    assert 0.3 < len(crowds) / len(outlines) < 0.7
    height, width = crowds[0]["segmentation"]["size"]
    lengths = coco_mask.frPyObjects(crowds[0]["segmentation"], height, width)
    assert coco_mask.area(lengths) == crowds[0]["area"] > 0


def test_small_masks_lie_in_the_image():
    statistics = detections.Statistics(sides=(60, 40))
    for masks, boxes, (height, width) in detections.make_small_masks(1, statistics, 3, 5):
        assert masks.shape == (5, 28, 28) and masks.min() >= 0 and masks.max() <= 1
        assert (boxes[:, :2] >= 0).all() and (boxes[:, :2] < boxes[:, 2:]).all()
        assert np.all(boxes[:, 2:] <= [height, width])
