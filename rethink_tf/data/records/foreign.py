"""Records that other tools made: Model Garden's, and those of the Object Detection API.

They are a folder of TFRecord files without a manifest. On first use every record is read once and
checked, and an index and a manifest are left beside them; the ground truth is read from the records
where it is needed. Names of categories come from a label map (`*.pbtxt` in the folder or the one
above it), else from the records' own "class/text".

An image's id is its "source_id" where that is a number, else a hash of it, or of "filename".
"""

import collections
import dataclasses
import hashlib
import io
import os
import re
from collections.abc import Sequence

import numpy as np
import tensorflow as tf
import tqdm
from absl import logging
from PIL import Image
from pycocotools import mask as mask_api

from rethink_tf import console
from rethink_tf.data.records import categories, label_maps, store, tfrecord_files
from rethink_tf.data.records.skips import SkipLog

# What a manifest made here says under "made_from".
SOURCE = "records without a manifest"
_RECORD_NAME = re.compile(r".+\.(tf)?records?(-\d{5,}-of-\d{5,})?|.+-\d{5,}-of-\d{5,}(\.\w+)?")
_FIRST_HASHED_ID = 2**48  # above the ids that data sets count by
_SIDES = ("ymin", "xmin", "ymax", "xmax")
# Boxes are parts of the image; what lies further out are pixels.
_LARGEST_PART = 1.5
_FORMATS = ("JPEG", "MPO", "PNG", "GIF")  # what `decode.decode_pixels` decodes


class _BadRecordError(Exception):
    """Carries the (reason, detail) for leaving a record out."""


def make_manifests(data_dir: str, names: Sequence[str]) -> None:
    """Makes the index and the manifest of record directories that have none.

    All of them get the categories of all: a split in which a class does not occur has it, too.

    Args:
        data_dir: folder of the record directories.
        names: of the directories; those that are not there, or are finished, are passed over.

    Raises:
        ValueError: if no record can be used, or the names of the categories contradict each other.
        OSError: if a directory cannot be written to.
    """
    directories = [os.path.join(data_dir, name) for name in dict.fromkeys(names)]
    finished = [d for d in directories if tf.io.gfile.exists(f"{d}/{store.MANIFEST_FILE}")]
    found = {d: _record_files(d) for d in directories if d not in finished}
    scans = [_scan(directory, paths) for directory, paths in found.items() if paths]
    if not scans:
        return
    table = categories.Names()
    for directory in finished:
        table.add_all(store.load_categories(directory), directory)
    maps = {scan.directory: label_maps.find(scan.directory, data_dir) for scan in scans}
    for path in dict.fromkeys(path for path in maps.values() if path):
        table.add_all(label_maps.read(path), path)
    for scan in scans:
        # A label map may call a class otherwise than the records do: its own names count.
        for label, text in {} if maps[scan.directory] else scan.names.items():
            table.add(label, text, scan.directory)
    for scan in scans:
        for label in sorted(scan.num_objects):
            if maps[scan.directory] and label not in table:
                raise ValueError(
                    f"{maps[scan.directory]} has no item with id {label}, which "
                    f"{scan.num_objects[label]} objects of {scan.directory} have"
                )
            table.add_if_missing(label, f"class {label}")
    for scan in scans:
        _write(scan, table.as_list(), maps[scan.directory])


def make_ground_truth(index: store.RecordIndex, categories_of: Sequence[dict]) -> dict:
    """Reads the ground truth of some records from them.

    Args:
        index: of the records.
        categories_of: entries of the manifest.

    Returns:
        dict in COCO form.
    """
    truth = {"categories": [{"id": c["id"], "name": c["name"]} for c in categories_of]}
    truth |= {"images": [], "annotations": []}
    places = zip(index.shard, index.offset, strict=True)
    rows = {(index.paths[shard], offset): row for row, (shard, offset) in enumerate(places)}
    for path in index.paths:
        for offset, payload in tfrecord_files.read_frames(path):
            row = rows.get((path, offset))
            if row is None:
                continue
            size = int(index.height[row]), int(index.width[row])
            image_id = int(index.image_id[row])
            feature = tf.train.Example.FromString(payload).features.feature
            name = b"".join(_bytes(feature, "image/filename")).decode("utf-8", "replace")
            truth["images"].append(
                {"id": image_id, "file_name": name, "height": size[0], "width": size[1]}
            )
            for annotation in _annotations(feature, size):
                number = len(truth["annotations"]) + 1
                truth["annotations"].append({"id": number, "image_id": image_id} | annotation)
    return truth


