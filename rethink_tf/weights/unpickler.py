"""A machine for pickles that reads arrays as data and never runs what the file asks for.

A pickle is a program: a list of opcodes for a small machine with a stack, some of which import and
call anything by name. The machine here is Python's own, with three restrictions:

1. Only the opcodes in `_OPCODES` exist. There are none for instances of classes, persistent ids
   and copyreg's extension registry (which the machine resolves from a cache, past `find_class`).
2. A global is never imported. `find_class` answers the few names that NumPy's pickles need with
   inert stand-ins; a call is made only to a stand-in, and NumPy's unpickling itself, which takes
   shapes and dtypes on trust, is replaced by code that checks them.
3. Opcodes that change an object (append, set item, build) first check that object's exact type,
   so that no stand-in can be altered, and that a key is plain, since hashing a tuple nested a
   million deep overflows C's stack.

Memory: no array is larger than the bytes given for it, and all arrays together are bounded by the
file's size, as is, up to a factor, all else on the stack.
"""

import math
import pickle
import re
import struct

import numpy as np

# Booleans, integers, floats, complex numbers, bytes and text. Not objects, not records.
_DTYPE_PATTERN = re.compile(r"b1|[iu][1248]|f[248]|c8|c16|[SU][1-9][0-9]{0,8}")
# What a pickle may hold beside arrays and containers, and what may be a key.
PLAIN_TYPES = (str, bytes, int, float, complex, bool, type(None))
_MAX_DIMENSIONS = 32

_OPCODES = (
    "PROTO FRAME STOP MARK POP POP_MARK DUP NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG "
    "LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8 "
    "UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 BYTEARRAY8 TUPLE EMPTY_TUPLE TUPLE1 TUPLE2 "
    "TUPLE3 LIST EMPTY_LIST DICT EMPTY_DICT APPEND APPENDS SETITEM SETITEMS GET BINGET LONG_BINGET "
    "PUT BINPUT LONG_BINPUT MEMOIZE GLOBAL STACK_GLOBAL REDUCE BUILD INST"
).split()


class RefusedPickleError(ValueError):
    """The pickle holds something other than arrays, numbers, strings and containers."""


class _StandIn:
    """What a permitted global becomes on the stack: a name and a checked function."""

    __slots__ = ("function", "name")

    def __init__(self, name, function):
        self.name = name
        self.function = function


class Shell:
    """An array or dtype between its making and its BUILD opcode."""

    __slots__ = ("kind", "value")

    def __init__(self, kind, value=None):
        self.kind = kind
        self.value = value


class _Opcodes(dict):
    """The table of opcodes; naming the opcode where it is not there."""

    def __missing__(self, code):
        for name, value in vars(pickle).items():
            if value == bytes([code]) and name.isupper():
                raise RefusedPickleError(f"it uses the opcode {name}")
        raise ValueError(f"unknown opcode 0x{code:02x}")


