"""Decodes every image with the decoder of training before it is written.

Pillow and TensorFlow do not read the same damaged files. An image that Pillow reads and TensorFlow
does not, such as a JPEG without its end marker, is stored as PNG of what Pillow read.
"""

import collections
import concurrent.futures
import os
from collections.abc import Iterator

import tensorflow as tf

from rethink_tf.data.input import decode
from rethink_tf.data.sources import coco_images, image_files

_AHEAD = 2  # images a thread, decoded before they are asked for


def check_all(
    prepared: Iterator[coco_images.PreparedImage],
) -> Iterator[coco_images.PreparedImage]:
    """Yields prepared images in their order; those that did not decode were encoded again."""
    count = os.cpu_count() or 1
    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        pending: collections.deque = collections.deque()
        for item in prepared:
            pending.append(pool.submit(_check, item))
            if len(pending) >= _AHEAD * count:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _check(item):
    if item.loaded is None:
        return item
    try:
        decode.decode_pixels(item.loaded.encoded)
    except tf.errors.InvalidArgumentError:
        item.loaded.encoded = image_files.encode_again(item.loaded.encoded)
        item.loaded.image_format = "png"
        name = coco_images.name_image(item.image)
        entry = f"{name}: TensorFlow does not decode it, Pillow does; stored as PNG"
        item.notes.append(("image_encoded_again", entry, True))
    return item
