"""Reading one record at its offset, replacing it when it is corrupted, and reporting both.

Damage is what TensorFlow refuses: a shard that does not open, a wrong checksum, an Example or an
image that does not decode, sizes that differ from those stated. Such a record is skipped, counted
and named in training, up to a share of all; in evaluation, and when its stand-ins are corrupted
too, it is an error. What is wrong with the data set as a whole (an unknown category, masks that are
missing) is an error at once.
"""

import contextlib
import os
import threading
from collections import Counter
from collections.abc import Sequence

import tensorflow as tf
from absl import logging

from rethink_tf.data import schema
from rethink_tf.data.input import decode
from rethink_tf.data.records.store import RecordIndex

_REMOTE_READ_BYTES = 256 * 1024  # one request instead of two for most records
_ALL_FAILED = -1


class DataError(ValueError):
    """The data cannot be trained on, or evaluated; the message names the record."""


class PipelineCounters:
    """What a pipeline left out; safe to read while it runs, ahead of the model by its prefetch.

    Attributes:
        skipped_records: times that a corrupted record was skipped and replaced.
        skipped_by_record: the same by (shard path, byte offset).
        cut_objects: objects left out because their image, pasted ones included, has more than
            `max_objects`.
        error: `DataError` that ended the pipeline, or None. TensorFlow wraps it in many lines.
        waiting: callable that returns the context in which to wait for a batch.
    """

    def __init__(self):
        self._lock = threading.Lock()
        self.skipped_records = 0
        self.skipped_by_record = Counter()
        self.cut_objects = 0
        self.error = None
        self.waiting = contextlib.nullcontext
        self._cut_images = set()

    def as_dict(self) -> dict[str, int]:
        """The counts by name, for logs."""
        return {"skipped_records": self.skipped_records, "cut_objects": self.cut_objects}

    def add_skipped(self, path: str, offset: int, image_id: int) -> None:
        """Counts a skipped record and warns of it the first time."""
        with self._lock:
            self.skipped_records += 1
            self.skipped_by_record[path, offset] += 1
            first = self.skipped_by_record[path, offset] == 1
        if first:
            logging.warning(
                "Skipped a corrupted record: %s at byte %d (image %d), another image takes its "
                "place. TensorFlow's warning before this one has the reason; copy the shard "
                "again or convert the data set again.",
                path,
                offset,
                image_id,
            )

    def add_cut(self, count: int, image_id: int, max_objects: int) -> None:
        """Counts objects cut from an image and warns of it the first time."""
        with self._lock:
            self.cut_objects += count
            first = image_id not in self._cut_images
            self._cut_images.add(image_id)
        if first:
            logging.warning(
                "Image %d has %d objects; the %d largest boxes are kept (Pipeline.max_objects).",
                image_id,
                count + max_objects,
                max_objects,
            )


def naming_errors(batches, counters):
    """Yields batches, and raises the pipeline's own error in place of TensorFlow's.

    Args:
        batches: iterable of a pipeline's batches, distributed or not.
        counters: `PipelineCounters` of the pipeline.

    Raises:
        DataError: if the data are what the pipeline stopped for.
    """
    batches = iter(batches)
    while True:
        try:
            with counters.waiting():
                batch = next(batches)
        except StopIteration:
            return
        except tf.errors.OpError:
            if counters.error:
                raise counters.error from None
            raise
        yield batch


