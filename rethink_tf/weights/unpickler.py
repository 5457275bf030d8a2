"""Reads a pickle of arrays as data: Python's unpickler, with an allow-list in `find_class`.

A pickle is a program for a small stack machine, which can import and call anything by name. Three
things keep a file from doing so:

1. `check_opcodes` reads the program without running it. Opcodes that data do not need are refused:
   instances of classes, persistent ids (but for a reader that takes PyTorch's storages for them),
   and copyreg's extension registry, which the unpickler reads without `find_class`. Sizes that the
   file cannot hold are refused before they are allocated.
2. `find_class` imports nothing. For the few names that NumPy's pickles need it returns functions of
   this module, which check shapes and dtypes; NumPy's own take them on trust.
3. Arrays and dtypes are made as `Array` and `_Dtype`, whose `__setstate__` checks what a file sets.

Memory: no array is larger than the bytes given for it, and all arrays together are bounded by the
file's size, as is, up to a factor, all else on the stack.
"""

import math
import pickle
import pickletools
import re

import numpy as np

# NumPy's kinds that an array may have: booleans, numbers, bytes and text, not objects or records.
_DTYPE_PATTERN = re.compile(r"b1|[iu][1248]|f[248]|c8|c16|[SU][1-9][0-9]{0,8}")
# What a pickle may hold beside arrays and containers, and what may be a key.
PLAIN_TYPES = (str, bytes, int, float, complex, bool, type(None))
_MAX_DIMENSIONS = 32
# Python hashes a tuple by recursion in C, where a tuple nested 100,000 deep overflows the stack. An
# array needs four tuples, a checkpoint of ResNeXt-152 with its velocities 5,000.
_MAX_TUPLES = 20_000

_OPCODES = frozenset(
    "PROTO FRAME STOP MARK POP POP_MARK DUP NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG "
    "LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8 "
    "UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 BYTEARRAY8 TUPLE EMPTY_TUPLE TUPLE1 TUPLE2 "
    "TUPLE3 LIST EMPTY_LIST DICT EMPTY_DICT APPEND APPENDS SETITEM SETITEMS GET BINGET LONG_BINGET "
    "PUT BINPUT LONG_BINPUT MEMOIZE GLOBAL STACK_GLOBAL REDUCE BUILD".split()
)
_PUTS = ("PUT", "BINPUT", "LONG_BINPUT")


class RefusedPickleError(ValueError):
    """The pickle holds something other than arrays, numbers, strings and containers."""


def check_opcodes(reader, further=()):
    """Reads a pickle to its end without running it.

    Args:
        reader: file-like, whose `read` fails before it allocates more than is left; has `left`.
        further: names of opcodes that the unpickler is ready for beside those of data.

    Raises:
        RefusedPickleError: if an opcode is not one of those that data need.
        ValueError: if the file is not a pickle, or announces more than it holds.
    """
    num_tuples = 0
    for number, (opcode, argument) in enumerate(_opcodes(reader)):
        if opcode not in _OPCODES and opcode not in further:
            raise RefusedPickleError(f"it uses the opcode {opcode}")
        if opcode == "FRAME" and argument > reader.left:
            raise ValueError(f"a frame of {argument} bytes is announced, {reader.left} are left")
        # The unpickler keeps a list as long as the highest of these numbers.
        if opcode in _PUTS and argument > number:
            raise ValueError(f"entry {argument} of the memo is not the next one")
        num_tuples += opcode.startswith("TUPLE")
        if num_tuples > _MAX_TUPLES:
            raise RefusedPickleError(f"it has more than {_MAX_TUPLES:,} tuples")


def _opcodes(reader):
    """Yields (name, argument) up to STOP, as `pickletools.genops`, which takes ASCII texts only."""
    while True:
        code = reader.read(1)
        opcode = pickletools.code2op.get(code.decode("latin1"))
        if opcode is None:
            raise ValueError(f"unknown opcode 0x{code.hex()}")
        if opcode.name == "STRING":
            argument = reader.readline()
        else:
            argument = opcode.arg and opcode.arg.reader(reader)
        yield opcode.name, argument
        if opcode.name == "STOP":
            return


