"""Records of other tools, without a manifest: indexed on first use, and then trained on."""

import json
import shutil

import drawn_records
import numpy as np
import pytest
import tensorflow as tf
from official.vision.data import create_coco_tf_record
from PIL import Image

from rethink_tf.data import schema
from rethink_tf.data.input.pipeline import Pipeline
from rethink_tf.data.records import foreign, splits, store, tfrecord_files
from rethink_tf.data.sources import coco_images

SIZE = (24, 32)
BOX, OTHER = (2, 3, 14, 20), (10, 12, 22, 30)
PIPELINE = {"min_side": 24, "max_side": 32, "buckets": ((24, 32),), "mask_size": 14}
PIPELINE |= {"max_objects": 3, "parallel_records": 2}


def example(image_id, boxes=(BOX,), labels=None, names=None, change=None, **options):
    """A record as Model Garden's tools leave it, after `change` of its features."""
    names = names or {3: "ant", 5: "bee"}
    labels = [3] * len(boxes) if labels is None else labels
    serialized = drawn_records.example(image_id, SIZE, boxes, labels, **options)
    parsed = tf.train.Example.FromString(serialized)
    texts = [names[label].encode() for label in labels]
    parsed.features.feature["image/object/class/text"].bytes_list.value[:] = texts
    if change:
        change(parsed.features.feature)
    return parsed.SerializeToString()


def set_bytes(feature, key, *values):
    feature[key].bytes_list.value[:] = values


def remove(*keys):
    def change(feature):
        for key in keys:
            feature.pop(key)

    return change


def write(folder, examples, name="coco_train.record-{:05d}-of-{:05d}"):
    """Writes two shards with names of the Object Detection API."""
    folder.mkdir(parents=True)
    for shard in range(2):
        tfrecord_files.write_shard(str(folder / name.format(shard, 2)), examples[shard::2])


@pytest.fixture
def data_dir(tmp_path):
    write(tmp_path / "train", [example(1), example(2, (BOX, OTHER), [3, 5]), example(3, ())])
    write(tmp_path / "val", [example(4, crowd=[0]), example(5)], "val-{:05d}-of-{:05d}.tfrecord")
    return tmp_path


def open_both(data_dir, **options):
    pipeline = Pipeline(**PIPELINE | options)
    both = splits.open_splits("train_and_evaluate", str(data_dir), "train", "val", pipeline)
    return pipeline, *both


def test_records_train_and_are_evaluated(data_dir, caplog):
    pipeline, train, val = open_both(data_dir)

    # The class that does not occur in val is there, too.
    assert splits.check_splits([train, val], needs_masks=True) == [3, 5]
    assert (
        train.categories == val.categories == [{"id": 3, "name": "ant"}, {"id": 5, "name": "bee"}]
    )
    dataset = pipeline.training(train.index, train.category_ids, 2, seed=1)
    seen = {}
    for batch in dataset.take(4):
        schema.check_batch(batch, dataset.element_spec, num_classes=2)
        seen |= {
            int(i): c.numpy().tolist()
            for i, c in zip(batch["image_id"], batch["classes"], strict=True)
        }
    assert seen == {1: [1, 0, 0], 2: [1, 2, 0], 3: [0, 0, 0]}
    truth = val.ground_truth()
    assert [image["id"] for image in truth["images"]] == [4, 5]
    annotation = truth["annotations"][0]
    np.testing.assert_allclose(annotation["bbox"], [3, 2, 17, 12], atol=1e-4)
    assert annotation["segmentation"]["size"] == list(SIZE) and annotation["iscrowd"] == 0
    manifest = store.load_manifest(str(data_dir / "train"))
    assert (manifest["num_images"], manifest["num_objects"], manifest["num_masks"]) == (3, 3, 3)
    # A second start reads what the first one left.
    (shard,) = (data_dir / "train").glob("*00000-of*")
    before = (data_dir / "train" / store.INDEX_FILE).stat().st_mtime_ns
    open_both(data_dir)
    assert (data_dir / "train" / store.INDEX_FILE).stat().st_mtime_ns == before
    shard.write_bytes(shard.read_bytes()[:-7])
    with pytest.raises(ValueError, match="says .* it is truncated or of another"):
        open_both(data_dir)


