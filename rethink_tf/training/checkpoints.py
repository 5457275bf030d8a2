"""Checkpoints: the newest few by interval, the best by AP, and resuming from one that reads."""

import atexit
import json
import os
import re
import shutil
import tempfile

import tensorflow as tf
from absl import logging

from rethink_tf.training import averaging, checkpoint_shapes

AVERAGES = "averages"  # what a checkpoint calls the averages of the weights


def is_chief(strategy):
    """Tells whether this process writes for all: it does unless it is a later worker of several."""
    resolver = strategy.cluster_resolver
    if resolver is None or not resolver.task_type:
        return True
    has_chief = "chief" in resolver.cluster_spec().jobs
    return resolver.task_type == "chief" or (
        resolver.task_type == "worker" and resolver.task_id == 0 and not has_chief
    )


def make_checkpoint(model, optimizer, average=None):
    """Returns the `tf.train.Checkpoint` of a run.

    Args:
        model: the detector.
        optimizer: Keras optimizer, which has the step.
        average: `WeightAverage`, or None.
    """
    parts = {"model": model, "optimizer": optimizer}
    if average:
        parts[AVERAGES] = average.variables
    return tf.train.Checkpoint(**parts)


def make_manager(checkpoint, directory, strategy, step, interval=None, keep=3):
    """Returns a checkpoint manager that writes where this worker may.

    Every worker must save, because variables may be gathered over the replicas; all but the chief
    do it in a temporary folder that nobody reads and that goes with the process.

    Args:
        checkpoint: `tf.train.Checkpoint`.
        directory: str, the chief's folder.
        strategy: `tf.distribute.Strategy`.
        step: variable that counts the steps.
        interval: int, steps between two saves; None saves only when told to.
        keep: int, how many to keep.
    """
    if not is_chief(strategy):
        directory, keep = tempfile.mkdtemp(prefix="rethink_tf_"), 1
        atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return tf.train.CheckpointManager(
        checkpoint,
        directory,
        max_to_keep=keep,
        checkpoint_name="step",
        step_counter=step,
        checkpoint_interval=interval,
    )


def list_newest_first(directory):
    """Returns the paths of a folder's checkpoints, the highest step first."""
    paths = []
    for index in tf.io.gfile.glob(os.path.join(directory, "step-*.index")):
        path = index.removesuffix(".index")
        if re.fullmatch(r"step-\d+", os.path.basename(path)):
            paths.append(path)
    return sorted(paths, key=lambda path: int(path.rpartition("-")[2]), reverse=True)


def restore_newest(checkpoint, directory):
    """Restores the newest checkpoint of a folder that reads.

    Args:
        checkpoint: `tf.train.Checkpoint` whose variables all exist.
        directory: str.

    Returns:
        The path of the one restored, or None where the folder has none.

    Raises:
        ValueError: if there are some and none of them reads, or the run that wrote them did not
            average its weights and this one does.
    """
    paths = list_newest_first(directory)
    for path in paths:
        try:
            _check_readable(path)
        # TensorFlow's reader turns the status of a damaged file into one of many Python errors.
        except Exception as error:
            logging.warning(
                "The checkpoint %s cannot be read (%s); trying the one before.", path, error
            )
            continue
        if hasattr(checkpoint, AVERAGES) and not _holds_averages(path):
            raise ValueError(
                f"The checkpoint {path} holds no averaged weights, because its run had none: take "
                "run.weight_average = None, or the checkpoint as run.init_checkpoint of a new run."
            )
        checkpoint_shapes.check(checkpoint, path)
        checkpoint.restore(path).assert_existing_objects_matched()
        return path
    if paths:
        raise ValueError(
            f"None of the {len(paths)} checkpoints in {directory} can be read. Move them away to "
            "start from step 0, or bring back one that is whole."
        )
    return None


def _check_readable(path):
    """Reads every tensor, so that a damaged file is found before any variable is assigned."""
    reader = tf.train.load_checkpoint(path)
    for name in reader.get_variable_to_shape_map():
        reader.get_tensor(name)


def _holds_averages(path):
    names = tf.train.load_checkpoint(path).get_variable_to_shape_map()
    return any(name.startswith(AVERAGES + "/") for name in names)


