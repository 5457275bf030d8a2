"""What a conversion says of what it left out, and when nothing is left."""

import json
import logging
import subprocess
import sys

import pytest

from rethink_tf.data.records.skips import SkipLog, printable


def test_one_line_a_cause_with_the_first_three(coco_source, caplog):
    for number in range(638):
        coco_source.add(id=1000 + number, image_id=77)
    with caplog.at_level(logging.WARNING):
        _, manifest = coco_source.convert()
    lines = [r.getMessage() for r in caplog.records if "annotation_of_unknown_image" in r.message]
    line, summary = lines
    assert line.startswith("skipped 638 x annotation_of_unknown_image: annotation 1000 of image 77")
    assert "annotation 1002 of" in line and "annotation 1003 of" not in line
    assert "and 635 more, see manifest.json" in line
    assert "638 of 642 objects (99%) were left out" in summary
    assert len(manifest["skipped_entries"]) == 638


def test_a_tenth_is_loud_and_less_is_not():
    skips = SkipLog(strict=False)
    reasons = ["unknown_category"] * 5 + ["box_without_area"] * 3 + ["box_outside_image"] * 2
    for number, reason in enumerate(reasons + ["keypoints_malformed"]):
        skips.add(reason, f"annotation {number}")
    assert skips.loud_summary(num_images=10, num_objects=111) is None
    first, *causes = skips.loud_summary(num_images=10, num_objects=100).splitlines()
    assert first.startswith("11 of 100 objects (11%) were left out")
    assert [cause.split()[:3] for cause in causes] == [
        ["5", "x", "unknown_category:"],
        ["3", "x", "box_without_area:"],
        ["2", "x", "box_outside_image:"],
    ]
    for number in range(2):
        skips.add("image_missing", f"image {number}")
    assert "2 of 10 images (20%) were left out" in skips.loud_summary(10, 1000)


def all_crowds(dataset):
    for annotation in dataset["annotations"]:
        annotation["iscrowd"] = 1


def ids_as_text(dataset):
    for annotation in dataset["annotations"]:
        annotation["id"] = str(annotation["id"])


def image_ids_as_text(dataset):
    for annotation in dataset["annotations"]:
        annotation["image_id"] = str(annotation["image_id"])


def unusable_boxes(dataset):
    for annotation in dataset["annotations"]:
        annotation["bbox"] = [5, 5, 0, 0]
        del annotation["segmentation"]


@pytest.mark.parametrize(
    ("spoil", "cause"),
    [
        (all_crowds, "4 crowd regions, which are not trained on"),
        (ids_as_text, "4 x annotation_malformed: annotation '11' of image 1: id is '11', not an"),
        (image_ids_as_text, "4 x annotation_malformed"),
        (unusable_boxes, "4 x box_without_area: annotation 11 of image 1"),
    ],
)
def test_nothing_left_is_an_error_that_says_why(coco_source, spoil, cause):
    spoil(coco_source.dataset)
    with pytest.raises(ValueError, match=r"instances.json: no object is left") as raised:
        coco_source.convert()
    assert cause in str(raised.value)
    assert not (coco_source.root / "records").exists()


def test_annotation_ids_that_restart_in_each_image(coco_source, tmp_path):
    """As a process: exit status, the loud summary, and the counts."""
    for annotation in coco_source.dataset["annotations"]:
        annotation["id"] = 1
    coco_source.write()
    arguments = [f"--images={coco_source.folder}", f"--annotations={coco_source.path}"]
    command = [sys.executable, "-m", "rethink_tf.data.coco", *arguments, "--num_shards=1"]

    done = subprocess.run(
        [*command, f"--output={tmp_path}/out", "--num_workers=0"], capture_output=True, text=True
    )

    assert done.returncode == 0, done.stderr
    assert "warning: 3 of 4 objects (75%) were left out. The commonest causes:" in done.stderr
    assert "3 x annotation_duplicate_id: annotation 1 of image 1: its id was met" in done.stderr
    assert "4 images, 1 objects" in done.stdout


def test_texts_that_are_not_utf8_can_be_printed():
    assert printable("caf\udce9 \ud83d \u72d7") == "caf\\xe9 \\ud83d \u72d7"


def test_ignored_regions_are_crowds_and_areas_of_keypoints_are_those_of_the_box(coco_source):
    annotations = coco_source.dataset["annotations"]
    annotations[3]["ignore"] = 1
    annotations[0]["ignore"] = 0
    names = ["nose", "left_eye", "right_eye"]
    coco_source.dataset["categories"][1]["keypoints"] = names
    points = [4, 5, 2, 10, 3, 1, 0, 0, 0]
    for number, area in enumerate((0, 0.5, 1, 1.5, None), start=100):
        coco_source.add(id=number, keypoints=points, area=area, segmentation=[])
    del annotations[-1]["area"]
    coco_source.add(id=105, keypoints=[], area=0)

    output, manifest = coco_source.convert(strict=True)

    assert (manifest["num_objects"], manifest["num_crowds"]) == (8, 2)
    assert manifest["noted"] == {"area_of_box_taken": 4, "ignored_as_crowd": 1}
    entries = [entry["entry"] for entry in manifest["noted_entries"]]
    assert "annotation 14 of image 4: ignore is 1" in entries
    assert "annotation 104 of image 1: it has keypoints and no area" in entries
    with open(f"{output}/ground_truth.json") as file:
        truth = {a["id"]: a for a in json.load(file)["annotations"]}
    assert [truth[k]["area"] for k in range(100, 106)] == [60, 60, 60, 1.5, 60, 0]
    assert truth[14]["iscrowd"] == 1 and truth[11]["iscrowd"] == 0
