"""Checkpoints: what they hold, resuming from one that reads, and the best by AP."""

import json
import os
import re

import numpy as np
import tensorflow as tf
from absl import logging

from rethink_tf import files
from rethink_tf.models.classifier_parts import PREPROCESSING
from rethink_tf.training import averaging, checkpoint_files, checkpoint_shapes

AVERAGES = "averages"  # what a checkpoint calls the averages of the weights
LOSS_SCALE = "optimizer/loss_scale"
# Grey levels. Detectron, Keras and PyTorch have means of ImageNet's pixels within 1 of each other.
_MEAN_TOLERANCE = 1.5
_VELOCITY = re.compile(r"optimizer/_variables/(\d+)/")


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


def restore(checkpoint, path):
    """Restores a run's own checkpoint.

    Args:
        checkpoint: `tf.train.Checkpoint` whose variables all exist.
        path: str, of `checkpoint_files.find_newest`.

    Raises:
        ValueError: if the run that wrote it did not average its weights or scale its loss and this
            one does, or trained other weights.
    """
    # Averages that start here would be measured as if they had followed the whole run.
    if hasattr(checkpoint, AVERAGES) and not _holds(path, AVERAGES):
        raise ValueError(
            f"The checkpoint {path} holds no averaged weights, because its run had none: take "
            "run.weight_average = None, or the checkpoint as run.init_checkpoint of a new run."
        )
    if _scales_loss(checkpoint) and not _holds(path, LOSS_SCALE):
        raise ValueError(
            f"The checkpoint {path} holds no loss scale, because its run was not in float16: take "
            "its precision, or the checkpoint as run.init_checkpoint of a new run."
        )
    checkpoint_shapes.check(checkpoint, path)
    _check_velocities(checkpoint, path)
    checkpoint.restore(path).assert_existing_objects_matched()


def _check_velocities(checkpoint, path):
    """Checks that a checkpoint's velocities are those of the weights that train now.

    They are saved by their indices in a list: those of other weights would be taken for them.
    """
    if not hasattr(checkpoint, "optimizer"):
        return
    shapes = checkpoint_files.open_reader(path).get_variable_to_shape_map()
    matches = ((_VELOCITY.match(name), shape) for name, shape in shapes.items())
    found = {int(match[1]): shape for match, shape in matches if match}
    found = [found[index] for index in sorted(found)]
    expected = [each.shape.as_list() for each in checkpoint.optimizer.velocities]
    if found != expected:
        raise ValueError(
            f"The run of the checkpoint {path} trained {len(found)} weights, and this one trains "
            f"{len(expected)}, or others: take its backbone's freeze_at (the macro FREEZE_AT), or "
            "the checkpoint as run.init_checkpoint of a new run."
        )


def _scales_loss(checkpoint):
    return getattr(getattr(checkpoint, "optimizer", None), "loss_scale", None) is not None


def _holds(path, part):
    names = checkpoint_files.open_reader(path).get_variable_to_shape_map()
    return any(name.startswith(part + "/") for name in names)


def initialize(detector, path):
    """Reads the detector's weights from a checkpoint of `rethink_tf.convert` or of another run.

    They are the averaged ones where the checkpoint holds averages: those its run was measured by.
    One of a classifier, which `convert` or `rethink_tf.pretrain` made, holds
    `MaskRCNN.pretrained_parts`; the others stay as they are.

    Args:
        detector: `MaskRCNN` whose variables exist.
        path: str, a checkpoint's path without ".index", or a folder of checkpoints.

    Returns:
        list of str, the classes of the detector's layers that were not read, or not as a whole.

    Raises:
        ValueError: if there is no such checkpoint, it does not fit the detector, or it does not
            hold what the detector freezes.
    """
    found = path
    if not tf.io.gfile.exists(path + ".index"):
        candidates = checkpoint_files.list_newest_first(path)
        if not candidates:
            raise ValueError(
                f"No checkpoint at {path!r}: there is neither {path}.index nor a folder. (A .pkl "
                "is made a checkpoint by python -m rethink_tf.convert.)"
            )
        found = candidates[0]
    try:
        names = checkpoint_files.open_reader(found).get_variable_to_shape_map()
        of_classifier = any(name.startswith("backbone/") for name in names)
        parts = detector.pretrained_parts() if of_classifier else {"model": detector}
    except Exception as error:  # TensorFlow raises one of many
        raise ValueError(f"The checkpoint {found} cannot be read: {error}") from error
    checkpoint_shapes.check(tf.train.Checkpoint(**parts), found)
    _check_preprocessing(detector, found, names)
    try:
        status = tf.train.Checkpoint(**parts).read(found)
        status.assert_existing_objects_matched().expect_partial()
        if _holds(found, AVERAGES):
            variables = averaging.averaged_variables(detector)
            status = tf.train.Checkpoint(**{AVERAGES: variables}).read(found)
            status.assert_existing_objects_matched().expect_partial()
    except Exception as error:  # TensorFlow raises one of many
        raise ValueError(
            f"The checkpoint {found} does not fit the detector that the gin files describe: {error}"
        ) from error
    read = {variable.ref() for variable in _variables(parts)}
    _check_frozen([each for each in frozen_weights(detector) if each.ref() not in read], found)
    logging.info("Read %d of %d variables from %s.", len(read), len(detector.variables), found)
    return [
        type(layer).__name__
        for layer in detector.layers
        if any(variable.ref() not in read for variable in layer.variables)
    ]


