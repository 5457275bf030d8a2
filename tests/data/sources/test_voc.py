"""Tests of rethink_tf/data/sources/voc.py on drawn images and on photographs of VOC2012."""

import json
import os
import pathlib
import subprocess
import sys
from xml.etree import ElementTree

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from record_features import read_features
from voc_source import VocSource, voc_object

from rethink_tf.data.records import store
from rethink_tf.data.sources import coco_checks, voc

ROOT = pathlib.Path(__file__).resolve().parents[3]


@pytest.fixture
def source(tmp_path):
    """Two years; the images of 2012 are not in order in their list."""
    source = VocSource(tmp_path)
    source.add("VOC2007", "000005", voc_object("dog", 1, 1, 60, 40) + voc_object("cat", 2, 3, 9, 9))
    source.add("VOC2007", "000007", lists=["train", "val"])
    source.add("VOC2012", "2008_000003", voc_object("person", 10.5, 4.25, 20, 30, difficult=1))
    source.add("VOC2012", "2007_000009", voc_object("tvmonitor", 5, 5, 5, 6))
    return source


def read_truth(output):
    return json.loads(pathlib.Path(output, store.GROUND_TRUTH_FILE).read_text())


def test_years_are_joined_and_boxes_continuous(source):
    output, manifest = source.convert("VOC2007:train", "VOC2012:train", strict=True)

    assert manifest == store.load_manifest(output)
    assert manifest["num_images"] == 4 and manifest["num_objects"] == 4
    assert manifest["num_difficult"] == 1 and manifest["num_crowds"] == 0
    assert manifest["has_masks"] is False and manifest["num_clipped"] == 0
    assert manifest["source"] == {"sets": ["VOC2007:train", "VOC2012:train"]}
    assert [(c["id"], c["name"]) for c in manifest["categories"]] == list(enumerate(voc.CLASSES, 1))
    assert sorted(voc.CLASSES) == list(voc.CLASSES) and len(voc.CLASSES) == 20
    assert {c["name"]: c["num_objects"] for c in manifest["categories"] if c["num_objects"]} == {
        "dog": 1,
        "cat": 1,
        "person": 1,
        "tvmonitor": 1,
    }
    truth = read_truth(output)
    ids = [2007000005, 2007000007, 2007000009, 2008000003]
    assert [image["id"] for image in truth["images"]] == ids
    assert truth["images"][2]["file_name"] == "VOC2012/JPEGImages/2007_000009.jpg"
    assert store.load_index(output).image_id.tolist() == ids
    boxes = {(a["image_id"], a["category_id"]): a["bbox"] for a in truth["annotations"]}
    assert boxes == {
        (2007000005, 12): [0, 0, 60, 40],  # the whole image
        (2007000005, 8): [1, 2, 8, 7],
        (2007000009, 20): [4, 4, 1, 2],  # one pixel wide, two high
        (2008000003, 15): [9.5, 3.25, 10.5, 26.75],
    }
    difficult = {a["image_id"]: a["difficult"] for a in truth["annotations"]}
    assert difficult == {2007000005: 0, 2007000009: 0, 2008000003: 1}


def test_records_hold_the_pixels_boxes_and_flags(source):
    features = read_features(source.convert("VOC2007:train", "VOC2012:train")[0])

    first = features[2007000005]
    path = source.root / "VOC2007" / "JPEGImages" / "000005.jpg"
    assert first["image/encoded"].bytes_list.value[0] == path.read_bytes()
    assert list(first["image/object/class/label"].int64_list.value) == [12, 8]
    assert list(first["image/object/class/text"].bytes_list.value) == [b"dog", b"cat"]
    sides = [first[f"image/object/bbox/{side}"].float_list.value for side in ("ymin", "xmax")]
    np.testing.assert_allclose(sides, [[0, 2 / 40], [1, 9 / 60]], rtol=1e-6)
    assert list(first["image/object/difficult"].int64_list.value) == [0, 0]
    assert list(features[2008000003]["image/object/difficult"].int64_list.value) == [1]
    assert "image/object/mask" not in first


def test_model_gardens_decoder_reads_the_records(source):
    from official.vision.dataloaders import tf_example_decoder

    paths = store.load_index(source.convert("VOC2007:train")[0]).paths
    decoded = tf_example_decoder.TfExampleDecoder().decode(
        next(iter(tf.data.TFRecordDataset(paths)))
    )

    assert decoded["groundtruth_classes"].numpy().tolist() == [12, 8]
    np.testing.assert_allclose(decoded["groundtruth_boxes"][0], [0, 0, 1, 1])


