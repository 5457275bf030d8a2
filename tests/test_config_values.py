"""Which bindings are refused where they stand, and which are left without a part."""

import typing
from collections.abc import Sequence

import gin
import pytest

from rethink_tf import config, config_record
from rethink_tf.config_values import Count


# Names of their own: gin's registry is shared with all tests of the process.
@gin.configurable(module="values_test")
def value_run(
    parts: object,
    name: str = "a",
    count: Count = 20,
    every: Count | None = None,
    either: typing.Union[int, Sequence[int]] = 3,  # noqa: UP007  both spellings are read
    anything=None,
):
    return [part() for part in parts]


@gin.register(module="values_test")
class ValueLayer:
    """Passes on what it does not name, as Keras' layers do, whose __new__ names nothing."""

    def __new__(cls, *args, **kwargs):
        return super().__new__(cls)

    def __init__(self, channels=64, rate=0.5, sizes=(1, 2), flag=False, kind="gn", **kwargs):
        self.kwargs = kwargs


@gin.register(module="values_test")
class ValueOuter:
    def __init__(self, inner=ValueLayer, channels=32):
        self.inner = inner and inner()


FILE = "value_run.parts = [@ValueOuter, @ValueLayer]\n"


def write(folder, name, text):
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return str(path)


def failure(function, *args):
    with pytest.raises(config.ConfigError) as caught:
        function(*args)
    return str(caught.value)


