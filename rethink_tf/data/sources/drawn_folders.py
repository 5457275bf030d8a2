"""Folders of drawn images: made once, whole or not at all, and known by their parameters."""

import os
import shutil
import time
import uuid
from collections.abc import Callable, Mapping

from absl import logging

from rethink_tf import files


def draw_once(
    output: str | os.PathLike,
    kind: str,
    parameters_file: str,
    wanted: Mapping,
    write: Callable[[str], None],
) -> str:
    """Draws a data set where it is not there yet.

    It is drawn into a temporary folder beside `output` that is renamed at the end: when two
    processes do it at once, one of them finds the other's.

    Args:
        output: folder for it, on a local disk.
        kind: what is drawn, for messages, such as "shapes".
        parameters_file: name of the JSON file that a finished folder has.
        wanted: {name: value} that this file has if the folder is the wanted one, num_train and
            num_val among them.
        write: callable taking a new folder, fills it, the file of parameters last.

    Returns:
        The absolute path of `output`.

    Raises:
        ValueError: if `output` is remote, or holds what was drawn with other arguments.
        FileExistsError: if `output` holds something else.
    """
    output = os.fspath(output)
    if files.is_remote(output):
        raise ValueError(f"{output}: {kind} are drawn on a local disk; copy them there afterwards")
    output = os.path.abspath(output)
    if _is_there(output, kind, parameters_file, wanted):
        return output
    start = time.monotonic()
    counts = wanted["num_train"], wanted["num_val"]
    logging.info("Drawing %d + %d images of %s into %s.", *counts, kind, output)
    folder, name = os.path.split(output)
    os.makedirs(folder, exist_ok=True)
    temporary = os.path.join(folder, f".{name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        os.makedirs(temporary)
        write(temporary)
        try:
            os.rename(temporary, output)  # It fails if another process has put its own there.
        except OSError:
            if not _is_there(output, kind, parameters_file, wanted):
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    logging.info("Drew the %s in %.1f s.", kind, time.monotonic() - start)
    return output


def _is_there(output, kind, parameters_file, wanted):
    """Tells whether the finished folder of these parameters is in `output`."""
    path = os.path.join(output, parameters_file)
    if not os.path.exists(path):
        if os.path.exists(output) and (not os.path.isdir(output) or os.listdir(output)):
            raise FileExistsError(
                f"{output} is there but holds no {parameters_file}, so it is not a finished folder "
                f"of {kind}; choose another folder, or remove it"
            )
        return False
    found = files.read_json(path, f"remove its folder, and the {kind} are drawn again.")
    differing = [
        f"{name} is {found.get(name)!r} there, {value!r} is wanted"
        for name, value in wanted.items()
        if found.get(name) != value
    ]
    if differing:
        raise ValueError(
            f"{output} holds {kind} made with other arguments: {'; '.join(differing)}. "
            "Choose another folder, or remove it"
        )
    return True
