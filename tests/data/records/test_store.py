"""Tests of rethink_tf/data/records/store.py and tfrecord_files.py."""

import io
import json
import os
import struct

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from rethink_tf.data.records import store, tfrecord_files


def _png(value, shape):
    buffer = io.BytesIO()
    Image.fromarray(np.full(shape, value, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def _example(image_id, is_crowd=(), **changes):
    count = len(is_crowd)
    arguments = {
        "image_id": image_id,
        "filename": f"{image_id}.png",
        "encoded": _png(image_id, (8, 10, 3)),
        "image_format": "png",
        "height": 8,
        "width": 10,
        "boxes": [[2, 1, 6, 5]] * count,
        "labels": [7] * count,
        "names": ["seven"] * count,
        "is_crowd": list(is_crowd),
        "areas": [16.0] * count,
        "masks": [_png(1, (8, 10))] * count,
    }
    return store.encode_example(**(arguments | changes))


def _write_finished(directory):
    """A finished directory: image 5 with one object, 6 with none; then 7 with object and crowd."""
    store.begin_directory(directory, overwrite=False)
    contents = [[_example(5, [0]), _example(6)], [_example(7, [0, 1])]]
    ids, objects, rows, shards = [5, 6, 7], [1, 0, 1], [], []
    for shard, examples in enumerate(contents):
        name = store.shard_name(shard, 2)
        path = os.path.join(directory, name)
        for offset, length in zip(*tfrecord_files.write_shard(path, examples), strict=True):
            row = {"shard": shard, "offset": offset, "length": length, "image_id": ids[len(rows)]}
            rows.append(row | {"height": 8, "width": 10, "num_objects": objects[len(rows)]})
        size = os.path.getsize(path)
        shards.append({"file": name, "records": len(examples), "bytes": size})
    paths = [os.path.join(directory, shard["file"]) for shard in shards]
    store.write_index(store.RecordIndex.from_rows(directory, paths, rows))
    categories = [{"id": 9, "name": "nine", "num_objects": 0}, {"id": 7, "name": "seven"}]
    store.write_manifest(directory, {"version": 1, "shards": shards, "categories": categories})


@pytest.fixture
def finished(tmp_path):
    directory = str(tmp_path / "records")
    _write_finished(directory)
    return directory


def test_example_holds_normalised_boxes_and_model_gardens_keys():
    feature = tf.train.Example.FromString(_example(5, [0, 1])).features.feature

    assert feature["image/source_id"].bytes_list.value[:] == [b"5"]
    assert feature["image/height"].int64_list.value[:] == [8]
    assert feature["image/object/class/label"].int64_list.value[:] == [7, 7]
    assert feature["image/object/class/text"].bytes_list.value[:] == [b"seven", b"seven"]
    assert feature["image/object/is_crowd"].int64_list.value[:] == [0, 1]
    assert feature["image/object/area"].float_list.value[:] == [16, 16]
    sides = [
        feature[f"image/object/bbox/{s}"].float_list.value[0] for s in "ymin xmin ymax xmax".split()
    ]
    assert np.allclose(sides, [2 / 8, 1 / 10, 6 / 8, 5 / 10])


def test_example_without_masks_has_no_mask_feature():
    feature = tf.train.Example.FromString(_example(5, [0], masks=None)).features.feature

    assert "image/object/mask" not in feature


def test_example_with_lists_of_different_length_is_an_error():
    with pytest.raises(ValueError, match="image 5: 1 boxes but 2 labels"):
        _example(5, [0], labels=[7, 7])


def test_index_by_scanning_equals_the_written_one(finished):
    written = store.load_index(finished)
    os.remove(os.path.join(finished, store.INDEX_FILE))
    scanned = store.load_index(finished)

    assert written.paths == scanned.paths
    for name in ("shard", "offset", "length", "image_id", "height", "width", "num_objects"):
        assert getattr(written, name).dtype == getattr(scanned, name).dtype
        assert getattr(written, name).tolist() == getattr(scanned, name).tolist(), name
    assert written.image_id.tolist() == [5, 6, 7]
    assert written.num_objects.tolist() == [1, 0, 1]
    assert written.shard.tolist() == [0, 0, 1]


def test_frames_equal_tensorflows_reading(finished):
    index = store.load_index(finished)
    path = index.paths[0]
    theirs = list(tf.data.TFRecordDataset(path).as_numpy_iterator())

    ours = list(tfrecord_files.read_frames(path))

    assert [payload for _, payload in ours] == theirs
    assert [offset for offset, _ in ours] == index.offset[:2].tolist()
    assert [len(payload) for _, payload in ours] == index.length[:2].tolist()


def test_checksum_of_the_standard():
    # RFC 3720, B.4: CRC-32C of 32 zero bytes is 0x8A9136AA; TFRecord rotates it and adds.
    crc = 0x8A9136AA
    masked = (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF

    assert tfrecord_files.masked_crc32c(bytes(32)) == masked


def test_select_keeps_rows_in_the_order_given(finished):
    index = store.load_index(finished)

    assert index.select([2, 0]).image_id.tolist() == [7, 5]
    assert index.select(index.num_objects > 0).image_id.tolist() == [5, 7]
    assert len(index.select(slice(0, 0))) == 0


def test_categories_come_sorted_by_id(finished):
    assert [c["id"] for c in store.load_categories(finished)] == [7, 9]


@pytest.mark.parametrize("with_index", [True, False])
def test_truncated_shard_is_an_error_with_its_name(finished, with_index):
    path = store.load_index(finished).paths[1]
    with open(path, "r+b") as file:
        file.truncate(os.path.getsize(path) - 3)
    if not with_index:
        os.remove(os.path.join(finished, store.INDEX_FILE))

    with pytest.raises(ValueError, match=r"records-00001-of-00002.tfrecord.*truncated"):
        store.load_index(finished)


def test_shard_truncated_in_a_header_is_an_error(tmp_path):
    path = tmp_path / "a.tfrecord"
    tfrecord_files.write_shard(str(path), [b"x"])
    path.write_bytes(path.read_bytes() + b"12345")

    with pytest.raises(ValueError, match="a.tfrecord is truncated in a header at byte 17"):
        list(tfrecord_files.read_frames(str(path)))


@pytest.mark.parametrize("with_index", [True, False])
def test_missing_shard_is_an_error_with_its_name(finished, with_index):
    os.remove(store.load_index(finished).paths[0])
    if not with_index:
        os.remove(os.path.join(finished, store.INDEX_FILE))

    with pytest.raises(FileNotFoundError, match="records-00000-of-00002.tfrecord is missing"):
        store.load_index(finished)


def test_file_that_is_no_tfrecord_is_an_error(tmp_path):
    (tmp_path / "a.tfrecord").write_text("not a record at all, but some text")

    with pytest.raises(ValueError, match="a.tfrecord is not an uncompressed TFRecord file"):
        store.load_index(tmp_path)


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b"\xff\xff\xff", "byte 0: not a tf.train.Example"),
        (tf.train.Example().SerializeToString(), "byte 0: no image/source_id"),
        (_example(5, height=0, boxes=[]), r"byte 0: image/height is \[0\]"),
    ],
)
def test_record_of_another_schema_is_an_error(tmp_path, payload, message):
    tfrecord_files.write_shard(str(tmp_path / "a.tfrecord"), [payload])

    with pytest.raises(ValueError, match=f"a.tfrecord at {message}"):
        store.load_index(tmp_path)


