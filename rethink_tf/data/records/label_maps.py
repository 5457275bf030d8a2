"""The Object Detection API's label maps: items of an id, a name and perhaps a display name."""

import os
import re

import tensorflow as tf


def find(directory: str, parent: str) -> str | None:
    """Returns the label map of a record directory: the `*.pbtxt` in it, else in its parent.

    Raises:
        ValueError: if there are several in one of them.
    """
    for folder in (directory, parent):
        found = sorted(tf.io.gfile.glob(os.path.join(folder, "*.pbtxt")))
        if len(found) > 1:
            names = ", ".join(map(os.path.basename, found))
            raise ValueError(f"{folder} has {len(found)} label maps ({names}); leave one there")
        if found:
            return found[0]
    return None


def read(path: str) -> list[dict]:
    """Reads a label map.

    Returns:
        [{"id", "name"}] in the order of the file; the name is the display name where there is one.

    Raises:
        ValueError: if there is no item in it, or one without id or name.
    """
    with tf.io.gfile.GFile(path, "rb") as file:
        text = file.read().decode("utf-8", "replace")
    text = re.sub(r"^\s*#.*$", "", text, flags=re.MULTILINE)
    items = []
    for body in re.findall(r"item\s*:?\s*\{([^{}]*)", text):
        number = re.search(r"\bid\s*:\s*(\d+)", body)
        names = dict(
            (key, double or single)
            for key, double, single in re.findall(
                r"\b(name|display_name)\s*:\s*(?:\"((?:[^\"\\]|\\.)*)\"|'((?:[^'\\]|\\.)*)')", body
            )
        )
        name = names.get("display_name") or names.get("name")
        if number is None or not name:
            raise ValueError(f"{path}: an item has no id or no name: {' '.join(body.split())}")
        items.append({"id": int(number[1]), "name": name})
    if not items:
        raise ValueError(f"{path} holds no item {{ id: ... name: ... }}: it is no label map")
    return items
