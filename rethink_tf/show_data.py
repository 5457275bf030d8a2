"""Shows what an experiment feeds its network: pictures, statistics, faults, and better settings.

    python -m rethink_tf.show_data --data_dir=/data/mine --output=data.html
    python -m rethink_tf.show_data --gin_file=gin_configs/quickstart.gin --output=shapes.html

The first is a user's own folder, as own_data.gin takes it. The pictures are the first images of the
run, through the pipeline that training reads from. Beside the page lie the contact sheet (PNG), the
tables and a gin file of the settings that the data ask for.
"""

import sys

from absl import app, flags, logging

from rethink_tf import console, exit_codes

_GIN_FILE = flags.DEFINE_multi_string(
    "gin_file", [], "A gin file of the experiment; may be given several times."
)
_GIN_PARAM = flags.DEFINE_multi_string(
    "gin_param", [], "A gin binding that wins over the files; may be given several times."
)
_DATA_DIR = flags.DEFINE_string(
    "data_dir",
    None,
    "Folder of the data, in place of what the gin files say; without a gin file as own_data.gin "
    "takes it.",
)
_OUTPUT = flags.DEFINE_string(
    "output",
    "data.html",
    "The page to write, beside a folder of its name for the other files (data/ for data.html); or "
    "a folder for all of them.",
)
_PICTURES = flags.DEFINE_integer(
    "pictures", 12, "Images of the first batches that are drawn.", lower_bound=1
)
_IMAGES = flags.DEFINE_integer(
    "images",
    2000,
    "Images that are read and compared to find near-duplicates, of all splits; 0 for none.",
    lower_bound=0,
)


def main(argv):
    """Parses the flags, looks and writes."""
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments: {' '.join(argv[1:])}")
    if not _GIN_FILE.value and _DATA_DIR.value is None:
        raise app.UsageError("Give --data_dir, your folder of data, or --gin_file, an experiment.")
    console.start()
    # Only now: help needs none of them.
    import tensorflow as tf

    from rethink_tf import command
    from rethink_tf.looking import look

    # Its memory may be a run's.
    tf.config.set_visible_devices([], "GPU")
    try:
        path, folder = look.look(
            _OUTPUT.value,
            _GIN_FILE.value,
            _GIN_PARAM.value,
            _DATA_DIR.value,
            _PICTURES.value,
            _IMAGES.value,
        )
    except (ValueError, TypeError, OSError) as error:
        logging.debug("Where it was raised:", exc_info=True)
        print(f"error: {command.explain(error)}", file=sys.stderr)
        console.leave(exit_codes.REFUSED)
    except KeyboardInterrupt:
        print("Stopped by Ctrl-C; no page was written.", file=sys.stderr)
        console.leave(exit_codes.INTERRUPTED)
    print(f"Wrote {path}; contact sheet, tables and suggested settings are in {folder}.")
    console.leave(exit_codes.DONE)


if __name__ == "__main__":
    app.run(main)
