"""Near-duplicate images: between splits they make the AP too good, within one they are wasted.

Two images are near-duplicates where the signs of their brightness's differences agree (a difference
hash) and their small grey copies correlate: so are copies of another size, quality or brightness,
and mirrored ones. Crops and turned copies are not found.

Letters: N images, D bits of a hash.
"""

import dataclasses
import io

import numpy as np
import tensorflow as tf
from PIL import Image

from rethink_tf.data.records import tfrecord_files

_HASH_SIDE = 9  # pixels; 8 x 8 signs along x and as many along y
_THUMB_SIDE = 32
# Most bits by which hashes of near-duplicates differ, of 128, and least correlation.
MAX_BITS, MIN_CORRELATION = 22, 0.96
_BLOCK = 2048  # hashes that are compared at once


@dataclasses.dataclass(frozen=True, eq=False)
class Prints:
    """What is kept of N images to compare them.

    Attributes:
        bits: float32 [N, D], the signs, 1 or -1.
        mirrored: float32 [N, D], those of the mirrored images.
        thumbs: float32 [N, 32 * 32], grey, of mean 0 and length 1; 0 for an image of one grey.
    """

    bits: np.ndarray
    mirrored: np.ndarray
    thumbs: np.ndarray


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two near-duplicates.

    Attributes:
        first: int, of the images.
        second: int > first.
        is_mirrored: bool, whether one is the other mirrored.
        correlation: float, of their grey copies.
    """

    first: int
    second: int
    is_mirrored: bool
    correlation: float


def read_record_image(index, row):
    """Reads the image of a record.

    Args:
        index: `store.RecordIndex`.
        row: int.

    Returns:
        `PIL.Image.Image`, not decoded yet.

    Raises:
        ValueError: if the record does not hold an image that can be read.
    """
    path = index.paths[index.shard[row]]
    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            file.seek(int(index.offset[row]) + tfrecord_files.FRAME_HEADER_BYTES)
            example = tf.train.Example.FromString(file.read(int(index.length[row])))
        (encoded,) = example.features.feature["image/encoded"].bytes_list.value
        return Image.open(io.BytesIO(encoded))
    except Exception as error:  # what damage raises differs between the libraries' releases
        raise ValueError(f"{path} at byte {index.offset[row]}: no image ({error})") from error


def make_prints(images):
    """Returns the `Prints` of images.

    Args:
        images: iterable of `PIL.Image.Image`.

    Raises:
        OSError: if an image does not decode.
    """
    greys = []
    for image in images:
        image.draft("L", (2 * _THUMB_SIDE, 2 * _THUMB_SIDE))  # a JPEG is decoded as small as serves
        grey = image.convert("L").resize([2 * _THUMB_SIDE] * 2, Image.Resampling.BOX)
        greys.append(grey)
    arrays = np.array([np.asarray(each.resize([_THUMB_SIDE] * 2, Image.Resampling.BOX), np.float32)
                       for each in greys]).reshape(len(greys), -1)  # fmt: skip
    arrays -= arrays.mean(1, keepdims=True)
    length = np.linalg.norm(arrays, axis=1, keepdims=True)
    return Prints(
        _signs(greys),
        _signs([each.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for each in greys]),
        arrays / np.maximum(length, 1e-6),
    )


def join(prints):
    """Joins `Prints` to those of all their images.

    Args:
        prints: list of `Prints`, not empty.
    """
    names = [field.name for field in dataclasses.fields(Prints)]
    return Prints(*(np.concatenate([getattr(each, name) for each in prints]) for name in names))


def _signs(greys):
    side = _HASH_SIDE
    small = np.array(
        [np.asarray(each.resize([side, side], Image.Resampling.BOX), np.int16) for each in greys]
    ).reshape(-1, side, side)
    along_x = small[:, :-1, 1:] > small[:, :-1, :-1]
    along_y = small[:, 1:, :-1] > small[:, :-1, :-1]
    signs = np.stack([along_x, along_y], 1).reshape(len(small), 2 * (side - 1) ** 2)
    return np.where(signs, 1, -1).astype(np.float32)


def find_pairs(prints):
    """Finds near-duplicates among images.

    Args:
        prints: `Prints` of N images. Time grows with N * N, memory does not: 100,000 images take
            some minutes on two cores.

    Returns:
        list of `Pair`, by first and second.
    """
    found, total = {}, prints.bits.shape[1] if len(prints.bits) else 0
    for is_mirrored, bits in ((False, prints.bits), (True, prints.mirrored)):
        for start in range(0, len(bits), _BLOCK):
            for other in range(start, len(bits), _BLOCK):
                dots = prints.bits[start : start + _BLOCK] @ bits[other : other + _BLOCK].T
                for row, column in np.argwhere(dots >= total - 2 * MAX_BITS):
                    first, second = start + int(row), other + int(column)
                    if first >= second:
                        continue
                    value = _correlation(prints.thumbs, first, second, is_mirrored)
                    known = found.get((first, second))
                    if value >= MIN_CORRELATION and (not known or value > known.correlation):
                        found[first, second] = Pair(first, second, is_mirrored, value)
    return [found[key] for key in sorted(found)]


def _correlation(thumbs, first, second, is_mirrored):
    other = thumbs[second].reshape(_THUMB_SIDE, _THUMB_SIDE)
    return float(thumbs[first] @ (other[:, ::-1] if is_mirrored else other).ravel())
