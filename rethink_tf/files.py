"""Writing a file whole or not at all, on a local disk or where `tf.io.gfile` writes (gs://)."""

import contextlib
import os
import uuid


def write_whole(path, content):
    """Replaces a file at once: a reader after a kill sees the old content or the new, whole.

    Args:
        path: the file; its folder is made where it is missing.
        content: bytes, or str to be written as UTF-8.
    """
    with replacing(path) as temporary, _open(temporary) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def replacing(path):
    """Gives a name to write to, and has what was written take the place of a file at the end.

    An error in between removes it and leaves the file as it was.

    Args:
        path: the file; its folder is made where it is missing.

    Yields:
        str, the name. It lies in the same folder, so that renaming it is atomic, and is hidden, so
        that no pattern for finished files matches it.
    """
    path = os.fspath(path)
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, f".{name}.{uuid.uuid4().hex[:8]}.tmp")
    _make_folder(folder)
    try:
        yield temporary
        _rename(temporary, path)
    except BaseException:
        remove_if_there(temporary)
        raise


def remove_if_there(path):
    """Removes a file, or does nothing where there is none."""
    if _is_remote(path):
        if _gfile().exists(path):
            _gfile().remove(path)
    else:
        with contextlib.suppress(FileNotFoundError):
            os.remove(path)


def _is_remote(path):
    return "://" in os.fspath(path)


def _gfile():
    # Only now, and only for such paths: parsing gin files needs no TensorFlow.
    import tensorflow as tf

    return tf.io.gfile


def _open(path):
    return _gfile().GFile(path, "wb") if _is_remote(path) else open(path, "wb")


def _make_folder(folder):
    if _is_remote(folder):
        _gfile().makedirs(folder)
    else:
        os.makedirs(folder or ".", exist_ok=True)


def _rename(temporary, path):
    """Renames a finished file; on a local disk its bytes are on the disk before."""
    if _is_remote(path):
        _gfile().rename(temporary, path, overwrite=True)
        return
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)
