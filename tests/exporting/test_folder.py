"""Tests of rethink_tf/exporting/folder.py."""

import pytest

from rethink_tf.exporting import folder

COMMAND = {"format": "onnx", "size": [640, 640]}


def write(output, text, command=COMMAND):
    with folder.replacing(output) as staging:
        folder.describe(staging, {"command": command}, text)


def test_only_the_same_command_replaces_an_export(tmp_path):
    output = tmp_path / "made" / "export"
    folder.check(str(output), COMMAND, False)
    write(output, "first")
    (output / "variables").mkdir()

    folder.check(str(output), COMMAND, False)
    write(output, "second")

    assert (output / "README.md").read_text() == "second"
    assert sorted(path.name for path in output.iterdir()) == ["README.md", "export.json"]
    assert [path.name for path in output.parent.iterdir()] == ["export"]
    with pytest.raises(ValueError, match=r"size was \[640, 640\], is None.*--overwrite"):
        folder.check(str(output), COMMAND | {"size": None}, False)
    folder.check(str(output), COMMAND | {"size": None}, True)


def test_an_error_leaves_the_export_as_it_was(tmp_path):
    output = tmp_path / "export"
    write(output, "first")

    with pytest.raises(RuntimeError), folder.replacing(output) as staging:
        folder.describe(staging, {}, "half")
        raise RuntimeError

    assert (output / "README.md").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


def test_what_is_no_export_is_never_replaced(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    for path in (tmp_path, tmp_path / "thesis.tex"):
        with pytest.raises(ValueError, match="is no export"):
            folder.check(str(path), COMMAND, True)
    with pytest.raises(ValueError, match="not a local folder"):
        folder.check("gs://bucket/export", COMMAND, False)
    (tmp_path / "empty").mkdir()
    folder.check(str(tmp_path / "empty"), COMMAND, False)
