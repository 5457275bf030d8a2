"""TFRecord files: frames read with plain file reads, files written whole or not at all.

A frame is: uint64 length, uint32 masked CRC-32C of the length, payload, uint32 masked CRC-32C of
the payload, all little-endian. Every path may be one of `tf.io.gfile` (gs:// and so on).
"""

import struct
from collections.abc import Iterable, Iterator

import google_crc32c
import tensorflow as tf

from rethink_tf import files

FRAME_HEADER_BYTES = 12  # uint64 length + uint32 CRC of the length
FRAME_OVERHEAD_BYTES = 16  # the header + uint32 CRC of the payload


def write_shard(path: str, examples: Iterable[bytes]) -> tuple[list[int], list[int]]:
    """Writes one TFRecord file whole or not at all.

    The records go to a temporary name in the same folder, which is renamed when all of them are
    on the disk. An error (also one that `examples` raises) removes the temporary file.

    Args:
        path: the shard's final path; `tf.io.gfile` paths work.
        examples: serialized examples.

    Returns:
        (offsets, lengths): bytes, one each a record, as in `RecordIndex`.
    """
    offsets, lengths, position = [], [], 0
    with files.replacing(path) as temporary, tf.io.TFRecordWriter(temporary) as writer:
        for example in examples:
            writer.write(example)
            offsets.append(position)
            lengths.append(len(example))
            position += len(example) + FRAME_OVERHEAD_BYTES
    return offsets, lengths


def read_frames(path: str) -> Iterator[tuple[int, bytes]]:
    """Yields (offset of the frame, payload) of every record of a TFRecord file.

    The CRC of each length is checked; that of the payload is when it is decoded (`reading`).

    Raises:
        ValueError: if the file is truncated or not a TFRecord file, naming file and byte.
    """
    with tf.io.gfile.GFile(path, "rb") as file:
        for position, length in _frames(file, path):
            yield position, file.read(length)


def list_frames(path: str) -> Iterator[tuple[int, int]]:
    """Yields (offset of the frame, length of the payload) of every record, without its payload.

    Raises:
        ValueError: as of `read_frames`.
    """
    # A local file is not read in between: TensorFlow's is slower to seek.
    opened = tf.io.gfile.GFile(path, "rb") if files.is_remote(path) else open(path, "rb")
    with opened as file:
        yield from _frames(file, path)


def _frames(file, path):
    """Yields (offset, length of the payload), the file at the start of the payload."""
    size, position = tf.io.gfile.stat(path).length, 0
    while position < size:
        file.seek(position)
        header = file.read(FRAME_HEADER_BYTES)
        if len(header) < FRAME_HEADER_BYTES:
            raise ValueError(f"{path} is truncated in a header at byte {position}")
        length, checksum = struct.unpack("<QI", header)
        if checksum != masked_crc32c(header[:8]):
            raise ValueError(
                f"{path} is not an uncompressed TFRecord file or is damaged: the checksum of "
                f"the length at byte {position} does not match"
            )
        if position + length + FRAME_OVERHEAD_BYTES > size:
            raise ValueError(
                f"{path} is truncated: the record at byte {position} needs "
                f"{length + FRAME_OVERHEAD_BYTES} bytes, the file ends after {size - position}"
            )
        yield position, length
        position += length + FRAME_OVERHEAD_BYTES


def masked_crc32c(data: bytes) -> int:
    """TFRecord's checksum: CRC-32C, rotated and shifted by a constant."""
    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF
