"""Checkpoints are read as data; hostile pickles are refused and nothing of them runs."""

import builtins
import collections
import copyreg
import importlib.util
import io
import json
import os
import pathlib
import pickle
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rethink_tf.weights.pickles import load_arrays
from rethink_tf.weights.unpickler import RefusedPickleError

SHARED = pathlib.Path(__file__).resolve().parents[2] / ".." / "shared"
PARITY = SHARED / "parity"
PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


def load_bytes(folder, data):
    path = folder / "checkpoint.pkl"
    path.write_bytes(data)
    return load_arrays(path)


def assert_equal(found, expected):
    """Compares nested containers, types included."""
    if isinstance(expected, np.ndarray):
        assert isinstance(found, np.ndarray) and found.shape == expected.shape
        assert found.dtype == expected.dtype.newbyteorder("=")
        np.testing.assert_array_equal(found, expected)
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for key, value in expected.items():
            assert_equal(found[key], value)
    elif isinstance(expected, (list, tuple)):
        assert type(found) is type(expected) and len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_equal(one, other)
    else:
        assert type(found) is type(expected) and found == expected


def make_checkpoint():
    rng = np.random.default_rng(0)
    return {
        "model": {
            "backbone.stem.conv1.weight": rng.standard_normal((4, 3, 7, 7)).astype(np.float32),
            "fortran": np.asfortranarray(rng.standard_normal((3, 5))),
            "transposed": rng.standard_normal((2, 3, 4)).transpose(1, 0, 2),
            "scalar": np.array(3, np.int64),
            "empty": np.zeros((0, 4), np.float16),
            "one byte": np.array([7], np.uint8),
            "flags": np.array([True, False]),
            "complex": np.array([1 + 2j], np.complex64),
            "big endian": np.arange(5, dtype=">f4"),
            "names": np.array(["person", "Käse"]),
            "bytes": np.array([b"a", b"bc"]),
        },
        "__author__": "someone",
        "matching_heuristics": True,
        "numbers": [1, -(2**40), 2**80, 1.5, None, (False, b"raw\xff", b"", "Käse", {3: []})],
    }


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_detectron2_form(tmp_path, protocol):
    checkpoint = make_checkpoint()
    found = load_bytes(tmp_path, pickle.dumps(checkpoint, protocol))
    assert_equal(found, checkpoint)
    assert not found["model"]["fortran"].flags.writeable


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_scalars_shared_arrays_and_ordered_dicts(tmp_path, protocol):
    array = np.arange(6).reshape(2, 3)
    ordered = collections.OrderedDict([("b", array), ("a", array)])
    scalars = [np.float32(0.5), np.int64(-3), np.bool_(True), np.str_("ü"), np.complex128(1j)]
    found = load_bytes(tmp_path, pickle.dumps({"o": ordered, "s": scalars}, protocol))
    assert_equal(found, {"o": {"b": array, "a": array}, "s": [0.5, -3, True, "ü", 1j]})
    assert found["o"]["a"] is found["o"]["b"]


# What Python 2 and NumPy 1 wrote: {"blobs": {"w": float32 [2, 1]}, "cfg": "..."}.
PYTHON2_DATA = np.array([[1.5], [-2.0]], "<f4")
PYTHON2_PROTOCOL_2 = (
    b"\x80\x02}q\x00(U\x05blobsq\x01}q\x02U\x01wq\x03cnumpy.core.multiarray\n_reconstruct\nq\x04"
    b"cnumpy\nndarray\nq\x05K\x00\x85q\x06U\x01bq\x07\x87q\x08Rq\x09(K\x01K\x02K\x01\x86q\x0a"
    b"cnumpy\ndtype\nq\x0bU\x02f4q\x0cK\x00K\x01\x87q\x0dRq\x0e(K\x03U\x01<NNNJ\xff\xff\xff\xff"
    b"J\xff\xff\xff\xffK\x00tb\x89U\x08" + PYTHON2_DATA.tobytes() + b"tbsU\x03cfgU\x03K\xe4su."
)
PYTHON2_PROTOCOL_0 = (
    b"(dp0\nS'blobs'\np1\n(dp2\nS'w'\np3\ncnumpy.core.multiarray\n_reconstruct\np4\n"
    b"(cnumpy\nndarray\np5\n(I0\ntp6\nS'b'\np7\ntp8\nRp9\n(I1\n(I2\nI1\ntp10\ncnumpy\ndtype\np11\n"
    b"(S'f4'\np12\nI0\nI1\ntp13\nRp14\n(I3\nS'<'\np15\nNNNI-1\nI-1\nI0\ntp16\nbI00\n"
    b"S'" + repr(PYTHON2_DATA.tobytes())[2:-1].encode() + b"'\np17\ntp18\nbssS'cfg'\nS'K\\xe4s'\ns."
)


