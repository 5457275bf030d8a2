"""What a conversion needs, what it gives, and how it says what does not convert."""

import importlib.util
from collections.abc import Callable
from typing import NamedTuple

# Of `pip install 'rethink-tf[export]'`: {format: {library: module}}.
_LIBRARIES = {
    "saved_model": {},
    "tflite": {"ai-edge-litert": "ai_edge_litert"},
    "onnx": {"onnx": "onnx", "onnxruntime": "onnxruntime", "tf2onnx": "tf2onnx"},
}


class NotConvertibleError(ValueError):
    """A program has operations that a format lacks."""

    def __init__(self, name, operations):
        """Takes the format's name and those of the operations, as TensorFlow calls them."""
        self.operations = sorted(operations)
        super().__init__(f"{name} does not have {', '.join(self.operations)}")


class Written(NamedTuple):
    """What was written.

    Attributes:
        run: callable as of `comparing.compare`.
        part: "detections" or "raw", see `programs`.
        fields: set of str, what there is of an object beside its box.
        lacking: list of str, the operations for which it is not the detections.
    """

    run: Callable
    part: str
    fields: set
    lacking: list


def libraries(output_format):
    """Returns the names of the libraries that a format needs beside TensorFlow."""
    return tuple(_LIBRARIES[output_format])


def check_installed(output_format):
    """Raises ModuleNotFoundError if a library that a format needs is not installed."""
    known = _LIBRARIES[output_format]
    missing = [name for name, module in known.items() if not importlib.util.find_spec(module)]
    if missing:
        raise ModuleNotFoundError(
            f"--format={output_format} needs {', '.join(missing)}: pip install 'rethink-tf[export]'"
        )
