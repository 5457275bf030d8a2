"""Tests of rethink_tf/data/input/reading.py: corrupted records, on records spoilt here."""

import io
import itertools
import logging
import resource
import struct

import numpy as np
import pytest
import tensorflow as tf
from drawn_records import png_bomb
from PIL import Image

from rethink_tf.data.input import reading
from rethink_tf.data.input.pipeline import Pipeline
from rethink_tf.data.input.reading import PipelineCounters
from rethink_tf.data.records import store, tfrecord_files

FRAME_HEADER_BYTES = 12
SETTINGS = {
    "min_side": 20,
    "max_side": 30,
    "buckets": [(20, 30)],
    "include_masks": False,
    "parallel_records": 2,
    "max_skipped_share": 0.5,
}


def jpeg(image_id):
    buffer = io.BytesIO()
    Image.fromarray(np.full([20, 30, 3], image_id * 20, np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


def example(image_id, **changes):
    arguments = {
        "image_id": image_id,
        "filename": "a.jpg",
        "encoded": jpeg(image_id),
        "image_format": "jpeg",
        "height": 20,
        "width": 30,
        "boxes": [[2, 3, 12, 13]],
        "labels": [1],
        "names": ["one"],
        "is_crowd": [0],
        "areas": [100.0],
    }
    return store.encode_example(**arguments | changes)


def write(folder, examples):
    path = str(folder / "records-00000-of-00001.tfrecord")
    tfrecord_files.write_shard(path, examples)
    return path, store.load_index(str(folder))


def spoil_payload(path, index, row):
    """Changes a byte in the middle of a record, so that its checksum is wrong."""
    with open(path, "r+b") as file:
        file.seek(index.offset[row] + FRAME_HEADER_BYTES + index.length[row] // 2)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 0xFF]))


def training(index, counters, batch_size=3, start_step=0):
    pipeline = Pipeline(**SETTINGS)
    return pipeline.training(
        index, [1], batch_size, seed=0, start_step=start_step, counters=counters
    )


def ids_of(dataset, count):
    return [batch["image_id"].numpy().tolist() for batch in itertools.islice(dataset, count)]


BAD = {
    "jpeg": {"encoded": jpeg(4)[:300]},
    "other size": {"height": 21},
}


@pytest.mark.parametrize("fault", ["checksum", "not an Example", *BAD])
def test_corrupted_record_is_replaced_counted_and_named(tmp_path, caplog, fault):
    examples = [example(i) for i in range(1, 7)]
    bad_id, row = 4, 3
    path, whole = write(tmp_path, examples)
    expected = ids_of(training(whole, PipelineCounters()), 2)
    if fault in BAD:
        examples[row] = example(bad_id, **BAD[fault])
        path, index = write(tmp_path, examples)
    elif fault == "checksum":
        spoil_payload(path, whole, row)
        index = whole
    else:
        examples[row] = b"\xff" * 40
        offsets, lengths = tfrecord_files.write_shard(path, examples)
        whole.offset[:], whole.length[:] = offsets, lengths
        index = whole
    counters = PipelineCounters()

    with caplog.at_level(logging.WARNING, logger="absl"):
        found = ids_of(training(index, counters), 2)

    # A third of six records is two: record 6 stands in for record 4.
    assert found == [[6 if i == bad_id else i for i in batch] for batch in expected]
    assert counters.skipped_records >= 1
    assert list(counters.skipped_by_record) == [(path, index.offset[row])]
    assert f"{path} at byte {index.offset[row]} (image 4)" in caplog.text
    assert ids_of(training(index, PipelineCounters(), start_step=1), 1) == found[1:]


def test_an_image_that_states_a_small_size_and_is_a_large_one_is_not_decoded(tmp_path):
    bomb = png_bomb(12_000)
    assert len(bomb) < 1_000_000
    examples = [example(i, **{"encoded": bomb} if i == 4 else {}) for i in range(1, 7)]
    path, index = write(tmp_path, examples)
    counters = PipelineCounters()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ids_of(training(index, counters), 2)
    # Its pixels would take 432 MB.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000
    assert list(counters.skipped_by_record) == [(path, index.offset[3])]


def test_a_record_that_states_a_length_beyond_memory_is_skipped(tmp_path):
    path, index = write(tmp_path, [example(i) for i in range(1, 7)])
    length = struct.pack("<Q", 2**34)
    with open(path, "r+b") as file:
        file.seek(index.offset[3])
        file.write(length + struct.pack("<I", tfrecord_files.masked_crc32c(length)))
    counters = PipelineCounters()

    # TensorFlow's reader ends the process there.
    ids_of(training(index, counters), 2)
    assert list(counters.skipped_by_record) == [(path, index.offset[3])]


def test_second_stand_in_takes_over(tmp_path):
    path, index = write(tmp_path, [example(i) for i in range(1, 7)])
    expected = ids_of(training(index, PipelineCounters()), 2)
    for row in (3, 5):
        spoil_payload(path, index, row)
    counters = PipelineCounters()

    found = ids_of(training(index, counters), 2)

    # Record 4 falls to 6, which is bad too, and then to 2; 6 falls to 2.
    assert found == [[2 if i in (4, 6) else i for i in batch] for batch in expected]
    assert set(counters.skipped_by_record) == {(path, index.offset[3]), (path, index.offset[5])}


def test_error_where_nothing_can_be_read(tmp_path):
    path, index = write(tmp_path, [example(i) for i in range(1, 4)])
    for row in range(3):
        spoil_payload(path, index, row)

    with pytest.raises(tf.errors.InvalidArgumentError, match=r"image 1\).*could not be read"):
        ids_of(training(index, PipelineCounters()), 1)


def test_evaluation_stops_at_a_corrupted_record(tmp_path):
    path, index = write(tmp_path, [example(i) for i in range(1, 4)])
    spoil_payload(path, index, 1)
    dataset = Pipeline(min_side=20, max_side=30).evaluation(index, 1)

    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        ids_of(dataset, 3)
    assert f"{path} at byte {index.offset[1]} (image 2) could not be read" in str(caught.value)


def write_shards(folder, count, num_shards):
    for shard in range(num_shards):
        path = folder / f"records-{shard:05d}-of-{num_shards:05d}.tfrecord"
        ids = range(shard * count + 1, (shard + 1) * count + 1)
        tfrecord_files.write_shard(str(path), [example(i) for i in ids])
    return store.load_index(str(folder))


def test_a_shard_that_vanishes_while_running_is_skipped_up_to_a_share(tmp_path, caplog):
    index = write_shards(tmp_path, 4, 3)
    counters = PipelineCounters()
    pipeline = Pipeline(**SETTINGS | {"max_skipped_share": 0.4})
    dataset = pipeline.training(index, [1], 3, seed=0, counters=counters)
    batches = reading.naming_errors(dataset, counters)
    assert len(ids_of(batches, 1)) == 1
    (tmp_path / "records-00002-of-00003.tfrecord").rename(tmp_path / "moved")
    # Four of twelve: all of them are skipped in the end, and named once each.
    while len(counters.skipped_by_record) < 4:
        ids_of(batches, 1)
    with caplog.at_level(logging.WARNING, logger="absl"):
        assert not [i for batch in ids_of(batches, 8) for i in batch if i > 8]
    assert counters.error is None
    (tmp_path / "records-00001-of-00003.tfrecord").rename(tmp_path / "moved too")
    with pytest.raises(reading.DataError) as error:
        ids_of(batches, 100)
    text = str(error.value)
    assert text.startswith(f"5 of the 12 records of {tmp_path} could not be read, the last one of ")
    assert (
        "records-00001-of-00003.tfrecord: that is more than Pipeline.max_skipped_share = 0.4"
        in text
    )


def test_evaluation_names_a_shard_that_vanished(tmp_path):
    index, counters = write_shards(tmp_path, 2, 2), PipelineCounters()
    dataset = Pipeline(min_side=20, max_side=30).evaluation(index, 1, counters=counters)
    path = tmp_path / "records-00001-of-00002.tfrecord"
    path.unlink()
    with pytest.raises(reading.DataError, match=rf"^record {path} at byte 0 \(image 3\) could"):
        ids_of(reading.naming_errors(dataset, counters), 4)
