"""What does not convert, and what else a conversion needs."""

import importlib.util

# What `pip install 'rethink-tf[export]'` brings, by format.
_NEEDED = {
    "saved_model": (),
    "tflite": ("ai_edge_litert",),
    "onnx": ("onnx", "onnxruntime", "tf2onnx"),
}


class NotConvertibleError(ValueError):
    """A program has operations that a format lacks."""

    def __init__(self, name, operations):
        """Takes the format's name and those of TensorFlow's operations."""
        self.operations = sorted(operations)
        super().__init__(f"{name} does not have {', '.join(self.operations)}")


def check_installed(output_format):
    """Raises ModuleNotFoundError if a format's libraries are not installed."""
    missing = [name for name in _NEEDED[output_format] if not importlib.util.find_spec(name)]
    if missing:
        raise ModuleNotFoundError(
            f"--format={output_format} needs {', '.join(missing)}, which "
            f"{'is' if len(missing) == 1 else 'are'} not installed: pip install 'rethink-tf[export]'"
        )
