"""Binds the settings that a run's data ask for, before anything of the run is built."""

import ast

from absl import logging

from rethink_tf import config, config_record, console
from rethink_tf.own_data import preparing, settings, statistics

_SETTINGS = settings.own_data_settings.__name__


def bind_settings(is_training=True):
    """Prepares the data of an experiment that says `run.settings`, and binds what they ask for.

    What is bound by a file or the command line stays. The statistics are those of the run's folder
    where it was started before, so that it goes on with the same settings.

    Args:
        is_training: whether more is to be done than to evaluate, which other data may be used for.

    Raises:
        ValueError: if the data cannot be used; the message says what to do.
    """
    if config.value_of("run.settings") is None:
        return
    data_dir, model_dir = config.value_of("run.data_dir"), config.value_of("run.model_dir")
    if prepare_data := config.value_of("run.prepare_data"):
        prepare_data(output=data_dir)
    wanted = config.value_of(f"{_SETTINGS}.splits")
    prepared = preparing.prepare(data_dir, model_dir, wanted, is_training)
    if config.value_of(f"{_SETTINGS}.statistics") is None:
        found = _statistics(prepared, model_dir, is_training)
        config.derive({f"{_SETTINGS}.statistics": found})
    config.derive({"run.data_dir": prepared.data_dir}, over_files=True)
    config.derive(
        {
            "run.train_split": prepared.train_split,
            "run.evaluation_split": prepared.evaluation_split or prepared.train_split,
        }
    )
    config.derive(config.value_of("run.settings")())
    _say(prepared, config.value_of(f"{_SETTINGS}.statistics"))


def _statistics(prepared, model_dir, is_training):
    recorded = config_record.recorded(model_dir, f"{_SETTINGS}.statistics")
    if recorded is None:
        return statistics.measure(prepared)
    found = ast.literal_eval(recorded)
    then, now = found["num_images"] + found["num_held_out"], statistics.count_images(prepared)
    if is_training and then != now:
        raise ValueError(
            f"{prepared.data_dir} has {now} images to train on and held out, and the run in "
            f"{model_dir} began with {then}: take another MODEL_DIR for other data."
        )
    return found


def _say(prepared, found):
    """Says what a user may not expect of the data."""
    if found["num_held_out"]:
        logging.info(
            "The data have one split, %s: %d of its %d images are held out for evaluation, by a "
            "hash of their ids.",
            prepared.train_split,
            found["num_held_out"],
            found["num_images"] + found["num_held_out"],
            extra=console.KEPT,
        )
    if empty := statistics.without_objects(prepared):
        logging.warning("Categories without an object to train on: %s.", ", ".join(empty))
    if found["has_keypoints"]:
        logging.warning("The keypoints of the data are not trained: see keypoints_r50.gin.")
