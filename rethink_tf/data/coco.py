"""Converts a COCO data set to a directory of TFRecords.

    python -m rethink_tf.data.coco --images=DIR --annotations=FILE --output=DIR --num_shards=N

Bad entries are skipped, counted and named in manifest.json; with --strict the first one stops the
run. See `records` for the layout of the directory.

COCO's boxes (x, y, width, height) are the source's form; `records` stores corners. Converters of
other forms (`voc`) bring their data into COCO's and have it written by `writing`, too.
"""

import os

from absl import app, flags

from rethink_tf.data import coco_checks

if __name__ != "__mp_main__":
    # A worker process of `python -m` imports this file again, under that name. It does without
    # TensorFlow, whose import takes seconds of every core.
    import tensorflow as tf

    from rethink_tf.data import writing


def convert(
    images: str,
    annotations: str,
    output: str,
    num_shards: int,
    num_workers: int | None = None,
    strict: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    num_images: int | None = None,
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
        num_images: write that many images, chosen by `subsets` from those whose entries are good;
            None for all.

    Returns:
        The manifest, as it is in `output`.

    Raises:
        coco_checks.BadEntryError: in strict mode, at the first bad entry.
        ValueError: if the JSON is malformed, nothing is left of it, it has fewer than `num_images`,
            or an argument is bad.
        FileNotFoundError: if `annotations` or `images` is not there.
        FileExistsError: if `output` holds finished records and not `overwrite`.
        ChildProcessError: if a worker was killed.
    """
    skips = coco_checks.SkipLog(strict)
    checked = _read_source(images, annotations, skips)
    # Base names only: where the files lay is nobody's business later.
    name = os.path.basename
    source = {"images": name(os.path.normpath(images)), "annotations": name(annotations)}
    return writing.write_records(
        checked,
        lambda image: images,
        skips,
        where=annotations,
        source=source,
        output=output,
        num_shards=num_shards,
        num_workers=num_workers,
        overwrite=overwrite,
        progress=progress,
        num_images=num_images,
    )


def _read_source(images, annotations, skips) -> coco_checks.CheckedDataset:
    """Reads and checks the JSON; raises what `convert` says before anything is written."""
    if not tf.io.gfile.isdir(images):
        raise FileNotFoundError(f"{images} (the folder of the images) is not a folder")
    if not tf.io.gfile.exists(annotations) or tf.io.gfile.isdir(annotations):
        raise FileNotFoundError(f"{annotations} (the COCO JSON file) is not a file")
    with tf.io.gfile.GFile(annotations, "rb") as file:
        dataset = coco_checks.read_json(file.read(), annotations)
    return coco_checks.check_dataset(dataset, skips)


def _define_flags() -> None:
    # Not when this file is imported: the names would then be taken in every other program.
    flags.DEFINE_string("images", None, "Folder of the images.", required=True)
    flags.DEFINE_string(
        "annotations",
        None,
        "COCO JSON file (instances_*.json, or person_keypoints_*.json for keypoints).",
        required=True,
    )
    writing.define_output_flags()


def main(argv: list[str]) -> None:
    """Converts what the flags say, and prints what was kept and skipped."""
    values = flags.FLAGS
    writing.run_with_flags(convert, argv, images=values.images, annotations=values.annotations)


if __name__ == "__main__":
    _define_flags()
    app.run(main)
