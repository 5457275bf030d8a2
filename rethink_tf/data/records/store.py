"""TFRecords in Model Garden's schema, and the index and manifest of a record directory.

A record directory holds `records-00000-of-0000S.tfrecord` shards of `tf.train.Example`,
`index.npz` (one row a record: where it lies, and the image's id and size), `ground_truth.json`
(COCO form, what was kept) and `manifest.json` (counts, categories, what was skipped). The
manifest is written last, and `INCOMPLETE` lies there until then, so a directory that was left
half-written is refused. Directories made by Model Garden's own tools have shards only; they are
indexed by reading every frame once.
"""

import dataclasses
import io
import json
import os
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from rethink_tf import files
from rethink_tf.data.records.examples import encode_example as encode_example  # of this interface
from rethink_tf.data.records.tfrecord_files import read_frames
from rethink_tf.data.records.tfrecord_files import (
    write_shard as write_shard,  # part of this module's interface
)

INDEX_FILE = "index.npz"
MANIFEST_FILE = "manifest.json"
GROUND_TRUTH_FILE = "ground_truth.json"
INCOMPLETE_FILE = "INCOMPLETE"
MANIFEST_VERSION = 1

_ROW_DTYPES = {
    "shard": np.int32,
    "offset": np.int64,
    "length": np.int64,
    "image_id": np.int64,
    "height": np.int32,
    "width": np.int32,
    "num_objects": np.int32,
    "num_keypoints": np.int32,
}
# Of records that were indexed before they could have any, and of sources without.
_ROW_DEFAULTS = {"num_keypoints": 0}


@dataclasses.dataclass(frozen=True, eq=False)
class RecordIndex:
    """Where each record lies, and what a sampler needs to know of it. N records.

    Attributes:
        directory: the record directory.
        paths: S shard paths; `shard` counts into this list.
        shard: int32 [N].
        offset: int64 [N], bytes from the start of the shard to the record's frame.
        length: int64 [N], bytes of the payload (the frame is 16 longer).
        image_id: int64 [N].
        height: int32 [N], pixels of the stored image.
        width: int32 [N], pixels of the stored image.
        num_objects: int32 [N], objects that are not crowds.
        num_keypoints: int32 [N], labelled keypoints of these objects.
    """

    directory: str
    paths: list[str]
    shard: np.ndarray
    offset: np.ndarray
    length: np.ndarray
    image_id: np.ndarray
    height: np.ndarray
    width: np.ndarray
    num_objects: np.ndarray
    num_keypoints: np.ndarray

    @classmethod
    def from_rows(cls, directory: str, paths: Sequence[str], rows: Sequence[dict]) -> "RecordIndex":
        """Builds an index from one dict a record with the array names as keys.

        A row without num_keypoints has none.
        """
        arrays = {
            name: np.array([(_ROW_DEFAULTS | row)[name] for row in rows], dtype)
            for name, dtype in _ROW_DTYPES.items()
        }
        return cls(directory=os.fspath(directory), paths=list(paths), **arrays)

    def __len__(self) -> int:
        return len(self.image_id)

    def select(self, rows: Any) -> "RecordIndex":
        """Keeps some rows, in the order given.

        Args:
            rows: integer row numbers, a boolean mask [N], or a slice.
        """
        arrays = {name: getattr(self, name)[rows] for name in _ROW_DTYPES}
        return dataclasses.replace(self, **arrays)


def shard_name(shard: int, num_shards: int) -> str:
    """File name of one shard, e.g. `records-00003-of-00008.tfrecord`."""
    return f"records-{shard:05d}-of-{num_shards:05d}.tfrecord"


