"""Tests of rethink_tf/data/sources/coco_images.py: image files and masks."""

import os

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from pycocotools.coco import COCO
from record_features import read_features

from rethink_tf.data.input.pipeline import Pipeline
from rethink_tf.data.records import splits, store
from rethink_tf.data.sources import coco_checks, coco_images


def _remove(folder):
    (folder / "1.png").unlink()


def _cut(folder):
    (folder / "1.png").write_bytes((folder / "1.png").read_bytes()[:300])


def _make_text(folder):
    (folder / "1.png").write_text("no image")


def _make_smaller(folder):
    Image.new("RGB", (30, 19)).save(folder / "1.png")


@pytest.mark.parametrize(
    ("reason", "damage"),
    [
        ("image_missing", _remove),
        ("image_unreadable", _cut),
        ("image_unreadable", _make_text),
        ("image_wrong_size", _make_smaller),
    ],
)
def test_bad_image_is_skipped_with_its_annotations(coco_source, reason, damage):
    damage(coco_source.folder)

    output, manifest = coco_source.convert()

    assert manifest["skipped"] == {"annotation_of_skipped_image": 2, reason: 1}
    assert manifest["skipped_entries"][0]["entry"].startswith("image 1 (1.png): ")
    assert (manifest["num_images"], manifest["num_objects"], manifest["num_crowds"]) == (3, 2, 0)
    assert [shard["records"] for shard in manifest["shards"]] == [1, 2]
    assert store.load_index(output).image_id.tolist() == [2, 3, 4]
    with pytest.raises(coco_checks.BadEntryError, match=f"{reason}: image 1"):
        coco_source.convert("strict", strict=True)


def _image_file(path, pixels, mode, image_format):
    image = Image.fromarray(pixels)
    if mode == "I;16":
        image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    elif mode == "RGBA":
        image.putalpha(200)
    elif mode == "EXIF":  # "turn by 90 degrees", for data annotated before that
        exif = Image.Exif()
        exif[0x0112] = 6
        image.save(path, image_format, exif=exif)
        return
    else:
        image = image.convert(mode)
    image.save(path, image_format)


@pytest.mark.parametrize(
    ("mode", "image_format", "stored", "tolerance"),
    [
        ("RGB", "JPEG", "jpeg", 5),
        ("L", "JPEG", "jpeg", 5),
        ("EXIF", "JPEG", "jpeg", 5),
        # TensorFlow's default inverse DCT is the fast one: some levels off Pillow's on noise.
        # CMYK: encoded a second time, 4:4:4; the pixels are noise, which JPEG likes least.
        ("CMYK", "JPEG", "jpeg", 40),
        ("L", "PNG", "png", 0),
        ("P", "PNG", "png", 0),
        ("1", "PNG", "png", 0),
        ("RGBA", "PNG", "png", 0),
        ("I;16", "PNG", "png", 0),
        ("RGB", "BMP", "png", 0),
        ("P", "GIF", "png", 0),
        ("RGB", "WEBP", "png", 0),
    ],
)
def test_every_kind_of_image_decodes_to_what_it_shows(
    coco_source, mode, image_format, stored, tolerance
):
    path = coco_source.folder / "1.png"
    _image_file(path, coco_source.pixels(1), mode, image_format)
    with Image.open(path) as image:
        shown = image.convert("RGB") if mode != "I;16" else None
    expected = np.asarray(shown) if shown else np.repeat(coco_source.pixels(1)[..., :1], 3, axis=-1)

    options = {"exif": "ignore", "sixteen_bit": "full"}
    feature = read_features(coco_source.convert(strict=True, **options)[0])[1]

    assert feature["image/format"].bytes_list.value[:] == [stored.encode()]
    encoded = feature["image/encoded"].bytes_list.value[0]
    for decode in (tf.io.decode_image, tf.io.decode_jpeg):
        pixels = decode(encoded, channels=3).numpy().astype(int)
        assert pixels.shape == (coco_source.height, coco_source.width, 3)
        assert np.abs(pixels - expected).max() <= tolerance


