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


def test_a_remote_file_is_replaced_and_removed():
    import tensorflow as tf

    path = "ram://files/new/file"
    for content in ("old", b"\0\xff"):
        files.write_whole(path, content)
    with tf.io.gfile.GFile(path, "rb") as file:
        assert file.read() == b"\0\xff"
    with pytest.raises(TypeError):
        files.write_whole(path, 3)
    assert tf.io.gfile.listdir("ram://files/new") == ["file"]
    for _ in range(2):
        files.remove_if_there(path)
    assert not tf.io.gfile.exists(path)


def test_what_cannot_be_written_leaves_the_old_file_alone(tmp_path):
    path = tmp_path / "file"
    files.write_whole(path, "old")
    with pytest.raises(TypeError):
        files.write_whole(path, 3)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("text", ["", '{"a": ', "[" * 200_000, "\x00", "nul"])
def test_json_that_does_not_read_is_named_with_what_to_do(tmp_path, text):
    path = tmp_path / "ground_truth.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"^{path} is not JSON \(.*\): convert it again"):
        files.read_json(path, "convert it again")
    path.unlink()
    with pytest.raises(FileNotFoundError, match=rf"^{path} is missing: convert it again"):
        files.read_json(path, "convert it again")
