"""The images and videos that a folder, a pattern or a path names, and how one image is read."""

import glob
import io
import os

import numpy as np
from PIL import Image

from rethink_tf.data.input import decode
from rethink_tf.data.sources import image_files
from rethink_tf.data.sources.image_files import UnusableError

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm")
VIDEO_ENDINGS = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")


def find(source):
    """Returns the files that are meant, and the folder that their names are relative to.

    Args:
        source: str, a file, a folder (with all images and videos below it) or a pattern, whose **
            stands for any folders.

    Returns:
        Sorted list of paths, and the folder.

    Raises:
        ValueError: if there is none.
    """
    if os.path.isdir(source):
        found = [
            os.path.join(folder, name)
            for folder, _, names in os.walk(source)
            for name in names
            if name.lower().endswith(IMAGE_ENDINGS + VIDEO_ENDINGS)
        ]
        root = source
    else:
        found = glob.glob(source, recursive=True) if not os.path.exists(source) else [source]
        found = [path for path in found if os.path.isfile(path)]
        folders = {os.path.dirname(path) or "." for path in found}
        root = os.path.commonpath(folders) if folders else "."
    if not found:
        raise ValueError(
            f"--input={source} names no file: give a folder of images ({', '.join(IMAGE_ENDINGS)}) "
            "or videos, a file, or a pattern in quotes such as 'photos/**/*.jpg'."
        )
    return sorted(found), root


def is_video(path):
    """Whether a file is a video, by its name."""
    return path.lower().endswith(VIDEO_ENDINGS)


def read(path, options, max_pixels):
    """Reads an image as the converters of data sets do.

    Args:
        path: str.
        options: `image_files.Options`.
        max_pixels: int, of the largest image that is read.

    Returns:
        uint8 [H, W, 3], RGB, as its EXIF orientation shows it where the options say so.

    Raises:
        UnusableError: (reason, detail), if it cannot be read or is larger.
    """
    content = image_files.read_bytes(path)
    try:
        with Image.open(io.BytesIO(content)) as opened:
            stored = opened.height, opened.width
            turns = image_files.turns_sideways(opened) and options.exif == image_files.APPLY
    except Exception as error:  # Pillow raises many types
        detail = f"{type(error).__name__}: {error}".partition("<")[0].strip(" '")
        raise UnusableError("image_unreadable", detail) from error
    if stored[0] * stored[1] > max_pixels:
        raise UnusableError(
            "image_huge",
            f"{stored[0]} x {stored[1]} pixels, more than --max_pixels={max_pixels}",
        )
    height, width = stored[::-1] if turns else stored
    loaded = image_files.load_image(path, {"height": height, "width": width}, options)
    try:
        return decode.decode_pixels(loaded.encoded).numpy()
    except Exception as error:  # of TensorFlow, on bytes that Pillow reads
        del error
        with Image.open(io.BytesIO(loaded.encoded)) as opened:
            return np.asarray(opened.convert("RGB"))