@pytest.mark.parametrize(
    ("folder", "name", "expected"),
    [
        ("VOC2012", "2007_000027", 2007000027),
        ("VOC2007", "000027", 2007000027),
        ("/data/VOCdevkit/VOC2007", "009963", 2007009963),
        ("anything", "2011_003276", 2011003276),
    ],
)
def test_ids_are_readable(folder, name, expected):
    assert voc.image_id(folder, name) == expected


def test_other_names_have_ids_of_their_own():
    names = [
        ("mine", "a"),
        ("mine", "b"),
        ("other", "a"),
        ("mine", "000027"),
        ("VOC2007", "1234567"),
    ]
    ids = [voc.image_id(*each) for each in names]

    assert len(set(ids)) == len(ids)
    # Beyond all years, and small enough for every reader of ids.
    assert all(9999 * 10**6 + 999_999 < key < 2**53 for key in ids)
    assert ids[0] == voc.image_id("/somewhere/mine", "a")


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["VOC2007:train", "VOC2007:val"], "000007 of VOC2007:val has the image id 2007000007"),
        (["VOC2007:train", "VOC2007:train"], "000005 of VOC2007:train"),
        (["VOC2012:train", "VOC2007:more"], "000009 of VOC2007:more .* 2007_000009 of VOC2012"),
    ],
)
def test_one_image_twice_is_an_error(source, sets, message):
    source.add("VOC2007", "000009", lists=["more"])

    with pytest.raises(ValueError, match=message):
        source.convert(*sets)
    assert not (source.root / "records").exists()


def test_unknown_class_is_one_clear_error(source):
    source.add("VOC2007", "000008", voc_object("dog", 1, 1, 9, 9) + voc_object("dgo", 1, 1, 9, 9))

    with pytest.raises(ValueError) as caught:
        source.convert("VOC2007:train")
    for part in ("VOC2007/Annotations/000008.xml", "object 2", "'dgo'", "20 known: aeroplane,"):
        assert part in str(caught.value)
    assert "--classes" in str(caught.value) and not (source.root / "records").exists()


def test_a_class_list_of_ones_own(tmp_path):
    source = VocSource(tmp_path)
    source.add("mine", "a", voc_object("walnut", 1, 1, 9, 9) + voc_object("date", 1, 1, 9, 9))

    output, manifest = source.convert("mine:train", classes=["walnut", "fig", "date"])

    assert [c["num_objects"] for c in manifest["categories"]] == [1, 0, 1]
    assert [a["category_id"] for a in read_truth(output)["annotations"]] == [1, 3]
    for classes in (["fig", "fig"], ["", "fig"]):
        with pytest.raises(ValueError, match="must be different names"):
            source.convert("mine:train", classes=classes)


BAD_OBJECTS = [
    ("annotation_malformed", "<object><bndbox/></object>", "no name of a class"),
    ("annotation_malformed", "<object><name>dog</name></object>", "xmin of its box is None"),
    ("annotation_malformed", voc_object("dog", "x", 1, 9, 9), "xmin of its box is 'x'"),
    ("annotation_malformed", voc_object("dog", 1, "nan", 9, 9), "ymin of its box is 'nan'"),
    ("annotation_malformed", voc_object("dog", 1, 1, 9, ""), "ymax of its box is ''"),
    ("annotation_malformed", voc_object("dog", 1, 1, 9, 9, "maybe"), "difficult is 'maybe'"),
    ("box_without_area", voc_object("dog", 9, 1, 8, 9), "bbox"),
    ("box_without_area", voc_object("dog", 1, 9, 9, 1), "bbox"),
    ("box_outside_image", voc_object("dog", 61, 1, 70, 9), "bbox"),
]


@pytest.mark.parametrize(("reason", "xml", "detail"), BAD_OBJECTS)
def test_bad_object_is_skipped_counted_and_named(source, reason, xml, detail):
    source.add("VOC2007", "000008", voc_object("cat", 1, 1, 9, 9) + xml)

    _, manifest = source.convert("VOC2007:train")

    assert manifest["skipped"] == {reason: 1} and manifest["num_objects"] == 3
    (entry,) = manifest["skipped_entries"]
    assert entry["entry"].startswith("VOC2007/Annotations/000008.xml: object 2")
    assert detail in entry["entry"]
    with pytest.raises(coco_checks.BadEntryError, match=f"{reason}.*000008.xml.*--strict"):
        source.convert("VOC2007:train", output="strict", strict=True)