class Shards:
    """Reads the records of shards, each at its own offset."""

    def __init__(self, paths: Sequence[str]):
        """Takes the paths, which "shard" of an index counts into."""
        self._paths = list(paths)
        self._is_remote = any("://" in path for path in paths)
        # A shard that is missing has no size, and its records do not read.
        self._sizes = [
            not self._is_remote and os.path.exists(p) and os.path.getsize(p) for p in paths
        ]

    def read(self, candidate: dict[str, tf.Tensor]) -> tf.Tensor:
        """Returns the payload of the record that a candidate's shard, offset and length name.

        Raises:
            tf.errors.OpError: while running, if it cannot be read.
        """
        shard, offset = candidate["shard"], candidate["offset"]
        path, checks = tf.gather(self._paths, shard), []
        if not self._is_remote:
            size = tf.gather(tf.constant(self._sizes, tf.int64), shard)
            stated = _stated_length(path, offset, size)
            checks.append(tf.debugging.assert_equal(stated, candidate["length"]))
        with tf.control_dependencies(checks):
            # `tf.data.TFRecordDataset` has no offset, but its op has.
            variant = tf.raw_ops.TFRecordDatasetV2(
                filenames=[path],
                compression_type="",
                buffer_size=_REMOTE_READ_BYTES if self._is_remote else 0,
                byte_offsets=[offset],
            )
        return _texts(variant).take(1).get_single_element()


def _stated_length(path, offset, size):
    """The length that a record states of itself, int64, in bytes.

    TensorFlow's reader asks for as much memory as a record states, and ends the process if there is
    not so much. On a bucket it would be a request more for each record, and is not looked at.
    """
    variant = tf.raw_ops.FixedLengthRecordDatasetV2(
        filenames=[path],
        header_bytes=offset,
        record_bytes=8,
        footer_bytes=size - offset - 8,
        buffer_size=0,
        compression_type="",
    )
    header = _texts(variant).get_single_element()
    return tf.io.decode_raw(header, tf.int64, little_endian=True)[0]


def _texts(variant):
    return tf.data.experimental.from_variant(variant, tf.TensorSpec([], tf.string))


def read_slot(slot, shards, load, spec):
    """A dataset of exactly one element: the first candidate of a slot that can be read.

    Args:
        slot: {"row": int64, -1 for a padding image, "shape": int32 [2], "candidates": dict
            of [n, ...] tensors, one row a candidate}, as `slots` describes it.
        shards: `Shards` of the index.
        load: (serialized, candidate, shape) to (element, notes); may fail.
        spec: element spec of a batch.

    Returns:
        Dataset of (element, notes), for `Report.check`. Where no candidate could be read and for
        a padding image the element is blank, and notes["candidate"] says which.
    """
    candidates, shape = slot["candidates"], slot["shape"]
    is_padding = slot["row"] < 0
    count = tf.where(is_padding, 0, len(candidates["row"]))
    tried = {key: value[:count] for key, value in candidates.items()}

    def read(candidate):
        return shards.read(candidate), candidate

    def attempt(serialized, candidate):
        element, notes = load(serialized, candidate, shape)
        return element, notes | {"rows": candidates["row"], "candidate": candidate["number"]}

    def give_up(_):
        number = tf.where(is_padding, 0, _ALL_FAILED)
        notes = decode.no_notes() | {"rows": candidates["row"], "candidate": number}
        return _blank_element(spec, shape), notes

    # After an error map goes on with the next candidate; flat_map would open a shard that does not
    # open again and again. The costly function is mapped here and not within `read`: TensorFlow
    # optimises it once for all slots only if it is set up with the slot, else all first slots do it
    # at the same time, a second each.
    read_ones = tf.data.Dataset.from_tensor_slices(tried).map(read)
    found = read_ones.map(attempt).ignore_errors(log_warning=True)
    last_resort = tf.data.Dataset.from_tensors(0).map(give_up)
    return found.concatenate(last_resort).take(1)


def _blank_element(spec, shape):
    """A black image of the padding id without objects, as one element of a batch of `spec`."""
    height, width = tf.unstack(shape)
    blank = {
        key: tf.zeros(value.shape[1:], value.dtype)
        for key, value in spec.items()
        if key != schema.IMAGE
    }
    return blank | {
        schema.IMAGE: tf.zeros([height, width, 3], tf.uint8),
        schema.IMAGE_SIZE: tf.ones([2], tf.int32),
        schema.ORIGINAL_SIZE: tf.ones([2], tf.int32),
        schema.IMAGE_SCALE: tf.ones([2]),
        schema.IMAGE_ID: tf.constant(schema.PADDING_IMAGE_ID, tf.int64),
    }


