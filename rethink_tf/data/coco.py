"""Converts a COCO data set to a directory of TFRecords.

    python -m rethink_tf.data.coco --images=DIR --annotations=FILE --output=DIR --num_shards=N

Worker processes read and check the images and draw the masks; this process writes what they
return, in the order of the image ids, so the bytes do not depend on the number of workers.
Bad entries are skipped, counted and named in manifest.json; with --strict the first one stops the
run. See `records` for the layout of the directory.

COCO's boxes (x, y, width, height) are the source's form; `records` stores corners.
"""

import collections
import concurrent.futures
import contextlib
import itertools
import json
import multiprocessing
import os
import sys
from collections.abc import Iterable, Iterator

import tqdm
from absl import app, flags

from rethink_tf.data import coco_checks, coco_images, keypoints

if __name__ != "__mp_main__":
    # A worker process of `python -m` imports this file again, under that name. It does without
    # TensorFlow, whose import takes seconds of every core.
    import tensorflow as tf

    from rethink_tf.data import frames, records

_JOBS_AHEAD = 8  # per worker: images prepared before they are asked for


def convert(
    images: str,
    annotations: str,
    output: str,
    num_shards: int,
    num_workers: int | None = None,
    strict: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> dict:
    """Converts COCO images and annotations to TFRecords.

    Called from a script with workers, the script needs an `if __name__ == "__main__"` guard
    (processes are spawned).

    Args:
        images: folder that the entries' "file_name" are relative to.
        annotations: COCO JSON file.
        output: folder to make. It is marked incomplete until all is written.
        num_shards: number of record files, at most one an image.
        num_workers: processes that read images; 0 reads them in this one; None: one a core.
        strict: stop at the first bad entry instead of skipping it.
        overwrite: replace finished records in `output`.
        progress: show a progress bar.

    Returns:
        The manifest, as it is in `output`.

    Raises:
        coco_checks.BadEntryError: in strict mode, at the first bad entry.
        ValueError: if the JSON is malformed, nothing is left of it, or an argument is bad.
        FileNotFoundError: if `annotations` or `images` is not there.
        FileExistsError: if `output` holds finished records and not `overwrite`.
        ChildProcessError: if a worker was killed.
    """
    skips = coco_checks.SkipLog(strict)
    if num_workers is not None and num_workers < 0:
        raise ValueError(f"num_workers is {num_workers}; give 0 or more")
    checked = _read_source(images, annotations, num_shards, skips)
    records.begin_directory(output, overwrite)
    jobs = (
        (images, image, checked.annotations[image["id"]], checked.has_masks)
        for image in checked.images
    )
    prepared = _prepare_all(jobs, os.cpu_count() if num_workers is None else num_workers)
    bar = tqdm.tqdm(prepared, total=len(checked.images), unit="image", disable=not progress)
    with contextlib.closing(prepared), bar:
        images_done = iter(bar)
        rows, shards, kept = _write_shards(output, num_shards, images_done, checked, skips)
        next(images_done, None)  # lets the bar reach its end
    if not kept:
        raise ValueError(f"{annotations}: no image could be used; skipped: {skips.counts()}")
    manifest = _manifest(checked, kept, shards, skips) | {"source": _source(images, annotations)}
    frames.write_file(
        os.path.join(output, records.GROUND_TRUTH_FILE), json.dumps(_ground_truth(checked, kept))
    )
    paths = [os.path.join(output, entry["file"]) for entry in shards]
    records.write_index(records.RecordIndex.from_rows(output, paths, rows))
    records.write_manifest(output, manifest)
    return manifest


def _read_source(images, annotations, num_shards, skips) -> coco_checks.CheckedDataset:
    """Reads and checks the JSON; raises what `convert` says before anything is written."""
    if not tf.io.gfile.isdir(images):
        raise FileNotFoundError(f"{images} (the folder of the images) is not a folder")
    if not tf.io.gfile.exists(annotations) or tf.io.gfile.isdir(annotations):
        raise FileNotFoundError(f"{annotations} (the COCO JSON file) is not a file")
    with tf.io.gfile.GFile(annotations, "rb") as file:
        dataset = coco_checks.read_json(file.read(), annotations)
    checked = coco_checks.check_dataset(dataset, skips)
    if not checked.images:
        raise ValueError(f"{annotations}: no image is left to convert; skipped: {skips.counts()}")
    if not 1 <= num_shards <= len(checked.images):
        raise ValueError(
            f"num_shards is {num_shards}; give at least 1 and at most one an image "
            f"({annotations} has {len(checked.images)} that can be used)"
        )
    return checked


def _prepare_all(jobs: Iterable[tuple], num_workers: int) -> Iterator[coco_images.PreparedImage]:
    """Runs `prepare_image` on every job and yields the results in order."""
    if num_workers == 0:
        yield from (coco_images.prepare_image(*job) for job in jobs)
        return
    # Spawned, as a fork would copy TensorFlow's threads in an unknown state. An executor, not a
    # multiprocessing.Pool: a worker that is killed (memory) is an error here and a hang there.
    executor = concurrent.futures.ProcessPoolExecutor(
        num_workers, mp_context=multiprocessing.get_context("spawn")
    )
    try:
        pending: collections.deque = collections.deque()
        for job in jobs:
            pending.append(executor.submit(coco_images.prepare_image, *job))
            if len(pending) >= _JOBS_AHEAD * num_workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except concurrent.futures.BrokenExecutor as error:
        raise ChildProcessError(
            "a worker process was killed, perhaps for want of memory; "
            "run again with fewer --num_workers"
        ) from error
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _write_shards(output, num_shards, prepared, checked, skips):
    """Writes all shards: images in ascending order of id, cut into equal parts.

    Args:
        output: record directory.
        num_shards: how many.
        prepared: iterator of `PreparedImage`, one each of `checked.images`.
        checked: a `CheckedDataset`.
        skips: told of what turns out to be unusable.

    Returns:
        (rows of the index, the manifest's "shards", the images written without their bytes).
    """
    names = {category["id"]: category["name"] for category in checked.categories}
    rows, shards, kept = [], [], []

    def examples(shard, num_images):
        for item in itertools.islice(prepared, num_images):
            for reason, entry in item.skipped:
                skips.add(reason, entry)
            if item.encoded is None:
                continue
            yield _encode(item, names, checked.keypoints)
            crowds = sum(bool(a["iscrowd"]) for a in item.annotations)
            rows.append(
                {
                    "shard": shard,
                    "image_id": item.image["id"],
                    "height": item.image["height"],
                    "width": item.image["width"],
                    "num_objects": len(item.annotations) - crowds,
                    "num_keypoints": _count_labelled(item.annotations, checked.keypoints),
                }
            )
            # Not the copies that came from the worker: COCO's polygons fill a gigabyte.
            originals = {a["id"]: a for a in checked.annotations[item.image["id"]]}
            annotations = [originals[a["id"]] for a in item.annotations]
            for original, annotation in zip(annotations, item.annotations, strict=True):
                original.setdefault("area", annotation["area"])
            kept.append(coco_images.PreparedImage(item.image, annotations, []))

    for shard in range(num_shards):
        start, stop = (len(checked.images) * k // num_shards for k in (shard, shard + 1))
        name = records.shard_name(shard, num_shards)
        path = os.path.join(output, name)
        first_row = len(rows)
        offsets, lengths = frames.write_shard(path, examples(shard, stop - start))
        for row, offset, length in zip(rows[first_row:], offsets, lengths, strict=True):
            row |= {"offset": offset, "length": length}
        num_bytes = sum(lengths) + frames.FRAME_OVERHEAD_BYTES * len(lengths)
        shards.append({"file": name, "records": len(lengths), "bytes": num_bytes})
    return rows, shards, kept


def _count_labelled(annotations: list[dict], layout: keypoints.KeypointLayout | None) -> int:
    return keypoints.count_labelled(annotations) if layout else 0


def _encode(
    item: coco_images.PreparedImage,
    names: dict[int, str],
    layout: keypoints.KeypointLayout | None,
) -> bytes:
    boxes = [a["bbox"] for a in item.annotations]
    return records.encode_example(
        image_id=item.image["id"],
        filename=os.path.basename(item.image["file_name"]),
        encoded=item.encoded,
        image_format=item.image_format,
        height=item.image["height"],
        width=item.image["width"],
        boxes=[[y, x, y + height, x + width] for x, y, width, height in boxes],
        labels=[a["category_id"] for a in item.annotations],
        names=[names[a["category_id"]] for a in item.annotations],
        is_crowd=[a["iscrowd"] for a in item.annotations],
        areas=[a["area"] for a in item.annotations],
        masks=item.masks,
        keypoints=layout and keypoints.read_keypoints(item.annotations, len(layout.names)),
    )


def _manifest(checked, kept, shards, skips) -> dict:
    annotations = [a for item in kept for a in item.annotations]
    objects = collections.Counter(a["category_id"] for a in annotations if not a["iscrowd"])
    return {
        "version": records.MANIFEST_VERSION,
        "shards": shards,
        "num_images": len(kept),
        "num_objects": sum(objects.values()),
        "num_crowds": len(annotations) - sum(objects.values()),
        "has_masks": checked.has_masks,
        "has_keypoints": checked.keypoints is not None,
        "keypoints": checked.keypoints and checked.keypoints.as_dict(),
        "num_keypoints": _count_labelled(annotations, checked.keypoints),
        "categories": [
            {"id": c["id"], "name": c["name"], "num_objects": objects[c["id"]]}
            for c in checked.categories
        ],
        "num_clipped": sum(a["id"] in checked.clipped_ids for a in annotations),
        "skipped": skips.counts(),
        "skipped_entries": skips.entries,
    }


def _source(images: str, annotations: str) -> dict:
    # Base names only: where the files lay is nobody's business later.
    name = os.path.basename
    return {"images": name(os.path.normpath(images)), "annotations": name(annotations)}


def _ground_truth(checked, kept) -> dict:
    return {
        "info": {},
        **checked.info,
        "categories": checked.categories,
        "images": [item.image for item in kept],
        "annotations": [a for item in kept for a in item.annotations],
    }


def _define_flags() -> None:
    # Not when this file is imported: the names would then be taken in every other program.
    flags.DEFINE_string("images", None, "Folder of the images.", required=True)
    flags.DEFINE_string(
        "annotations",
        None,
        "COCO JSON file (instances_*.json, or person_keypoints_*.json for keypoints).",
        required=True,
    )
    flags.DEFINE_string("output", None, "Record directory to make.", required=True)
    flags.DEFINE_integer(
        "num_shards", None, "Number of record files.", required=True, lower_bound=1
    )
    flags.DEFINE_integer(
        "num_workers",
        None,
        "Processes that read images; 0: none besides this one. Default: one a core.",
        lower_bound=0,
    )
    flags.DEFINE_bool("strict", False, "Stop at the first bad entry instead of skipping it.")
    flags.DEFINE_bool("overwrite", False, "Replace finished records in --output.")


def main(argv: list[str]) -> None:
    """Converts what the flags say, and prints what was kept and skipped."""
    values = flags.FLAGS
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; every value needs its --flag=")
    try:
        manifest = convert(
            images=values.images,
            annotations=values.annotations,
            output=values.output,
            num_shards=values.num_shards,
            num_workers=values.num_workers,
            strict=values.strict,
            overwrite=values.overwrite,
        )
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(
        f"{values.output}: {manifest['num_images']} images, {manifest['num_objects']} objects, "
        f"{manifest['num_crowds']} crowds in {len(manifest['shards'])} shards; "
        f"{manifest['num_clipped']} boxes clipped, skipped: {manifest['skipped'] or 'nothing'}"
    )


if __name__ == "__main__":
    _define_flags()
    app.run(main)
