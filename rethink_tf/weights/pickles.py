"""Reads pickled checkpoints as data: Detectron's and Detectron2's `.pkl` files.

What keeps a hostile file from running anything stands in `unpickler`; here are the file, its errors
and the check of what came out.
"""

import os

from rethink_tf.weights.unpickler import (
    PLAIN_TYPES,
    Array,
    ArrayUnpickler,
    OrderedDict,
    RefusedPickleError,
    check_opcodes,
    name_of,
)

_ONLY = "only arrays, numbers, strings and containers are read, and nothing of it was executed"
_MAX_DEPTH = 100


def load_arrays(path):
    """Reads a checkpoint that is a pickled dict, safe for files from anyone.

    Strings of Python 2 (Detectron's files) are decoded as latin1, which keeps every byte.

    Args:
        path: a pickle of protocol 0 to 5, for example Detectron's or Detectron2's `.pkl`.

    Returns:
        dict of nested dicts, lists and tuples with NumPy arrays (native byte order, read-only),
        numbers, str, bytes and None. An OrderedDict becomes a dict, a NumPy scalar a number.

    Raises:
        RefusedPickleError: if it holds anything else; what it names is not imported or executed.
        ValueError: if the file is truncated, not a pickle, or not a dict.
        OSError: if it cannot be read.
    """
    path = os.fspath(path)
    if os.path.exists(path) and not os.path.isfile(path):
        raise ValueError(f"{path} is not a file; give the path of the pickle itself")
    with open(path, "rb") as file:
        _check_start(path, file.read(4))
        file.seek(0)
        size = os.fstat(file.fileno()).st_size
        return load_dict(path, file, size, ArrayUnpickler(file, size))


def load_dict(path, file, size, unpickler, further=(), only=_ONLY):
    """Reads the one pickle of a file, a dict.

    Args:
        path: str, for messages.
        file: binary file, at its start; it has to end with the pickle.
        size: of the file, bytes.
        unpickler: `ArrayUnpickler` of the file.
        further: names of opcodes that the unpickler is ready for beside those of data.
        only: str, what may be in the file, for messages.

    Returns:
        As of `load_arrays`; so are the errors.
    """
    reader = BoundedReader(file, size)
    try:
        check_opcodes(reader, further)
        file.seek(0)
        value = _finish(unpickler.load())
    except RefusedPickleError as error:
        raise RefusedPickleError(f"{path} is refused: {error}; {only}") from None
    # A damaged pickle makes the unpickler fail in any way (the library's reference says so): an
    # empty stack is an IndexError, a wrong operand a TypeError, and so on.
    except Exception as error:
        raise ValueError(
            f"{path} is truncated or not a pickle: {type(error).__name__} at byte "
            f"{reader.position} of {size} ({str(error)[:200]}); get the file again"
        ) from error
    if reader.position != size:
        raise ValueError(
            f"{path} has {size - reader.position} bytes after the end of its pickle; it is "
            "damaged or of another format, convert it to one pickled dict"
        )
    if not isinstance(value, dict):
        raise ValueError(
            f"{path} must hold a dict of arrays, found {type(value).__name__}; a checkpoint of "
            "Detectron or Detectron2, or a state_dict of PyTorch, is expected"
        )
    return value


def _check_start(path, start):
    """Raises ValueError with a helpful text for what is often given by mistake."""
    if not start:
        raise ValueError(f"{path} is empty; get the file again")
    known = {b"PK\x03\x04": "a zip archive", b"\x89HDF": "HDF5"}
    if start in known:
        raise ValueError(f"{path} is {known[start]}, not a pickle; convert it to a pickled dict")


class BoundedReader:
    """A file whose reads fail before they allocate, where they would pass its end."""

    def __init__(self, file, size):
        """Takes a file, at its start, of so many bytes."""
        self._file = file
        self.position = 0
        self.size = size

    @property
    def left(self):
        """Bytes that were not read."""
        return self.size - self.position

    def read(self, count):
        """Returns so many bytes, or raises EOFError."""
        if count > self.left:
            raise EOFError(f"{count} more bytes are announced, {self.left} are left")
        self.position += count
        return self._file.read(count)

    def readline(self):
        """Returns the bytes to the end of the line, or of the file."""
        line = self._file.readline()
        self.position += len(line)
        return line


def _finish(value, depth=0, done=None):
    """Returns a copy with NumPy's arrays, having checked the type of every value and key.

    Args:
        value: what the unpickler made.
        depth: int, containers around it.
        done: {id: copy} of shared containers, each copied once; None while one is being copied.
    """
    done = {} if done is None else done
    if type(value) in PLAIN_TYPES:
        return value
    if type(value) is Array:
        if value.value is None:
            raise ValueError("an array has no contents")
        return value.value
    if type(value) not in (dict, OrderedDict, list, tuple):
        raise RefusedPickleError(f"it holds {name_of(value)}")
    if depth >= _MAX_DEPTH:
        raise RefusedPickleError(f"its containers are nested deeper than {_MAX_DEPTH}")
    if id(value) in done:
        if done[id(value)] is None:
            raise RefusedPickleError("it has a container that contains itself")
        return done[id(value)]
    done[id(value)] = None
    if isinstance(value, dict):
        for key in value:
            if type(key) not in PLAIN_TYPES:
                raise RefusedPickleError(f"it has {name_of(key)} as the key of a dict")
        copy = {key: _finish(item, depth + 1, done) for key, item in value.items()}
    else:
        copy = type(value)([_finish(item, depth + 1, done) for item in value])
    done[id(value)] = copy
    return copy
