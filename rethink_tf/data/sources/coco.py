"""COCO's form: images and one JSON file, checked and converted to a directory of TFRecords.

Bad entries are skipped, counted and named in manifest.json; in strict mode the first one stops the
conversion. See `records.store` for the layout of the directory.

COCO's boxes (x, y, width, height) are the source's form; records store corners. Converters of other
forms (`voc`) bring their data into COCO's and have it written by `writing`, too.
"""

import os
from collections.abc import Sequence

import tensorflow as tf

from rethink_tf.data.records.skips import SkipLog
from rethink_tf.data.sources import coco_checks, writing


def convert(
    images: str,
    annotations: str,
    output: str,
    num_shards: int,
    *,
    flip_pairs: Sequence[str] | None = None,
    **options,
) -> dict:
    """Converts COCO images and annotations to TFRecords.

    Args:
        images: folder that the entries' "file_name" are relative to.
        annotations: COCO JSON file.
        output: folder to make.
        num_shards: number of record files.
        flip_pairs: "NAME:NAME" each, keypoints that change places in a mirrored image and do not
            tell it by their names; see `keypoints.KeypointLayout.from_names`.
        **options: further attributes of `writing.Conversion`.

    Returns:
        The manifest, as it is in `output`.

    Raises:
        coco_checks.BadEntryError: in strict mode, at the first bad entry.
        ValueError: if the JSON is malformed, no image or, of those stated, no object is left of it,
            its boxes are in another form than COCO's, it has fewer than `num_images` images, or an
            argument is bad.
        FileNotFoundError: if `annotations` or `images` is not there.
        FileExistsError: if `output` holds finished records and not `overwrite`.
        ChildProcessError: if a worker was killed.
    """
    conversion = writing.Conversion(output, num_shards, **options)
    skips = SkipLog(conversion.strict)
    checked = _read_source(images, annotations, skips, flip_pairs)
    # Base names only: the manifest must not tell where the files were on this machine.
    source = {"images": _base_name(images), "annotations": _base_name(annotations)}
    return writing.write_records(
        checked, lambda image: images, skips, annotations, source, conversion
    )


def _base_name(path):
    return os.path.basename(os.path.normpath(path))


def _read_source(images, annotations, skips, flip_pairs) -> coco_checks.CheckedDataset:
    """Reads and checks the JSON; raises what `convert` says before anything is written."""
    if not tf.io.gfile.isdir(images):
        raise FileNotFoundError(f"{images} (the folder of the images) is not a folder")
    if not tf.io.gfile.exists(annotations) or tf.io.gfile.isdir(annotations):
        raise FileNotFoundError(f"{annotations} (the COCO JSON file) is not a file")
    with tf.io.gfile.GFile(annotations, "rb") as file:
        dataset = coco_checks.read_json(file.read(), annotations)
    return coco_checks.check_dataset(dataset, skips, flip_pairs=flip_pairs)