GOOD = [4, 3, 14, 3, 14, 9, 4, 9]
LINE, POINT = [4, 3, 9, 3], [4, 3]
WITHOUT_MASK = [
    (None, []),
    (None, None),
    (None, "absent"),
    ("segmentation_empty", [[]]),
    ("segmentation_empty", [LINE]),
    ("segmentation_empty", [POINT, LINE]),
    ("segmentation_empty", [[50, 50, 60, 50, 60, 60]]),
    ("segmentation_malformed", GOOD),
    ("segmentation_malformed", [4, 3, 10, 6]),
    ("segmentation_malformed", [GOOD[:-1]]),
    ("segmentation_malformed", [[1, 2, 3, 4, 5, "6"]]),
    ("segmentation_malformed", [[1, 2, 3, 4, 5, 1e300]]),
    ("segmentation_malformed", "polygon"),
    ("segmentation_malformed", {"size": [30, 20], "counts": [600]}),
    ("segmentation_malformed", {"size": [20, 30], "counts": [599]}),
    ("segmentation_malformed", {"size": [20, 30], "counts": [700, -100]}),
    ("segmentation_malformed", {"size": [20, 30], "counts": "zzzzzzzzzzzzzzz"}),
    ("segmentation_malformed", {"size": [20, 30], "counts": "\x00\x01"}),
]


def test_objects_whose_mask_cannot_be_drawn_are_kept_without_one(coco_source):
    del coco_source.dataset["annotations"][1:]
    coco_source.dataset["annotations"][0]["id"] = 1
    for number, (_, segmentation) in enumerate(WITHOUT_MASK, start=2):
        coco_source.add(id=number, bbox=[4, 3, 10, 6], segmentation=segmentation)
        if segmentation == "absent":
            del coco_source.dataset["annotations"][-1]["segmentation"]

    output, manifest = coco_source.convert()

    assert manifest["skipped"] == {} and manifest["has_masks"] and manifest["num_masks"] == 1
    split = splits.open_split(*os.path.split(output), Pipeline(), is_training=True)
    assert split.has_masks and not split.has_all_masks
    assert manifest["num_objects"] == 1 + len(WITHOUT_MASK)
    reasons = [reason for reason, _ in WITHOUT_MASK if reason]
    assert manifest["noted"] == {reason: reasons.count(reason) for reason in set(reasons)}
    assert "annotation 5 of image 1 (1.png): a polygon of 0 points" in str(
        manifest["noted_entries"]
    )
    feature = read_features(output)[1]
    has_mask = list(feature["image/object/has_mask"].int64_list.value)
    assert has_mask == [1] + [0] * len(WITHOUT_MASK)
    masks = [tf.io.decode_png(png).numpy() for png in feature["image/object/mask"].bytes_list.value]
    assert [mask.any() for mask in masks] == [flag == 1 for flag in has_mask]
    # What is left in the ground truth can be drawn.
    truth = COCO(f"{output}/{store.GROUND_TRUTH_FILE}")
    assert [bool(a.get("segmentation")) for a in truth.anns.values()] == [f == 1 for f in has_mask]
    # A malformed one stops a strict conversion; a box alone does not.
    coco_source.dataset["annotations"] = coco_source.dataset["annotations"][:7]
    assert coco_source.convert("boxes", strict=True)[1]["num_masks"] == 1
    coco_source.add(segmentation="polygon")
    with pytest.raises(coco_checks.BadEntryError, match="segmentation_malformed: annotation 99"):
        coco_source.convert("strict", strict=True)


def test_good_polygons_beside_bad_ones_are_kept(coco_source):
    parts = [[GOOD, POINT], [GOOD, LINE], [LINE, GOOD], [GOOD, []], [GOOD, GOOD[:-1]]]
    parts += [[GOOD, [20, 12, 26, 12, 26, 18, 20, 18]]]
    for number, segmentation in enumerate(parts, start=1):
        coco_source.add(id=number, bbox=[4, 3, 10, 6], segmentation=segmentation)
    del coco_source.dataset["annotations"][:4]

    output, manifest = coco_source.convert()

    assert manifest["skipped"] == {} and manifest["num_masks"] == 6
    assert splits.open_split(*os.path.split(output), Pipeline(), is_training=True).has_all_masks
    assert manifest["noted"] == {"segmentation_parts_left_out": 5}
    feature = read_features(output)[1]
    assert "image/object/has_mask" not in feature  # all have one
    masks = [tf.io.decode_png(png).numpy() for png in feature["image/object/mask"].bytes_list.value]
    assert [int(mask.sum()) for mask in masks] == [60] * 5 + [96]
    truth = COCO(f"{output}/{store.GROUND_TRUTH_FILE}")
    assert [truth.annToMask(truth.anns[k]).sum() for k in range(1, 7)] == [60] * 5 + [96]


def test_rle_equals_pycocotools_on_random_masks(coco_source):
    rng = np.random.default_rng(0)
    for density in (0, 0.02, 0.3, 0.9, 1):
        mask = (rng.uniform(size=(37, 53)) < density).astype(np.uint8)
        for compressed in (False, True):
            drawn = coco_images.decode_segmentation(coco_source.rle(mask, compressed), 37, 53)
            assert drawn.dtype == np.uint8 and (drawn == mask).all()