def initialize(detector, path):
    """Reads the detector's weights from a checkpoint of `rethink_tf.convert` or of another run.

    They are the averaged ones where the checkpoint holds averages: those its run was measured by.
    One that `convert` made of a classifier holds `MaskRCNN.pretrained_parts`; the others stay as
    they are.

    Args:
        detector: `MaskRCNN` whose variables exist.
        path: str, a checkpoint's path without ".index", or a folder of checkpoints.

    Returns:
        list of str, the classes of the detector's layers that were not read, or not as a whole.

    Raises:
        ValueError: if there is no such checkpoint or it does not fit the detector.
    """
    found = path
    if not tf.io.gfile.exists(path + ".index"):
        candidates = list_newest_first(path)
        if not candidates:
            raise ValueError(
                f"No checkpoint at {path!r}: there is neither {path}.index nor a folder. (A .pkl "
                "is made a checkpoint by python -m rethink_tf.convert.)"
            )
        found = candidates[0]
    try:
        names = tf.train.load_checkpoint(found).get_variable_to_shape_map()
        of_classifier = any(name.startswith("backbone/") for name in names)
        parts = detector.pretrained_parts() if of_classifier else {"model": detector}
    except Exception as error:  # one of many, as above
        raise ValueError(f"The checkpoint {found} cannot be read: {error}") from error
    checkpoint_shapes.check(tf.train.Checkpoint(**parts), found)
    try:
        status = tf.train.Checkpoint(**parts).read(found)
        status.assert_existing_objects_matched().expect_partial()
        if _holds_averages(found):
            variables = averaging.averaged_variables(detector)
            status = tf.train.Checkpoint(**{AVERAGES: variables}).read(found)
            status.assert_existing_objects_matched().expect_partial()
    except Exception as error:  # one of many, as above
        raise ValueError(
            f"The checkpoint {found} does not fit the detector that the gin files describe: {error}"
        ) from error
    read = {variable.ref() for variable in _variables(parts)}
    logging.info("Read %d of %d variables from %s.", len(read), len(detector.variables), found)
    return [
        type(layer).__name__
        for layer in detector.layers
        if any(variable.ref() not in read for variable in layer.variables)
    ]


def _variables(parts):
    """Returns the variables of a dict of layers and lists of layers."""
    layers = [layer for part in parts.values() for layer in tf.nest.flatten(part)]
    return [variable for layer in layers for variable in layer.variables]


def load_weights(checkpoint, folder, init_checkpoint, required, average=None):
    """Resumes a run, or starts it from given weights, or leaves the random ones.

    Args:
        checkpoint: `tf.train.Checkpoint` with the detector as `model`, all variables made.
        folder: str, the run's own checkpoints.
        init_checkpoint: str or None, as of `initialize`, for a run that has none.
        required: bool, whether random weights are no choice (to evaluate them says nothing).
        average: `WeightAverage` of the detector, or None; it starts where the run does.

    Raises:
        ValueError: if there is nothing to read though it is required, or it cannot be read.
    """
    restored = restore_newest(checkpoint, folder)
    if restored:
        logging.info("Continuing from %s.", restored)
    elif init_checkpoint:
        random = initialize(checkpoint.model, init_checkpoint)
        if random and required:
            raise ValueError(
                f"{init_checkpoint} has the weights of a classifier, and to evaluate a detector "
                f"with random {', '.join(random)} says nothing: train first."
            )
        logging.info(
            "Starting from the weights in %s; random are those of: %s.",
            init_checkpoint,
            ", ".join(random) or "none",
        )
    elif required:
        raise ValueError(
            f"There is no checkpoint in {folder} to evaluate: train first, or give weights with "
            "--gin_param='run.init_checkpoint=\"...\"'."
        )
    else:
        logging.info("Starting from random weights.")
    if average and not restored:
        average.start()


class BestKeeper:
    """Keeps the checkpoints of the highest score."""

    def __init__(self, manager, directory, is_chief=True):
        """Takes up the best score of an earlier start.

        Args:
            manager: of `make_manager`, for a folder of its own.
            directory: str, the chief's folder, where the score is kept in `best.json`.
            is_chief: bool, whether this process records the score.
        """
        self._manager, self._path = manager, os.path.join(directory, "best.json")
        self._is_chief = is_chief
        self._best = None
        if tf.io.gfile.exists(self._path):
            with tf.io.gfile.GFile(self._path) as file:
                self._best = json.load(file)["score"]

    def offer(self, score, step):
        """Saves if the score is higher than every one before.

        Args:
            score: float.
            step: int.

        Returns:
            bool, whether it was saved.
        """
        if self._best is not None and score <= self._best:
            return False
        self._best = score
        self._manager.save(checkpoint_number=step, check_interval=False)
        if self._is_chief:
            temporary = self._path + ".tmp"
            with tf.io.gfile.GFile(temporary, "w") as file:
                json.dump({"score": score, "step": step}, file)
            tf.io.gfile.rename(temporary, self._path, overwrite=True)
        return True
