"""`data.json` of a run: on which images it is trained and evaluated, for the report of a study."""

import json
import os

from rethink_tf import files

FILE = "data.json"


def describe(splits, pipeline):
    """Returns what a run's data are.

    Args:
        splits: {what it is for: `records.splits.Split`, or None}, "training" and "evaluation".
        pipeline: `input.pipeline.Pipeline`.

    Returns:
        {what it is for: dict}: directory, num_images, num_objects, num_categories and, for
        training, pixels_per_image, the mean area of an image as the network sees it, for
        evaluation image_ids, which of the directory's they are.
    """
    found = {}
    for use, split in splits.items():
        if split is None:
            continue
        index = pipeline.training_index(split.index) if use == "training" else split.index
        found[use] = {
            "directory": split.directory,
            "num_images": len(index),
            "num_objects": int(index.num_objects.sum()),
            "num_categories": len(split.categories),
        }
        if use == "training":
            found[use]["pixels_per_image"] = pipeline.mean_training_pixels(index)
        else:
            found[use]["image_ids"] = index.image_id.tolist()
    return found


def write(model_dir, described):
    """Writes `data.json`, whole or not at all; of an earlier start, other uses stay.

    Args:
        model_dir: str.
        described: of `describe`.
    """
    known = read(model_dir) | described
    files.write_whole(os.path.join(model_dir, FILE), json.dumps(known) + "\n")


def read(model_dir):
    """Returns what `write` wrote, {} where a run has none.

    Args:
        model_dir: str.

    Raises:
        ValueError: if the file is damaged; names it.
    """
    path = os.path.join(model_dir, FILE)
    if not files.exists(path):
        return {}
    return files.read_json(path, "remove it and start the run again: it writes the file anew")