def _check_preprocessing(detector, path, names):
    """Checks that a run prepares its pixels, and computes, as the classifier it starts from."""
    name = f"{PREPROCESSING}/.ATTRIBUTES/VARIABLE_VALUE"
    if name not in names:
        return
    stated = json.loads(checkpoint_files.open_reader(path).get_tensor(name))
    for setting, found in (
        ("stride_in_1x1", getattr(detector.backbone, "stride_in_1x1", None)),
        ("same_padding", getattr(detector.backbone, "same_padding", None)),
    ):
        if stated.get(setting, found) != found:
            raise ValueError(
                f"The classifier of {path} was read for ResNet.{setting} = {stated[setting]}, and "
                f"here it is {found}, with which its features are others: bind "
                f"ResNet.{setting} = {stated[setting]}."
            )
    mean = stated.get("pixel_mean", detector.pixel_mean)
    if not np.allclose(mean, detector.pixel_mean, rtol=0, atol=_MEAN_TOLERANCE):
        raise ValueError(
            f"The classifier of {path} had {tuple(mean)} subtracted from its pixels, and "
            f"MaskRCNN.pixel_mean is {detector.pixel_mean}: bind MaskRCNN.pixel_mean = "
            f"{tuple(mean)}."
        )
    stated = stated["pixel_std"]
    if not np.allclose(stated, detector.pixel_std, rtol=0.01):
        raise ValueError(
            f"The classifier of {path} had its pixels divided by {tuple(stated)}, and "
            f"MaskRCNN.pixel_std is {detector.pixel_std}: bind MaskRCNN.pixel_std (in a "
            f"pretrained_*.gin the macro PIXEL_STD) = {tuple(stated)}."
        )


def _variables(parts):
    """Returns the variables of a dict of layers and lists of layers."""
    layers = [layer for part in parts.values() for layer in tf.nest.flatten(part)]
    return [variable for layer in layers for variable in layer.variables]


def frozen_weights(detector):
    """Returns the weights that would train if the detector did not freeze them."""
    training = {variable.ref() for variable in detector.trainable_variables}
    weights = [variable for variable in detector.variables if variable.trainable]
    return [variable for variable in weights if variable.ref() not in training]


def _check_frozen(random, source=None):
    """Checks that no frozen weight is a random one, which cost 3 AP in Detectron."""
    if random:
        where = f"{source} does not hold them" if source else "no weights are given"
        raise ValueError(
            f"The backbone's freeze_at leaves {len(random)} weights as they are, from "
            f"{random[0].name.split(':')[0]} on. They must be pre-trained, and {where}: give "
            "--gin_param='run.init_checkpoint=\"...\"' (made by python -m rethink_tf.convert), or "
            "train all with --gin_param=FREEZE_AT=0."
        )


def load_weights(checkpoint, newest, folder, init_checkpoint, required, average=None, workers=None):
    """Resumes a run, or starts it from given weights, or leaves the random ones.

    Args:
        checkpoint: `tf.train.Checkpoint` with the detector as `model`, all variables made.
        newest: str, the checkpoint of a run to go on from, of `checkpoint_files.find_newest`; None
            for none.
        folder: str, the run's own checkpoints, for messages.
        init_checkpoint: str or None, as of `initialize`, for a run that has none.
        required: bool, whether random weights are no choice (to evaluate them says nothing).
        average: `WeightAverage` of the detector, or None; it starts where the run does.
        workers: `Workers`, all of which end with the same weights, or None for one process.

    Raises:
        ValueError: if there is nothing to read though it is required or the detector freezes
            weights, or it cannot be read; if workers read different things, on all of them.
    """

    def load():
        _load(checkpoint, folder, newest, init_checkpoint, required, average)

    if workers is None:
        load()
        return
    workers.fail_together(load)
    optimizer = checkpoint.optimizer
    variables = [*checkpoint.model.variables, *optimizer.variables]
    variables += average.variables if average else []
    workers.check_same_state(int(optimizer.iterations.numpy()), variables)


def _load(checkpoint, folder, newest, init_checkpoint, required, average):
    """Loads in this process, `newest` where it is given; the rest is as of `load_weights`."""
    if newest:
        restore(checkpoint, newest)
        logging.info("Continuing from %s.", newest)
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
        _check_frozen(frozen_weights(checkpoint.model))
        logging.info("Starting from random weights.")
    if average and not newest:
        average.start()


class BestKeeper:
    """Keeps the checkpoints of the highest score."""

    def __init__(self, manager, directory, is_chief=True):
        """Reads the best score of an earlier start of the run, if there was one.

        Args:
            manager: of `make_manager`, for a folder of its own.
            directory: str, the chief's folder, where the score is kept in `best.json`.
            is_chief: bool, whether this process records the score.
        """
        self._manager, self._path = manager, os.path.join(directory, "best.json")
        self._is_chief = is_chief
        self._best = None
        if tf.io.gfile.exists(self._path):
            try:
                with tf.io.gfile.GFile(self._path) as file:
                    self._best = float(json.load(file)["score"])
            except (ValueError, KeyError, TypeError):
                logging.warning(
                    "%s is damaged: the next evaluation counts as the best so far.", self._path
                )

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
        # Before the score is written: after a kill between the two, the weights are there.
        self._manager.save(checkpoint_number=step, check_interval=False)
        if self._is_chief:
            files.write_whole(self._path, json.dumps({"score": score, "step": step}))
        return True
