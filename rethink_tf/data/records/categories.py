"""Categories by id and name: what training data, evaluation data and a run's weights agree on.

A run keeps those that it is trained on in `categories.json` of its folder, beside its checkpoints:
the weights know the classes by their order alone.
"""

import json
import os
from collections.abc import Sequence

import tensorflow as tf
from absl import logging

from rethink_tf import files

FILE = "categories.json"
_SHOWN = 10


class Names:
    """A table of ids and names from several places, which must not contradict each other."""

    def __init__(self):
        self._names: dict[int, str] = {}
        self._places: dict[int, str] = {}

    def __contains__(self, category_id: int) -> bool:
        return category_id in self._names

    def add(self, category_id: int, name: str, place: str) -> None:
        """Adds one; raises ValueError if the id has another name already."""
        known = self._names.setdefault(category_id, name)
        self._places.setdefault(category_id, place)
        if known != name:
            raise ValueError(
                f"category {category_id} is {known!r} in {self._places[category_id]} and {name!r} "
                f"in {place}: number the classes alike in both"
            )

    def add_all(self, entries: Sequence[dict], place: str) -> None:
        """Adds entries with "id" and "name"."""
        for entry in entries:
            self.add(entry["id"], entry["name"], place)

    def add_if_missing(self, category_id: int, name: str) -> None:
        """Names an id that has no name yet."""
        self._names.setdefault(category_id, name)

    def as_list(self) -> list[dict]:
        """[{"id", "name"}] by id."""
        return [{"id": key, "name": self._names[key]} for key in sorted(self._names)]


def difference(first: Sequence[dict], second: Sequence[dict], places: Sequence[str]) -> str | None:
    """Says in which categories two lists differ, and how to renumber, or returns None.

    Args:
        first, second: entries with "id" and "name".
        places: what the two are called.
    """
    one, other = ({entry["id"]: entry["name"] for entry in each} for each in (first, second))
    if one == other:
        return None
    lines = []
    for key in sorted(one.keys() | other.keys()):
        if one.get(key) != other.get(key):
            names = [repr(each[key]) if key in each else "missing" for each in (one, other)]
            lines.append(f"  {key} is {names[0]} in {places[0]} and {names[1]} in {places[1]}")
    more = [f"  and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
    text = "\n".join(lines[:_SHOWN] + more)
    ids = {name: key for key, name in one.items()}
    is_permutation = sorted(one.values()) == sorted(other.values()) and len(ids) == len(one)
    if not is_permutation:
        return text
    moves = [
        f"{key} ({name}) becomes {ids[name]}"
        for key, name in sorted(other.items())
        if ids[name] != key
    ]
    return (
        f"{text}\nThey are the same names under other ids. Renumber the annotation file of "
        f"{places[1]}, 'categories' and each 'category_id': {', '.join(moves)}"
    )


def check_run(
    model_dir: str, entries: Sequence[dict], place: str, init_checkpoint: str | None, trains: bool
) -> None:
    """Compares categories with those that a run's weights were trained on.

    Args:
        model_dir: the run's folder; one without `categories.json` or checkpoints passes.
        entries: with "id" and "name", of the data.
        place: what the data are called.
        init_checkpoint: weights that the run may start from, or None. Those beside a
            `categories.json` are compared where the run has no categories of its own.
        trains: whether weights of other categories may be a start; else they are an error.

    Raises:
        ValueError: if the run's own weights, or those that are only evaluated, are of others.
    """
    own = _read(model_dir)
    # Before its first checkpoint, a run has no weights that were trained on these classes.
    if own is not None and tf.io.gfile.glob(os.path.join(model_dir, "checkpoints", "*.index")):
        found = difference(own[1], entries, (own[0], place))
        if found:
            raise ValueError(
                f"The run in {model_dir} was trained on other categories than those of {place}:\n"
                f"{found}\nTake data with the run's categories, or another MODEL_DIR for a new run."
            )
        return
    start = init_checkpoint and _beside_checkpoint(init_checkpoint)
    found = start and difference(start[1], entries, (start[0], place))
    if found and not trains:
        raise ValueError(
            f"run.init_checkpoint, {init_checkpoint}, was trained on other categories than those "
            f"of {place}:\n{found}"
        )
    if found:
        logging.warning("run.init_checkpoint was trained on other categories:\n%s", found)


def write(model_dir: str, entries: Sequence[dict]) -> None:
    """Leaves the categories that a run is trained on in its folder."""
    tf.io.gfile.makedirs(model_dir)
    kept = [{"id": entry["id"], "name": entry["name"]} for entry in entries]
    text = json.dumps({"version": 1, "categories": kept}, indent=1)
    files.write_whole(os.path.join(model_dir, FILE), text + "\n")


def read(model_dir: str) -> list[dict]:
    """Returns the categories that a run was trained on, entries with "id" and "name" by id.

    Raises:
        ValueError: if the folder has none, or they are damaged; names the file.
    """
    found = _read(model_dir)
    if found is None:
        raise ValueError(
            f"{os.path.join(model_dir, FILE)} is not there: give the folder of a run that "
            "rethink_tf.train has trained."
        )
    return sorted(found[1], key=lambda entry: entry["id"])


def _beside_checkpoint(checkpoint):
    """The categories of the run that a checkpoint is of, as `_read`: a folder of it, or a path."""
    folder = checkpoint.rstrip("/")
    for _ in range(3):
        found = _read(folder)
        if found is not None:
            return found
        folder = os.path.dirname(folder)
    return None


def _read(folder):
    """Returns the path and the entries of a folder's `categories.json`, None where it has none."""
    path = os.path.join(folder, FILE)
    if not folder or not tf.io.gfile.exists(path):
        return None
    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            found = json.loads(file.read())["categories"]
        return path, [{"id": entry["id"], "name": entry["name"]} for entry in found]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}): remove it") from error
