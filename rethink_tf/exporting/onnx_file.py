"""Writes a detector as ONNX, by tf2onnx, and runs it by onnxruntime."""

import logging
import os

import onnx
import onnxruntime
import tensorflow as tf
import tf2onnx
from tf2onnx import optimizer, tf_loader, tfonnx

from rethink_tf.exporting import conversion

FILE = "model.onnx"


def write(program, folder, command):
    """Converts a program.

    Args:
        program: `FixedProgram`.
        folder: where FILE is written; exists.
        command: dict: opset, int, the version of ONNX's operations.

    Raises:
        NotConvertibleError: names the operations that ONNX lacks.
    """
    # It logs each pass, and an operation that it lacks as an error of many lines.
    logging.getLogger(tf2onnx.constants.TF2ONNX_PACKAGE_NAME).setLevel(logging.CRITICAL)
    concrete = program.predict.get_concrete_function()
    inputs = [each for each in concrete.inputs if each.dtype != tf.resource]
    names = [each.name for each in inputs], [each.name for each in concrete.outputs]
    wanted = {each.name: each.op.name for each in inputs}
    wanted |= {each.name: key for key, each in concrete.structured_outputs.items()}
    frozen = tf_loader.from_function(concrete, *names)
    # No layer is made here.
    with tf.Graph().as_default() as graph:  # noqa: TID251
        tf.graph_util.import_graph_def(frozen, name="")
        converted = tfonnx.process_tf_graph(
            graph,
            continue_on_error=True,
            opset=command["opset"],
            input_names=names[0],
            output_names=names[1],
            tensors_to_rename=wanted,
        )
    missing = set(_unknown_operations(converted.make_model("rethink_tf").graph))
    if missing:
        raise conversion.NotConvertibleError(f"ONNX (opset {command['opset']})", missing)
    # Its optimizer of einsums tries each order of their letters: minutes for RoIAlign's seven.
    optimizers = optimizer._get_optimizers() | {}
    optimizers.pop("einsum_optimizer", None)
    # Copying the graph before each pass, to go back to it after an error, takes half of the time.
    optimized = optimizer.optimize_graph(converted, catch_errors=False, optimizers=optimizers)
    model = optimized.make_model("rethink_tf")
    onnx.checker.check_model(model)
    onnx.save(model, os.path.join(folder, FILE))


class Runner:
    """Runs a file of ONNX."""

    def __init__(self, folder):
        """Loads it from a folder."""
        providers = ["CPUExecutionProvider"]
        path = os.path.join(folder, FILE)
        self._session = onnxruntime.InferenceSession(path, providers=providers)
        self._names = [each.name for each in self._session.get_outputs()]

    def __call__(self, inputs):
        """Returns the outputs of `FixedProgram` for its inputs, NumPy arrays."""
        return dict(zip(self._names, self._session.run(self._names, inputs), strict=True))


def _unknown_operations(graph):
    """Yields the names of the nodes' operations, of graphs within too, that ONNX does not have."""
    for node in graph.node:
        if not onnx.defs.has(node.op_type, node.domain):
            yield node.op_type
        for attribute in node.attribute:
            yield from _unknown_operations(attribute.g)