@pytest.mark.parametrize("data", [PYTHON2_PROTOCOL_2, PYTHON2_PROTOCOL_0])
def test_python_2_pickles_keep_their_bytes(tmp_path, data):
    expected = {"blobs": {"w": PYTHON2_DATA}, "cfg": "Käs"}
    assert_equal(pickle.loads(data, encoding="latin1"), expected)  # the fixture itself is right
    assert_equal(load_bytes(tmp_path, data), expected)


def test_python_2_ordered_dict(tmp_path):
    data = b"\x80\x02}U\x01occollections\nOrderedDict\n](](U\x01bK\x01e](U\x01aK\x02ee\x85Rs."
    assert_equal(load_bytes(tmp_path, data), {"o": {"b": 1, "a": 2}})


@pytest.mark.skipif(not PARITY.exists(), reason="../shared/parity is absent")
def test_an_array_of_the_parity_checkpoint(tmp_path):
    spec = importlib.util.spec_from_file_location("parity_weights", PARITY / "weights.py")
    weights = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(weights)
    parameters = json.loads((PARITY / "r50_fpn_gn.spec.json").read_text())["parameters"]
    (tmp_path / "small.json").write_text(json.dumps({"parameters": parameters[:3]}))
    weights.write_checkpoint(tmp_path / "small.json", tmp_path / "small.pkl")
    found = load_arrays(tmp_path / "small.pkl")
    assert found["__author__"] == "parity check" and not found["matching_heuristics"]
    assert_equal(found["model"], weights.make_state(parameters[:3]))


class Call:
    """Pickles to a call of any function with any arguments."""

    def __init__(self, function, *arguments):
        self.reduced = (function, arguments)

    def __reduce__(self):
        return self.reduced


def hostile_calls(marker):
    return {
        f"{os.system.__module__}.system": Call(os.system, f"touch {marker}"),
        "eval": Call(eval, f"open({str(marker)!r}, 'w')"),
        "exec": Call(exec, f"open({str(marker)!r}, 'w')"),
        "open": Call(io.open, str(marker), "w"),
        "tofile": Call(np.save, str(marker), np.zeros(1)),
    }


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", list(hostile_calls("")))
def test_calls_are_refused_and_do_not_run(tmp_path, protocol, name):
    marker = tmp_path / "marker"
    data = pickle.dumps(
        {"model": {"w": np.zeros(3), "x": hostile_calls(marker)[name]}}, protocol=protocol
    )
    pickle.loads(data)
    ran = [entry for entry in tmp_path.iterdir() if entry.name.startswith("marker")]
    assert ran  # it is indeed hostile
    ran[0].unlink()
    with pytest.raises(
        RefusedPickleError, match=r"checkpoint\.pkl is refused: it names '"
    ) as error:
        load_bytes(tmp_path, data)
    assert name in str(error.value) or name == "tofile" and "numpy.save" in str(error.value)
    assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoint.pkl"]


def text(value):
    return b"\x8c" + bytes([len(value)]) + value.encode()


def named(module, name):
    return b"\x80\x04" + text(module) + text(name) + b"\x93"


