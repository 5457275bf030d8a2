"""Where labelled images come from: TFRecords as of ImageNet, or a folder for each class.

A source knows its images by number, 0 to `num_images` - 1, so that the order of training is a
function of the seed and the step.
"""

import os
import time

import gin
import numpy as np
import tensorflow as tf
from absl import logging

from rethink_tf.config_values import Count
from rethink_tf.data.input.reading import Shards
from rethink_tf.data.records import tfrecord_files

TRAIN, VALIDATION = "train", "validation"
_ENDINGS = (".jpg", ".jpeg", ".png")


@gin.register
class ImageRecords:
    """TFRecords of Model Garden's form: `train-*` and `validation-*` in one folder.

    Each has "image/encoded", JPEG or PNG, and "image/class/label"
    (`official.vision.dataloaders.classification_input`; ImageNet's as TPU's `imagenet_to_gcs.py`
    writes them, whose labels are 1 to 1000).

    Attributes:
        num_images: int.
        num_classes: int C.
        description: str, what this is, in one line.
    """

    def __init__(self, data_dir, split, num_classes: Count = 1000, first_label: int = 1):
        """Finds every record, by the lengths that the records state.

        Args:
            data_dir: str, folder of the records.
            split: TRAIN or VALIDATION.
            num_classes: C.
            first_label: int, the label of the first class: 1 where 0 is a background that no image
                has.

        Raises:
            ValueError: if there is no such file, none has a record, or one is damaged.
        """
        start = time.monotonic()
        self._paths = sorted(tf.io.gfile.glob(os.path.join(data_dir, f"{split}-*")))
        if not self._paths:
            raise ValueError(
                f"{data_dir} has no records {split}-*: give the folder of ImageNet's TFRecords as "
                "DATA_DIR, or bind pretrain.data = @ImageFolders for images by class."
            )
        self.num_classes, self._first_label = num_classes, first_label
        places = [
            (shard, *place)
            for shard, path in enumerate(self._paths)
            for place in tfrecord_files.list_frames(path)
        ]
        if not places:
            raise ValueError(f"The {len(self._paths)} files {data_dir}/{split}-* hold no record.")
        self._shard, self._offset, self._length = np.array(places, np.int64).T
        self._shards = Shards(self._paths)
        self.num_images = len(places)
        self.description = (
            f"{data_dir}/{split}-*: {self.num_images:,} images, {num_classes:,} classes"
        )
        logging.debug("Listed %s in %.1f s.", self.description, time.monotonic() - start)

    def arrays(self, rows):
        """Returns {name: array [n]} of images int64 [n]: what `read` takes of each."""
        return {
            "shard": self._shard[rows],
            "offset": self._offset[rows],
            "length": self._length[rows],
        }

    def read(self, image):
        """Returns the encoded bytes and the class, int64, 0 to C - 1 if it is in range.

        Args:
            image: dict of scalar tensors, of `arrays`.

        Raises:
            tf.errors.OpError: while running, if the record cannot be read.
        """
        features = {
            "image/encoded": tf.io.FixedLenFeature([], tf.string),
            "image/class/label": tf.io.FixedLenFeature([], tf.int64),
        }
        parsed = tf.io.parse_single_example(self._shards.read(image), features)
        return parsed["image/encoded"], parsed["image/class/label"] - self._first_label

    def name(self, row):
        """Returns where an image is, for messages."""
        return f"{self._paths[self._shard[row]]} at byte {self._offset[row]}"

    def explain_class(self, found):
        """Returns what is wrong with a class that is out of range."""
        last = self._first_label + self.num_classes - 1
        return (
            f"has the label {found + self._first_label}, and labels are {self._first_label} to "
            f"{last}: bind ImageRecords.num_classes and ImageRecords.first_label."
        )


@gin.register
class ImageFolders:
    """Images in folders by class: train/CLASS/*.jpg and val/CLASS/*.jpg, or .jpeg, .png.

    Attributes:
        num_images: int.
        num_classes: int C, the folders of train/.
        class_names: list of str, in alphabetical order, which is that of the labels.
        description: str, what this is, in one line.
    """

    def __init__(self, data_dir, split):
        """Lists the images.

        Args:
            data_dir: str, folder of train and val.
            split: TRAIN or VALIDATION.

        Raises:
            ValueError: if there is no folder of a class, one is empty, or val has one that train
                has not.
        """
        self.class_names = _list_folders(os.path.join(data_dir, "train"))
        self.num_classes = len(self.class_names)
        folder = os.path.join(data_dir, {TRAIN: "train", VALIDATION: "val"}[split])
        found = _list_folders(folder)
        if unknown := sorted(set(found) - set(self.class_names)):
            raise ValueError(
                f"{folder} has classes that {data_dir}/train has not: {', '.join(unknown[:5])}."
            )
        self._paths, labels = [], []
        num_others = 0
        for name in found:
            names = sorted(tf.io.gfile.listdir(os.path.join(folder, name)))
            images = [each for each in names if each.lower().endswith(_ENDINGS)]
            num_others += len(names) - len(images)
            if not images:
                raise ValueError(
                    f"{folder}/{name} holds no image ({', '.join(_ENDINGS)}): put some there, or "
                    "remove the folder of the class."
                )
            self._paths += [os.path.join(folder, name, each) for each in images]
            labels += [self.class_names.index(name)] * len(images)
        if num_others:
            logging.warning(
                "%s: %d files are left out, whose names end in none of %s.",
                folder,
                num_others,
                ", ".join(_ENDINGS),
            )
        self._labels, self.num_images = np.array(labels, np.int64), len(labels)
        self.description = f"{folder}: {self.num_images:,} images, {self.num_classes:,} classes"

    def arrays(self, rows):
        """Returns {name: array [n]} of images int64 [n]: what `read` takes of each."""
        paths = np.array([self._paths[row].encode() for row in rows], object)
        return {"path": paths, "label": self._labels[rows]}

    def read(self, image):
        """Returns the encoded bytes and the class, int64, 0 to C - 1, of an entry of `arrays`."""
        return tf.io.read_file(image["path"]), image["label"]

    def name(self, row):
        """Returns where an image is, for messages."""
        return self._paths[row]


def _list_folders(folder):
    """Returns the names of the folders in a folder, in alphabetical order."""
    names = tf.io.gfile.listdir(folder) if tf.io.gfile.isdir(folder) else []
    names = sorted(name.rstrip("/") for name in names)
    found = [name for name in names if tf.io.gfile.isdir(os.path.join(folder, name))]
    if not found:
        raise ValueError(
            f"{folder} has no folder of a class: images are expected as train/CLASS/*.jpg and "
            "val/CLASS/*.jpg in DATA_DIR. For records bind pretrain.data = @ImageRecords."
        )
    return found