@dataclasses.dataclass
class _Scan:
    """What was found in the records of a directory."""

    directory: str
    paths: list[str]
    rows: list[dict]
    names: dict[int, str]
    num_objects: collections.Counter
    num_crowds: int
    num_masks: int
    skips: SkipLog


def _record_files(directory):
    """Paths of the files in a directory that are TFRecords by their names."""
    if not tf.io.gfile.isdir(directory):
        return []
    if tf.io.gfile.exists(os.path.join(directory, store.INCOMPLETE_FILE)):
        return []  # opening it says what is wrong
    found = sorted(name.rstrip("/") for name in tf.io.gfile.listdir(directory))
    return [os.path.join(directory, name) for name in found if _RECORD_NAME.fullmatch(name)]


def _scan(directory, paths):
    store.check_all_shards_there(paths)
    skips = SkipLog(strict=False)
    scan = _Scan(directory, paths, [], {}, collections.Counter(), 0, 0, skips)
    owners, mask_counts = {}, []
    logging.info("%s has no %s: reading its records once", directory, store.MANIFEST_FILE)
    shown = tqdm.tqdm(paths, f"reading {directory}", unit="file", disable=not console.shows_bars())
    for shard, path in enumerate(shown):
        for offset, payload in tfrecord_files.read_frames(path):
            where = f"{path} at byte {offset}"
            try:
                row, labels, texts, num_masks = _describe(payload)
            except _BadRecordError as error:
                skips.add(error.args[0], f"{where}: {error.args[1]}")
                continue
            owner = owners.setdefault(row["image_id"], where)
            if owner != where:
                skips.add("image_duplicate_id", f"{where}: its id is that of {owner}")
                continue
            scan.rows.append(row | {"shard": shard, "offset": offset, "length": len(payload)})
            for label, text in zip(labels, texts, strict=False):
                if not text:
                    continue
                known = scan.names.setdefault(label, text)
                if known != text:
                    raise ValueError(f"{where}: class {label} is {text!r}, {known!r} before it")
            scan.num_objects.update(labels)
            scan.num_crowds += len(labels) - row["num_objects"]
            if labels:
                mask_counts.append(num_masks)
    if not scan.rows:
        raise ValueError(
            f"{directory}: no record can be used; left out: {skips.counts()}\n{skips.causes()}"
        )
    # Training reads masks of all records or of none.
    scan.num_masks = sum(mask_counts) if all(mask_counts) else 0
    if any(mask_counts) and not scan.num_masks:
        count = mask_counts.count(0)
        skips.note("records_without_masks", f"{count} of {len(mask_counts)} records with objects")
    return scan


def _write(scan, table, label_map):
    """Leaves the index and the manifest, and says what was made."""
    index = store.RecordIndex.from_rows(scan.directory, scan.paths, scan.rows)
    counts = np.bincount(index.shard, minlength=len(scan.paths)).tolist()
    shards = [
        {"file": os.path.basename(path), "records": count, "bytes": tf.io.gfile.stat(path).length}
        for path, count in zip(scan.paths, counts, strict=True)
    ]
    manifest = {
        "version": store.MANIFEST_VERSION,
        "made_from": SOURCE,
        "label_map": label_map and os.path.basename(label_map),
        "shards": shards,
        "num_images": len(index),
        "num_objects": int(index.num_objects.sum()),
        "num_crowds": scan.num_crowds,
        "has_masks": scan.num_masks > 0,
        "num_masks": scan.num_masks,
        "keypoints": None,
        "categories": [c | {"num_objects": scan.num_objects[c["id"]]} for c in table],
        "skipped": scan.skips.counts(),
        "skipped_entries": scan.skips.entries,
        "noted": scan.skips.note_counts(),
        "noted_entries": scan.skips.notes,
    }
    try:
        store.write_index(index)
        store.write_manifest(scan.directory, manifest)
    except (OSError, tf.errors.OpError) as error:
        raise OSError(
            f"{scan.directory} has no {store.MANIFEST_FILE}, and none can be written there "
            f"({error}): make the folder writable for the first use, or copy the records"
        ) from error
    scan.skips.log()
    logging.info(
        "Made %s of %s: %d images, %d objects (%s masks), %d crowds, classes by %s: %s; "
        "left out: %s",
        store.MANIFEST_FILE,
        scan.directory,
        manifest["num_images"],
        manifest["num_objects"],
        scan.num_masks or "no",
        scan.num_crowds,
        manifest["label_map"] or "the records",
        ", ".join(f"{c['id']} {c['name']}" for c in table),
        manifest["skipped"] or "nothing",
    )
    summary = scan.skips.loud_summary(len(scan.rows) + len(scan.skips.entries), 0)
    if summary:
        logging.warning("%s", summary)


