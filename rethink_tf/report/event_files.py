"""Scalars of a run's TensorBoard files, read without TensorFlow.

A file is a row of frames: uint64 length, uint32 checksum, an `Event` of that length, uint32
checksum, little-endian.
"""

import glob
import os
import struct

import numpy as np

from rethink_tf import files
from rethink_tf.curves import summary_folder

_HEADER, _FOOTER = 12, 4  # bytes


def read_scalars(model_dir: str, tags: tuple[str, ...]) -> dict[str, tuple[list, list]]:
    """Returns {tag: (steps, values)} of a run's summaries by step; of one written twice the last.

    A file's last frame may be half written, by a run that was killed: the rest is read. What a
    start has said to go on from before (`summaries.begin`) is dropped.

    Args:
        model_dir: of the run, on a local disk; a remote one gives nothing.
        tags: the names of scalars; one that ends in "/" stands for all that begin so.
    """
    found = {}
    folder = summary_folder(model_dir)
    folders = tuple(tag for tag in tags if tag.endswith("/"))
    if not files.is_remote(folder):
        for path in sorted(glob.glob(os.path.join(folder, "events.*")), key=os.path.getmtime):
            for event in _events(path):
                if event.session_log.status == event.session_log.START:
                    for tag, points in found.items():
                        kept = {step: each for step, each in points.items() if step < event.step}
                        found[tag] = kept
                for tag, value in _scalars(event):
                    if tag in tags or tag.startswith(folders):
                        found.setdefault(tag, {})[event.step] = value
    return {
        tag: (sorted(points), [points[step] for step in sorted(points)])
        for tag, points in found.items()
        if points
    }


def _events(path):
    # Only now: it takes a tenth of a second.
    from tensorboard.compat.proto import event_pb2

    with open(path, "rb") as file:
        content = file.read()
    position = 0
    while position + _HEADER <= len(content):
        (length,) = struct.unpack_from("<Q", content, position)
        payload = content[position + _HEADER : position + _HEADER + length]
        if len(payload) < length:
            return
        position += _HEADER + length + _FOOTER
        yield event_pb2.Event.FromString(payload)


def _scalars(event):
    for value in event.summary.value:
        if value.metadata.plugin_data.plugin_name == "scalars":
            tensor = value.tensor
            number = tensor.float_val or np.frombuffer(tensor.tensor_content, np.float32)
            if len(number):
                yield value.tag, float(number[0])
