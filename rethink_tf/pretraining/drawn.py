"""A classification set of drawn textures: what a backbone is pre-trained on without any download.

Sixteen classes, such as stripes, bricks, rings and clouds, in any two colours, scales and
rotations, over the whole image or a part of it (a half, a patch with an uneven border, or within a
frame); the rest has one of other colours. It is another task than that of the detectors'
drawn shapes: the label says what a surface looks like, and not which outlines there are.

The records are of Model Garden's form for ImageNet, which `images.ImageRecords` reads. An image is
drawn from the seed, its split and its number alone: the validation images do not change with the
number of training images.
"""

import io
import json
import math
import os

import gin
import numpy as np
import tensorflow as tf
from PIL import Image

from rethink_tf import files
from rethink_tf.config_values import Count
from rethink_tf.data.records import tfrecord_files
from rethink_tf.data.sources import drawn_folders
from rethink_tf.pretraining.textures import TEXTURES

PARAMETERS_FILE = "textures.json"
FORMAT_VERSION = 1  # Raise it when the same seed gives other images.
CLASS_NAMES = tuple(TEXTURES)
# Where the texture lies, and how often.
COMPOSITIONS = {"whole": 0.4, "half": 0.2, "patch": 0.2, "frame": 0.2}

_SPLITS = {"train": 0, "validation": 1}
_LEAST_SIZE = 32  # Below it, the finest patterns have fewer than two pixels a period.
_PERIODS = (0.15, 0.34)  # Of the image's side.
_MIN_CONTRAST = 0.7  # Of two RGB colours in 0..1; black to white is 1.73.


@gin.register
def make_textures(
    output: str,
    num_train: Count = 8000,
    num_val: Count = 800,
    image_size: Count = 64,
    seed: int = 0,
    num_shards: Count = 4,
) -> str:
    """Draws the set where it is not there yet; see `drawn_folders.draw_once`.

    Args:
        output: folder for the records, on a local disk.
        num_train: training images; every class has as many, but for one.
        num_val: validation images, the same.
        image_size: S, pixels a side.
        seed: int >= 0 that everything is drawn from.
        num_shards: record files of each split.

    Returns:
        `output`.

    Raises:
        ValueError: if `output` holds textures of other arguments, or one is out of range.
        FileExistsError: if `output` holds something else.
    """
    if image_size < _LEAST_SIZE or seed < 0:
        raise ValueError(
            f"make_textures: image_size = {image_size} must be at least {_LEAST_SIZE} pixels, and "
            f"seed = {seed} at least 0."
        )
    wanted = {"version": FORMAT_VERSION, "num_train": num_train, "num_val": num_val}
    wanted |= {"image_size": image_size, "seed": seed, "num_shards": num_shards}

    def write(folder):
        """Fills a new folder."""
        for split, count in (("train", num_train), ("validation", num_val)):
            _write_split(folder, split, count, image_size, seed, min(num_shards, count))
        record = json.dumps({"classes": CLASS_NAMES} | wanted, indent=1)
        files.write_whole(os.path.join(folder, PARAMETERS_FILE), record)

    return drawn_folders.draw_once(output, "textures", PARAMETERS_FILE, wanted, write)


def draw_image(seed: int, split: str, number: int, image_size: int) -> tuple[np.ndarray, int]:
    """Draws one image.

    Args:
        seed: int >= 0.
        split: "train" or "validation".
        number: int >= 0 in the split; with the two it decides everything.
        image_size: S, pixels a side.

    Returns:
        Pixels uint8 [S, S, 3], RGB, and the label, an index into `CLASS_NAMES`.
    """
    rng = np.random.default_rng([seed, _SPLITS[split], number])
    label = number % len(CLASS_NAMES)
    pattern = _draw_pattern(rng, CLASS_NAMES[label], image_size)
    first, second, *others = _pick_colours(rng)
    surface = second + pattern[..., None] * (first - second)
    share = _part_covered(rng, image_size)[..., None]
    rest = others[0] + _ramp(rng, image_size)[..., None] * (others[1] - others[0])
    pixels = share * surface + (1 - share) * rest
    # Light falls from one side, and a camera has noise.
    pixels *= 1 + rng.uniform(0, 0.4) * (_ramp(rng, image_size)[..., None] - 0.5)
    pixels += rng.normal(0, rng.uniform(0.005, 0.03), pixels.shape)
    return np.clip(pixels * 255 + 0.5, 0, 255).astype(np.uint8), label


