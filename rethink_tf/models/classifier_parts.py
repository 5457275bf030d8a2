"""The checkpoint of what a detector shares with a classifier, and how its pixels were prepared."""

import json
import os

import tensorflow as tf

# What the checkpoint calls how the pixels were prepared: JSON with "pixel_std".
PREPROCESSING = "preprocessing"


def write(parts, pixel_std, path):
    """Writes a checkpoint that `training.checkpoints.initialize` reads into a detector.

    Args:
        parts: {name: layer or list of layers}, as of `MaskRCNN.pretrained_parts`.
        pixel_std: three floats, what the pixels were divided by.
        path: str, of the checkpoint, without an ending; its folder is made where it is missing.
    """
    prepared = tf.Variable(json.dumps({"pixel_std": list(pixel_std)}))
    tf.io.gfile.makedirs(os.path.dirname(path) or ".")
    tf.train.Checkpoint(**parts, **{PREPROCESSING: prepared}).write(path)
