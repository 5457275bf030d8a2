"""Writes a detector for TensorFlow Lite, by its builtin operations alone, and runs it.

The interpreter is ai-edge-litert's: TensorFlow's own is deprecated. No delegate runs TensorFlow's
other operations there.
"""

import os
import re

import numpy as np
import tensorflow as tf
from ai_edge_litert import interpreter

from rethink_tf.exporting import conversion, saved_model

FILE = "model.tflite"


def write(program, folder, command):
    """Converts a program.

    Args:
        program: `FixedProgram`.
        folder: where FILE is written; exists.
        command: dict, of which nothing is needed.

    Raises:
        NotConvertibleError: names the operations that TensorFlow Lite lacks.
    """
    del command
    # By way of a SavedModel: only so do inputs and outputs keep their names.
    saved = os.path.join(folder, "saved")
    saved_model.save(program, program.predict, saved)
    converter = tf.lite.TFLiteConverter.from_saved_model(saved)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    try:
        content = converter.convert()
    except Exception as error:
        found = re.findall(r"^(?:TF Select|Custom) ops: (.+)$", str(error), re.MULTILINE)
        if not found:
            raise
        operations = {name for line in found for name in line.split(", ")}
        raise conversion.NotConvertibleError("TensorFlow Lite", operations) from None
    tf.io.gfile.rmtree(saved)
    with open(os.path.join(folder, FILE), "wb") as file:
        file.write(content)


class Runner:
    """Runs a file of TensorFlow Lite."""

    def __init__(self, folder):
        """Loads it from a folder, for as many threads as there are cores."""
        path, threads = os.path.join(folder, FILE), len(os.sched_getaffinity(0))
        self._interpreter = interpreter.Interpreter(path, num_threads=threads)
        self._run = self._interpreter.get_signature_runner()

    def __call__(self, inputs):
        """Returns the outputs of `FixedProgram` for its inputs, NumPy arrays."""
        # Its arrays are its own memory, which the next run writes into.
        return {key: np.array(value) for key, value in self._run(**inputs).items()}