RECONSTRUCT = b"cnumpy.core.multiarray\n_reconstruct\n"
NDARRAY = b"cnumpy\nndarray\n"
EMPTY_ARRAY = RECONSTRUCT + NDARRAY + b"K\x00\x85U\x01b\x87R"
DTYPE_F4 = b"cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R"
FRAME = b"\x95" + struct.pack("<Q", 2**62)
DEEP, TOO_DEEP = (b")" + b"\x85" * depth for depth in (10_000, 300_000))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"cos\nsystem\n(S'true'\ntR.", "'os.system'"),
        (b"(S'true'\nios\nsystem\n.", "opcode INST"),
        (b"(cos\nsystem\nS'true'\no.", "opcode OBJ"),
        (b"(icollections\nOrderedDict\n.", "opcode INST"),
        (b"(ccollections\nOrderedDict\no.", "opcode OBJ"),
        (b"\x80\x02ccollections\nOrderedDict\n)\x81.", "opcode NEWOBJ"),
        (b"\x80\x04ccollections\nOrderedDict\n)}\x92.", "opcode NEWOBJ_EX"),
        # Names that reach further than they seem, by dots or by a permitted module.
        (named("numpy", "ndarray.__class__") + b".", "'numpy.ndarray.__class__'"),
        (named("numpy", "dtype.__subclasses__") + b".", "numpy.dtype.__subclasses__"),
        (named("numpy.core.multiarray", "_reconstruct.__globals__") + b".", "__globals__"),
        (named("builtins", "getattr") + b".", "'builtins.getattr'"),
        (named("_codecs", "decode") + b".", "'_codecs.decode'"),
        (named("numpy", "load") + b".", "'numpy.load'"),
        (named("numpy.core.multiarray", "fromfile") + b".", "fromfile"),
        (named("os\x1b[2J", "system\n") + b".", r"os\\x1b\[2J.system\\n"),
        (b"\x80\x04" + text("os") + b"]\x93.", "STACK_GLOBAL requires str"),
        # Persistent ids, out-of-band buffers and sets.
        (b"Pid\n.", "opcode PERSID"),
        (b"K\x01Q.", "opcode BINPERSID"),
        (b"\x80\x05\x97.", "opcode NEXT_BUFFER"),
        (b"\x80\x04\x8f.", "opcode EMPTY_SET"),
        # Permitted names called with bad arguments, or used as something else.
        (RECONSTRUCT + b"ccollections\nOrderedDict\nK\x00\x85U\x01b\x87R.", "OrderedDict"),
        (RECONSTRUCT + b"NK\x00\x85U\x01b\x87R.", "NoneType"),
        (b"cnumpy\nndarray\nJ\xff\xff\xff\x7f\x85\x85R.", "calls numpy.ndarray"),
        (b"c_codecs\nencode\nU\x01aU\x03zip\x86R.", "_codecs.encode"),
        (b"c_codecs\nencode\nU\x01aU\x05rot13\x86R.", "_codecs.encode"),
        (b"cnumpy\ndtype\nU\x02O8K\x00K\x01\x87R.", "dtype 'O8'"),
        (b"cnumpy\ndtype\nU\x05f4,i4K\x00K\x01\x87R.", "dtype 'f4,i4'"),
        (b"cnumpy\ndtype\nU\x02V8K\x00K\x01\x87R.", "dtype 'V8'"),
        (b"cnumpy\ndtype\nNK\x00K\x01\x87R.", "dtype"),
        (DTYPE_F4 + b"(K\x03U\x01<N)}J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb.", "records"),
        (EMPTY_ARRAY + b"(K\x01K\x00\x85" + DTYPE_F4 + b"\x89]tb.", "array of objects"),
        (EMPTY_ARRAY + b"(K\x01K\x00\x85N\x89U\x00tb.", "without a dtype"),
        (EMPTY_ARRAY + (b"(K\x01K\x00\x85" + DTYPE_F4 + b"\x89U\x00tb") * 2 + b".", "twice"),
        (b"K\x07)R.", "int.* is not callable"),
        # State set on what is no array: the function's defaults, a dict's attributes.
        (RECONSTRUCT + b"}U\x0c__defaults__Nsb.", "sets the state of numpy.core"),
        (RECONSTRUCT + b"N}U\x04nameNs\x86b.", "sets the state of numpy.core"),
        (b"}}U\x05itemsNsb.", "dict.* has no attribute"),
        (RECONSTRUCT + b"K\x01a.", "no attribute 'append'"),
        (EMPTY_ARRAY + b"K\x01K\x02s.", "does not support item assignment"),
        # Results which are not data.
        (b"}U\x01xcnumpy\nndarray\ns.", "holds numpy.ndarray"),
        (b"}U\x01x" + DTYPE_F4 + b"s.", "holds a value of type Dtype"),
        (b"}q\x00U\x01xh\x00s.", "contains itself"),
        (b"}U\x01x" + DEEP + b"s.", "nested deeper"),
        (b"}" + DEEP + b"Ns.", "key"),
        (b"(" + DEEP + b"Nd.", "key"),
        (b"}U\x01x" + TOO_DEEP + b"s.", "more than 20,000 tuples"),
        (b"}" + TOO_DEEP + b"Ns.", "more than 20,000 tuples"),
        # The memo of C's unpickler is a list: its length would be the entry's number.
        (b"}r\xff\xff\xff\x7f.", "of the memo"),
    ],
)
def test_hostile_forms_are_refused(tmp_path, data, message):
    with pytest.raises(ValueError, match=message) as error:
        load_bytes(tmp_path, data)
    assert "checkpoint.pkl" in str(error.value)


