"""Which checkpoint files a run goes on from: the newest that reads, on all workers the same."""

import json
import os
import re
import zlib

import tensorflow as tf
from absl import logging

from rethink_tf.training import workers as workers_lib


def open_reader(path):
    """Returns TensorFlow's reader of a checkpoint.

    `tf.train.load_checkpoint` takes a path for a folder where a file system calls it one, as some
    remote ones do of whatever a name begins with.

    Args:
        path: str, without ".index".
    """
    return tf.compat.v1.train.NewCheckpointReader(path)


def list_newest_first(directory):
    """Returns the paths of a folder's checkpoints, the highest step first."""
    paths = []
    for index in tf.io.gfile.glob(os.path.join(directory, "step-*.index")):
        path = index.removesuffix(".index")
        if re.fullmatch(r"step-\d+", os.path.basename(path)):
            paths.append(path)
    return sorted(paths, key=step_of, reverse=True)


def find_newest(directory, workers=None, at_most=None):
    """Returns the path of the newest checkpoint of a folder that reads, or None if it has none.

    With several workers it is the newest that all of them read, with equal content.

    Args:
        directory: str.
        workers: `Workers`, or None where one process runs it all.
        at_most: int, the highest step that counts; None for all.

    Raises:
        ValueError: if there are checkpoints and none of them reads, or the workers see different
            ones. It is raised on every worker.
    """
    paths = list_newest_first(directory)
    if at_most is not None:
        paths = [path for path in paths if step_of(path) <= at_most]
    if workers is not None:
        paths = _seen_by_all(directory, paths, workers)
    for path in paths:
        problem = _read(path) if workers is None else _read_on_all(path, workers)
        if not problem:
            return path
        logging.warning(
            "The checkpoint %s cannot be read (%s); trying the one before.", path, problem
        )
    if paths:
        raise ValueError(
            f"None of the {len(paths)} checkpoints in {directory} can be read. Move them away to "
            "start from step 0, or bring back one that is whole."
        )
    return None


def step_of(path):
    """Returns the step in a checkpoint's name."""
    return int(path.rpartition("-")[2])


def _seen_by_all(directory, paths, workers):
    """Returns this worker's paths of the steps that all workers see, the highest first."""
    seen = [json.loads(text) for text in workers.exchange(json.dumps([step_of(p) for p in paths]))]
    common = set.intersection(*map(set, seen))
    if any(seen) and not common:
        texts = ["step " + ", ".join(map(str, steps)) if steps else "none" for steps in seen]
        raise ValueError(
            f"The workers see different checkpoints in {directory}: "
            f"{workers_lib.name_each(texts)}. Put MODEL_DIR where all workers see the same files."
        )
    for step in sorted(set.union(*map(set, seen)) - common, reverse=True):
        blind = [str(index) for index, steps in enumerate(seen) if step not in steps]
        logging.warning(
            "Passing over step-%d in %s: worker %s does not see it.",
            step,
            directory,
            " and ".join(blind),
        )
    return [path for path in paths if step_of(path) in common]


def _read(path, checksum=None):
    """Reads every tensor, so that a damaged file is found before any variable is assigned.

    Args:
        path: str.
        checksum: list that the checksum of the content is appended to, or None for none.

    Returns:
        str, why the checkpoint cannot be read; empty if it can.
    """
    try:
        reader = open_reader(path)
        content = 0
        for name, shape in sorted(reader.get_variable_to_shape_map().items()):
            value = reader.get_tensor(name)
            if checksum is not None:
                head = zlib.crc32(f"{name} {shape}".encode(), content)
                content = zlib.crc32(value if isinstance(value, bytes) else value.tobytes(), head)
    # TensorFlow's reader turns the status of a damaged file into one of many Python errors.
    except Exception as error:
        return str(error) or type(error).__name__
    if checksum is not None:
        checksum.append(f"{content:08x}")
    return ""


def _read_on_all(path, workers):
    """Reads a checkpoint on all workers.

    Returns:
        str, who cannot read it and why; empty if all can.

    Raises:
        ValueError: if what they read differs.
    """
    checksum = []
    problem = _read(path, checksum)
    found = [json.loads(text) for text in workers.exchange(json.dumps([problem, checksum]))]
    problems = [problem for problem, _ in found]
    if any(problems):
        return workers_lib.name_each(problems)
    if len({each for _, (each,) in found}) > 1:
        texts = [f"checksum {each}" for _, (each,) in found]
        raise ValueError(
            f"The checkpoint {path} is not the same on all workers: "
            f"{workers_lib.name_each(texts)}. Put MODEL_DIR where all workers see the same files."
        )
    return ""