class ArrayUnpickler(pickle.Unpickler):
    """Python's unpickler for a file that `check_opcodes` has read."""

    def __init__(self, file, size):
        """Prepares to load.

        Args:
            file: binary file, at the pickle's first byte.
            size: of the file, bytes.
        """
        super().__init__(file, fix_imports=False, encoding="latin1")
        # A byte of an array stands in the file and is made twice at most: protocols below 3 write
        # it as text, which is encoded to bytes first. References to the same bytes or pairs from
        # many arrays or dicts, which no pickler writes, would let a small file take all memory.
        self._bytes_left = 2 * size
        self.allowed = {
            ("numpy", "ndarray"): None,
            ("numpy", "dtype"): _make_dtype,
            ("_codecs", "encode"): self._encode,
            ("collections", "OrderedDict"): self._make_dict,
            ("builtins", "bytes"): _make_empty_bytes,
            ("__builtin__", "bytes"): _make_empty_bytes,
        }
        for core in ("numpy.core", "numpy._core"):
            self.allowed[f"{core}.multiarray", "_reconstruct"] = self._reconstruct
            self.allowed[f"{core}.multiarray", "scalar"] = self._make_scalar
            self.allowed[f"{core}.numeric", "_frombuffer"] = self._make_from_buffer

    def find_class(self, module, name):
        """Returns the checked function of an allowed name; nothing is imported."""
        if (module, name) not in self.allowed:
            raise RefusedPickleError(f"it names {f'{module}.{name}'[:200]!r}")
        return Function(f"{module}.{name}", self.allowed[module, name])

    def count_bytes(self, count):
        """Counts bytes of an array towards those that all arrays may have.

        Args:
            count: int.

        Raises:
            RefusedPickleError: if there are no more.
        """
        self._bytes_left -= count
        if self._bytes_left < 0:
            raise RefusedPickleError("its arrays need more bytes than the file has")

    def _encode(self, text, encoding):
        if type(text) is not str or type(encoding) is not str or encoding != "latin1":
            raise RefusedPickleError("it calls _codecs.encode for other than latin1 text")
        self.count_bytes(len(text))
        return text.encode("latin1")

    def _reconstruct(self, subtype, shape, typecode):
        """Stands for NumPy's, which makes an empty array to be filled by its state."""
        del shape, typecode  # The state has them; NumPy would allocate these.
        if type(subtype) is not Function or subtype.name != "numpy.ndarray":
            raise RefusedPickleError(f"it makes an array of type {name_of(subtype)}")
        return Array(self._make_array)

    def _make_scalar(self, dtype, data):
        return self._make_array((), dtype, data, "C").item()

    def _make_from_buffer(self, data, dtype, shape, order, axis_order=None):
        """NumPy's form in protocol 5; `axis_order` belongs to order "K"."""
        known = type(order) is str and order in ("C", "F", "K")
        if not known or (order == "K") != (axis_order is not None):
            raise ValueError("an array has an unknown order of its axes")
        array = self._make_array(shape, dtype, data, "F" if order == "F" else "C")
        if axis_order is not None:
            check_shape(axis_order)
            array = array.transpose(axis_order)
        return Array(self._make_array, array)

    def _make_array(self, shape, dtype, data, order):
        """Returns a read-only array of bytes whose number fits its shape exactly."""
        if type(dtype) is not _Dtype:
            raise RefusedPickleError("it has an array without a dtype")
        if type(data) is str:  # Python 2's bytes
            data = data.encode("latin1")
        if type(data) not in (bytes, bytearray):
            raise RefusedPickleError("it has an array of objects")
        check_shape(shape)
        needed = math.prod(shape) * dtype.value.itemsize
        if len(data) != needed:
            raise ValueError(f"an array of {needed} bytes by its shape has {len(data)}")
        self.count_bytes(needed)
        array = np.frombuffer(data, dtype.value).reshape(shape, order=order)
        array = array.astype(dtype.value.newbyteorder("="), copy=False)
        array.flags.writeable = False
        return array

    def _make_dict(self, pairs=()):
        """Stands for collections.OrderedDict; Python 2 gives the items as a list of pairs."""
        if type(pairs) is not list and pairs != ():
            raise ValueError("an OrderedDict is not made of pairs")
        self.count_bytes(2 * len(pairs))
        if any(type(pair) not in (list, tuple) or len(pair) != 2 for pair in pairs):
            raise ValueError("an OrderedDict is not made of pairs")
        return OrderedDict(pairs)


