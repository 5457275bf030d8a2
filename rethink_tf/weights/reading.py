"""Reads a checkpoint of others by its content, whatever its name: as data, from anyone."""

import os
import zipfile

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from rethink_tf.weights import keras_files, model_garden, origins, pickles, torch_files

_HDF5_START = b"\x89HDF\r\n\x1a\n"
# What training scripts call the weights in the dict that they save.
_NESTED = ("state_dict", "model")
_PARALLEL = "module."  # what PyTorch's DataParallel puts before every name


def load(path):
    """Reads the arrays of a file, and how they were trained.

    Args:
        path: of a pickle of Detectron or Detectron2, of PyTorch's `torch.save`, of safetensors, of
            Keras (`.keras`, `.weights.h5`, `.h5`), or a TensorFlow checkpoint of Model Garden (its
            path without an ending, or its `.index`).

    Returns:
        dict of arrays, and `Origin`. The names are Detectron2's for Keras and Model Garden, else
        the file's own. The origin is None where the names tell it, see `imagenet.origin_of`.

    Raises:
        ValueError: if it is none of these, damaged, or holds more than data.
        OSError: if it cannot be read.
    """
    path = os.fspath(path)
    if os.path.exists(f"{path.removesuffix('.index')}.index"):
        return model_garden.load_arrays(path.removesuffix(".index")), origins.MODEL_GARDEN
    if not os.path.isfile(path):
        return pickles.load_arrays(path), None
    with open(path, "rb") as file:
        start = file.read(max(map(len, (torch_files.LEGACY_START, _HDF5_START))))
    size = os.path.getsize(path)
    if start.startswith(_HDF5_START):
        return keras_files.load_hdf5(path), origins.KERAS
    if start.startswith(b"PK\x03\x04"):
        return _load_zip(path, size)
    if start.startswith(torch_files.LEGACY_START):
        with open(path, "rb") as file:
            return _weights(torch_files.load_legacy(path, file, size)), None
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") + 8 <= size:
        return _load_safetensors(path), None
    return pickles.load_arrays(path), None


def _load_zip(path, size):
    try:
        archive = zipfile.ZipFile(path)
    except Exception as error:  # A damaged list of members makes it fail in any way.
        raise ValueError(
            f"{path} is a truncated or damaged zip archive ({error}); get the file again"
        ) from error
    with archive:
        if torch_files.is_zip(archive):
            return _weights(torch_files.load_zip(path, archive, size)), None
        return keras_files.load_archive(path, archive, size), origins.KERAS


def _weights(arrays):
    """Returns the weights of what a training script of PyTorch saved, in float32."""
    nested = next((arrays[key] for key in _NESTED if isinstance(arrays.get(key), dict)), arrays)
    if nested and all(str(name).startswith(_PARALLEL) for name in nested):
        nested = {name.removeprefix(_PARALLEL): value for name, value in nested.items()}
    return {
        name: np.asarray(value, np.float32) if _is_floating(value) else value
        for name, value in nested.items()
    }


def _is_floating(value):
    return isinstance(value, np.ndarray) and value.dtype.kind == "f"


def _load_safetensors(path):
    try:
        arrays = load_file(path)
    # Its own error for a damaged file; NumPy has no bfloat16.
    except (SafetensorError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{path} cannot be read as safetensors ({error}); get the file again, in float32 or "
            "float16"
        ) from error
    return {name: np.asarray(array, np.float32) for name, array in arrays.items()}
