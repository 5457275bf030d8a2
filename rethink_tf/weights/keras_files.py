"""Reads ResNet and VGG-16 of Keras Applications: `.keras`, `.weights.h5` and the older `.h5`.

Its convolutions have a bias before the batch normalization, which this project's have not: it is
subtracted from the moving mean, since (x + b) - mean = x - (mean - b). Batch statistics cancel it,
so training is not changed either. The arrays get Detectron2's names and layouts.
"""

import os
import re
import tempfile

import h5py
import numpy as np

_WEIGHTS = "model.weights.h5"
_ADVICE = (
    "give a model of keras.applications (ResNet50, ResNet101, ResNet152 or VGG16), saved by "
    "model.save or model.save_weights"
)
_NAMES = {
    2: ("kernel", "bias"),
    4: ("gamma", "beta", "moving_mean", "moving_variance"),
}
_NORM = {
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
_BLOCK = re.compile(r"conv([2-5])_block(\d+)_([0-3])_(conv|bn)")
_VGG = re.compile(r"block([1-5])_conv([1-3])")
_OTHERS = {
    "conv1_conv": "stem.conv1",
    "conv1_bn": "stem.conv1.norm",
    "predictions": "stem.fc",
    "fc1": "fc6",
    "fc2": "fc7",
}
_FLATTENED = (7, 7, 512)  # what VGG-16's fc1 sees, rows, columns and channels


def load_archive(path, archive, size):
    """Reads a `.keras` file; returns and errors as of `load_hdf5`.

    Args:
        path: str, for messages.
        archive: `zipfile.ZipFile` of it.
        size: of the file, bytes.
    """
    if _WEIGHTS not in archive.namelist():
        raise ValueError(
            f"{path} is a zip archive without data.pkl (torch.save) or {_WEIGHTS} (Keras): "
            f"{_ADVICE}"
        )
    # Keras does not compress; a small file must not fill the disk.
    if archive.getinfo(_WEIGHTS).file_size > size:
        raise ValueError(f"{path}: {_WEIGHTS} in it is compressed, as Keras does not; {_ADVICE}")
    with tempfile.TemporaryDirectory() as folder:
        try:
            extracted = archive.extract(_WEIGHTS, folder)
        # A damaged member is one of many, by what is damaged.
        except Exception as error:
            raise ValueError(
                f"{path}: {_WEIGHTS} in it is damaged ({error}); get the file again"
            ) from error
        return load_hdf5(extracted, path)


def load_hdf5(file, path=None):
    """Reads an HDF5 file of weights.

    Args:
        file: str, path of the file.
        path: str, what messages call it; None for the same.

    Returns:
        dict {Detectron2's name: float32 array}, in Detectron2's layouts.

    Raises:
        ValueError: if it is damaged, not of these models, or its arrays lie elsewhere or need more
            bytes than the file has.
    """
    path = path or file
    try:
        with h5py.File(file, "r") as opened:
            layers = _read_layers(opened, os.path.getsize(file))
    except _UnusableFileError as error:
        raise ValueError(f"{path}: {error}") from None
    # HDF5's library raises one of many for a damaged file.
    except Exception as error:
        raise ValueError(
            f"{path} is truncated or damaged as an HDF5 file ({str(error)[:200]}); get it again"
        ) from error
    if any(name.endswith("_preact_bn") or name == "post_bn" for name in layers):
        raise ValueError(
            f"{path} is of a ResNetV2, which normalizes before its convolutions; the detector's "
            "ResNet does so after them, and cannot have its weights: take ResNet50, ResNet101 or "
            "ResNet152"
        )
    if not {"conv1_conv", "block1_conv1"} & set(layers):
        found = ", ".join(sorted(layers)[:3]) or "none"
        raise ValueError(
            f"{path} has no layer conv1_conv or block1_conv1 (its layers are {found[:200]}...); "
            f"{_ADVICE}"
        )
    return _translate(layers)


class _UnusableFileError(ValueError):
    """The file is whole and holds what is not read; the text says what."""


def _read_layers(file, size):
    """Returns {layer: {name of variable: array}} of an open file of so many bytes."""
    root = file["model_weights"] if "model_weights" in file else file
    layers, total = {}, 0

    # Visits objects of this file alone: links to other files are not followed.
    def read(place, dataset):
        """Reads one object of the file, if it is an array of a layer."""
        nonlocal total
        if not isinstance(dataset, h5py.Dataset) or place.startswith("optimizer"):
            return
        layer, name = _names(place, dataset)
        # Bytes of another file, a filter or a missing part could make much of a small file.
        if dataset.external or dataset.is_virtual or dataset.compression or dataset.chunks:
            raise _UnusableFileError(
                f"the array {place} is compressed or lies in another file; {_ADVICE}"
            )
        total += dataset.nbytes
        if total > size or dataset.dtype.kind != "f":
            raise _UnusableFileError(
                f"the array {place} of {dataset.dtype} and shape {dataset.shape} needs more bytes "
                f"than the file has, or is not of floats; {_ADVICE}"
            )
        layers.setdefault(layer, {})[name] = np.asarray(dataset[()], np.float32)

    root.visititems(read)
    return layers


def _names(place, dataset):
    """Returns the names of the layer and of the variable that a dataset is of."""
    *folders, name = place.split("/")
    if folders[-1:] != ["vars"]:  # The older format: LAYER/.../kernel:0.
        return folders[0] if folders else "", name.partition(":")[0]
    # Keras 3 numbers the variables of a layer, and names the layers after their classes; their own
    # names are attributes, but of its first versions.
    layer = dataset.parent.attrs.get("name")
    if layer is None:
        raise _UnusableFileError(
            "the file does not name its layers (tf-keras and the first versions of Keras 3 leave "
            "that out of .weights.h5 and .keras): load it there and save it as .h5"
        )
    return str(layer), _NAMES[4 if len(dataset.parent) == 4 else 2][int(name)]


def _translate(layers):
    """Returns the arrays of layers under Detectron2's names."""
    state, biases = {}, {}
    for layer, arrays in layers.items():
        name = _translate_name(layer)
        if name.endswith(".norm"):
            state |= {f"{name}.{_NORM.get(key, key)}": value for key, value in arrays.items()}
            continue
        for key, value in arrays.items():
            if key == "bias" and name.startswith(("stem.conv1", "res")):
                biases[name] = value
            else:
                part = "weight" if key == "kernel" else key
                state[f"{name}.{part}"] = _to_torch(name, value)
    for name, bias in biases.items():
        mean = f"{name}.norm.running_mean"
        if mean in state:
            state[mean] = state[mean] - bias
    return state


def _translate_name(layer):
    """Returns Detectron2's name of a layer, the layer's own where it has none."""
    if match := _BLOCK.fullmatch(layer):
        stage, block, index, kind = match.groups()
        conv = "shortcut" if index == "0" else f"conv{index}"
        return f"res{stage}.{int(block) - 1}.{conv}{'.norm' if kind == 'bn' else ''}"
    if match := _VGG.fullmatch(layer):
        return f"conv{match[1]}_{match[2]}"
    return _OTHERS.get(layer, layer)


def _to_torch(name, array):
    """Returns a kernel with the outputs first; a bias as it is."""
    if name == "fc6" and array.ndim == 2 and len(array) == np.prod(_FLATTENED):
        spatial = array.reshape(*_FLATTENED, -1)
        return spatial.transpose(3, 2, 0, 1).reshape(array.shape[::-1])
    if array.ndim == 4:
        return array.transpose(3, 2, 0, 1)
    return array.T
