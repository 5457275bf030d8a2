"""Records of drawn images for the tests of the input pipeline."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

from rethink_tf.data import schema
from rethink_tf.data.records import store, tfrecord_files

# Of `Pipeline`, for records as small as these.
BUCKETS = ((32, 48), (48, 32))
SETTINGS = {
    "min_side": 30,
    "max_side": 45,
    "buckets": BUCKETS,
    "mask_size": 8,
    "max_objects": 3,
    "parallel_records": 2,
}


def png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def pixels(image_id, height, width):
    coarse = np.random.default_rng(image_id).integers(0, 256, [4, 5, 3], np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def l_shape(size, box):
    """A mask: the left and the lower half of a box."""
    y1, x1, y2, x2 = box
    mask = np.zeros(size, np.uint8)
    mask[y1:y2, x1 : (x1 + x2) // 2] = 1
    mask[(y1 + y2) // 2 : y2, x1:x2] = 1
    return mask


def ellipse(size, box):
    """A mask: the filled ellipse in a box."""
    y1, x1, y2, x2 = box
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    inside = ((2 * y - y1 - y2) / (y2 - y1)) ** 2 + ((2 * x - x1 - x2) / (x2 - x1)) ** 2
    return (inside <= 1).astype(np.uint8)


def example(
    image_id,
    size,
    boxes=(),
    labels=None,
    crowd=None,
    with_masks=True,
    difficult=None,
    shape=l_shape,
    has_mask=None,
):
    """A record; `shape` draws the mask of an object in its box, if it has one."""
    height, width = size
    drawn = [True] * len(boxes) if has_mask is None else has_mask
    masks = [png(shape(size, b) * np.uint8(d)) for b, d in zip(boxes, drawn, strict=True)]
    return store.encode_example(
        image_id=image_id,
        filename=f"{image_id}.png",
        encoded=png(pixels(image_id, height, width)),
        image_format="png",
        height=height,
        width=width,
        boxes=boxes,
        labels=[3] * len(boxes) if labels is None else labels,
        names=["any"] * len(boxes),
        is_crowd=[0] * len(boxes) if crowd is None else crowd,
        areas=[float((y2 - y1) * (x2 - x1)) for y1, x1, y2, x2 in boxes],
        masks=masks if with_masks else None,
        has_mask=has_mask,
        difficult=difficult,
    )


def write(directory, examples):
    """Writes a shard without an index, as Model Garden's tools leave it."""
    directory.mkdir(exist_ok=True)
    tfrecord_files.write_shard(str(directory / "records-00000-of-00001.tfrecord"), examples)
    return str(directory)


def assert_same_batches(batches, others):
    for batch, other in zip(batches, others, strict=True):
        for key, value in batch.items():
            np.testing.assert_array_equal(value, other[key], err_msg=key)


def by_image(batches):
    """{image id: its row of each key} of many batches."""
    found = {}
    for batch in batches:
        batch = {key: value.numpy() for key, value in batch.items() if key != schema.PADDING}
        for row, image_id in enumerate(batch["image_id"]):
            found[int(image_id)] = {key: value[row] for key, value in batch.items()}
    return found


def png_bomb(side):
    """Returns a PNG of some hundred kilobytes whose pixels take 3 * side ** 2 bytes."""

    def chunk(name, data):
        body = name + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    packer, rows = zlib.compressobj(9), bytes(1 + 3 * side) * 100
    data = b"".join([packer.compress(rows) for _ in range(side // 100)]) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    signature = b"\x89PNG\r\n\x1a\n"
    return signature + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
