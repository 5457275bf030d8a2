"""Reads a checkpoint of others by its content, whatever its name: as data, from anyone."""

import os

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from rethink_tf.weights import pickles


def load_arrays(path):
    """Reads the arrays of a file.

    Args:
        path: of safetensors, or of a pickle (`pickles.load_arrays`).

    Returns:
        dict: {name: array} of safetensors, what `pickles.load_arrays` returns of a pickle.

    Raises:
        ValueError: if it is neither, damaged, or holds more than data.
        OSError: if it cannot be read.
    """
    path = os.fspath(path)
    if not _is_safetensors(path):
        return pickles.load_arrays(path)
    try:
        arrays = load_file(path)
    # Its own error for a damaged file; NumPy has no bfloat16.
    except (SafetensorError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{path} cannot be read as safetensors ({error}); get the file again, in float32 or "
            "float16"
        ) from error
    return {name: np.asarray(array, np.float32) for name, array in arrays.items()}


def _is_safetensors(path):
    """Whether a file starts with the length of a JSON header that fits into it."""
    if not os.path.isfile(path):
        return False
    with open(path, "rb") as file:
        start = file.read(9)
    length = int.from_bytes(start[:8], "little")
    return start[8:] == b"{" and length + 8 <= os.path.getsize(path)
