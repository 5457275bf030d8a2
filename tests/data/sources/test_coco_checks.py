"""Tests of rethink_tf/data/sources/coco_checks.py: bad entries of the JSON."""

import json
import os
import pathlib

import numpy as np
import pytest
from pycocotools.coco import COCO
from record_features import read_features

from rethink_tf.data.records import store
from rethink_tf.data.sources import coco_checks

BAD_ANNOTATIONS = {
    "unknown_category": {"category_id": 5},
    "annotation_of_unknown_image": {"image_id": 77},
    "annotation_duplicate_id": {"id": 11},
    "box_without_area": {"bbox": [2, 3, 0, 6]},
    "box_outside_image": {"bbox": [30, 3, 5, 5]},
    "annotation_malformed": {"bbox": [2, float("nan"), 5, 6]},
}
OTHER_BAD_ANNOTATIONS = [
    ("box_without_area", {"bbox": [2, 3, 4, -6]}),
    ("box_outside_image", {"bbox": [-9, 3, 5, 5]}),
    ("annotation_malformed", {"bbox": [1, 2, 3]}),
    ("annotation_malformed", {"bbox": ["1", 2, 3, 4]}),
    ("annotation_malformed", {"bbox": None}),
    ("annotation_malformed", {"area": float("inf")}),
    ("annotation_malformed", {"iscrowd": 2}),
    ("annotation_malformed", {"image_id": "1"}),
    ("annotation_malformed", {"id": True}),
]


@pytest.mark.parametrize(
    ("reason", "changes"), list(BAD_ANNOTATIONS.items()) + OTHER_BAD_ANNOTATIONS
)
def test_bad_annotation_is_skipped_counted_and_named(coco_source, reason, changes):
    coco_source.add(**changes)

    output, manifest = coco_source.convert()

    assert manifest["skipped"] == {reason: 1}
    (entry,) = manifest["skipped_entries"]
    assert entry["reason"] == reason
    assert f"annotation {changes.get('id', 99)!r} of image" in entry["entry"]
    assert (manifest["num_objects"], manifest["num_crowds"]) == (3, 1)
    truth = json.loads(pathlib.Path(output, store.GROUND_TRUTH_FILE).read_text())
    assert sorted(a["id"] for a in truth["annotations"]) == [11, 12, 13, 14]


@pytest.mark.parametrize("reason", BAD_ANNOTATIONS)
def test_strict_stops_at_a_bad_annotation(coco_source, reason):
    coco_source.add(**BAD_ANNOTATIONS[reason])

    with pytest.raises(coco_checks.BadEntryError, match=f"{reason}: annotation .*--strict"):
        coco_source.convert(strict=True)

    assert not (coco_source.root / "records" / store.MANIFEST_FILE).exists()
    with pytest.raises((FileNotFoundError, ValueError)):
        store.load_index(coco_source.root / "records")


def test_annotation_that_is_no_object_is_named_by_its_place(coco_source):
    coco_source.dataset["annotations"] += [None, {"id": 5}]

    _, manifest = coco_source.convert()

    first, second = (entry["entry"] for entry in manifest["skipped_entries"])
    assert first == "annotations[4]: it is a NoneType, not an object"
    assert second == "annotation 5 of image None: no image_id, category_id, bbox"


@pytest.mark.parametrize(
    ("reason", "changes"),
    [
        ("image_malformed", {"height": "20"}),
        ("image_malformed", {"width": 0}),
        ("image_malformed", {"width": float("nan")}),
        ("image_malformed", {"file_name": 7}),
        ("image_malformed", {"file_name": ""}),
    ],
)
def test_bad_image_entry_is_skipped_with_its_annotations(coco_source, reason, changes):
    coco_source.dataset["images"][0] |= changes

    _, manifest = coco_source.convert()

    assert manifest["skipped"] == {"annotation_of_skipped_image": 1, reason: 1}
    assert manifest["num_images"] == 3


def test_duplicate_image_and_category_keep_the_first(coco_source):
    coco_source.dataset["images"].append(coco_source.dataset["images"][0] | {"file_name": "3.png"})
    coco_source.dataset["categories"] += [{"id": 3, "name": "bee"}, {"id": 4}]

    output, manifest = coco_source.convert()

    assert manifest["skipped"] == {
        "category_duplicate_id": 1,
        "category_malformed": 1,
        "image_duplicate_id": 1,
    }
    assert read_features(output)[4]["image/filename"].bytes_list.value[:] == [b"4.png"]
    assert [c["name"] for c in manifest["categories"]] == ["ant", "cat"]


def test_box_that_partly_leaves_the_image_is_clipped_and_counted(coco_source):
    # The second leaves by less than the two decimals that COCO rounds to.
    coco_source.add(bbox=[-2, 15, 7, 10])
    coco_source.add(id=100, bbox=[20, 10, 10.004, 10])

    output, manifest = coco_source.convert(strict=True)

    assert manifest["num_clipped"] == 1 and manifest["num_objects"] == 5
    feature = read_features(output)[1]
    sides = [feature[f"image/object/bbox/{side}"].float_list.value for side in
             ("ymin", "xmin", "ymax", "xmax")]  # fmt: skip
    boxes = np.array(sides).T * [
        coco_source.height,
        coco_source.width,
        coco_source.height,
        coco_source.width,
    ]
    assert np.allclose(boxes[2:], [[15, 0, 20, 5], [10, 20, 20, 30]], atol=1e-5)
    truth = COCO(os.path.join(output, store.GROUND_TRUTH_FILE))
    assert truth.anns[99]["bbox"] == [0, 15, 5, 5]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "instances.json is not JSON"),
        ("[]", "instances.json holds a list"),
        ('{"images": [], "annotations": []}', "'categories' is missing.*found: images"),
        ('{"images": 3, "annotations": [], "categories": []}', "'images' is a int"),
        ('{"images": [], "annotations": [], "categories": []}', "no image is left"),
    ],
)
def test_unusable_file_is_one_clear_error(coco_source, content, message):
    coco_source.dataset = content

    with pytest.raises(ValueError, match=message):
        coco_source.convert()
