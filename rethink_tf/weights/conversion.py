"""Makes a checkpoint that our experiments start from of others' files."""

import dataclasses
import os

import tensorflow as tf
from absl import logging

from rethink_tf.models import classifier_parts
from rethink_tf.weights import detectron2, imagenet, reading


def convert(checkpoint, output, input_format, build, norm_epsilon=None):
    """Writes a checkpoint of a detector with the weights of a file.

    Of an ImageNet classifier it holds what the detector shares with it, and how its pixels were
    prepared; a run that starts from it leaves the rest random, and has to prepare them alike. See
    `training.checkpoints.initialize`.

    Args:
        checkpoint: str, path of Detectron2's weights of a detector, or of a classifier; see
            `reading.load`.
        output: str, path of the checkpoint to write, without an ending.
        input_format: "BGR" or "RGB", the order of the channels it was trained with; None for what
            its origin has.
        build: callable taking num_classes and num_keypoints, returns the detector.
        norm_epsilon: float, of the classifier's batch normalization; None for what its origin has.

    Returns:
        int, the number of variables written.

    Raises:
        ValueError: if the file is not such a checkpoint, or not one of this detector.
        OSError: if it cannot be read.
    """
    arrays, origin = reading.load(checkpoint)
    try:
        if imagenet.is_classifier(arrays):
            return _convert_classifier(build, arrays, origin, output, input_format, norm_epsilon)
        return _convert_detector(build, arrays, output, input_format)
    except ValueError as error:
        raise ValueError(f"{checkpoint}: {error}") from error


def _convert_detector(build, arrays, output, input_format):
    """Writes all of a detector, and returns the number of its variables."""
    sizes = {
        "num_classes": detectron2.num_classes(arrays),
        "num_keypoints": detectron2.num_keypoints(arrays),
    }
    model = _build(build, **sizes)
    detectron2.load(model, arrays, input_format or "BGR")
    tf.io.gfile.makedirs(os.path.dirname(output) or ".")
    tf.train.Checkpoint(model=model).write(output)
    return len(model.variables)


def _convert_classifier(build, arrays, origin, output, input_format, norm_epsilon):
    """Writes what a detector shares with a classifier, and returns the number of its variables."""
    given = {"input_format": input_format, "norm_epsilon": norm_epsilon}
    given = {key: value for key, value in given.items() if value is not None}
    origin = origin or imagenet.origin_of(arrays, input_format)
    origin = dataclasses.replace(origin, **given)
    # A classifier's own classes are not the detector's, and nothing of the heads is written.
    model = _build(build, num_classes=1)
    imagenet.load(model, arrays, origin)
    prepared = origin.preprocessing(model.backbone)
    logging.info("Its pixels, strides and padding, which a run has to share: %s", prepared)
    classifier_parts.write(model.pretrained_parts(), prepared, output)
    return len(imagenet.parameters(model))


def _build(build, **sizes):
    model = build(**sizes)
    model.create_variables()
    return model
