"""The work of one converter process: reads one image, checks it, and draws its masks as PNG.

Imports no TensorFlow (unless images lie on gs:// or the like), so that worker processes start in a
fraction of a second; only the process that writes the shards needs it.
"""

import dataclasses
import io
import os

import numpy as np
from PIL import Image
from pycocotools import mask as mask_api

from rethink_tf.data.coco_checks import is_finite_number, name_image

# tf.io.decode_jpeg and decode_png give three channels of these as they are stored.
_KEPT_FORMATS = {"JPEG": "jpeg", "MPO": "jpeg", "PNG": "png"}
_READABLE_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"}


@dataclasses.dataclass
class PreparedImage:
    """One image ready to be written, or the reasons why it is not.

    Attributes:
        image: the entry of the COCO file.
        annotations: those kept, in the order of the file; all have an "area".
        skipped: (reason, entry) of what was left out.
        encoded: JPEG or PNG bytes; None if the image is left out.
        image_format: "jpeg" or "png".
        masks: one PNG [height, width] of 0 and 1 for each annotation; None without masks.
    """

    image: dict
    annotations: list[dict]
    skipped: list[tuple[str, str]]
    encoded: bytes | None = None
    image_format: str = ""
    masks: list[bytes] | None = None


class _UnusableError(Exception):
    """Carries the (reason, detail) for leaving an entry out."""


def prepare_image(folder: str, image: dict, annotations: list[dict], has_masks: bool):
    """Reads and checks an image and draws the masks of its objects.

    Args:
        folder: where the images lie.
        image: a checked entry of "images".
        annotations: its checked entries of "annotations".
        has_masks: whether to draw masks.

    Returns:
        A `PreparedImage`. It never raises for bad input: the caller decides what a bad entry means.
    """
    name = name_image(image)
    try:
        encoded, image_format = _load_image(os.path.join(folder, image["file_name"]), image)
    except _UnusableError as error:
        skipped = [(error.args[0], f"{name}: {error.args[1]}")]
        for annotation in annotations:
            entry = f"annotation {annotation['id']} of {name}: its image was skipped"
            skipped.append(("annotation_of_skipped_image", entry))
        return PreparedImage(image, [], skipped)
    kept, masks, skipped = [], [], []
    for annotation in annotations:
        area = annotation["bbox"][2] * annotation["bbox"][3]
        if has_masks:
            try:
                mask = decode_segmentation(
                    annotation["segmentation"], image["height"], image["width"]
                )
                if not mask.any():
                    raise _UnusableError("segmentation_empty", "it covers no pixel")
            except _UnusableError as error:
                entry = f"annotation {annotation['id']} of {name}: {error.args[1]}"
                skipped.append((error.args[0], entry))
                continue
            area = int(mask.sum())
            masks.append(encode_png(mask))
        kept.append({"area": area} | annotation)
    return PreparedImage(image, kept, skipped, encoded, image_format, masks if has_masks else None)


def decode_segmentation(segmentation: list | dict, height: int, width: int) -> np.ndarray:
    """Draws polygons, an uncompressed or a compressed RLE.

    Args:
        segmentation: COCO's form. Polygons: [[x1, y1, x2, y2, ...], ...], pixels.
        height: pixels of the image.
        width: pixels of the image.

    Returns:
        uint8 [height, width], 0 or 1; equal to pycocotools' `annToMask`.

    Raises:
        _UnusableError: (reason, detail), if it is no segmentation of that size.
    """
    if isinstance(segmentation, list):
        _check_polygons(segmentation)
        parts = mask_api.frPyObjects(segmentation, height, width)
        return mask_api.decode(mask_api.merge(parts))
    if not isinstance(segmentation, dict) or not {"size", "counts"} <= set(segmentation):
        raise _malformed("it is neither a list of polygons nor an RLE with size and counts")
    if segmentation["size"] != [height, width]:
        raise _malformed(f"RLE size {segmentation['size']}, the image has {[height, width]}")
    counts = segmentation["counts"]
    if isinstance(counts, str):
        counts = _decompress_counts(counts)
    if not isinstance(counts, list) or not all(type(c) is int and c >= 0 for c in counts):
        raise _malformed("RLE counts are not integers >= 0")
    if sum(counts) != height * width:
        raise _malformed(f"RLE counts add up to {sum(counts)}, not to {height} x {width}")
    values = np.arange(len(counts), dtype=np.uint8) % 2
    # COCO runs down the columns, the first run is of zeros.
    return np.repeat(values, counts).reshape(width, height).T


