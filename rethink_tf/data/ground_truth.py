"""The ground truth of a record directory, in COCO form."""

import json
import os

import tensorflow as tf

FILE = "ground_truth.json"


def load_ground_truth(directory, image_ids):
    """Returns the images and annotations of some records.

    Args:
        directory: str, a record directory.
        image_ids: ints, the images wanted; each must be there.

    Returns:
        dict in COCO form: images, annotations, categories.

    Raises:
        ValueError: if the directory has no ground truth, or not of one of the images.
    """
    path = os.path.join(directory, FILE)
    if not tf.io.gfile.exists(path):
        raise ValueError(
            f"{path} is not there, and evaluation needs it: convert the data set with "
            "python -m rethink_tf.data.coco."
        )
    with tf.io.gfile.GFile(path) as file:
        truth = json.load(file)
    wanted = {int(image_id) for image_id in image_ids}
    missing = wanted - {image["id"] for image in truth["images"]}
    if missing:
        raise ValueError(
            f"{path} has no image with id {min(missing)} (and {len(missing) - 1} more of the "
            "records): convert the data set again."
        )
    return truth | {
        "images": [each for each in truth["images"] if each["id"] in wanted],
        "annotations": [each for each in truth["annotations"] if each["image_id"] in wanted],
    }
