"""Trains and evaluates an experiment that gin files describe.

    python -m rethink_tf.train --gin_file=gin_configs/quickstart.gin
    python -m rethink_tf.train --gin_file=gin_configs/scratch_r50.gin \
        --gin_param='DATA_DIR="/data/coco"' --gin_param='MODEL_DIR="/runs/r50"'

A run that was stopped goes on where it was when it is started again with the same flags. Exit
codes, for launchers: 0 done, 1 refused or failed, 75 start again, 130 stopped by Ctrl-C.
"""

import contextlib
import os

from absl import app, flags

from rethink_tf import cluster, config, console, curves

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
_FOLLOW = flags.DEFINE_bool(
    "follow",
    False,
    "With --mode=evaluate: evaluate each checkpoint of a run that another process trains, until "
    "its last.",
)
_QUIET = flags.DEFINE_bool(
    "quiet", False, "Show the header, evaluations, warnings and the end, and nothing in between."
)
_TENSORBOARD = flags.DEFINE_bool(
    "tensorboard", False, "Run TensorBoard on the run's folder, print its address, and end with it."
)
_LOG_EVERY = flags.DEFINE_integer(
    "log_every",
    None,
    "Steps from one line of progress to the next; default: what the gin files say.",
    lower_bound=1,
)


def main(argv):
    """Parses the flags and runs the experiment."""
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments: {' '.join(argv[1:])}")
    if not _GIN_FILE.value:
        raise app.UsageError("Give at least one --gin_file, such as --gin_file=quickstart.gin.")
    console.start(_QUIET.value)
    # Imported only now: --help answers without waiting for TensorFlow.
    from rethink_tf import command, experiment

    params = list(_GIN_PARAM.value)
    if _LOG_EVERY.value:
        params.append(f"run.log_every={_LOG_EVERY.value}")

    def run(when_built):
        config.parse(_GIN_FILE.value, params)
        with _tensorboard():
            experiment.run(_MODE.value, when_built, _FOLLOW.value)

    command.run_to_end(run)


def _tensorboard():
    """Returns TensorBoard as a context, if it is asked for: of several workers, the first's."""
    model_dir = config.value_of("run.model_dir")
    # Without a folder the experiment is refused.
    if not _TENSORBOARD.value or not isinstance(model_dir, str) or not cluster.is_first(os.environ):
        return contextlib.nullcontext()
    return curves.tensorboard(model_dir)


if __name__ == "__main__":
    app.run(main)
