"""Compares the shapes of a checkpoint with those of the variables it is to be read into.

TensorFlow tells of a difference while it reads, when some variables have been assigned, and then
warns of every value that it has not read: one line is enough.
"""

import tensorflow as tf
from tensorflow.python.checkpoint import graph_view
from tensorflow.python.trackable import trackable_utils

from rethink_tf.training import checkpoint_files

_SHOWN = 3
_VALUE = "VARIABLE_VALUE"
_CLASS_LOGITS = "class_logits/bias"


def check(root, path):
    """Compares a checkpoint with the variables below an object.

    Args:
        root: `tf.train.Checkpoint`, all of its variables made.
        path: str, a checkpoint's path without ".index".

    Raises:
        ValueError: in one line, if a variable has another shape in the checkpoint. A variable that
            only one of them has is for the reading to say.
    """
    stored = checkpoint_files.open_reader(path).get_variable_to_shape_map()
    objects, paths = graph_view.ObjectGraphView(root).breadth_first_traversal()
    differing = {}
    for each in objects:
        if not isinstance(each, tf.Variable):
            continue
        name = trackable_utils.object_path_to_string(paths[each])
        shape = stored.get(trackable_utils.checkpoint_key(name, _VALUE))
        if shape is not None and list(shape) != each.shape.as_list():
            differing[name] = tuple(shape), tuple(each.shape)
    if not differing:
        return
    for name, (there, here) in differing.items():
        if name.endswith(_CLASS_LOGITS):
            raise ValueError(
                f"The checkpoint {path} is of a detector of {there[0] - 1} classes, and the data "
                f"have {here[0] - 1}: take data with its classes, or start from a backbone alone "
                "(base/pretrained.gin) or from random weights."
            )
    # The optimizer's follow from the model's.
    first = sorted(differing, key=lambda name: name.startswith("optimizer"))[:_SHOWN]
    named = ["{} is {} there and {} here".format(name, *differing[name]) for name in first]
    raise ValueError(
        f"The checkpoint {path} is of another detector: {'; '.join(named)}"
        f"{f'; and {len(differing) - _SHOWN} more' if len(differing) > _SHOWN else ''}."
    )
