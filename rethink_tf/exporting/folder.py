"""The folder of an export: written whole, and replaced by the same command alone."""

import contextlib
import json
import os
import shutil
import uuid

from rethink_tf import files

RECORD, README = "export.json", "README.md"


def check(output, command, overwrite):
    """Checks that a folder may be written.

    Args:
        output: str, the folder.
        command: dict of JSON values, what decides on the export's content.
        overwrite: bool, whether an export of another command may be replaced.

    Raises:
        ValueError: if something is there that must not be lost.
    """
    if files.is_remote(output):
        raise ValueError(f"--output={output} is not a local folder: write to one, and copy it.")
    if not os.path.lexists(output) or (os.path.isdir(output) and not os.listdir(output)):
        return
    record = os.path.join(output, RECORD)
    if not os.path.isfile(record):
        raise ValueError(
            f"--output={output} exists and is no export (it has no {RECORD}): give another folder."
        )
    found = files.read_json(record, "remove the folder, or give another one.").get("command", {})
    differing = [key for key in command if found.get(key) != command[key]]
    if differing and not overwrite:
        texts = [f"{key} was {found.get(key)!r}, is {command[key]!r}" for key in differing]
        raise ValueError(
            f"--output={output} holds the export of another command ({'; '.join(texts)}): give "
            "another folder, or --overwrite to replace it."
        )


@contextlib.contextmanager
def replacing(output):
    """Gives a folder to write to, which takes the place of the output at the end.

    An error in between removes it and leaves the output as it was.

    Args:
        output: str, checked by `check`.

    Yields:
        str, an empty folder beside the output.
    """
    parent, name = os.path.split(os.path.abspath(output))
    mark = uuid.uuid4().hex[:8]
    staging, old = (os.path.join(parent, f".{name}.{mark}.{end}") for end in ("tmp", "old"))
    try:
        with files.naming_full_disk(output):
            os.makedirs(staging)
            yield staging
            if os.path.lexists(output):
                os.rename(output, old)
            os.rename(staging, output)
    finally:
        if os.path.isdir(old) and not os.path.lexists(output):
            os.rename(old, output)
        for each in (staging, old):
            shutil.rmtree(each, ignore_errors=True)


def describe(folder, record, text):
    """Writes what an export is beside it: for programs RECORD, for people README."""
    content = json.dumps(record, indent=1) + "\n"
    files.write_whole(os.path.join(folder, RECORD), content)
    files.write_whole(os.path.join(folder, README), text)
