"""Reads what `torch.save` wrote, as data and without PyTorch: its zip format and the older one.

Zip (since PyTorch 1.6): `NAME/data.pkl` is a pickle of protocol 2, in which a tensor is a call of
`torch._utils._rebuild_tensor_v2` and its storage a persistent id; `NAME/data/KEY` are the bytes of
the storage, not compressed; `NAME/byteorder` is "little" or "big".

Before: pickles of a magic number, a version, a dict of the machine, the object, and the list of the
storages' keys, one after the other; then each storage's number of elements, int64, and its bytes.

Memory: what a storage announces is compared with the bytes that the file has for it before they are
read, and all tensors together are bounded as the arrays of a pickle are (`unpickler`).
"""

import io
import itertools
import math
import zipfile

import numpy as np

from rethink_tf.weights import pickles
from rethink_tf.weights.unpickler import (
    Array,
    ArrayUnpickler,
    Function,
    RefusedPickleError,
    check_opcodes,
    check_shape,
    name_of,
)

# The first bytes of the older format: protocol 2 and the magic number 0x1950a86a20f9469cfc6c.
LEGACY_START = bytes.fromhex("80028a0a6cfc9c46f9206aa85019")
_ADVICE = "give a file of weights alone: torch.save(model.state_dict(), path), or safetensors"
_ONLY = f"only tensors, numbers, texts and containers are read, and nothing was executed; {_ADVICE}"
# The opcode of a storage.
_FURTHER = ("BINPERSID",)
_BFLOAT16 = "BFloat16Storage"
# NumPy has no bfloat16: the upper half of a float32.
_DTYPES = {
    "DoubleStorage": "f8",
    "FloatStorage": "f4",
    "HalfStorage": "f2",
    _BFLOAT16: "u2",
    "LongStorage": "i8",
    "IntStorage": "i4",
    "ShortStorage": "i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "b1",
}
_NUM_LEGACY_PICKLES = 5


def is_zip(archive):
    """Tells whether a `zipfile.ZipFile` is of `torch.save`."""
    return any(name.endswith("/data.pkl") for name in archive.namelist())


def load_zip(path, archive, size):
    """Reads the zip format.

    Args:
        path: str, for messages.
        archive: `zipfile.ZipFile` of it.
        size: of the file, bytes.

    Returns:
        As of `pickles.load_arrays`; tensors are NumPy arrays, those of bfloat16 float32.

    Raises:
        RefusedPickleError: if it holds anything but tensors, numbers, strings and containers.
        ValueError: if it is damaged, or announces more than it holds.
    """
    members = {info.filename: info for info in archive.infolist()}
    root = next(name for name in members if name.endswith("/data.pkl")).removesuffix("data.pkl")
    stored = all(info.compress_type == zipfile.ZIP_STORED for info in members.values())
    if not stored or sum(info.file_size for info in members.values()) > size:
        raise ValueError(
            f"{path} has compressed or overlapping members, which torch.save does not write; "
            f"{_ADVICE}"
        )

    def read(name):
        try:
            return archive.read(members[name])
        except Exception as error:  # One of many, by what is damaged.
            raise ValueError(f"{path}: {name} cannot be read ({error}); get it again") from error

    name = f"{root}byteorder"
    order = {b"little": "<", b"big": ">"}.get(read(name) if name in members else b"little")
    if order is None:
        raise ValueError(f"{path}: {name} is neither little nor big; get the file again")

    def read_storage(key, dtype, count):
        name = f"{root}data/{key}"
        needed = count * dtype.itemsize
        if name not in members or members[name].file_size != needed:
            found = f"{members[name].file_size} bytes" if name in members else "not there"
            raise ValueError(f"the storage {name[:100]!r} of {needed} bytes is {found}")
        return np.frombuffer(read(name), dtype.newbyteorder(order))

    return _load(path, read(f"{root}data.pkl"), size, read_storage)


def load_legacy(path, file, size):
    """Reads the format before PyTorch 1.6.

    Args:
        path: str, for messages.
        file: binary file, at its start.
        size: of the file, bytes.

    Returns:
        As of `load_zip`; so are the errors.
    """
    *_, value, keys = _read_pickles(path, file, size)
    # What an element of a storage is only the object says, which comes first. So it is read for
    # that, with the storages left empty, and again for the tensors.
    announced = {}

    def announce(key, dtype, count):
        announced[key] = dtype, count
        if sum(each.itemsize * number for each, number in announced.values()) > size:
            raise ValueError("its storages need more bytes than the file has")
        return np.empty(count, dtype)

    _load(path, value, size, announce)
    # `load_dict` takes dicts alone: the list is made the value of one, {None: keys}.
    stream = io.BytesIO(b"}N" + keys.removeprefix(b"\x80\x02")[:-1] + b"s.")
    length = stream.getbuffer().nbytes
    keys = pickles.load_dict(path, stream, length, ArrayUnpickler(stream, length))[None]
    if not isinstance(keys, list) or set(map(repr, keys)) != set(map(repr, announced)):
        raise ValueError(f"{path}: its list of storages is not that of its tensors; get it again")
    storages = {}
    for key in keys:
        dtype, count = announced[key]
        stated, data = file.read(8), file.read(count * dtype.itemsize)
        if stated != count.to_bytes(8, "little") or len(data) != count * dtype.itemsize:
            raise ValueError(
                f"{path} is truncated or damaged at the storage {key[:100]!r}: {count} elements "
                "are announced; get the file again"
            )
        storages[key] = np.frombuffer(data, dtype.newbyteorder("<"))
    return _load(path, value, size, lambda key, dtype, count: storages[key])


