"""Writes files as torch.save does, by its documented formats and without PyTorch."""

import io
import pickle
import struct
import zipfile

import numpy as np

STORAGES = {"f4": "Float", "f8": "Double", "f2": "Half", "i8": "Long", "u1": "Byte", "b1": "Bool"}


class Global:
    """What the pickle names as a global of a module that is not installed here."""

    def __init__(self, module, name):
        self.module, self.name = module, name


class Call:
    """Pickled as the call of a global."""

    def __init__(self, module, name, *arguments):
        self.function, self.arguments = Global(module, name), arguments


class Tensor:
    """An array and how its storage is seen; the array's memory is the storage."""

    def __init__(self, storage, shape=None, strides=None, offset=0, kind=None, count=None):
        self.storage = np.ascontiguousarray(storage)
        self.shape = self.storage.shape if shape is None else shape
        steps = [each // self.storage.itemsize for each in self.storage.strides]
        self.strides, self.offset = tuple(steps if strides is None else strides), offset
        self.kind = kind or STORAGES[self.storage.dtype.str[1:]]
        self.count = self.storage.size if count is None else count


class Writer(pickle._Pickler):
    """torch.save's pickler, protocol 2; storages get the keys "0", "1", ... by the object."""

    def __init__(self, file, legacy=False):
        super().__init__(file, 2)
        self.storages, self._legacy = [], legacy

    def _key(self, array):
        for key, other in enumerate(self.storages):
            if other is array:
                return str(key)
        self.storages.append(array)
        return str(len(self.storages) - 1)

    def persistent_id(self, value):
        if not isinstance(value, _Storage):
            return None
        tensor = value.tensor
        kind = Global("torch", f"{tensor.kind}Storage")
        place = ("storage", kind, self._key(tensor.storage), "cpu", tensor.count)
        return (*place, None) if self._legacy else place

    def save(self, value, save_persistent_id=True):
        if isinstance(value, Global):
            return self.write(f"c{value.module}\n{value.name}\n".encode())
        if isinstance(value, Call):
            return self.save_reduce(value.function, value.arguments)
        if isinstance(value, Tensor):
            hooks = Call("collections", "OrderedDict")
            value = (_Storage(value), value.offset, value.shape, value.strides, False, hooks)
            return self.save(Call("torch._utils", "_rebuild_tensor_v2", *value))
        return super().save(value, save_persistent_id)

    def save_reduce(self, func, args, *rest, **named):
        if isinstance(func, Global):
            self.save(func)
            self.save(args)
            return self.write(pickle.REDUCE)
        return super().save_reduce(func, args, *rest, **named)


class _Storage:
    def __init__(self, tensor):
        self.tensor = tensor


def pickled(value, legacy=False):
    file = io.BytesIO()
    writer = Writer(file, legacy)
    writer.dump(value)
    return file.getvalue(), writer.storages


def save(path, value, order="<", compression=zipfile.ZIP_STORED, **members):
    data, storages = pickled(value)
    contents = {"data.pkl": data, "byteorder": b"little" if order == "<" else b"big"}
    for key, array in enumerate(storages):
        contents[f"data/{key}"] = array.astype(array.dtype.newbyteorder(order)).tobytes()
    contents["version"] = b"3\n"
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in (contents | members).items():
            archive.writestr(f"archive/{name}", content)
    return path


def save_legacy(path, value):
    data, storages = pickled(value, legacy=True)
    keys = [str(key) for key in range(len(storages))]
    parts = [pickle.dumps(0x1950A86A20F9469CFC6C, 2), pickle.dumps(1001, 2)]
    parts += [pickle.dumps({"little_endian": True}, 2), data, pickle.dumps(keys, 2)]
    for array in storages:
        parts += [struct.pack("<q", array.size), array.tobytes()]
    path.write_bytes(b"".join(parts))
    return path
