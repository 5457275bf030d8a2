"""Writing a local file whole or not at all."""

import contextlib
import os


def write_whole(path, content):
    """Replaces a file at once: a reader after a kill sees the old content or the new, whole.

    Args:
        path: the file, on a local disk; its folder is made where it is missing.
        content: bytes, or str to be written as UTF-8.
    """
    path = os.fspath(path)
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    # Beside the file, so that the replacement stays on one file system and is atomic.
    unfinished = f"{path}.{os.getpid()}.tmp"
    try:
        with open(unfinished, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(unfinished)