def _read_pickles(path, file, size):
    """Returns the bytes of the pickles that the older format begins with."""
    reader, ends = pickles.BoundedReader(file, size), [0]
    try:
        for _ in range(_NUM_LEGACY_PICKLES):
            check_opcodes(reader, _FURTHER)
            ends.append(reader.position)
    except RefusedPickleError as error:
        raise RefusedPickleError(f"{path} is refused: {error}; {_ONLY}") from None
    except Exception as error:  # As of `pickles.load_dict`.
        raise ValueError(
            f"{path} is truncated or damaged at byte {reader.position} of {size} "
            f"({str(error)[:200]}); get the file again"
        ) from error
    file.seek(0)
    return [file.read(end - start) for start, end in itertools.pairwise(ends)]


def _load(path, data, size, read_storage):
    """Reads a pickle with tensors.

    Args:
        path: str, for messages.
        data: bytes of the pickle.
        size: of the file, bytes.
        read_storage: callable taking a key, a dtype and a number of elements, returns an array [N]
            of that dtype in the file's byte order, or raises ValueError.
    """
    stream = io.BytesIO(data)
    unpickler = _TensorUnpickler(stream, size, read_storage)
    return pickles.load_dict(path, stream, len(data), unpickler, _FURTHER, _ONLY)


class _TensorUnpickler(ArrayUnpickler):
    """Makes tensors of storages."""

    def __init__(self, file, size, read_storage):
        super().__init__(file, size)
        self._read_storage, self._storages, self._size = read_storage, {}, size
        self.allowed |= {
            ("torch._utils", "_rebuild_tensor_v2"): self._rebuild_tensor,
            ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
            ("torch", "Size"): _make_size,
        }
        self.allowed |= {("torch", name): None for name in _DTYPES}

    def persistent_load(self, reference):
        """Returns the `_Storage` of ("storage", type, key, device, number of elements, ...)."""
        if type(reference) is not tuple or len(reference) not in (5, 6):
            raise RefusedPickleError("it refers to something that is no storage")
        tag, kind, key, _, count, *view = reference
        name = kind.name.removeprefix("torch.") if type(kind) is Function else None
        if (
            tag != "storage"
            or name not in _DTYPES
            or type(key) is not str
            or view not in ([], [None])
        ):
            raise RefusedPickleError(f"it refers to {name_of(kind)}, which is no known storage")
        dtype = np.dtype(_DTYPES[name])
        if type(count) is not int or not 0 <= count * dtype.itemsize <= self._size:
            raise ValueError("a storage is announced that the file cannot hold")
        if key not in self._storages:
            self._storages[key] = _Storage(name, self._read_storage(key, dtype, count))
        storage = self._storages[key]
        if (storage.name, len(storage.values)) != (name, count):
            raise ValueError(f"the storage {key[:100]!r} is announced as two different ones")
        return storage

    def _rebuild_tensor(self, storage, offset, shape, strides, *further):
        """Stands for PyTorch's; what follows is about gradients."""
        del further
        if type(storage) is not _Storage:
            raise RefusedPickleError("it has a tensor without a storage")
        check_shape(shape)
        check_shape(strides)
        if type(offset) is not int or offset < 0 or len(shape) != len(strides):
            raise ValueError("a tensor's place in its storage is no place")
        values = storage.values
        last = sum((side - 1) * step for side, step in zip(shape, strides, strict=True))
        count = math.prod(shape)
        if count and offset + last >= len(values):
            raise ValueError(f"a tensor of shape {shape} reaches beyond its storage"[:200])
        # Strides of zero make many elements of one.
        self.count_bytes(count * values.itemsize)
        if not count:
            return Array(None, np.zeros(shape, values.dtype.newbyteorder("=")))
        array = np.lib.stride_tricks.as_strided(
            values[offset:], shape, [step * values.itemsize for step in strides], writeable=False
        )
        array = array.astype(values.dtype.newbyteorder("="), copy=False)
        if storage.name == _BFLOAT16:
            self.count_bytes(count * 4)
            array = (array.astype("u4") << 16).view("f4")
        return Array(None, array)


class _Storage:
    """The elements of a file that tensors are views of."""

    __slots__ = ("name", "values")

    def __init__(self, name, values):
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "values", values)

    def __setattr__(self, name, value):
        raise RefusedPickleError("it sets the state of a storage")


def _rebuild_parameter(data, requires_grad, hooks):
    """Stands for PyTorch's: the tensor."""
    del requires_grad, hooks
    if type(data) is not Array:
        raise RefusedPickleError("it has a parameter that is no tensor")
    return data


def _make_size(sides=()):
    """Stands for torch.Size: a tuple."""
    check_shape(sides)
    return sides
