"""The cases of ../shared/inputs, each written by its own script, through the converter."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from record_features import read_features

from rethink_tf.data.input import decode
from rethink_tf.data.input.pipeline import Pipeline
from rethink_tf.data.records import splits, store
from rethink_tf.data.sources import coco, coco_images


@pytest.fixture(scope="module")
def convert(shared_dir, tmp_path_factory):
    """A function from a case, a file in it and options to (record directory, manifest)."""
    folder = shared_dir / "inputs"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there: it holds the scripts of these cases")
    written = tmp_path_factory.mktemp("inputs")
    for script in sorted(folder.glob("[0-9]*.py")):
        environment = os.environ | {"INPUTS": str(written), "PYTHONDONTWRITEBYTECODE": "1"}
        subprocess.run([sys.executable, script.name], cwd=folder, env=environment, check=True)

    def call(case, name="ann", images="images", output=None, **options):
        output = str(written / "records" / case / (output or name))
        return output, coco.convert(
            str(written / case / images),
            str(written / case / f"{name}.json"),
            output,
            num_shards=1,
            num_workers=0,
            progress=False,
            **options,
        )

    call.written = written
    return call


def truth_of(output):
    return COCO(f"{output}/{store.GROUND_TRUTH_FILE}")


def decoded(feature):
    return decode.decode_pixels(feature["image/encoded"].bytes_list.value[0]).numpy().astype(int)


def test_01_category_names_swapped(convert):
    data_dir = os.path.dirname(convert("01", "train", "train")[0])
    convert("01", "val", "val")
    both = splits.open_splits("train_and_evaluate", data_dir, "train", "val", Pipeline())
    with pytest.raises(ValueError, match=r"(?s)1 is 'cat'.*'dog'.*1 \(dog\) becomes 2, 2 \(cat\)"):
        splits.check_splits(both)


def test_02_keypoint_sides(convert):
    names = "animalpose corners capital spaced upper lower_l suffix coco".split()
    for name in names:
        assert convert("02", name)[1]["keypoints"]["flip_pairs"] == [[0, 1]], name


def test_03_stray_subpolygon(convert):
    output, manifest = convert("03")
    assert manifest["num_objects"] == manifest["num_masks"] == 5 and manifest["skipped"] == {}
    assert manifest["noted"] == {"segmentation_parts_left_out": 4}
    truth = truth_of(output)
    masks = [truth.annToMask(truth.anns[k]).sum() for k in range(1, 6)]
    assert masks == [1200, 1200, 1200, 1200, 1600]


def test_04_and_05_boxes_without_polygons(convert):
    for name in "list_of_empty box4 flat xywh empty null one_point".split():
        manifest = convert("04", name)[1]
        assert (manifest["num_objects"], manifest["num_masks"]) == (2, 0), name
        assert manifest["has_masks"] is False and manifest["skipped"] == {}, name
    output, manifest = convert("05")
    assert (manifest["num_objects"], manifest["num_masks"]) == (5, 1)
    feature = read_features(output)[1]
    assert list(feature["image/object/has_mask"].int64_list.value) == [1, 0, 0, 0, 0]


def test_07_exif(convert):
    output, manifest = convert("07")
    assert manifest["num_objects"] == 5
    assert manifest["images"]["num_by_orientation"] == {"2": 1, "3": 1, "4": 1, "6": 1}
    truth, features = truth_of(output), read_features(output)
    for image_id, feature in features.items():
        pixels = decoded(feature)
        x, y, w, h = (int(v) for v in truth.imgToAnns[image_id][0]["bbox"])
        red = pixels[..., 0] - pixels[..., 1] > 60
        assert red[y + 1 : y + h - 1, x + 1 : x + w - 1].all(), image_id
        red[max(y - 3, 0) : y + h + 3, max(x - 3, 0) : x + w + 3] = False
        assert not red.any(), image_id


def test_11_keypoint_area_and_15_ignore(convert):
    for name in ("zero", "one", "right"):
        output, manifest = convert("11", name)
        assert manifest["noted"] == ({} if name == "right" else {"area_of_box_taken": 8}), name
        assert {a["area"] for a in truth_of(output).anns.values()} == {64 * 64}
    output, manifest = convert("15")
    assert (manifest["num_objects"], manifest["num_crowds"]) == (1, 2)
    assert [a["iscrowd"] for a in truth_of(output).anns.values()] == [0, 1, 1]


def test_17_damaged_jpegs_are_read_alike_or_named(convert):
    for case, name, images in (("17", "ann", "images"), ("17b", "train", "train")):
        output, manifest = convert(case, name, images)
        # Training and evaluation read all that is there: an unreadable record would be an error.
        pipeline = Pipeline(min_side=96, max_side=128, include_masks=False)
        evaluated = {int(i) for b in pipeline.evaluation(output, 1) for i in b["image_id"]}
        with open(convert.written / case / f"{name}.json") as file:
            stated = {image["id"] for image in json.load(file)["images"]}
        named = " ".join(entry["entry"] for entry in manifest["skipped_entries"])
        assert evaluated == {i for i in stated if f"image {i} (" not in named}
        assert len(evaluated) == (8 if case == "17b" else 25)


def test_18_png_kinds(convert):
    """Eight bits are what Pillow shows; 16 bits are named, or scaled."""
    _, manifest = convert("18", output="refused")
    reasons = {entry["entry"].split("(")[1].split(")")[0] for entry in manifest["skipped_entries"]}
    sixteen = {"gray12in16.png", "gray16.png", "gray8in16.png", "la16.png", "rgb16.png"}
    sixteen |= {"tiff12in16.tif"}
    assert reasons == sixteen | {"float.tif"}
    assert manifest["skipped"]["image_sixteen_bit"] == len(sixteen)
    assert "gray8in16.png): PNG of 16 bits with values from 0 to 255" in json.dumps(manifest)
    output, manifest = convert("18", output="scaled", sixteen_bit="range")
    assert manifest["skipped"] == {"annotation_of_skipped_image": 1, "image_unreadable": 1}
    assert manifest["images"]["sixteen_bit"] == "range"
    names = {image["id"]: image["file_name"] for image in truth_of(output).imgs.values()}
    for image_id, feature in read_features(output).items():
        pixels, name = decoded(feature), names[image_id]
        if name in sixteen:
            assert pixels.min() == 0 and pixels.max() == 255, name
            continue
        with Image.open(convert.written / "18" / "images" / name) as image:
            assert (pixels == np.asarray(image.convert("RGB"))).all(), name


def test_31_odd_segmentations_are_right_or_named(convert):
    output, manifest = convert("31")
    with open(convert.written / "31" / "names.json") as file:
        names = {int(key): name for key, name in json.load(file).items()}
    truth = truth_of(output)
    have = {names[k] for k, a in truth.anns.items() if a["segmentation"]}
    assert have == {"ok_string", "ok_list", "triangle", "closed"}
    noted = " ".join(entry["entry"] for entry in manifest["noted_entries"])
    for key, name in names.items():
        assert (name in have) != (f"annotation {key} of" in noted), name
    for name in ("ok_string", "ok_list", "closed"):
        (key,) = (k for k, other in names.items() if other == name)
        mask = coco_images.decode_segmentation(truth.anns[key]["segmentation"], 96, 128)
        assert mask.sum() == 1200 and mask[20:50, 30:70].all(), name
