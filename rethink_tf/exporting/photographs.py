"""The photographs that an export is compared on: files, or images of a run's evaluation data."""

import os

from absl import logging

from rethink_tf import config_apart
from rethink_tf.data.input import decode, reading
from rethink_tf.settings import Settings

ENDINGS = (".jpg", ".jpeg", ".png")
NUM_PHOTOGRAPHS = 8


def of_files(paths):
    """Reads photographs.

    Args:
        paths: files, all of which are taken, and folders, of which the first NUM_PHOTOGRAPHS by
            name are.

    Returns:
        list of bytes.

    Raises:
        ValueError: if a file is none of JPEG or PNG, or a folder has none.
        OSError: if a file cannot be read.
    """
    contents = []
    for path in paths:
        names = [path]
        if os.path.isdir(path):
            found = sorted(name for name in os.listdir(path) if name.lower().endswith(ENDINGS))
            names = [os.path.join(path, name) for name in found[:NUM_PHOTOGRAPHS]]
            if not names:
                raise ValueError(f"--images={path} has no file that ends in {', '.join(ENDINGS)}.")
        for name in names:
            with open(name, "rb") as file:
                contents.append(file.read())
            if not contents[-1].startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")):
                raise ValueError(f"{name} is neither JPEG nor PNG: leave it out of --images.")
    return contents


def of_run(model_dir, pipeline):
    """Reads the first photographs of a run's evaluation data.

    Args:
        model_dir: str, the run's folder.
        pipeline: `Pipeline`.

    Returns:
        list of bytes, NUM_PHOTOGRAPHS or as many as there are; none where the data are not there.
    """
    with config_apart.parsed([os.path.join(model_dir, "config.gin")], ()):
        settings = Settings(mode="evaluate")
    directory = os.path.join(settings.data_dir, settings.evaluation_split)
    try:
        index = pipeline.evaluation_index(directory)
    except (ValueError, OSError) as error:
        logging.warning("There is nothing to compare on, give --images: %s", error)
        return []
    shards = reading.Shards(index.paths)
    rows = range(min(NUM_PHOTOGRAPHS, len(index)))
    candidates = [
        {key: getattr(index, key)[row] for key in ("shard", "offset", "length")} for row in rows
    ]
    serialized = [shards.read(candidate) for candidate in candidates]
    return [decode.parse_image(each)["image/encoded"].numpy() for each in serialized]