def _describe(payload):
    """Returns a record's row of the index, labels, their names, and its number of masks."""
    try:
        feature = tf.train.Example.FromString(payload).features.feature
    except Exception as error:  # protobuf's DecodeError has moved between its releases
        raise _BadRecordError("image_record_malformed", f"no tf.train.Example ({error})") from error
    encoded = b"".join(_bytes(feature, "image/encoded"))
    try:
        with Image.open(io.BytesIO(encoded)) as opened:
            size, image_format = (opened.height, opened.width), opened.format
    except Exception as error:
        detail = "no image/encoded" if not encoded else f"image/encoded is no image ({error})"
        raise _BadRecordError("image_unreadable", detail) from error
    if image_format not in _FORMATS:
        raise _BadRecordError("image_unreadable", f"image/encoded is a {image_format}")
    stated = [_ints(feature, f"image/{side}") for side in ("height", "width")]
    if all(stated) and (stated[0][0], stated[1][0]) != size:
        raise _BadRecordError("image_wrong_size", f"states {stated}, the image has {size}")
    labels = _ints(feature, "image/object/class/label")
    texts = [t.decode("utf-8", "replace") for t in _bytes(feature, "image/object/class/text")]
    boxes = [_floats(feature, f"image/object/bbox/{side}") for side in _SIDES]
    if any(len(column) != len(labels) for column in boxes):
        found = [len(column) for column in boxes]
        raise _BadRecordError("image_record_malformed", f"{len(labels)} labels, {found} box sides")
    if labels and not np.abs(boxes).max() <= _LARGEST_PART:
        detail = f"a side of a box is {np.abs(boxes).max()}, not a part (0 to 1) of the image"
        raise _BadRecordError("image_record_malformed", detail)
    masks = _bytes(feature, "image/object/mask")
    if len(masks) not in (0, len(labels)):
        detail = f"{len(masks)} masks for {len(labels)} objects"
        raise _BadRecordError("image_record_malformed", detail)
    is_crowd = _ints(feature, "image/object/is_crowd") or [0] * len(labels)
    row = {
        "image_id": _image_id(feature),
        "height": size[0],
        "width": size[1],
        "num_objects": len(labels) - sum(value != 0 for value in is_crowd),
    }
    return row, labels, texts, len(masks)


def _image_id(feature):
    text = b"".join(_bytes(feature, "image/source_id")) or b"".join(
        _bytes(feature, "image/filename")
    )
    if re.fullmatch(rb"-?\d{1,18}", text):
        return int(text)
    if not text:
        raise _BadRecordError("image_record_malformed", "no image/source_id and no image/filename")
    digest = hashlib.blake2b(text, digest_size=6).digest()
    return _FIRST_HASHED_ID + int.from_bytes(digest, "big")


def _annotations(feature, size):
    """Yields a record's objects in COCO's form, without ids."""
    height, width = size
    labels = _ints(feature, "image/object/class/label")
    count = len(labels)
    sides = [_floats(feature, f"image/object/bbox/{side}") for side in _SIDES]
    corners = np.clip(np.reshape(sides, [4, count]).T, 0, 1) * [height, width, height, width]
    is_crowd = _ints(feature, "image/object/is_crowd") or [0] * count
    difficult = _ints(feature, "image/object/difficult")
    areas = _floats(feature, "image/object/area")
    masks = _bytes(feature, "image/object/mask")
    for row, (y1, x1, y2, x2) in enumerate(corners.tolist()):
        annotation = {
            "category_id": labels[row],
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": areas[row] if areas else (x2 - x1) * (y2 - y1),
            "iscrowd": is_crowd[row],
        }
        if difficult:
            annotation["difficult"] = difficult[row]
        if masks:
            with Image.open(io.BytesIO(masks[row])) as mask:
                pixels = np.asarray(mask.convert("L")) > 0
            lengths = mask_api.encode(np.asfortranarray(pixels.astype(np.uint8)))
            annotation["segmentation"] = lengths | {"counts": lengths["counts"].decode()}
            annotation["area"] = areas[row] if areas else int(pixels.sum())
        yield annotation


def _bytes(feature, key):
    return list(feature[key].bytes_list.value) if key in feature else []


def _ints(feature, key):
    return list(feature[key].int64_list.value) if key in feature else []


def _floats(feature, key):
    return list(feature[key].float_list.value) if key in feature else []