def _draw_pattern(rng, name, size):
    """Returns float [S, S] in 0..1, the pattern in a scale, rotation and place of its own."""
    at = (np.arange(size, dtype=np.float32) + 0.5) / size - 0.5
    x, y = np.meshgrid(at - rng.uniform(-0.3, 0.3), at - rng.uniform(-0.3, 0.3))
    angle, period = rng.uniform(0, 2 * math.pi), rng.uniform(*_PERIODS)
    stretch = rng.uniform(0.85, 1.18)
    turned_x = (math.cos(angle) * x + math.sin(angle) * y) * stretch / period
    turned_y = (math.cos(angle) * y - math.sin(angle) * x) / (stretch * period)
    return TEXTURES[name](turned_x, turned_y, rng)


def _pick_colours(rng):
    """Returns four colours, float [3] in 0..1; the first two can be told apart."""
    first = rng.uniform(0, 1, 3)
    draws = rng.uniform(0, 1, (20, 3))
    distances = np.linalg.norm(draws - first, axis=-1)
    good = np.flatnonzero(distances >= _MIN_CONTRAST)
    second = draws[good[0] if len(good) else np.argmax(distances)]
    return first, second, *rng.uniform(0, 1, (2, 3))


def _part_covered(rng, size):
    """Returns float [S, S] in 0..1, where the texture lies, by one of `COMPOSITIONS`."""
    composition = rng.choice(list(COMPOSITIONS), p=list(COMPOSITIONS.values()))
    at = (np.arange(size) + 0.5) / size - 0.5
    x, y = np.meshgrid(at, at)
    if composition == "whole":
        return np.ones((size, size))
    if composition == "half":
        angle = rng.uniform(0, 2 * math.pi)
        distance = math.cos(angle) * x + math.sin(angle) * y + rng.uniform(-0.05, 0.25)
    elif composition == "frame":
        distance = rng.uniform(0.3, 0.45) - np.maximum(np.abs(x), np.abs(y))
    else:
        # An uneven round border: the first waves of its radius have random strengths.
        turn = np.arctan2(y - rng.uniform(-0.1, 0.1), x - rng.uniform(-0.1, 0.1))
        radius = rng.uniform(0.33, 0.48)
        for wave in (2, 3, 5):
            radius = radius + rng.uniform(0, 0.04) * np.sin(wave * turn + rng.uniform(0, 6.3))
        distance = radius - np.hypot(x, y)
    return np.clip(0.5 + distance * size, 0, 1)  # The border is one pixel wide.


def _ramp(rng, size):
    """Returns float [S, S] that rises from 0 to 1 in a random direction."""
    at, angle = np.linspace(-0.5, 0.5, size), rng.uniform(0, 2 * math.pi)
    return 0.5 + (math.cos(angle) * at + math.sin(angle) * at[:, None]) / math.sqrt(2)


def _write_split(folder, split, count, size, seed, num_shards):
    for shard in range(num_shards):
        numbers = range(shard * count // num_shards, (shard + 1) * count // num_shards)
        examples = (_example(seed, split, number, size) for number in numbers)
        path = os.path.join(folder, f"{split}-{shard:05d}-of-{num_shards:05d}")
        tfrecord_files.write_shard(path, examples)


def _example(seed, split, number, size):
    """Returns the serialized example of an image; labels count from 1, as those of ImageNet do."""
    pixels, label = draw_image(seed, split, number, size)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95, subsampling=0)
    feature = {
        "image/encoded": tf.train.Feature(bytes_list=tf.train.BytesList(value=[buffer.getvalue()])),
        "image/class/label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label + 1])),
    }
    return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()
