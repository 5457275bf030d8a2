"""Files of torch.save: tensors of every kind, refusals, damage."""

import collections
import json
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_writer import Call, Global, Tensor, pickled, save, save_legacy

from rethink_tf.weights import reading
from rethink_tf.weights.unpickler import RefusedPickleError


def load(path):
    arrays, origin = reading.load(path)
    assert origin is None
    return arrays


@pytest.mark.parametrize("form", ["zip", "big endian", "legacy"])
def test_tensors_of_every_kind(tmp_path, form):
    values = np.arange(24, dtype="f4").reshape(4, 6)
    state = collections.OrderedDict(
        whole=Tensor(values),
        transposed=Tensor(values, (6, 4), (1, 6)),
        # Two tensors of one storage, as tied weights and slices have.
        part=Tensor(values, (2, 3), (6, 1), 8),
        repeated=Tensor(values, (3, 2), (0, 1), 22),
        scalar=Tensor(values, (), (), 5),
        empty=Tensor(np.zeros([0], "f4"), (0, 3), (3, 1)),
        half=Tensor(np.array([1.5, -2], "f2")),
        double=Tensor(np.array([0.5], "f8")),
        # The upper halves of 1.0 and -2.5.
        bfloat16=Tensor(np.array([0x3F80, 0xC020], "u2"), kind="BFloat16"),
        long=Tensor(np.array([2**40], "i8")),
        flag=Tensor(np.array([True])),
        parameter=Call("torch._utils", "_rebuild_parameter", Tensor(values), True, ()),
    )
    path = tmp_path / "model.pth"
    if form == "legacy":
        save_legacy(path, state)
    else:
        save(path, state, ">" if form == "big endian" else "<")
    found = load(path)
    expected = {
        "whole": values,
        "transposed": values.T,
        "part": values.ravel()[8:20].reshape(2, 6)[:, :3],
        "repeated": [[22, 23]] * 3,
        "scalar": 5,
        "empty": np.zeros([0, 3]),
        "half": [1.5, -2],
        "double": [0.5],
        "bfloat16": [1, -2.5],
        "long": [2**40],
        "flag": [True],
        "parameter": values,
    }
    assert list(found) == list(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)
        floating = name not in ("long", "flag")
        assert found[name].dtype == np.float32 or not floating


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_weights_of_a_training_script(tmp_path, key):
    weights = collections.OrderedDict({"module.conv1.weight": Tensor(np.ones([2, 3], "f4"))})
    state = {"epoch": 3, key: weights, "optimizer": {"lr": 0.1, "param_groups": [{}]}}
    assert list(load(save(tmp_path / "checkpoint.pth.tar", state))) == ["conv1.weight"]


def test_the_metadata_of_a_state_dict_is_left_out(tmp_path):
    """PyTorch sets `_metadata` on the OrderedDict: a BUILD after it."""
    data, (array,) = pickled({"w": Tensor(np.ones([2], "f4"))})
    data = data.replace(b"}", b"ccollections\nOrderedDict\n)R", 1)
    data = data[:-1] + b"}X\x09\x00\x00\x00_metadata}sb."
    path = save(tmp_path / "model.pth", {"w": Tensor(array)}, **{"data.pkl": data})
    np.testing.assert_array_equal(load(path)["w"], [1, 1])


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (Call("os", "system", "true"), r"refused: it names 'os\.system'"),
        (Call("torch.jit", "load", "x"), "refused: it names 'torch.jit.load'.*state_dict"),
        (Global("torch", "FloatStorage"), "refused: it holds torch.FloatStorage"),
        (Tensor(np.ones([4], "f4"), (5,), (1,)), "reaches beyond its storage"),
        (Tensor(np.ones([4], "f4"), (2,), (1,), 3), "reaches beyond its storage"),
        (Tensor(np.ones([4], "f4"), (2,), (2**61,)), "reaches beyond its storage"),
        (Tensor(np.ones([4], "f4"), (2,), (-1,), 2), "not a tuple of sizes"),
        (Tensor(np.ones([4], "f4"), (2**40, 4), (0, 1)), "more bytes than the file has"),
        (Tensor(np.ones([4], "f4"), count=2**40), "the file cannot hold"),
        (Tensor(np.ones([4], "f4"), count=5), "storage.*'(archive/data/)?0'"),
        (Tensor(np.ones([4], "f4"), kind="Quantized"), "it names 'torch.QuantizedStorage'"),
        (Call("torch._utils", "_rebuild_tensor_v2", 1, 0, (), (), 0, {}), "without a storage"),
        (Call("torch._utils", "_rebuild_parameter", {}, 0, {}), "a parameter that is no tensor"),
    ],
)
def test_hostile_files_are_refused(tmp_path, legacy, value, message):
    path = (save_legacy if legacy else save)(tmp_path / "model.pth", {"w": value})
    with pytest.raises(ValueError, match=message) as raised:
        load(path)
    assert str(path) in str(raised.value) and "\n" not in str(raised.value)


def test_hostile_archives_are_refused(tmp_path):
    state, path = {"w": Tensor(np.zeros([1000], "f4"))}, tmp_path / "model.pth"
    save(path, state, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match=f"{path} has compressed or overlapping members"):
        load(path)
    for name, content in (("byteorder", b"middle"), ("data/0", bytes(3999))):
        save(path, state, **{name: content})
        with pytest.raises(ValueError, match=f"{path}.*archive/{name}"):
            load(path)
    np.savez(tmp_path / "arrays.npz", w=np.zeros(3))
    with pytest.raises(ValueError, match=r"arrays.npz is a zip archive without data.pkl"):
        load(tmp_path / "arrays.npz")
    # The same pickle outside of torch.save's formats has no storages.
    path.write_bytes(pickled(state)[0])
    with pytest.raises(RefusedPickleError, match="it uses the opcode BINPERSID"):
        load(path)


@pytest.mark.parametrize("write", [save, save_legacy])
def test_truncation_anywhere_is_one_error(tmp_path, write):
    path = write(tmp_path / "model.pth", {"w": Tensor(np.arange(6, dtype="f4")), "n": 3})
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="model.pth") as raised:
            load(path)
        assert "\n" not in str(raised.value)


@settings(max_examples=200, deadline=None)
@given(
    legacy=st.booleans(),
    changes=st.lists(st.tuples(st.integers(0, 999), st.integers(0, 255)), min_size=1, max_size=3),
)
def test_damage_gives_data_or_a_clear_error(tmp_path_factory, legacy, changes):
    path = tmp_path_factory.getbasetemp() / "damaged.pth"
    write = save_legacy if legacy else save
    data = bytearray(write(path, {"w": Tensor(np.arange(6, dtype="f4"))}).read_bytes())
    for place, value in changes:
        data[place % len(data)] = value
    path.write_bytes(data)
    try:
        found = load(path)
    except ValueError as error:
        assert "damaged.pth" in str(error)
    else:
        assert type(found) is dict and json.dumps(list(map(str, found)))
