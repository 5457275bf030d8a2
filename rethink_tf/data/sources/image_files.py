"""Reads image files for the converters: sizes, orientation, 16 bits, and what TensorFlow decodes.

Imports no TensorFlow (unless images lie on gs:// or the like, or a colour PNG has 16 bits), so that
worker processes start in a fraction of a second.

A photograph that its EXIF orientation turns is encoded again, as JPEG of quality 95 with full
colour resolution. On photographs of COCO that changes a value by 1.0 level in the mean and 14 at
most (45.6 dB) and takes 1.06 times the bytes; PNG would lose nothing and take 3.0 times the bytes.
"""

import dataclasses
import io

import numpy as np
from PIL import Image

APPLY, IGNORE = "apply", "ignore"
EXIF_OPTIONS = (APPLY, IGNORE)
FULL, RANGE = "full", "range"
SIXTEEN_BIT_OPTIONS = (FULL, RANGE)

# tf.io.decode_jpeg and decode_png give three channels of these as they are stored.
_KEPT_FORMATS = {"JPEG": "jpeg", "MPO": "jpeg", "PNG": "png"}
_READABLE_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"}
_ORIENTATION_TAG = 0x0112
_BITS_PER_SAMPLE_TAG = 258  # of TIFF
# What each orientation asks for, as Pillow's `exif_transpose` does it, and what undoes that.
_TURN = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_UNDO = _TURN | {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}


class UnusableError(Exception):
    """Carries the (reason, detail) for leaving an entry out."""


@dataclasses.dataclass(frozen=True)
class Options:
    """How image files are read.

    Attributes:
        exif: "apply" for images annotated as they are shown, "ignore" for pixels as stored.
        sixteen_bit: how 16-bit values become 8-bit ones: "full" divides by 257, "range" maps each
            image's own lowest and highest value to 0 and 255; None refuses such images.
    """

    exif: str = APPLY
    sixteen_bit: str | None = None

    def __post_init__(self):
        if self.exif not in EXIF_OPTIONS:
            raise ValueError(f"exif is {self.exif!r}; give one of {', '.join(EXIF_OPTIONS)}")
        if self.sixteen_bit not in (None, *SIXTEEN_BIT_OPTIONS):
            raise ValueError(
                f"sixteen_bit is {self.sixteen_bit!r}; give one of {', '.join(SIXTEEN_BIT_OPTIONS)}"
            )


@dataclasses.dataclass
class LoadedImage:
    """An image as records hold it.

    Attributes:
        encoded: bytes that TensorFlow decodes to three channels.
        image_format: "jpeg" or "png".
        orientation: EXIF's, 2 to 8, where the file has one that changes something, else 1.
        value_range: (lowest, highest) 16-bit value of an image that was scaled, else None.
    """

    encoded: bytes
    image_format: str
    orientation: int = 1
    value_range: tuple[int, int] | None = None


def load_image(path: str, image: dict, options: Options) -> LoadedImage:
    """Reads and checks an image file.

    Args:
        path: the file; paths of `tf.io.gfile` work.
        image: checked entry of "images", whose height and width it must have.
        options: `Options`.

    Raises:
        UnusableError: (reason, detail), if the image cannot be used.
    """
    content = read_bytes(path)
    stated = (image["height"], image["width"])
    try:
        with Image.open(io.BytesIO(content)) as opened:
            # By the header: the pixels of a file that hides its size may fill the memory, and
            # Pillow decodes those of a PNG to tell its orientation.
            if stated not in (opened.size, opened.size[::-1]):
                raise UnusableError("image_wrong_size", _size_detail(opened, 1, stated))
            orientation = _orientation(opened)
            opened.load()  # finds truncated files
            stored, upright = _stored_and_upright(opened, orientation)
            wanted = upright if options.exif == APPLY else stored
            if (wanted.height, wanted.width) != stated:
                raise UnusableError("image_wrong_size", _size_detail(stored, orientation, stated))
            file_format, mode = opened.format, opened.mode
            if _has_sixteen_bits(opened, content):
                return _scale(wanted, content, file_format, orientation, options)
            kept = _KEPT_FORMATS.get(file_format)
            if wanted is stored and (kept == "png" or (kept == "jpeg" and mode in ("L", "RGB"))):
                return LoadedImage(content, kept, orientation)
            if mode not in _READABLE_MODES:
                raise UnusableError("image_unreadable", f"{file_format} of mode {mode}")
            return LoadedImage(_encode(wanted, kept), kept or "png", orientation)
    except UnusableError:
        raise
    except Exception as error:  # Pillow raises many types on damaged files
        detail = f"{type(error).__name__}: {error}".replace(repr(path), "")
        raise UnusableError("image_unreadable", detail) from error


def read_size(path: str, options: Options) -> tuple[int, int]:
    """Returns height and width of an image file, pixels, as `options.exif` has it turned.

    Raises:
        UnusableError: (reason, detail), if it is none.
    """
    content = read_bytes(path)
    try:
        with Image.open(io.BytesIO(content)) as opened:
            stored, upright = _stored_and_upright(opened, _orientation(opened))
            wanted = upright if options.exif == APPLY else stored
            return wanted.height, wanted.width
    except Exception as error:
        raise UnusableError("image_unreadable", f"{type(error).__name__}: {error}") from error


