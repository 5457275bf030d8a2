"""Converts PASCAL VOC's layout to a directory of TFRecords.

    python -m rethink_tf.data.voc --set=VOCdevkit/VOC2007:trainval \
        --set=VOCdevkit/VOC2012:train --output=DIR --num_shards=N

Each --set is a folder of one year and a list in it. `sources.voc` does it.
"""

from absl import app, flags

from rethink_tf import console
from rethink_tf.data import command_line


def define_flags() -> None:
    """Defines the flags; not on import, as the names would then be taken in other programs."""
    flags.DEFINE_multi_string(
        "set",
        None,
        "FOLDER:LIST, such as VOCdevkit/VOC2007:trainval. May be given several times: all are "
        "joined into one data set.",
        required=True,
    )
    flags.DEFINE_list(
        "classes",
        None,
        "Names of the classes, separated by commas; their ids count from 1. Default: VOC's twenty.",
    )
    command_line.define_output_flags()


def main(argv: list[str]) -> None:
    """Converts what the flags say, and prints what was kept and skipped."""
    # Imports TensorFlow: not for --help, and not in the worker processes, which import this file.
    from rethink_tf.data.sources import voc

    values = flags.FLAGS
    command_line.run_with_flags(
        voc.convert, argv, sets=values.set, classes=values.classes or list(voc.CLASSES)
    )


if __name__ == "__main__":
    console.start()
    define_flags()
    app.run(main)