def begin_directory(directory: str, overwrite: bool) -> None:
    """Makes a record directory ready to be written, marked as incomplete.

    What an interrupted conversion left is removed; a finished one only if `overwrite`.

    Raises:
        FileExistsError: if it holds finished records and not `overwrite`, or other `*.tfrecord`,
            which would be taken for a part of this data set.
    """
    directory = os.fspath(directory)
    tf.io.gfile.makedirs(directory)
    manifest = os.path.join(directory, MANIFEST_FILE)
    marker = os.path.join(directory, INCOMPLETE_FILE)
    if tf.io.gfile.exists(manifest) and not overwrite and not tf.io.gfile.exists(marker):
        raise FileExistsError(
            f"{directory} already holds finished records ({MANIFEST_FILE}); choose another output, "
            "or give --overwrite to replace them"
        )
    own = [
        path
        for path in tf.io.gfile.glob(os.path.join(directory, "*.tfrecord"))
        if re.fullmatch(r"records-\d{5}-of-\d{5}\.tfrecord", os.path.basename(path))
    ]
    others = set(tf.io.gfile.glob(os.path.join(directory, "*.tfrecord"))) - set(own)
    if others or (own and not (tf.io.gfile.exists(manifest) or tf.io.gfile.exists(marker))):
        raise FileExistsError(
            f"{directory} holds records that no conversion of this package left there "
            f"({os.path.basename(min(others or own))}); choose another output"
        )
    files.write_whole(marker, "A conversion into this folder is running or was interrupted.\n")
    names = (MANIFEST_FILE, INDEX_FILE, GROUND_TRUTH_FILE)
    stale = [
        path
        for name in ("records-*.tfrecord", *names)
        for path in tf.io.gfile.glob(os.path.join(directory, f".{name}.*.tmp"))
    ]
    for path in [os.path.join(directory, name) for name in names] + own + stale:
        files.remove_if_there(path)


def write_index(index: RecordIndex) -> None:
    """Writes `index.npz` into the index's directory."""
    buffer = io.BytesIO()
    np.savez(buffer, **{name: getattr(index, name) for name in _ROW_DTYPES})
    files.write_whole(os.path.join(index.directory, INDEX_FILE), buffer.getvalue())


def write_manifest(directory: str, manifest: dict) -> None:
    """Writes `manifest.json` and so declares the directory finished: call it last."""
    files.write_whole(os.path.join(directory, MANIFEST_FILE), json.dumps(manifest, indent=1) + "\n")
    files.remove_if_there(os.path.join(directory, INCOMPLETE_FILE))


def load_manifest(directory: str) -> dict:
    """Reads the manifest of a finished record directory.

    Raises:
        FileNotFoundError: if there is none, saying what to do.
        ValueError: if it is not JSON or of another version.
    """
    path = os.path.join(directory, MANIFEST_FILE)
    if not tf.io.gfile.exists(path):
        raise FileNotFoundError(
            f"{path} is missing: {directory} is not a finished record directory. "
            "Make one with: python -m rethink_tf.data.coco --output=DIR (see --helpshort), or "
            "rethink_tf.data.voc"
        )
    manifest = files.read_json(path, "convert the data set again")
    version = manifest.get("version") if isinstance(manifest, dict) else None
    if version != MANIFEST_VERSION:
        raise ValueError(
            f"{path}: version {version!r}, this code reads {MANIFEST_VERSION}; "
            "convert the data set again"
        )
    return manifest


def load_categories(directory: str) -> list[dict]:
    """Categories of a record directory, sorted by id: [{"id", "name", "num_objects"}].

    Class k of the model (1..C) is entry k - 1.

    Raises:
        FileNotFoundError: if the directory has no manifest.
    """
    return sorted(load_manifest(directory)["categories"], key=lambda category: category["id"])


def load_index(directory: str) -> RecordIndex:
    """Finds every record of a directory, in shard order.

    Uses `index.npz` where it is; else reads every frame of every `*.tfrecord` once.

    Raises:
        FileNotFoundError: if there are no records, or a shard is missing.
        ValueError: if the directory was left half-written, a shard is truncated or not of the
            size in the manifest, or a record cannot be read.
    """
    directory = os.fspath(directory)
    if tf.io.gfile.exists(os.path.join(directory, INCOMPLETE_FILE)):
        raise ValueError(
            f"{directory} is half-written (it holds {INCOMPLETE_FILE}): a conversion into it is "
            "running or was interrupted. Wait for it or run it again"
        )
    if tf.io.gfile.exists(os.path.join(directory, INDEX_FILE)):
        return _read_index(directory)
    paths = sorted(tf.io.gfile.glob(os.path.join(directory, "*.tfrecord")))
    if not paths:
        raise FileNotFoundError(
            f"no *.tfrecord in {directory}; make records with: python -m rethink_tf.data.coco"
        )
    check_all_shards_there(paths)
    rows = []
    for shard, path in enumerate(paths):
        for offset, payload in read_frames(path):
            place = {"shard": shard, "offset": offset, "length": len(payload)}
            rows.append(place | _describe_example(payload, f"{path} at byte {offset}"))
    return RecordIndex.from_rows(directory, paths, rows)