class ArrayUnpickler(pickle._Unpickler):
    """Python's unpickler in Python (the one in C has no table of opcodes), restricted."""

    dispatch = _Opcodes(
        (code, pickle._Unpickler.dispatch[code])
        for code in (getattr(pickle, name)[0] for name in _OPCODES)
    )

    def __init__(self, file, size):
        super().__init__(file, fix_imports=False, encoding="latin1")
        # A byte of an array stands in the file and is made twice at most: protocols below 3 write
        # it as text, which is encoded to bytes first. References to the same bytes or pairs from
        # many arrays or dicts, which no pickler writes, would let a small file take all memory.
        self._bytes_left = 2 * size
        self._globals = {("numpy", "ndarray"): None, ("numpy", "dtype"): _make_dtype}
        for core in ("numpy.core", "numpy._core"):
            self._globals[f"{core}.multiarray", "_reconstruct"] = _reconstruct
            self._globals[f"{core}.multiarray", "scalar"] = self._make_scalar
            self._globals[f"{core}.numeric", "_frombuffer"] = self._make_from_buffer
        self._globals["_codecs", "encode"] = self._encode
        self._globals["collections", "OrderedDict"] = self._make_dict
        for builtins in ("builtins", "__builtin__"):
            self._globals[builtins, "bytes"] = _make_empty_bytes

    def find_class(self, module, name):
        """Returns the stand-in of a permitted global; nothing is imported."""
        if (module, name) not in self._globals:
            raise RefusedPickleError(f"it names {f'{module}.{name}'[:200]!r}")
        return _StandIn(f"{module}.{name}", self._globals[module, name])

    def _count_bytes(self, count):
        self._bytes_left -= count
        if self._bytes_left < 0:
            raise RefusedPickleError("its arrays need more bytes than the file has")

    def _encode(self, text, encoding):
        if type(text) is not str or type(encoding) is not str or encoding != "latin1":
            raise RefusedPickleError("it calls _codecs.encode for other than latin1 text")
        self._count_bytes(len(text))
        return text.encode("latin1")

    def _make_array(self, shape, dtype, data, order):
        """Returns a read-only array of bytes whose number fits its shape exactly."""
        if type(dtype) is not Shell or dtype.kind != "dtype":
            raise RefusedPickleError("it has an array without a dtype")
        if type(data) is str:  # Python 2's bytes
            data = data.encode("latin1")
        if type(data) not in (bytes, bytearray):
            raise RefusedPickleError("it has an array of objects")
        _check_shape(shape)
        needed = math.prod(shape) * dtype.value.itemsize
        if len(data) != needed:
            raise ValueError(f"an array of {needed} bytes by its shape has {len(data)}")
        self._count_bytes(needed)
        array = np.frombuffer(data, dtype.value).reshape(shape, order=order)
        array = array.astype(dtype.value.newbyteorder("="), copy=False)
        array.flags.writeable = False
        return array

    def _make_scalar(self, dtype, data):
        return self._make_array((), dtype, data, "C").item()

    def _make_from_buffer(self, data, dtype, shape, order, axis_order=None):
        """NumPy's form in protocol 5; `axis_order` belongs to order "K"."""
        known = type(order) is str and order in ("C", "F", "K")
        if not known or (order == "K") != (axis_order is not None):
            raise ValueError("an array has an unknown order of its axes")
        array = self._make_array(shape, dtype, data, "F" if order == "F" else "C")
        if axis_order is not None:
            _check_shape(axis_order)
            array = array.transpose(axis_order)
        return array

    def _make_dict(self, pairs=()):
        """Stands for collections.OrderedDict; Python 2 gives the items as a list of pairs."""
        if type(pairs) is not list and pairs != ():
            raise ValueError("an OrderedDict is not made of pairs")
        self._count_bytes(2 * len(pairs))
        if any(type(pair) not in (list, tuple) or len(pair) != 2 for pair in pairs):
            raise ValueError("an OrderedDict is not made of pairs")
        return _pair([part for pair in pairs for part in pair])

    def load_reduce(self):
        """Calls a stand-in, and nothing but one, with a tuple of arguments."""
        arguments = self.stack.pop()
        function = self.stack.pop()
        if type(function) is not _StandIn or function.function is None:
            raise RefusedPickleError(f"it calls {describe(function)}")
        if type(arguments) is not tuple:
            raise ValueError("a call has no tuple of arguments")
        self.append(function.function(*arguments))

    dispatch[pickle.REDUCE[0]] = load_reduce

    def load_build(self):
        """Fills a shell with its checked state; anything else has no state to set."""
        state = self.stack.pop()
        shell = self.stack[-1]
        if type(shell) is not Shell or type(state) is not tuple:
            raise RefusedPickleError(f"it sets the state of {describe(shell)}")
        if shell.kind == "dtype":
            shell.value = _set_byte_order(shell.value, state)
        elif shell.value is not None:
            raise RefusedPickleError("it sets the state of an array twice")
        else:
            _, shape, dtype, is_fortran, data = state
            order = "F" if type(is_fortran) in (bool, int) and is_fortran else "C"
            shell.value = self._make_array(shape, dtype, data, order)

    dispatch[pickle.BUILD[0]] = load_build

    def load_inst(self):
        """The old form of a call: refused, by the name of its global."""
        module, name = (self.readline()[:-1].decode("utf-8") for _ in range(2))
        self.find_class(module, name)
        raise RefusedPickleError(f"it makes an instance of {module}.{name}")

    dispatch[pickle.INST[0]] = load_inst

    def load_bytearray8(self):
        """As the original, but reads before it allocates."""
        (length,) = struct.unpack("<Q", self.read(8))
        self.append(bytearray(self.read(length)))

    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8

    def _extend(self, items):
        if type(self.stack[-1]) is not list:
            raise RefusedPickleError(f"it appends to {describe(self.stack[-1])}")
        self.stack[-1].extend(items)

    def load_append(self):
        """Appends one value to a list."""
        self._extend([self.stack.pop()])

    dispatch[pickle.APPEND[0]] = load_append

    def load_appends(self):
        """Appends the values since the mark to a list."""
        self._extend(self.pop_mark())

    dispatch[pickle.APPENDS[0]] = load_appends

    def _update(self, items):
        if type(self.stack[-1]) is not dict:
            raise RefusedPickleError(f"it sets an item of {describe(self.stack[-1])}")
        self.stack[-1].update(_pair(items))

    def load_setitem(self):
        """Sets one item of a dict."""
        value = self.stack.pop()
        self._update([self.stack.pop(), value])

    dispatch[pickle.SETITEM[0]] = load_setitem

    def load_setitems(self):
        """Sets the items since the mark in a dict."""
        self._update(self.pop_mark())

    dispatch[pickle.SETITEMS[0]] = load_setitems

    def load_dict(self):
        """Makes a dict of the keys and values since the mark."""
        items = self.pop_mark()  # before `self.append` is looked up: it changes the stack
        self.append(_pair(items))

    dispatch[pickle.DICT[0]] = load_dict