def spoil_file(content):
    return lambda source: source.xml("VOC2007", "000005").write_bytes(content)


BAD_IMAGES = {
    "no file": (
        lambda source: source.xml("VOC2007", "000005").unlink(),
        {"annotation_file_missing": 1},
    ),
    "cut": (spoil_file(b"<annotation><object>"), {"annotation_file_malformed": 1}),
    "empty": (spoil_file(b""), {"annotation_file_malformed": 1}),
    "binary": (spoil_file(b"\xff\x00\xfe"), {"annotation_file_malformed": 1}),
    "encoding": (
        spoil_file(b'<?xml version="1.0" encoding="none-such"?><annotation/>'),
        {"annotation_file_malformed": 1},
    ),
    "another root": (spoil_file(b"<html></html>"), {"annotation_file_malformed": 1}),
    "size of no number": (
        lambda source: source.add(
            "VOC2007",
            "000005",
            voc_object("dog", 1, 1, 9, 9),
            "<width>-60</width><height>40</height>",
            lists=[],
        ),
        {"image_malformed": 1, "annotation_of_skipped_image": 1},
    ),
    "size of another": (
        lambda source: source.add(
            "VOC2007",
            "000005",
            voc_object("dog", 1, 1, 9, 9),
            "<width>40</width><height>60</height>",
            lists=[],
        ),
        {"image_wrong_size": 1, "annotation_of_skipped_image": 1},
    ),
    "no image": (
        lambda source: (source.root / "VOC2007/JPEGImages/000005.jpg").unlink(),
        {"image_missing": 1, "annotation_of_skipped_image": 2},
    ),
}


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_bad_image_is_skipped_counted_and_named(source, name):
    spoil, expected = BAD_IMAGES[name]
    source.add("VOC2007", "000009", voc_object("dog", 1, 1, 9, 9))
    spoil(source)

    output, manifest = source.convert("VOC2007:train")

    assert manifest["skipped"] == expected
    assert all("000005" in entry["entry"] for entry in manifest["skipped_entries"])
    assert store.load_index(output).image_id.tolist() == [2007000007, 2007000009]


def test_no_object_left_is_an_error_with_its_causes(source):
    (source.root / "VOC2007/JPEGImages/000005.jpg").unlink()

    with pytest.raises(ValueError, match=r"no object is left(.|\n)*1 x image_missing.*000005"):
        source.convert("VOC2007:train")


def test_images_of_other_endings_and_what_tools_write_for_nothing(source):
    """PNG and JPEG by name or by <filename>, sizes of 0, and words for difficult."""
    folder = source.root / "VOC2007" / "JPEGImages"
    words = {"000010": "Unspecified", "000011": "False", "000012": "1", "000013": ""}
    for name, word in words.items():
        size = "<width>0</width><height>0</height>" if name == "000010" else None
        size = "" if name == "000011" else size
        source.add("VOC2007", name, voc_object("dog", 1, 1, 9, 9, word), size, lists=["other"])
    for name, other in {
        "000010.jpg": "000010.png",
        "000011.jpg": "000011.JPEG",
        "000013.jpg": "photo 13.png",
    }.items():
        with Image.open(folder / name) as image:
            image.save(folder / other)
        (folder / name).unlink()
    xml = source.xml("VOC2007", "000013")
    stated = "<annotation>\n<filename>C:\\images\\photo 13.jpg</filename>"
    xml.write_text(xml.read_text().replace("<annotation>", stated))

    output, manifest = source.convert("VOC2007:other", strict=True)

    assert (manifest["num_images"], manifest["num_objects"], manifest["num_difficult"]) == (4, 4, 1)
    names = [image["file_name"].rsplit("/")[-1] for image in read_truth(output)["images"]]
    assert names == ["000010.png", "000011.JPEG", "000012.jpg", "photo 13.png"]
    assert store.load_index(output).width.tolist() == [60] * 4


def test_boxes_that_leave_the_image_are_cut(source):
    source.add("VOC2007", "000008", voc_object("dog", 0, 1, 61, 40))

    output, manifest = source.convert("VOC2007:train", strict=True)

    assert manifest["num_clipped"] == 1
    (box,) = [a["bbox"] for a in read_truth(output)["annotations"] if a["image_id"] == 2007000008]
    assert box == [0, 0, 60, 40]