@pytest.mark.parametrize("code", [b"\x82\x7b", b"\x83\x7b\x00", b"\x84\x7b\x00\x00\x00"])
def test_extension_registry_is_not_used(tmp_path, code):
    marker = tmp_path / "marker"
    data = code + b"U" + bytes([len(str(marker))]) + str(marker).encode() + b"U\x01w\x86R."
    copyreg.add_extension("builtins", "open", 123)
    try:
        # Fills the cache from which the unpickler takes an extension without asking find_class.
        pickle.loads(data).close()
        marker.unlink()
        with pytest.raises(RefusedPickleError, match="opcode EXT"):
            load_bytes(tmp_path, data)
    finally:
        copyreg.remove_extension("builtins", "open", 123)
    assert not marker.exists()


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x04\x8e" + struct.pack("<Q", 2**62),  # BINBYTES8
        b"\x80\x05\x96" + struct.pack("<Q", 2**40),  # BYTEARRAY8
        b"\x80\x04\x8d" + struct.pack("<Q", 2**40),  # BINUNICODE8
        b"\x80\x04" + FRAME,
        b"\x80\x02\x8b\xff\xff\xff\x7f",  # LONG4
        b"\x80\x02T\xff\xff\xff\x7f",  # BINSTRING
        # 2^40 elements by the shape, four bytes of data; then a shape beyond all bounds.
        EMPTY_ARRAY + b"(K\x01\x8a\x06" + (2**40).to_bytes(6, "little") + b"\x85",
        EMPTY_ARRAY + b"(K\x01\x8a\x0a" + (2**70).to_bytes(10, "little") + b"\x85",
        EMPTY_ARRAY + b"(K\x01J\xff\xff\xff\xff\x85",
    ],
)
def test_announced_sizes_are_not_allocated(tmp_path, data):
    if data.startswith(EMPTY_ARRAY):
        data += DTYPE_F4 + b"\x89U\x04abcdtb."
    with pytest.raises(ValueError, match="truncated or not a pickle"):
        load_bytes(tmp_path, data + b"xyz.")


