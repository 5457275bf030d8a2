"""A run's files, on a local disk or where `tf.io.gfile` writes (gs://): each is written whole."""

import contextlib
import errno
import json
import os
import shutil
import tempfile
import uuid


class DiskFullError(OSError):
    """There is no space left for a file; what was there before is whole."""

    def __init__(self, path, needed=None):
        """Takes the file, and how many bytes it needs where that is known."""
        folder = os.path.dirname(os.fspath(path)) or "."
        free = shutil.disk_usage(folder).free if os.path.isdir(folder) else 0
        amount = f"{needed:,} bytes are needed and" if needed else "only"
        super().__init__(
            f"{path} could not be written: no space is left on the device, {amount} {free:,} bytes "
            "are free there. Make room; the same command goes on from the newest checkpoint."
        )


@contextlib.contextmanager
def naming_full_disk(path, needed=None):
    """Raises `DiskFullError` in place of what Python or TensorFlow raise on a full disk.

    Args:
        path: the file that is written.
        needed: int, its bytes, or None where that is not known.
    """
    try:
        yield
    except Exception as error:
        is_full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
        if isinstance(error, DiskFullError) or not (is_full or "No space left" in str(error)):
            raise
        raise DiskFullError(path, needed) from error


def write_whole(path, content):
    """Replaces a file at once: a reader after a kill sees the old content or the new, whole.

    Args:
        path: the file; its folder is made where it is missing.
        content: bytes, or str to be written as UTF-8.
    """
    content = content.encode() if isinstance(content, str) else content
    with replacing(path, len(content)) as temporary, _open(temporary) as file:
        file.write(content)


@contextlib.contextmanager
def replacing(path, needed=None):
    """Gives a name to write to, and has what was written take the place of a file at the end.

    An error in between removes it and leaves the file as it was.

    Args:
        path: the file; its folder is made where it is missing.
        needed: int, its bytes, or None where that is not known.

    Yields:
        str, the name. It lies in the same folder, so that renaming it is atomic, and is hidden, so
        that no pattern for finished files matches it.
    """
    path = os.fspath(path)
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, f".{name}.{uuid.uuid4().hex[:8]}.tmp")
    _make_folder(folder)
    try:
        with naming_full_disk(path, needed):
            yield temporary
            _rename(temporary, path)
    except BaseException:
        remove_if_there(temporary)
        raise


def read_text(path):
    """Returns the UTF-8 text of a file, or None where there is none.

    Args:
        path: the file.
    """
    content = read_bytes(path)
    return None if content is None else content.decode(errors="replace")


def read_bytes(path):
    """Returns the bytes of a file, or None where there is none.

    Args:
        path: the file.
    """
    try:
        if is_remote(path):
            if not exists(path):
                return None
            with _gfile().GFile(path, "rb") as file:
                return file.read()
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return None


def read_json(path, remedy):
    """Returns what a JSON file holds.

    Args:
        path: the file.
        remedy: str, what to do about one that is damaged.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not JSON, or nested so deep that it can't be meant; names the file.
    """
    text = read_text(path)
    if text is None:
        raise FileNotFoundError(f"{path} is missing: {remedy}")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}): {remedy}") from error


def exists(path):
    """Tells whether there is a file or a folder."""
    return _gfile().exists(os.fspath(path)) if is_remote(path) else os.path.exists(path)


@contextlib.contextmanager
def local_copy(path):
    """Within it, a file has the path that this yields, also where it is remote.

    Args:
        path: str, a small text.
    """
    if not is_remote(path):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        local = os.path.join(folder, os.path.basename(path))
        with open(local, "w") as file:
            file.write(read_text(path))
        yield local


def append_line(path, line):
    """Appends a line to a file as a whole; half a line that a kill has left there stays apart.

    On a local disk, lines that several processes append at once are all kept.

    Args:
        path: the file; its folder is made where it is missing.
        line: str, without the end of line.
    """
    _make_folder(os.path.dirname(os.fspath(path)))
    if is_remote(path):  # object stores append nothing
        before = read_text(path) or ""
        before += "\n" * (before != "" and not before.endswith("\n"))
        write_whole(path, f"{before}{line}\n")
        return
    with naming_full_disk(path), open(path, "a+b", buffering=0) as file:
        is_half = False
        if file.tell():
            file.seek(-1, os.SEEK_END)
            is_half = file.read(1) != b"\n"
        # One call to the system, which puts it at the end, wherever that is by now.
        file.write(("\n" * is_half + line + "\n").encode())
        os.fsync(file.fileno())


def remove_if_there(path):
    """Removes a file, or does nothing where there is none."""
    if is_remote(path):
        if _gfile().exists(path):
            _gfile().remove(path)
    else:
        with contextlib.suppress(FileNotFoundError):
            os.remove(path)


def is_remote(path):
    """Tells whether a path is one of `tf.io.gfile`'s schemes, such as gs://."""
    return "://" in os.fspath(path)


def _gfile():
    # Only now, and only for such paths: parsing gin files needs no TensorFlow.
    import tensorflow as tf

    return tf.io.gfile


def _open(path):
    return _gfile().GFile(path, "wb") if is_remote(path) else open(path, "wb")


def _make_folder(folder):
    if is_remote(folder):
        _gfile().makedirs(folder)
    else:
        os.makedirs(folder or ".", exist_ok=True)


def _rename(temporary, path):
    """Renames a finished file; on a local disk its bytes are on the disk before."""
    if is_remote(path):
        _gfile().rename(temporary, path, overwrite=True)
        return
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)
