"""Trains and evaluates an experiment that gin files describe.

    python -m rethink_tf.train --gin_file=gin_configs/quickstart.gin
    python -m rethink_tf.train --gin_file=gin_configs/scratch_r50.gin \
        --gin_param='DATA_DIR="/data/coco"' --gin_param='MODEL_DIR="/runs/r50"'

A run that was stopped goes on where it was when it is started again with the same flags.
"""

import os
import re
import sys

from absl import app, flags, logging

from rethink_tf import config

_GIN_FILE = flags.DEFINE_multi_string(
    "gin_file",
    [],
    "A gin file: a path, or the name of a shipped experiment such as quickstart.gin. May be given "
    "several times; later files win, so overlays such as overlays/tiny.gin come last.",
)
_GIN_PARAM = flags.DEFINE_multi_string(
    "gin_param",
    [],
    "A gin binding that wins over the files, such as SEED=7 or 'DATA_DIR=\"/data/coco\"' (texts "
    "keep their own quotes). May be given several times.",
)
_MODE = flags.DEFINE_enum(
    "mode",
    "train_and_evaluate",
    ["train", "evaluate", "train_and_evaluate"],
    "train: no evaluation. evaluate: only that, of the newest checkpoint in MODEL_DIR. "
    "train_and_evaluate: both, in turns.",
)


def main(argv):
    """Parses the flags and runs the experiment."""
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments: {' '.join(argv[1:])}")
    if not _GIN_FILE.value:
        raise app.UsageError("Give at least one --gin_file, such as --gin_file=quickstart.gin.")
    logging.set_verbosity(logging.INFO)
    # TensorFlow's own notices about the processor and the graph; its errors stay.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # Imported only now: --help answers without waiting for TensorFlow.
    from rethink_tf import experiment
    from rethink_tf.training.health import NonFiniteLossError

    built = []
    try:
        config.parse(_GIN_FILE.value, _GIN_PARAM.value)
        experiment.run(mode=_MODE.value, when_built=lambda: built.append(True))
    except (ValueError, OSError, NonFiniteLossError) as error:
        # What is wrong with the experiment or its data shows before the first step. From then on
        # only a diverged run is one of the user's errors.
        if built and not isinstance(error, NonFiniteLossError):
            raise
        logging.debug("Where it was raised:", exc_info=True)
        sys.exit(f"error: {_without_calls(error)}")


def _without_calls(error):
    """Returns an error's message without the lines on calls that gin adds to it."""
    return re.sub(r"\n\s*In call to configurable .*", "", str(error))


if __name__ == "__main__":
    app.run(main)