def test_records_of_model_gardens_own_tool(coco_source):
    """The ground truth of what Model Garden's converter makes is that of ours."""
    for image in coco_source.dataset["images"]:
        path = coco_source.folder / image["file_name"]
        image["file_name"] = f"{image['id']}.jpg"
        with Image.open(path) as opened:
            opened.save(coco_source.folder / image["file_name"], quality=95)
    coco_source.add(bbox=[20, 2, 6, 8], area=48, segmentation=[[20, 2, 26, 2, 26, 10, 20, 10]])
    # That tool reads run lengths of crowds alone, and asks for what is optional in ours.
    annotations = coco_source.dataset["annotations"]
    annotations[2]["segmentation"] = [[4, 3, 14, 3, 14, 9, 4, 9]]
    for annotation in annotations:
        annotation.setdefault("iscrowd", 0)
        annotation.setdefault("area", 59.0)
    ours, _ = coco_source.convert("ours")
    (coco_source.root / "train").mkdir()
    names = {c["id"]: c["name"] for c in coco_source.dataset["categories"]}
    for shard, images in enumerate(
        (coco_source.dataset["images"][:3], coco_source.dataset["images"][3:])
    ):
        examples = []
        for each in images:
            own = [a for a in annotations if a["image_id"] == each["id"]]
            example, skipped = create_coco_tf_record.create_tf_example(
                each,
                [str(coco_source.folder)],
                bbox_annotations=own,
                id_to_name_map=names,
                include_masks=True,
            )
            assert skipped == 0
            examples.append(example.SerializeToString())
        path = coco_source.root / "train" / f"coco-{shard:05d}-of-00002.tfrecord"
        tfrecord_files.write_shard(str(path), examples)

    foreign.make_manifests(str(coco_source.root), ["train", "no such split"])

    manifest = store.load_manifest(str(coco_source.root / "train"))
    counts = ("num_images", "num_objects", "num_crowds", "num_masks")
    assert [manifest[key] for key in counts] == [4, 4, 1, 5]
    truths = [
        splits.load_ground_truth(str(folder), [1, 2, 3, 4])
        for folder in (coco_source.root / "train", ours)
    ]
    described = []
    for truth in truths:
        images = {each["id"]: each for each in truth["images"]}
        rows = []
        for each in truth["annotations"]:
            size = [images[each["image_id"]][side] for side in ("height", "width")]
            mask = coco_images.decode_segmentation(each["segmentation"], *size)
            row = [each["image_id"], each["category_id"], each["iscrowd"], each["area"]]
            rows.append([*row, *np.round(each["bbox"], 3).tolist(), int(mask.sum())])
        described.append(sorted(rows))
    assert described[0] == described[1]


def test_label_maps_name_the_classes(data_dir):
    text = """# a comment
item { name: "/m/ant" id: 3 display_name: 'giant "ant"' }
item {
  id: 5
  name: 'bee'
}
item: { id: 7 name: "wasp" }
"""
    (data_dir / "label_map.pbtxt").write_text(text)
    _, train, val = open_both(data_dir)
    assert train.categories == val.categories
    names = {entry["id"]: entry["name"] for entry in train.categories}
    assert names == {3: 'giant "ant"', 5: "bee", 7: "wasp"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("item { id: 3 name: 'ant' }", "has no item with id 5, which 1 objects of .*train have"),
        ("item { id: 3 }", "an item has no id or no name: id: 3"),
        ("cat\ndog", "it is no label map"),
    ],
)
def test_label_maps_that_do_not_fit_are_errors(data_dir, text, message):
    (data_dir / "train" / "map.pbtxt").write_text(text)
    with pytest.raises(ValueError, match=f"map.pbtxt.*{message}"):
        open_both(data_dir)


