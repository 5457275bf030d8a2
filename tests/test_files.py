"""A file is written whole or not at all."""

import os

import pytest

from rethink_tf import files


def test_text_and_bytes_replace_what_was_there(tmp_path):
    path = tmp_path / "new" / "file"
    files.write_whole(path, "naïve")
    assert path.read_text(encoding="utf-8") == "naïve"
    files.write_whole(path, b"\0\xff")
    assert path.read_bytes() == b"\0\xff"
    assert os.listdir(path.parent) == ["file"]


def test_what_cannot_be_written_leaves_the_old_file_alone(tmp_path):
    path = tmp_path / "file"
    files.write_whole(path, "old")
    with pytest.raises(TypeError):
        files.write_whole(path, 3)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]