@pytest.mark.parametrize(
    ("binding", "message"),
    [
        (
            "ValueLayer.chanels = 3",
            "'ValueLayer' doesn't have a parameter named 'chanels' (did",
        ),
        ("ValueLayer.count = 3", "(did you mean value_run.count?)"),
        ("ValueLayer.dtype = 'x'", "(it has channels, rate, sizes, flag, kind)"),
        ("ValueLayer.channels = 'ten'", "ValueLayer.channels = 'ten': the value must be a whole"),
        ("ValueLayer.channels = 2.5", "must be a whole number"),
        ("ValueLayer.channels = True", "must be a whole number"),
        ("ValueLayer.rate = '0.1'", "must be a number"),
        ("ValueLayer.sizes = 4", "must be a list of values"),
        ("ValueLayer.flag = 1", "must be True or False"),
        ("ValueLayer.kind = None", "must be a text in quotes"),
        ("value_run.name = 4", "must be a text in quotes"),
        ("value_run.count = 0", "must be a whole number of at least 1"),
        ("value_run.every = 'x'", "must be a whole number of at least 1 or None"),
        ("value_run.either = 'x'", "must be a whole number or a list of values"),
        ("ValueOuter.inner = 3", "must be a part, such as @Name"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_place(tmp_path, binding, message):
    path = write(tmp_path, "main.gin", f"{FILE}\n{binding}\n")
    found = failure(config.parse, [path])
    assert message in found and f'In file "{path}", line 3' in found
    assert "\n" not in found
    path = write(tmp_path, "main.gin", FILE)
    found = failure(config.parse, [path], [binding])
    assert message in found and f"In --gin_param={binding}" in found
    if "parameter named" not in found:
        part, value = binding.split(" = ")
        path = write(tmp_path, "main.gin", f"{FILE}{part} = %VALUE\n")
        assert "it comes from the macro VALUE" in failure(config.parse, [path], [f"VALUE={value}"])


def test_what_fits_passes(tmp_path):
    path = write(tmp_path, "main.gin", FILE)
    params = ["ValueLayer.channels = 64.0", "ValueLayer.rate = 1", "ValueLayer.sizes = [3]"]
    params += ["value_run.every = None", "value_run.either = (1, 2)", "value_run.anything = 'x'"]
    params += ["ValueOuter.inner = None", "ValueLayer.kind = %KIND", "KIND = 'none'"]
    config.parse([path], params)
    value_run()
    config.check_all_used()


MAIN = FILE.replace("[@ValueOuter, @ValueLayer]", "[@ValueOuter]")
MAIN += "WIDTH = 8\nValueLayer.channels = %WIDTH\nValueLayer.rate = 0.1\n"


@pytest.fixture
def warnings(monkeypatch):
    """The warnings of the package, as texts."""
    found = []
    monkeypatch.setattr(config.logging, "warning", lambda text, *args: found.append(text % args))
    return found


def test_a_later_file_may_leave_bindings_without_their_part(tmp_path, warnings):
    main = write(tmp_path, "main.gin", MAIN)
    # By an overlay, by any file, and by one that a file includes; the default is a part as well.
    overlay = write(tmp_path, "overlays/without.gin", "ValueOuter.inner = None\n")
    write(tmp_path, "plain.gin", "ValueOuter.inner = None\n")
    including = f"include '{main}'\ninclude '{tmp_path}/plain.gin'\nValueOuter.channels = 4\n"
    including = write(tmp_path, "including.gin", including)
    for files in ([main, overlay], [main, str(tmp_path / "plain.gin")], [including]):
        config.parse(files)
        value_run()
        config.check_all_used()
        (line,) = warnings
        assert "leaves out what these bindings of other files are for: " in line
        assert line.endswith("ValueLayer.channels, ValueLayer.rate, WIDTH.") and "\n" not in line
        warnings.clear()
        # The record has none of them, so that config.gin can be run again in the same folder.
        config_record.write(tmp_path / "run")
        assert "ValueLayer" not in (tmp_path / "run" / "config.json").read_text()
        config.parse([str(tmp_path / "run" / "config.gin")])
        config_record.compare(tmp_path / "run")


@pytest.mark.parametrize(
    ("later", "params", "idle"),
    [
        ("ValueOuter.inner = None\n", ["ValueLayer.rate = 0.2"], "ValueLayer.rate = 0.2"),
        ("ValueOuter.inner = None\n", ["WIDTH = 3"], "WIDTH = 3"),
        ("ValueOuter.inner = None\n", ["WITDH = 3"], "WITDH = 3"),
        # It bound them knowing that they have no part, or took the part from itself.
        ("ValueOuter.inner = None\nValueLayer.flag = True\n", [], "ValueLayer.flag = True"),
        ("", ["ValueOuter.inner = None"], "ValueLayer.rate = 0.1"),
    ],
)
def test_other_bindings_without_a_part_stop_the_run(tmp_path, warnings, later, params, idle):
    files = [write(tmp_path, "main.gin", MAIN), write(tmp_path, "later.gin", later)]
    config.parse(files, params)
    value_run()
    assert idle in failure(config.check_all_used)


def test_a_part_that_comes_back_was_not_taken_away(tmp_path, warnings):
    files = [write(tmp_path, "main.gin", MAIN)]
    files.append(write(tmp_path, "without.gin", "ValueOuter.inner = None\n"))
    files.append(write(tmp_path, "again.gin", "ValueOuter.inner = @ValueLayer\n"))
    config.parse(files)
    value_run()
    config.check_all_used()
    assert not warnings


def test_what_follows_from_the_data_gives_way_and_may_be_idle(tmp_path):
    main = write(tmp_path, "main.gin", MAIN)
    config.parse([main], ["ValueOuter.channels = 3"])
    config.derive({"ValueLayer.rate": 0.7, "ValueOuter.channels": 5, "ValueLayer.flag": True})
    assert config.value_of("ValueLayer.rate") == 0.1  # the file's
    assert config.value_of("ValueOuter.channels") == 3  # the command line's
    assert config.value_of("ValueLayer.flag") is True
    assert config.value_of("ValueLayer.channels") == 8  # through the macro
    assert config.value_of("ValueLayer.kind") is None
    config.derive({"ValueLayer.rate": 0.7, "ValueOuter.channels": 5}, over_files=True)
    assert config.value_of("ValueLayer.rate") == 0.7 and config.value_of("ValueOuter.channels") == 3
    with pytest.raises(ValueError, match="must be a text in quotes"):
        config.derive({"ValueLayer.kind": 3})
    config.derive({"ValueOuter.inner": "@ValueLayer"})
    value_run()
    config.check_all_used()
    # One without effect is a mistake of ours, unless a user put another part in place of its own.
    derived = {"ValueLayer.flag": True, "ValueOuter.inner": "@ValueLayer"}
    bare = write(tmp_path, "bare.gin", "value_run.parts = [@ValueOuter]\n")
    config.parse([bare], ["ValueOuter.inner = None"])
    config.derive(derived)
    value_run()
    config.check_all_used()
    config.parse([bare])
    config.derive(derived | {"ValueOuter.inner": None})
    value_run()
    assert "ValueLayer.flag = True" in failure(config.check_all_used)
