"""Writes a detector as a SavedModel, which TensorFlow loads without this package."""

import os
import pathlib

import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

# Keys of the signatures: of encoded images, which servers take by default, and of pixels.
ENCODED, IMAGES = "serving_default", "images"


def write(program, assets, folder):
    """Saves a program.

    Args:
        program: `ServedProgram`.
        assets: {name: text}, files that lie in the SavedModel's `assets`.
        folder: where to; made.
    """
    scratch = f"{folder}-assets"
    os.makedirs(scratch)
    for name, text in assets.items():
        pathlib.Path(scratch, name).write_text(text)
    program.assets = [tf.saved_model.Asset(os.path.join(scratch, name)) for name in assets]
    save(program, {ENCODED: program.encoded, IMAGES: program.images}, folder)


def save(module, signatures, folder):
    """Saves a module for prediction alone; `signatures` are as of `tf.saved_model.save`."""
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    tf.saved_model.save(module, folder, signatures, options)
    _forget_gradients(os.path.join(folder, "saved_model.pb"))


class Runner:
    """Runs a SavedModel as any program does that has TensorFlow alone."""

    def __init__(self, folder):
        """Loads it from a folder."""
        # Signatures hold their program weakly.
        self._loaded = tf.saved_model.load(folder)

    def __call__(self, encoded):
        """Returns the outputs for the bytes of one image, as NumPy arrays without the batch."""
        found = self._loaded.signatures[ENCODED](encoded=tf.constant([encoded]))
        return {key: value.numpy()[0] for key, value in found.items()}


def _forget_gradients(path):
    """Takes the names of gradients out of a saved graph, which has none.

    TensorFlow would warn of each of them whenever it loads the file.
    """
    saved = saved_model_pb2.SavedModel.FromString(pathlib.Path(path).read_bytes())
    for graph in (each.graph_def for each in saved.meta_graphs):
        functions = [function.node_def for function in graph.library.function]
        for node in (node for nodes in [graph.node, *functions] for node in nodes):
            node.attr.pop("_gradient_op_type", None)
    pathlib.Path(path).write_bytes(saved.SerializeToString())