class OrderedDict(dict):
    """An OrderedDict of a file, whose attributes (PyTorch sets some) are left out."""

    __slots__ = ()

    def __setstate__(self, state):
        del state


class Function:
    """An allowed name: its function, which no file can alter."""

    __slots__ = ("function", "name")

    def __init__(self, name, function):
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "function", function)

    def __call__(self, *arguments):
        """Calls the function; a name without one only stands for itself."""
        if self.function is None:
            raise RefusedPickleError(f"it calls {self.name}")
        return self.function(*arguments)

    def __setstate__(self, state):
        raise RefusedPickleError(f"it sets the state of {self.name}")

    def __setattr__(self, name, value):
        raise AttributeError(name)


class Array:
    """An array of a file; `value` is None until its state is set."""

    __slots__ = ("_make", "value")

    def __init__(self, make, value=None):
        self._make, self.value = make, value

    def __setstate__(self, state):
        if self.value is not None:
            raise RefusedPickleError("it sets the state of an array twice")
        _, shape, dtype, is_fortran, data = state
        order = "F" if type(is_fortran) in (bool, int) and is_fortran else "C"
        self.value = self._make(shape, dtype, data, order)


class _Dtype:
    """A dtype of a file; `value` is NumPy's."""

    __slots__ = ("value",)

    def __init__(self, value):
        self.value = value

    def __setstate__(self, state):
        """Takes (version, byte order, subarray, names, fields, sizes, ...)."""
        if type(state) is not tuple or len(state) < 5 or any(p is not None for p in state[2:5]):
            raise RefusedPickleError("it has an array of records")
        if type(state[1]) is not str or state[1] not in ("<", ">", "|", "="):
            raise ValueError("a dtype has an unknown byte order")
        self.value = self.value.newbyteorder(state[1])


def name_of(value):
    """Names a value of a hostile file without formatting the value itself."""
    if type(value) is Function:
        return value.name
    return f"a value of type {type(value).__name__.strip('_')}"


def _make_dtype(typecode, align=False, copy=False):
    """Stands for numpy.dtype, for the types that `_DTYPE_PATTERN` permits."""
    del align, copy
    if type(typecode) is not str or not _DTYPE_PATTERN.fullmatch(typecode):
        shown = typecode[:50] if type(typecode) is str else name_of(typecode)
        raise RefusedPickleError(f"it has an array of dtype {shown!r}")
    return _Dtype(np.dtype(typecode))


def _make_empty_bytes():
    """Stands for `bytes`, which protocols below 3 call for the empty string of bytes."""
    return b""


def check_shape(shape):
    """Raises ValueError if this is no tuple of sizes that NumPy could take.

    Args:
        shape: what a file has for a shape.
    """
    if type(shape) is not tuple or len(shape) > _MAX_DIMENSIONS:
        raise ValueError("an array's shape is not a tuple of at most 32 sizes")
    if any(type(side) is not int or not 0 <= side < 2**63 for side in shape):
        raise ValueError("an array's shape is not a tuple of sizes")
