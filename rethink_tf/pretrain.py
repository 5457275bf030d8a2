"""Pre-trains a detector's backbone as a classifier, as gin files describe.

    python -m rethink_tf.pretrain --gin_file=gin_configs/pretrain_quickstart.gin
    python -m rethink_tf.train --gin_file=gin_configs/quickstart.gin \
        --gin_param='run.init_checkpoint="runs/pretrain_quickstart/backbone"'

A run that was stopped goes on where it was when it is started again with the same flags. Exit
codes are those of `rethink_tf.train`.
"""

from absl import app, flags

from rethink_tf import config, console

_GIN_FILE = flags.DEFINE_multi_string(
    "gin_file",
    [],
    "A gin file: a path, or the name of a shipped one such as pretrain_quickstart.gin. May be "
    "given several times; later files win.",
)
_GIN_PARAM = flags.DEFINE_multi_string(
    "gin_param",
    [],
    "A gin binding that wins over the files, such as SEED=7 or 'DATA_DIR=\"/data/imagenet\"' "
    "(texts keep their own quotes). May be given several times.",
)
_QUIET = flags.DEFINE_bool(
    "quiet", False, "Show the header, evaluations, warnings and the end, and nothing in between."
)


def main(argv):
    """Parses the flags and runs the pre-training."""
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments: {' '.join(argv[1:])}")
    if not _GIN_FILE.value:
        raise app.UsageError("Give at least one --gin_file, such as pretrain_quickstart.gin.")
    console.start(_QUIET.value)
    # Imported only now: --help answers without waiting for TensorFlow.
    from rethink_tf import command
    from rethink_tf.pretraining import loop

    def run(when_built):
        config.parse(_GIN_FILE.value, _GIN_PARAM.value)
        loop.run(when_built)

    command.run_to_end(run)


if __name__ == "__main__":
    app.run(main)