def test_source_id_that_is_no_number_is_an_error(tmp_path):
    example = tf.train.Example.FromString(_example(5))
    example.features.feature["image/source_id"].bytes_list.value[0] = b"2008_000001"
    tfrecord_files.write_shard(str(tmp_path / "a.tfrecord"), [example.SerializeToString()])

    with pytest.raises(ValueError, match="'2008_000001' is not a decimal image id"):
        store.load_index(tmp_path)


def test_index_of_other_records_is_an_error(finished):
    path = os.path.join(finished, store.INDEX_FILE)
    index = store.load_index(finished)
    store.write_index(index.select([0, 2]))

    with pytest.raises(ValueError, match="does not fit manifest.json"):
        store.load_index(finished)

    with open(path, "wb") as file:
        file.write(b"nonsense")
    with pytest.raises(ValueError, match="index.npz cannot be read"):
        store.load_index(finished)


def test_empty_directory_and_missing_manifest_say_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match="no .*tfrecord in .*rethink_tf.data.coco"):
        store.load_index(tmp_path)
    with pytest.raises(FileNotFoundError, match="manifest.json is missing.*rethink_tf.data.coco"):
        store.load_categories(str(tmp_path))


@pytest.mark.parametrize("content", ["{", "[]", json.dumps({"version": 99})])
def test_unusable_manifest_is_an_error(tmp_path, content):
    (tmp_path / store.MANIFEST_FILE).write_text(content)

    with pytest.raises(ValueError, match="manifest.json.*convert the data set again"):
        store.load_manifest(str(tmp_path))


def test_shard_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.tfrecord"
    tfrecord_files.write_shard(str(path), [b"old"])

    def broken():
        yield b"new"
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        tfrecord_files.write_shard(str(path), broken())

    assert os.listdir(tmp_path) == ["a.tfrecord"]
    assert [payload for _, payload in tfrecord_files.read_frames(str(path))] == [b"old"]


def test_half_written_directory_is_refused_and_can_be_begun_again(finished):
    store.begin_directory(finished, overwrite=True)

    assert os.listdir(finished) == [store.INCOMPLETE_FILE]
    tfrecord_files.write_shard(os.path.join(finished, store.shard_name(0, 1)), [_example(5)])
    with pytest.raises(ValueError, match="half-written"):
        store.load_index(finished)

    store.begin_directory(finished, overwrite=False)
    assert os.listdir(finished) == [store.INCOMPLETE_FILE]


def test_finished_directory_is_not_overwritten_by_mistake(finished):
    before = sorted(os.listdir(finished))

    with pytest.raises(FileExistsError, match="already holds finished records.*--overwrite"):
        store.begin_directory(finished, overwrite=False)

    assert sorted(os.listdir(finished)) == before


@pytest.mark.parametrize(
    "name", ["coco-00000-of-00001.tfrecord", "records-00000-of-00001.tfrecord"]
)
def test_records_of_others_are_never_removed(tmp_path, name):
    tfrecord_files.write_shard(str(tmp_path / name), [_example(5)])

    with pytest.raises(FileExistsError, match=name):
        store.begin_directory(str(tmp_path), overwrite=True)

    assert os.listdir(tmp_path) == [name]


def test_absurd_length_with_a_good_checksum_is_an_error(tmp_path):
    length = struct.pack("<Q", 2**40)
    header = length + struct.pack("<I", tfrecord_files.masked_crc32c(length))
    (tmp_path / "a.tfrecord").write_bytes(header + b"abc")

    with pytest.raises(ValueError, match="a.tfrecord is truncated: the record at byte 0"):
        store.load_index(tmp_path)