class Report:
    """Takes the notes off each batch, and counts or raises what they say, in order."""

    def __init__(
        self,
        index: RecordIndex,
        category_ids: Sequence[int] = (),
        max_objects: int = schema.MAX_OBJECTS,
        counters: PipelineCounters | None = None,
        max_skipped_share: float = 1.0,
    ):
        self._max_skipped = max_skipped_share * len(index)
        self._index = index
        self._category_ids = category_ids
        self._max_objects = max_objects
        self.counters = counters or PipelineCounters()

    def check(self, batch, *notes):
        """Returns the batch without its notes; Python runs only for one with something to tell."""
        for each in notes:
            self._check(each)
        return batch

    def _check(self, notes):
        tell = tf.reduce_any(
            (notes["candidate"] != 0) | (notes["cut"] > 0) | (notes["problem"] > 0)
        )
        keys = ("rows", "candidate", "cut", "problem", "problem_value")
        tf.cond(
            tell,
            lambda: tf.numpy_function(self._tell, [notes[key] for key in keys], tf.int64),
            lambda: tf.constant(0, tf.int64),
        )

    def _tell(self, *notes):
        try:
            return self._tell_all(*notes)
        except DataError as error:
            # The first one: the pipeline reads ahead, and may meet others.
            self.counters.error = self.counters.error or error
            raise

    def _tell_all(self, rows, candidates, cuts, problems, values):
        for tried, candidate, cut, problem, value in zip(
            rows, candidates, cuts, problems, values, strict=True
        ):
            if candidate == _ALL_FAILED:
                raise DataError(
                    f"{' and '.join(self._name(row) for row in tried)} could not be read; "
                    "TensorFlow's warnings before this have the reasons. Copy the shards again "
                    "or convert the data set again"
                )
            for row in tried[:candidate]:
                self.counters.add_skipped(*self._location(row))
                self._check_share()
            row = tried[candidate]
            if problem == decode.UNKNOWN_CATEGORY:
                raise DataError(
                    f"{self._name(row)} has category id {value}, which is none of the "
                    f"{len(self._category_ids)} given ({self._category_ids[0]} to "
                    f"{self._category_ids[-1]}); the records and the category table differ"
                )
            if problem == decode.MASKS_MISSING:
                raise DataError(
                    f"{self._name(row)} has {value} masks, not one an object; bind "
                    "Pipeline.include_masks = False to train on boxes alone"
                )
            if problem == decode.KEYPOINTS_MISSING:
                raise DataError(
                    f"{self._name(row)} has {value} keypoints, not as many for each object as the "
                    "manifest names; convert the data set again"
                )
            if cut:
                image_id = int(self._index.image_id[row])
                self.counters.add_cut(int(cut), image_id, self._max_objects)
        return 0

    def _check_share(self):
        skipped, count = len(self.counters.skipped_by_record), len(self._index)
        if skipped > self._max_skipped:
            path = next(reversed(self.counters.skipped_by_record))[0]
            raise DataError(
                f"{skipped} of the {count} records of {self._index.directory} could not be read, "
                f"the last one of {path}: that is more than Pipeline.max_skipped_share = "
                f"{self._max_skipped / count:g} allows. The warnings before this name them. Bring "
                "the shards back, or convert the data set again; the same command goes on from the "
                "newest checkpoint."
            )

    def _location(self, row):
        path = self._index.paths[self._index.shard[row]]
        return path, int(self._index.offset[row]), int(self._index.image_id[row])

    def _name(self, row):
        path, offset, image_id = self._location(row)
        return f"record {path} at byte {offset} (image {image_id})"