def _read_index(directory: str) -> RecordIndex:
    manifest = load_manifest(directory)
    paths = [os.path.join(directory, shard["file"]) for shard in manifest["shards"]]
    for path, shard in zip(paths, manifest["shards"], strict=True):
        if not tf.io.gfile.exists(path):
            raise FileNotFoundError(
                f"{path} is missing though {MANIFEST_FILE} lists it; convert the data set again"
            )
        size = tf.io.gfile.stat(path).length
        if size != shard["bytes"]:
            raise ValueError(
                f"{path} has {size} bytes, {MANIFEST_FILE} says {shard['bytes']}: it is truncated "
                "or of another conversion. Copy it again or convert the data set again"
            )
    index_path = os.path.join(directory, INDEX_FILE)
    try:
        with tf.io.gfile.GFile(index_path, "rb") as file:
            loaded = np.load(io.BytesIO(file.read()), allow_pickle=False)
            rows = {k: np.full_like(loaded["shard"], v) for k, v in _ROW_DEFAULTS.items()}
            rows |= dict(loaded)
            arrays = {name: rows[name].astype(dtype) for name, dtype in _ROW_DTYPES.items()}
    except Exception as error:  # zip, npz and key errors alike: the file is no index
        raise ValueError(
            f"{index_path} cannot be read ({error}); delete it to have the shards scanned"
        ) from error
    records = np.bincount(arrays["shard"], minlength=len(paths)).tolist()
    if records != [shard["records"] for shard in manifest["shards"]]:
        raise ValueError(
            f"{index_path} does not fit {MANIFEST_FILE} ({records} records a shard); "
            "delete the index to have the shards scanned"
        )
    return RecordIndex(directory=directory, paths=paths, **arrays)


def check_all_shards_there(paths: Sequence[str]) -> None:
    """Raises FileNotFoundError if names `...-00000-of-0000S...` do not come S times."""
    found = {}
    for path in paths:
        match = re.fullmatch(r"(.*)-(\d{5,})-of-(\d{5,})((?:\.\w+)?)", path)
        if match:
            found.setdefault((match[1], int(match[3]), match[4]), set()).add(int(match[2]))
    for (prefix, total, ending), shards in found.items():
        missing = sorted(set(range(total)) - shards)
        if missing:
            raise FileNotFoundError(
                f"{prefix}-{missing[0]:05d}-of-{total:05d}{ending} is missing "
                f"({len(missing)} of {total} shards are); convert or copy the data set again"
            )


def _describe_example(payload: bytes, where: str) -> dict:
    """Id, size and number of objects of one serialized example; `where` is for errors."""
    try:
        feature = tf.train.Example.FromString(payload).features.feature
    except Exception as error:  # protobuf's DecodeError has moved between its releases
        raise ValueError(f"{where}: not a tf.train.Example ({error})") from error
    for key in ("image/source_id", "image/height", "image/width"):
        if key not in feature:
            raise ValueError(f"{where}: no {key}; the records must be in Model Garden's schema")
    source_id = b"".join(feature["image/source_id"].bytes_list.value)
    if not re.fullmatch(rb"-?\d{1,18}", source_id):
        raise ValueError(f"{where}: image/source_id {source_id!r} is not a decimal image id")
    sizes = {side: list(feature[f"image/{side}"].int64_list.value) for side in ("height", "width")}
    for side, value in sizes.items():
        if len(value) != 1 or value[0] <= 0:
            raise ValueError(f"{where}: image/{side} is {value}, not one positive integer")
    labels = len(feature["image/object/class/label"].int64_list.value)
    is_crowd = list(feature["image/object/is_crowd"].int64_list.value) or [0] * labels
    labelled = feature["image/object/keypoint/num"].int64_list.value or [0] * labels
    return {
        "image_id": int(source_id),
        "height": sizes["height"][0],
        "width": sizes["width"][0],
        "num_objects": labels - sum(value != 0 for value in is_crowd),
        "num_keypoints": sum(
            count for count, crowd in zip(labelled, is_crowd, strict=False) if not crowd
        ),
    }
