"""What the launchers share: flags, the training command made of them, checks and printing."""

import argparse
import re
import sys

from launch.machines import LaunchError
from rethink_tf import exit_codes

_REMOTE = ("gs://", "/gcs/")


def make_parser(name, doc):
    """Returns an `argparse` parser with the flags of `rethink_tf.train`.

    Args:
        name: str, of the launcher, such as "vertex".
        doc: str, its module's docstring.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m launch.{name}", description=doc.split("\n")[0], allow_abbrev=False
    )
    parser.add_argument(
        "--gin_file",
        action="append",
        default=[],
        help="as of rethink_tf.train; a path in the image, or the name of a shipped experiment",
    )
    parser.add_argument(
        "--gin_param", action="append", default=[], help="as of rethink_tf.train, such as SEED=7"
    )
    parser.add_argument("--mode", default="train_and_evaluate", help="as of rethink_tf.train")
    return parser


def make_arguments(options, workers, is_tpu):
    """Returns the arguments of `python -m rethink_tf.train`.

    Args:
        options: the parsed flags of `make_parser`.
        workers: int.
        is_tpu: bool.

    Returns:
        list of str.

    Raises:
        LaunchError: if the experiment is not named, or the strategy is bound otherwise.
    """
    if not options.gin_file:
        raise LaunchError("Give at least one --gin_file, such as --gin_file=scratch_r50.gin.")
    params = list(options.gin_param)
    strategy = "tpu" if is_tpu else "multi_worker_mirrored" if workers > 1 else None
    bound = find_param(params, "make_strategy.name")
    if strategy and bound is None:
        params.append(f"make_strategy.name='{strategy}'")
    elif strategy and bound != strategy:
        raise LaunchError(
            f"make_strategy.name = {bound!r} does not fit this job, which needs {strategy!r}; "
            "leave the binding out."
        )
    return [
        *(f"--gin_file={each}" for each in options.gin_file),
        *(f"--gin_param={each}" for each in params),
        f"--mode={options.mode}",
    ]


def find_param(params, name):
    """Returns the last value bound to a name, without its quotes, or None."""
    value = None
    for param in params:
        found = re.fullmatch(rf"\s*{re.escape(name)}\s*=\s*(.*?)\s*", param, re.DOTALL)
        value = found[1].strip("'\"") if found else value
    return value


def print_yaml(build, options):
    """Prints what a function makes of the flags as YAML, or why it makes nothing of them.

    Args:
        build: callable that takes the parsed flags, returns a dict, and may raise `LaunchError`.
        options: the parsed flags.

    Returns:
        int, the exit code.
    """
    try:
        built = build(options)
    except LaunchError as error:
        print(f"error: {error}", file=sys.stderr)
        return exit_codes.REFUSED
    import yaml

    yaml.safe_dump(built, sys.stdout, sort_keys=False)
    return exit_codes.DONE


def check_image(image):
    """Raises `LaunchError` if no container image is given."""
    if not image:
        raise LaunchError(
            "Give --image, or RETHINK_TF_IMAGE: the container that Dockerfile builds."
        )


def check_model_dir(params, mounted=()):
    """Returns MODEL_DIR, which must outlive the machine: else a restart begins at step 0.

    Args:
        params: list of str, bindings.
        mounted: strs, folders that outlive the machine too.

    Raises:
        LaunchError: if it is not given, or on the machine's own disk.
    """
    model_dir = find_param(params, "MODEL_DIR")
    if not model_dir or not model_dir.startswith((*_REMOTE, *mounted)):
        folder = next(iter(mounted), "gs://bucket/")
        raise LaunchError(
            f"MODEL_DIR = {model_dir!r}: give --gin_param=\"MODEL_DIR='{folder}…'\"; other folders "
            "are lost with the machine, and a restart would begin at step 0."
        )
    return model_dir
