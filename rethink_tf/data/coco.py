"""Converts a COCO data set to a directory of TFRecords.

    python -m rethink_tf.data.coco --images=DIR --annotations=FILE --output=DIR --num_shards=N

Bad entries are skipped, counted and named in manifest.json; with --strict the first one stops the
conversion. `sources.coco` does it.
"""

from absl import app, flags

from rethink_tf import console
from rethink_tf.data import command_line


def define_flags() -> None:
    """Defines the flags; not on import, as the names would then be taken in other programs."""
    flags.DEFINE_string("images", None, "Folder of the images.", required=True)
    flags.DEFINE_string(
        "annotations",
        None,
        "COCO JSON file (instances_*.json, or person_keypoints_*.json for keypoints).",
        required=True,
    )
    flags.DEFINE_list(
        "flip_pairs",
        None,
        "Keypoints that change places in a mirrored image, NAME:NAME,NAME:NAME, beside those that "
        "tell it by their names.",
    )
    command_line.define_output_flags()


def main(argv: list[str]) -> None:
    """Converts what the flags say, and prints what was kept and skipped."""
    # Imports TensorFlow: not for --help, and not in the worker processes, which import this file.
    from rethink_tf.data.sources import coco

    values = flags.FLAGS
    command_line.run_with_flags(
        coco.convert,
        argv,
        images=values.images,
        annotations=values.annotations,
        flip_pairs=values.flip_pairs,
    )


if __name__ == "__main__":
    console.start()
    define_flags()
    app.run(main)