def encode_again(encoded: bytes) -> bytes:
    """PNG of the pixels that Pillow reads, for an image that TensorFlow does not decode."""
    with Image.open(io.BytesIO(encoded)) as opened:
        return _encode(opened, None)


def read_bytes(path: str) -> bytes:
    """Reads a file.

    Raises:
        UnusableError: (reason, detail), if it is missing or cannot be read.
    """
    try:
        if "://" in path:
            import tensorflow as tf  # only here: its import takes seconds in every process

            with tf.io.gfile.GFile(path, "rb") as file:
                return file.read()
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        raise UnusableError("image_missing", "there is no such file") from None
    except Exception as error:
        if type(error).__name__ == "NotFoundError":  # tf.errors, of gs://
            raise UnusableError("image_missing", "there is no such file") from None
        raise UnusableError("image_unreadable", f"{type(error).__name__}: {error}") from error


def _orientation(opened):
    """EXIF's orientation of an opened image, before its pixels are loaded; 1 for none."""
    try:
        found = opened.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # a damaged EXIF block: the pixels may be good
        return 1
    return found if found in _TURN else 1


def turns_sideways(opened):
    """Whether EXIF's orientation of an opened image exchanges height and width."""
    return _orientation(opened) > 4


def _stored_and_upright(opened, orientation):
    """The image as stored and as EXIF turns it; the same object where it does not."""
    if orientation == 1:
        return opened, opened
    # Pillow turns a TIFF itself, and then takes the orientation away.
    if opened.format == "TIFF" and _orientation(opened) == 1:
        return opened.transpose(_UNDO[orientation]), opened
    return opened, opened.transpose(_TURN[orientation])


def _size_detail(stored, orientation, stated):
    detail = f"height x width is {stored.height} x {stored.width}"
    if orientation != 1:
        upright = (
            (stored.width, stored.height) if orientation > 4 else (stored.height, stored.width)
        )
        detail += (
            f" as stored and {upright[0]} x {upright[1]} as its EXIF orientation {orientation} "
            "turns it"
        )
    detail += f", stated {stated[0]} x {stated[1]}"
    if orientation > 4 and stated in ((stored.height, stored.width), (stored.width, stored.height)):
        is_stored = stated == (stored.height, stored.width)
        option, frame = (IGNORE, "as stored") if is_stored else (APPLY, "as it is shown")
        detail += f"; if the data set is annotated in the pixels {frame}, give --exif={option}"
    return detail


def _has_sixteen_bits(opened, content):
    if opened.format == "PNG":
        return content[24] == 16  # the bit depth in IHDR, always the first chunk
    if opened.format == "TIFF" and not opened.mode.startswith("I;16"):
        bits = opened.tag_v2.get(_BITS_PER_SAMPLE_TAG, ())
        if opened.mode in _READABLE_MODES and max(np.atleast_1d(bits), default=8) > 8:
            raise UnusableError(
                "image_unreadable",
                "a colour TIFF of more than 8 bits a channel; convert it to 8 bits, or to PNG",
            )
    return opened.mode.startswith("I;16")


def _scale(wanted, content, file_format, orientation, options):
    """Brings 16-bit values to 8 bits, or refuses them with their range named."""
    turn = None
    if wanted.mode.startswith("I;16"):
        values = np.asarray(wanted).astype(np.int64)
    else:
        # Pillow keeps the upper 8 bits of colour alone.
        import tensorflow as tf  # only here, as above

        values = tf.io.decode_png(content, dtype=tf.uint16).numpy().astype(np.int64)
        values = values[..., :3] if values.shape[-1] > 2 else values[..., 0]  # without alpha
        turn = _TURN.get(orientation) if options.exif == APPLY else None
    low, high = int(values.min()), int(values.max())
    if options.sixteen_bit is None:
        raise UnusableError(
            "image_sixteen_bit",
            f"{file_format} of 16 bits with values from {low} to {high} of 65535, of which only "
            "the upper 8 bits would be seen; give --sixteen_bit=full (65535 becomes 255) or "
            "--sixteen_bit=range (each image's lowest and highest value become 0 and 255)",
        )
    if options.sixteen_bit == FULL:
        scaled = (values + 128) // 257
    else:
        scaled = ((values - low) * 510 + (high - low)) // max(2 * (high - low), 1)
    image = Image.fromarray(scaled.astype(np.uint8))
    encoded = _encode(image if turn is None else image.transpose(turn), None)
    return LoadedImage(encoded, "png", orientation, (low, high))


def _encode(image, kept):
    """JPEG for what was one, else PNG; of three channels, or one of grey."""
    buffer = io.BytesIO()
    converted = image if image.mode in ("L", "RGB") else image.convert("RGB")
    if kept == "jpeg":
        converted.save(buffer, "JPEG", quality=95, subsampling=0)
    else:
        converted.save(buffer, "PNG")
    return buffer.getvalue()