def _pair(items):
    """Returns the dict of alternating keys and values, with plain keys only."""
    keys = items[::2]
    for key in keys:
        if type(key) not in PLAIN_TYPES:
            raise RefusedPickleError(f"it has {describe(key)} as the key of a dict")
    return dict(zip(keys, items[1::2], strict=True))


def describe(value):
    """Names a value of a hostile file without formatting the value itself."""
    if type(value) is _StandIn:
        return value.name
    return f"a value of type {value.kind if type(value) is Shell else type(value).__name__}"


def _reconstruct(subtype, shape, typecode):
    """Stands for NumPy's, which makes an empty array to be filled by BUILD."""
    del shape, typecode  # Overwritten by the state; NumPy would allocate them.
    if type(subtype) is not _StandIn or subtype.name != "numpy.ndarray":
        raise RefusedPickleError(f"it makes an array of type {describe(subtype)}")
    return Shell("array")


def _make_dtype(typecode, align=False, copy=False):
    """Stands for numpy.dtype, for the types that `_DTYPE_PATTERN` permits."""
    del align, copy
    if type(typecode) is not str or not _DTYPE_PATTERN.fullmatch(typecode):
        shown = typecode[:50] if type(typecode) is str else describe(typecode)
        raise RefusedPickleError(f"it has an array of dtype {shown!r}")
    return Shell("dtype", np.dtype(typecode))


def _set_byte_order(dtype, state):
    """Applies a dtype's state: (version, byte order, subarray, names, fields, sizes, ...)."""
    if len(state) < 5 or any(part is not None for part in state[2:5]):
        raise RefusedPickleError("it has an array of records")
    if type(state[1]) is not str or state[1] not in ("<", ">", "|", "="):
        raise ValueError("a dtype has an unknown byte order")
    return dtype.newbyteorder(state[1])


def _make_empty_bytes():
    """Stands for `bytes`, which protocols below 3 call for the empty string of bytes."""
    return b""


def _check_shape(shape):
    """Raises ValueError if this is no tuple of sizes that NumPy could take."""
    if type(shape) is not tuple or len(shape) > _MAX_DIMENSIONS:
        raise ValueError("an array's shape is not a tuple of at most 32 sizes")
    if any(type(side) is not int or not 0 <= side < 2**63 for side in shape):
        raise ValueError("an array's shape is not a tuple of sizes")
