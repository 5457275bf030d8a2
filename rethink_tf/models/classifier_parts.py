"""The checkpoint of what a detector shares with a classifier, and how its pixels were prepared."""

import json
import os

import tensorflow as tf

# What the checkpoint calls how the pixels were prepared: JSON, of
# `weights.origins.Origin.preprocessing`.
PREPROCESSING = "preprocessing"


def write(parts, prepared, path):
    """Writes a checkpoint that `training.checkpoints.initialize` reads into a detector.

    Args:
        parts: {name: layer or list of layers}, as of `MaskRCNN.pretrained_parts`.
        prepared: dict that JSON can hold, how pixels were prepared; see
            `weights.origins.Origin.preprocessing`.
        path: str, of the checkpoint, without an ending; its folder is made where it is missing.
    """
    prepared = tf.Variable(json.dumps(prepared))
    tf.io.gfile.makedirs(os.path.dirname(path) or ".")
    tf.train.Checkpoint(**parts, **{PREPROCESSING: prepared}).write(path)
