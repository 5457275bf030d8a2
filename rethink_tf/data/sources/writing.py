"""Writes the record directory of a checked data set: what all converters share.

Worker processes read and check the images and draw the masks; this process writes what they
return, in the order of the image ids, so the bytes do not depend on the number of workers. See
`records.store` for the layout of the directory.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import itertools
import json
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator

import tqdm
from absl import logging

from rethink_tf import files
from rethink_tf.data.records import keypoints, store, subsets, tfrecord_files
from rethink_tf.data.records.skips import SkipLog
from rethink_tf.data.sources import coco_checks, coco_images, decode_check, image_files, manifests

_JOBS_AHEAD = 8  # per worker: images prepared before they are asked for


@dataclasses.dataclass(frozen=True)
class Conversion:
    """Where records are written and how: what every converter takes, by these names.

    Attributes:
        output: folder to make. It is marked incomplete until all is written.
        num_shards: number of record files, at most one an image.
        num_workers: processes that read images; 0 reads them in this one; None: one a core. They
            are spawned: a script that converts needs an `if __name__ == "__main__"` guard.
        strict: stop at the first bad entry instead of skipping it.
        overwrite: replace finished records in `output`.
        progress: show a progress bar.
        num_images: write that many images, chosen by `subsets` from those whose entries are good;
            None for all.
        exif: "apply" for images annotated as they are shown, turned by their EXIF orientation;
            "ignore" for images annotated in the pixels as stored.
        sixteen_bit: how 16-bit images become 8-bit ones, "full" or "range"; see
            `image_files.Options`. None leaves them out, with their range named.

    Raises:
        ValueError: if exif, sixteen_bit or num_workers is none of them.
    """

    output: str
    num_shards: int
    num_workers: int | None = None
    strict: bool = False
    overwrite: bool = False
    progress: bool = True
    num_images: int | None = None
    exif: str = image_files.APPLY
    sixteen_bit: str | None = None

    def __post_init__(self):
        if self.num_workers is not None and self.num_workers < 0:
            raise ValueError(f"num_workers is {self.num_workers}; give 0 or more")
        _ = self.image_options  # checks them before anything is read

    @property
    def image_options(self):
        """How image files are read."""
        return image_files.Options(self.exif, self.sixteen_bit)


def write_records(
    checked: coco_checks.CheckedDataset,
    folder_of: Callable[[dict], str],
    skips: SkipLog,
    where: str,
    source: dict,
    conversion: Conversion,
) -> dict:
    """Writes the record directory of a data set whose entries were checked.

    Args:
        checked: a `CheckedDataset`.
        folder_of: takes an entry of its images, returns the folder that "file_name" is relative to.
        skips: told of what turns out to be unusable.
        where: what errors call the data set.
        source: what the manifest says of where the data came from.
        conversion: where the records go, and how.

    Returns:
        The manifest, as it is in the output.

    Raises:
        As `coco.convert`, but for what is about its files.
    """
    stated = _count_stated(checked, skips)
    if not checked.images:
        raise ValueError(f"{where}: no image is left to convert{_why(skips)}")
    if stated["objects"] and not _count_objects(itertools.chain(*checked.annotations.values())):
        raise ValueError(_nothing_left(where, checked, skips))
    checked, subset = _take_subset(checked, conversion.num_images, where)
    output, num_shards = conversion.output, conversion.num_shards
    if not 1 <= num_shards <= len(checked.images):
        raise ValueError(
            f"num_shards is {num_shards}; give at least 1 and at most one an image "
            f"({where} has {len(checked.images)} that can be used)"
        )
    store.begin_directory(output, conversion.overwrite)
    rows, shards, kept = _write_images(checked, folder_of, skips, conversion)
    skips.log()
    if not kept:
        raise ValueError(f"{where}: no image could be used{_why(skips)}")
    if stated["objects"] and not _count_objects(a for item in kept for a in item.annotations):
        raise ValueError(_nothing_left(where, checked, skips))
    summary = skips.loud_summary(stated["images"], stated["objects"])
    if summary:
        logging.warning("%s", summary)
    manifest = manifests.make_manifest(checked, kept, shards, skips, conversion.image_options)
    manifest |= {"subset": subset, "source": source}
    files.write_whole(
        os.path.join(output, store.GROUND_TRUTH_FILE),
        json.dumps(manifests.make_ground_truth(checked, kept)),
    )
    paths = [os.path.join(output, entry["file"]) for entry in shards]
    store.write_index(store.RecordIndex.from_rows(output, paths, rows))
    store.write_manifest(output, manifest)
    return manifest


def _write_images(checked, folder_of, skips, conversion):
    """Reads, checks and writes all images; returns what `_write_shards` does."""
    workers, options = conversion.num_workers, conversion.image_options
    jobs = (
        (folder_of(image), image, checked.annotations[image["id"]], checked.has_masks, options)
        for image in checked.images
    )
    prepared = _prepare_all(jobs, os.cpu_count() if workers is None else workers)
    decoded = decode_check.check_all(prepared)
    total, quiet = len(checked.images), not conversion.progress
    bar = tqdm.tqdm(decoded, total=total, unit="image", disable=quiet)
    with contextlib.closing(prepared), contextlib.closing(decoded), bar:
        images_done = iter(bar)
        written = _write_shards(conversion, images_done, checked, skips)
        next(images_done, None)  # lets the bar reach its end
    return written


def _count_stated(checked, skips):
    """How many images and objects the source states, those left out already included."""
    counts = skips.num_left_out()
    objects = sum(map(len, checked.annotations.values()))
    return {
        "images": counts["images"] + len(checked.images),
        "objects": counts["objects"] + objects,
    }


def _count_objects(annotations):
    return sum(not annotation["iscrowd"] for annotation in annotations)


def _why(skips):
    causes = f", the commonest causes:\n{skips.causes()}" if skips.entries else ""
    return f"; skipped: {skips.counts()}{causes}"


def _nothing_left(where, checked, skips):
    """Says that no object is left, and what became of those that were stated."""
    crowds = sum(bool(a["iscrowd"]) for a in itertools.chain(*checked.annotations.values()))
    found = f" ({crowds:,} crowd regions, which are not trained on, are left)" if crowds else ""
    return f"{where}: no object is left to train on or to find{found}{_why(skips)}"


def _take_subset(checked, num_images, where):
    """Restricts a data set to `num_images` images, None for all; returns (it, for the manifest)."""
    if num_images is None:
        return checked, None
    ids = [image["id"] for image in checked.images]
    try:
        chosen = set(subsets.select_image_ids(ids, num_images))
    except ValueError as error:
        raise ValueError(f"num_images, for {where}: {error}") from error
    images = [image for image in checked.images if image["id"] in chosen]
    subset = {"num_images": num_images, "of": len(ids), "rule": subsets.RULE}
    return dataclasses.replace(checked, images=images), subset


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


def _write_shards(conversion, prepared, checked, skips):
    """Writes all shards: images in ascending order of id, cut into equal parts.

    Args:
        conversion: `Conversion`.
        prepared: iterator of `PreparedImage`, one each of `checked.images`.
        checked: a `CheckedDataset`.
        skips: told of what turns out to be unusable.

    Returns:
        (rows of the index, the manifest's "shards", the images written without their bytes).
    """
    names = {category["id"]: category["name"] for category in checked.categories}
    num_shards, rows, shards, kept = conversion.num_shards, [], [], []

    def examples(shard, num_images):
        """Yields the records of a shard, and notes their rows and what was skipped."""
        for item in itertools.islice(prepared, num_images):
            for reason, entry in item.skipped:
                skips.add(reason, entry)
            for note in item.notes:
                skips.note(*note)
            if item.loaded is None:
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
                    "num_keypoints": manifests.count_labelled(item.annotations, checked.keypoints),
                }
            )
            kept.append(_without_bytes(item, checked.annotations[item.image["id"]]))

    for shard in range(num_shards):
        start, stop = (len(checked.images) * k // num_shards for k in (shard, shard + 1))
        name = store.shard_name(shard, num_shards)
        path = os.path.join(conversion.output, name)
        first_row = len(rows)
        offsets, lengths = tfrecord_files.write_shard(path, examples(shard, stop - start))
        for row, offset, length in zip(rows[first_row:], offsets, lengths, strict=True):
            row |= {"offset": offset, "length": length}
        num_bytes = sum(lengths) + tfrecord_files.FRAME_OVERHEAD_BYTES * len(lengths)
        shards.append({"file": name, "records": len(lengths), "bytes": num_bytes})
    return rows, shards, kept


def _without_bytes(item, originals):
    """Returns a `PreparedImage` as it is kept: without image and masks.

    Its annotations are the data set's own and not the copies that came from the worker: COCO's
    polygons fill a gigabyte.
    """
    originals = {annotation["id"]: annotation for annotation in originals}
    annotations = [originals[a["id"]] for a in item.annotations]
    for original, annotation in zip(annotations, item.annotations, strict=True):
        original.setdefault("area", annotation["area"])
        if annotation.get("segmentation") != original.get("segmentation"):
            original["segmentation"] = annotation["segmentation"]
    item.loaded.encoded = b""
    return coco_images.PreparedImage(
        item.image, annotations, [], loaded=item.loaded, has_mask=item.has_mask
    )


def _encode(
    item: coco_images.PreparedImage,
    names: dict[int, str],
    layout: keypoints.KeypointLayout | None,
) -> bytes:
    boxes = [a["bbox"] for a in item.annotations]
    difficult = None
    if any("difficult" in a for a in item.annotations):
        # VOC's flag. It is none of COCO's, so that any other value says nothing.
        difficult = [a.get("difficult") == 1 for a in item.annotations]
    return store.encode_example(
        image_id=item.image["id"],
        filename=os.path.basename(item.image["file_name"]),
        encoded=item.loaded.encoded,
        image_format=item.loaded.image_format,
        height=item.image["height"],
        width=item.image["width"],
        boxes=[[y, x, y + height, x + width] for x, y, width, height in boxes],
        labels=[a["category_id"] for a in item.annotations],
        names=[names[a["category_id"]] for a in item.annotations],
        is_crowd=[a["iscrowd"] for a in item.annotations],
        areas=[a["area"] for a in item.annotations],
        masks=item.masks,
        has_mask=item.has_mask,
        difficult=difficult,
        keypoints=layout and keypoints.read_keypoints(item.annotations, len(layout.names)),
    )