def test_repeated_references_are_bounded(tmp_path):
    """A thousand arrays of the same megabyte."""
    megabyte = b"X" + struct.pack("<I", 2**20) + b"a" * 2**20 + b"q\x00"
    array = b"c_codecs\nencode\nh\x00U\x06latin1\x86R"
    with pytest.raises(RefusedPickleError, match="more bytes than the file"):
        load_bytes(tmp_path, b"\x80\x02(" + megabyte + array * 1000 + b"l.")
    pairs = b"](" + b"](K\x01K\x02e" * 1000 + b"eq\x00"
    again = b"ccollections\nOrderedDict\nh\x00\x85R"
    with pytest.raises(RefusedPickleError, match="more bytes than the file"):
        load_bytes(tmp_path, b"\x80\x02(" + pairs + again * 1000 + b"l.")


def test_shared_containers_stay_shared(tmp_path):
    """Lists of twice the list before, 2^60 entries if each were copied."""
    lists = []
    for _ in range(60):
        lists = [lists, lists]
    found = load_bytes(tmp_path, pickle.dumps({"lists": lists}))["lists"]
    assert found[0] is found[1] and len(found[0]) == 2


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_truncation_anywhere_is_an_error(tmp_path, protocol):
    data = pickle.dumps({"w": np.arange(3, dtype=np.float32), "t": [1, "a", 2.5]}, protocol)
    for length in range(len(data)):
        with pytest.raises(ValueError, match=r"checkpoint\.pkl is "):
            load_bytes(tmp_path, data[:length])


@settings(max_examples=300, deadline=None)
@given(
    protocol=st.sampled_from([0, 2, 4, 5]),
    changes=st.lists(st.tuples(st.integers(0, 399), st.integers(0, 255)), min_size=1, max_size=4),
)
def test_damage_gives_data_or_a_clear_error(tmp_path_factory, protocol, changes):
    checkpoint = {"w": np.arange(3, dtype=np.float32), "s": np.float64(1), "t": [b"ab", (2.5,)]}
    data = bytearray(pickle.dumps(checkpoint, protocol))
    for place, value in changes:
        data[place % len(data)] = value
    folder = tmp_path_factory.getbasetemp()
    try:
        found = load_bytes(folder, bytes(data))
    except ValueError as error:
        assert "checkpoint.pkl" in str(error)
    else:
        assert type(found) is dict


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"PK\x03\x04rest", "zip archive"),
        (b"\x89HDF\r\n", "HDF5"),
        (b"<html>not found</html>", "not a pickle"),
        (b"version https://git-lfs", "not a pickle"),
        (pickle.dumps([1, 2]), "must hold a dict of arrays, found list"),
        (pickle.dumps({}) + b"rest", "4 bytes after the end"),
        (b"\x80\x09}.", "unsupported pickle protocol"),
    ],
)
def test_other_files(tmp_path, data, message):
    with pytest.raises(ValueError, match=message) as error:
        load_bytes(tmp_path, data)
    assert "checkpoint.pkl" in str(error.value)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent"):
        load_arrays(tmp_path / "absent.pkl")
    with pytest.raises(ValueError, match="is not a file"):
        load_arrays(tmp_path)


def test_object_arrays_are_refused(tmp_path):
    for protocol in PROTOCOLS:
        data = pickle.dumps({"w": np.array([None, "x"], object)}, protocol)
        with pytest.raises(RefusedPickleError, match="dtype 'O8'"):
            load_bytes(tmp_path, data)


def test_nothing_is_imported(tmp_path, monkeypatch):
    def refuse(name, *arguments, **named_arguments):
        raise AssertionError(f"{name} was imported")

    data = pickle.dumps(make_checkpoint(), 4)
    (tmp_path / "good.pkl").write_bytes(data)
    (tmp_path / "bad.pkl").write_bytes(b"cantigravity\nfly\n.")
    with monkeypatch.context() as patch:
        patch.setattr(builtins, "__import__", refuse)
        load_arrays(tmp_path / "good.pkl")
        with pytest.raises(RefusedPickleError, match=r"antigravity\.fly"):
            load_arrays(tmp_path / "bad.pkl")
