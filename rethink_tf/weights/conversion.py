"""Makes a checkpoint that our experiments start from of a `.pkl` of Detectron or Detectron2."""

import os

import tensorflow as tf

from rethink_tf.weights import detectron2, imagenet, pickles


def convert(checkpoint, output, input_format, build):
    """Writes a checkpoint of a detector with the weights of a `.pkl`.

    Of an ImageNet classifier it holds what the detector shares with it, and a run that starts from
    it leaves the rest random; see `training.checkpoints.initialize`.

    Args:
        checkpoint: str, Detectron2's `.pkl` of a detector, or its or Detectron's of a classifier.
        output: str, path of the checkpoint to write, without an ending.
        input_format: "BGR" or "RGB", the order of the channels it was trained with.
        build: callable taking num_classes and num_keypoints, returns the detector.

    Returns:
        int, the number of variables written.

    Raises:
        ValueError: if the file is not such a checkpoint, or not one of this detector.
    """
    arrays = pickles.load_arrays(checkpoint)
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
        parts, count = model.pretrained_parts(), len(imagenet.parameters(model))
    else:
        detectron2.load(model, arrays, input_format)
        parts, count = {"model": model}, len(model.variables)
    tf.io.gfile.makedirs(os.path.dirname(output) or ".")
    tf.train.Checkpoint(**parts).write(output)
    return count