def test_names_that_contradict_each_other_are_an_error(tmp_path):
    write(tmp_path / "train", [example(1), example(2)])
    write(tmp_path / "val", [example(3, names={3: "bee"}), example(4, names={3: "bee"})])
    with pytest.raises(ValueError, match="category 3 is 'ant' in .*train and 'bee' in .*val"):
        open_both(tmp_path)
    shutil.rmtree(tmp_path / "val")
    write(tmp_path / "val", [example(3), example(4, names={3: "bee"}), example(5)])
    with pytest.raises(ValueError, match="class 3 is 'bee', 'ant' before it"):
        open_both(tmp_path)


def test_ids_and_sizes_that_records_do_not_state(tmp_path):
    """Ids from names of files, sizes from the image, classes without a text."""
    keys = ("image/source_id", "image/height", "image/width", "image/object/class/text")
    named = [example(k, change=remove(*keys)) for k in (1, 2)]
    by_source = example(3, change=lambda f: set_bytes(f, "image/source_id", b"2008_000001"))
    write(tmp_path / "train", [*named, by_source, example(4, with_masks=False)])
    write(tmp_path / "val", named)
    _, train, val = open_both(tmp_path)
    assert len(set(train.index.image_id.tolist())) == 4
    assert set(val.index.image_id.tolist()) < set(train.index.image_id.tolist())
    assert train.index.height.tolist() == [24] * 4 and train.index.image_id[0] >= 2**48
    assert train.categories == [{"id": 3, "name": "ant"}]
    # One record without masks among others: boxes alone, and it is said.
    assert not train.has_masks and val.has_masks
    assert store.load_manifest(train.directory)["noted"] == {"records_without_masks": 1}


def test_records_that_cannot_be_used_are_left_out_and_counted(tmp_path):
    def in_pixels(feature):
        for side in ("ymin", "xmin", "ymax", "xmax"):
            value = feature[f"image/object/bbox/{side}"].float_list.value
            value[:] = [32 * each for each in value]

    bad = {
        "image_wrong_size": example(
            11, change=lambda f: f["image/height"].int64_list.value.__setitem__(0, 9)
        ),
        "image_unreadable": example(12, change=lambda f: set_bytes(f, "image/encoded", b"no")),
        "image_duplicate_id": example(1),
        "image_record_malformed": example(14, change=in_pixels),
    }
    write(tmp_path / "train", [example(1), example(2), *bad.values()])
    write(tmp_path / "val", [example(3), example(4)])
    _, train, _ = open_both(tmp_path)
    assert train.index.image_id.tolist() == [1, 2]
    manifest = store.load_manifest(train.directory)
    assert manifest["skipped"] == {reason: 1 for reason in sorted(bad)}
    assert json.dumps(manifest).count(" at byte ") >= 4
    shutil.rmtree(tmp_path / "train")
    write(tmp_path / "train", [bad["image_unreadable"], bad["image_record_malformed"]])
    with pytest.raises(ValueError, match="(?s)no record can be used.*not a part .0 to 1. of the"):
        open_both(tmp_path)


def test_a_missing_shard_is_named(data_dir):
    (data_dir / "train" / "coco_train.record-00001-of-00002").unlink()
    with pytest.raises(FileNotFoundError, match="coco_train.record-00001-of-00002 is missing"):
        foreign.make_manifests(str(data_dir), ["train"])


def test_a_folder_that_cannot_be_written_to_is_one_clear_error(data_dir, monkeypatch):
    def refuse(index):
        raise PermissionError("read-only file system")

    monkeypatch.setattr(foreign.store, "write_index", refuse)
    with pytest.raises(OSError, match="none can be written there.*read-only.*writable"):
        foreign.make_manifests(str(data_dir), ["train"])
