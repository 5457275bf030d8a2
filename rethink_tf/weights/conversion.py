"""Makes a checkpoint that our experiments start from of others' files."""

import os

import tensorflow as tf

from rethink_tf.models import classifier_parts
from rethink_tf.weights import detectron2, imagenet, reading


def convert(checkpoint, output, input_format, build):
    """Writes a checkpoint of a detector with the weights of a file.

    Of an ImageNet classifier it holds what the detector shares with it, and how its pixels were
    prepared; a run that starts from it leaves the rest random, and has to prepare them alike. See
    `training.checkpoints.initialize`.

    Args:
        checkpoint: str, Detectron2's `.pkl` of a detector, or a classifier of those of `imagenet`.
        output: str, path of the checkpoint to write, without an ending.
        input_format: "BGR" or "RGB", the order of the channels it was trained with; None for what
            its origin has.
        build: callable taking num_classes and num_keypoints, returns the detector.

    Returns:
        int, the number of variables written.

    Raises:
        ValueError: if the file is not such a checkpoint, or not one of this detector.
    """
    arrays = reading.load_arrays(checkpoint)
    input_format = input_format or imagenet.input_format_of(arrays)
    of_classifier = imagenet.is_classifier(arrays)
    # A classifier's own classes are not the detector's, and nothing of the heads is written.
    sizes = {"num_classes": 1}
    if not of_classifier:
        sizes["num_classes"] = detectron2.num_classes(arrays)
        sizes["num_keypoints"] = detectron2.num_keypoints(arrays)
    model = build(**sizes)
    model.create_variables()
    if of_classifier:
        imagenet.load(model, arrays, input_format)
        pixel_std = imagenet.pixel_std_of(input_format)
        classifier_parts.write(model.pretrained_parts(), pixel_std, output)
        return len(imagenet.parameters(model))
    detectron2.load(model, arrays, input_format)
    tf.io.gfile.makedirs(os.path.dirname(output) or ".")
    tf.train.Checkpoint(model=model).write(output)
    return len(model.variables)