def encode_png(image: np.ndarray) -> bytes:
    """PNG of uint8 [height, width] or [height, width, 3]."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()


def _load_image(path: str, image: dict) -> tuple[bytes, str]:
    """Returns (bytes that TensorFlow decodes to three channels, "jpeg" or "png")."""
    content = _read_bytes(path)
    try:
        with Image.open(io.BytesIO(content)) as opened:
            size = (opened.height, opened.width)
            if size != (image["height"], image["width"]):
                raise _UnusableError(
                    "image_wrong_size",
                    f"height x width is {size[0]} x {size[1]}, "
                    f"stated {image['height']} x {image['width']} (pixels as stored, before EXIF)",
                )
            opened.load()  # finds truncated files
            kept = _KEPT_FORMATS.get(opened.format)
            if kept == "png" or (kept == "jpeg" and opened.mode in ("L", "RGB")):
                return content, kept
            if opened.mode not in _READABLE_MODES:
                raise _UnusableError("image_unreadable", f"{opened.format} of mode {opened.mode}")
            rgb = opened.convert("RGB")
    except _UnusableError:
        raise
    except Exception as error:  # Pillow raises many types on damaged files
        detail = f"{type(error).__name__}: {error}".replace(repr(path), "")
        raise _UnusableError("image_unreadable", detail) from error
    buffer = io.BytesIO()
    if kept == "jpeg":  # CMYK and YCCK
        rgb.save(buffer, "JPEG", quality=95, subsampling=0)
        return buffer.getvalue(), "jpeg"
    rgb.save(buffer, "PNG")
    return buffer.getvalue(), "png"


def _read_bytes(path: str) -> bytes:
    try:
        if "://" in path:
            import tensorflow as tf  # only here: its import takes seconds in every process

            with tf.io.gfile.GFile(path, "rb") as file:
                return file.read()
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        raise _UnusableError("image_missing", "there is no such file") from None
    except Exception as error:
        if type(error).__name__ == "NotFoundError":  # tf.errors, of gs://
            raise _UnusableError("image_missing", "there is no such file") from None
        raise _UnusableError("image_unreadable", f"{type(error).__name__}: {error}") from error


def _check_polygons(polygons: list) -> None:
    # Four numbers would be taken for a box by pycocotools, an odd number read past the end.
    for polygon in polygons:
        if not isinstance(polygon, list) or not all(map(is_finite_number, polygon)):
            raise _malformed("a polygon is not a list of finite numbers")
        if len(polygon) < 6 and len(polygon) % 2 == 0:
            raise _UnusableError("segmentation_empty", f"a polygon of {len(polygon) // 2} points")
        if len(polygon) % 2:
            raise _malformed(f"a polygon of {len(polygon)} numbers, not of pairs")
        if max(map(abs, polygon)) > 1e6:
            raise _malformed("a polygon lies more than 1,000,000 pixels away")


def _decompress_counts(text: str) -> list[int]:
    """Run lengths of a compressed RLE: base 32, 48 added, each from the third on as difference.

    In Python, as pycocotools reads and writes outside its memory on a damaged string.
    Source: rleFrString in cocoapi's maskApi.c.
    """
    counts: list[int] = []
    value = shift = 0
    more = False
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64 or shift > 60:
            raise _malformed(f"RLE counts hold the character {character!r} where none can be")
        value |= (code & 0x1F) << shift
        shift += 5
        more = bool(code & 0x20)
        if not more:
            if code & 0x10:
                value -= 1 << shift
            counts.append(value + counts[-2] if len(counts) > 2 else value)
            value = shift = 0
    if more:
        raise _malformed("RLE counts end within a number")
    return counts


def _malformed(detail: str) -> _UnusableError:
    return _UnusableError("segmentation_malformed", detail)
