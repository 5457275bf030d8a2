"""Which layouts of a folder are recognised, and which splits are taken."""

import json

import pytest

from rethink_tf.own_data import layouts


def touch(path, content=""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def coco(path, *names):
    """Writes a COCO file of these images, without objects."""
    entries = [{"id": number, "file_name": name} for number, name in enumerate(names)]
    touch(path, json.dumps({"images": entries, "annotations": [], "categories": []}))


def test_record_directories_with_and_without_a_manifest(tmp_path):
    touch(tmp_path / "train" / "manifest.json")
    touch(tmp_path / "valid" / "shard-00000-of-00001.tfrecord")
    touch(tmp_path / "images" / "1.jpg")
    layout = layouts.find_layout(tmp_path)
    assert (layout.kind, list(layout.splits)) == ("records", ["train", "valid"])
    alone = layouts.find_layout(tmp_path / "train")
    assert alone.splits == {"train": [str(tmp_path / "train")]}


def test_roboflows_export(tmp_path):
    for split in ("train", "valid", "test"):
        coco(tmp_path / split / "_annotations.coco.json", "a.jpg")
        touch(tmp_path / split / "a.jpg")
    layout = layouts.find_layout(tmp_path)
    folder = tmp_path / "train"
    assert layout.kind == "coco" and list(layout.splits) == ["test", "train", "valid"]
    assert layout.splits["train"] == [(str(folder), str(folder / "_annotations.coco.json"))]
    assert layouts.choose_splits(layout) == ("train", "valid")


def test_cocos_own_layout_leaves_the_keypoints_file_out(tmp_path):
    for split in ("train2017", "val2017"):
        for kind in ("instances", "person_keypoints"):
            coco(tmp_path / "annotations" / f"{kind}_{split}.json", f"{split}.jpg")
        touch(tmp_path / split / f"{split}.jpg")
    layout = layouts.find_layout(tmp_path)
    assert list(layout.splits) == ["train", "val"]
    assert layout.splits["val"][0] == (
        str(tmp_path / "val2017"),
        str(tmp_path / "annotations" / "instances_val2017.json"),
    )


def test_one_coco_file_with_its_images_anywhere_below(tmp_path):
    coco(tmp_path / "trainval.json", "lost.jpg", "b.jpg")
    touch(tmp_path / "export" / "images" / "b.jpg")
    touch(tmp_path / "notes.json", "[1, 2]")
    touch(tmp_path / "broken.json", "{")
    layout = layouts.find_layout(tmp_path)
    folder = str(tmp_path / "export" / "images")
    assert layout.splits == {"trainval": [(folder, str(tmp_path / "trainval.json"))]}
    assert layouts.choose_splits(layout) == ("trainval", None)


def voc(folder, **lists):
    for name in ("Annotations", "JPEGImages"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for name, text in lists.items():
        touch(folder / "ImageSets" / "Main" / f"{name}.txt", text)


def test_voc_joins_years_and_leaves_out_lists_of_a_class(tmp_path):
    voc(tmp_path / "VOC2007", train="000001\n", val="000002\n", trainval="000001\n000002\n")
    voc(tmp_path / "VOC2012", train="2008_000001\n", dog_train="2008_000001 -1\n")
    layout = layouts.find_layout(tmp_path)
    assert layout.kind == "voc" and sorted(layout.splits) == ["train", "val"]
    years = [f"{tmp_path / year}:train" for year in ("VOC2007", "VOC2012")]
    assert layout.splits["train"] == years
    voc(tmp_path / "one", trainval="1\n", val="2\n")
    assert layouts.choose_splits(layouts.find_layout(tmp_path / "one")) == ("trainval", "val")


def test_splits_by_name_and_what_is_said_of_wrong_ones(tmp_path):
    layout = layouts.Layout(
        "records", {"good": [], "better": [], "train2017": [], "validation": []}
    )
    assert layouts.choose_splits(layout) == ("train2017", "validation")
    assert layouts.choose_splits(layout, ("good", "better")) == ("good", "better")
    assert layouts.choose_splits(layout, "good") == ("good", None)
    with pytest.raises(ValueError, match=r"SPLITS = \('good', 'val'\): .*good, better, train2017"):
        layouts.choose_splits(layout, ("good", "val"))
    unnamed = layouts.Layout("coco", {"a": [], "b": []})
    with pytest.raises(ValueError, match=r"None of the splits a, b is called train.*SPLITS=\('a'"):
        layouts.choose_splits(unnamed)


def test_what_is_not_known_is_listed(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        layouts.find_layout(tmp_path / "nowhere")
    touch(tmp_path / "labels" / "1.txt")
    touch(tmp_path / "data.yaml")
    with pytest.raises(ValueError, match=r"no data of a known layout, but: data.yaml, labels/\."):
        layouts.find_layout(tmp_path)


def test_a_changed_source_is_noticed(tmp_path):
    coco(tmp_path / "trainval.json", "b.jpg")
    touch(tmp_path / "b.jpg")
    voc(tmp_path / "VOC2012", train="1\n")
    for layout in (
        layouts.Layout("coco", layouts._find_coco(tmp_path)),
        layouts.find_layout(tmp_path / "VOC2012"),
    ):
        sizes = layouts.sizes(layout, tmp_path)
        assert layouts.changed(sizes, tmp_path) is None
        if layout.kind == "voc":
            touch(tmp_path / "VOC2012" / "Annotations" / "1.xml", "<annotation/>")
            assert layouts.changed(sizes, tmp_path) == "VOC2012/Annotations"
        else:
            coco(tmp_path / "trainval.json", "b.jpg", "c.jpg")
            assert layouts.changed(sizes, tmp_path) == "trainval.json"