@pytest.mark.parametrize(
    ("sets", "error", "message"),
    [
        (["VOC2007"], ValueError, "write FOLDER:LIST"),
        (["VOC2007:"], ValueError, "write FOLDER:LIST"),
        (["VOC2007:test"], FileNotFoundError, "test.txt is missing; the lists there are: .*train"),
        (["VOC2013:train"], FileNotFoundError, "VOC2013 has no folder JPEGImages"),
        (["VOC2007:dog_train"], ValueError, "dog_train.txt line 2 holds 2 words"),
        (["VOC2007:empty"], ValueError, "no image is left to convert"),
        ([], ValueError, "no set was given"),
    ],
)
def test_bad_sets_are_one_clear_error(source, sets, error, message):
    main = source.root / "VOC2007" / "ImageSets" / "Main"
    (main / "dog_train.txt").write_text("000005\n000007 -1\n")
    (main / "empty.txt").write_text("\n")

    with pytest.raises(error, match=message):
        source.convert(*sets)
    assert not (source.root / "records").exists()


def test_a_subset_is_written_and_said(source):
    whole = source.convert("VOC2007:train", "VOC2012:train")[0]
    parts = {}
    for count in (1, 2, 3):
        output, manifest = source.convert(
            "VOC2007:train", "VOC2012:train", output=f"first-{count}", num_images=count
        )
        assert manifest["num_images"] == count
        assert manifest["subset"]["num_images"] == count and manifest["subset"]["of"] == 4
        parts[count] = set(store.load_index(output).image_id.tolist())
    assert parts[1] < parts[2] < parts[3] < set(store.load_index(whole).image_id.tolist())
    with pytest.raises(ValueError, match="num_images, for .*: a subset of 5 images .* has 4"):
        source.convert("VOC2007:train", "VOC2012:train", output="five", num_images=5)
    assert not (source.root / "five").exists()


def test_command_line_converts_and_ends_with_one_clear_line(source):
    command = [sys.executable, "-m", "rethink_tf.data.voc", "--num_shards=2", "--num_workers=1"]
    sets = [f"--set={source.root}/VOC2007:train", f"--set={source.root}/VOC2012:train"]
    output = source.root / "records"

    def call(*arguments):
        return subprocess.run(
            [*command, *sets, *arguments], cwd=ROOT, capture_output=True, text=True
        )

    done = call(f"--output={output}")
    assert done.returncode == 0, done.stderr
    assert "4 images, 4 objects, 0 crowds in 2 shards" in done.stdout
    refused = call(f"--output={source.root}/cats", "--classes=cat,ant")
    assert refused.returncode == 1
    line = refused.stderr.splitlines()[-1]
    assert "object 1 is of class 'dog', which is none of the 2 known: cat, ant" in line
    assert "Traceback" not in refused.stderr


def test_bytes_do_not_depend_on_workers(source):
    here, _ = source.convert("VOC2007:train", "VOC2012:train", output="here")
    there, _ = source.convert("VOC2007:train", "VOC2012:train", output="there", num_workers=2)

    for name in os.listdir(here):
        same = pathlib.Path(here, name).read_bytes() == pathlib.Path(there, name).read_bytes()
        assert same, name


def test_photographs_of_voc2012(shared_dir, tmp_path):
    devkit = shared_dir / "data" / "VOCdevkit" / "VOC2012"
    output = str(tmp_path / "records")

    manifest = voc.convert(
        [f"{devkit}:trainval", f"{devkit}:val"],
        output,
        num_shards=3,
        num_workers=0,
        strict=True,
        progress=False,
    )

    assert manifest["num_images"] == 40 and manifest["num_clipped"] == 0
    truth = read_truth(output)
    names = {image["id"]: pathlib.Path(image["file_name"]).stem for image in truth["images"]}
    found = {}
    for each in truth["annotations"]:
        x, y, width, height = each["bbox"]
        box = [x + 1, y + 1, x + width, y + height]
        row = (voc.CLASSES[each["category_id"] - 1], *box, each["difficult"])
        found.setdefault(names[each["image_id"]], []).append(row)
    for name in names.values():
        root = ElementTree.parse(devkit / "Annotations" / f"{name}.xml").getroot()
        expected = [
            (
                each.find("name").text,
                *[
                    float(each.find("bndbox").find(s).text)
                    for s in ("xmin", "ymin", "xmax", "ymax")
                ],
                int(each.find("difficult").text),
            )
            for each in root.iter("object")
        ]
        assert found.get(name, []) == expected, name
    assert manifest["num_difficult"] == sum(row[-1] for rows in found.values() for row in rows) > 0
