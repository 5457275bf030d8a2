"""TFRecord files: frames read with plain file reads, files written whole or not at all.

A frame is: uint64 length, uint32 masked CRC-32C of the length, payload, uint32 masked CRC-32C of
the payload, all little-endian. Every path may be one of `tf.io.gfile` (gs:// and so on).
"""

import os
import struct
import uuid
from collections.abc import Iterable, Iterator

import tensorflow as tf

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
    path = os.fspath(path)
    offsets, lengths, position = [], [], 0
    temporary = _temporary_name(path)
    try:
        with tf.io.TFRecordWriter(temporary) as writer:
            for example in examples:
                writer.write(example)
                offsets.append(position)
                lengths.append(len(example))
                position += len(example) + FRAME_OVERHEAD_BYTES
        _publish(temporary, path)
    except BaseException:
        remove_if_there(temporary)
        raise
    return offsets, lengths


def write_file(path: str, content: bytes | str) -> None:
    """Writes a small file whole or not at all; `tf.io.gfile` paths work."""
    path = os.fspath(path)
    temporary = _temporary_name(path)
    try:
        with tf.io.gfile.GFile(temporary, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
        _publish(temporary, path)
    except BaseException:
        remove_if_there(temporary)
        raise


def read_frames(path: str) -> Iterator[tuple[int, bytes]]:
    """Yields (offset of the frame, payload) of every record of a TFRecord file.

    The CRC of each length is checked; that of the payload is not (plain Python is too slow).

    Raises:
        ValueError: if the file is truncated or not a TFRecord file, naming file and byte.
    """
    size = tf.io.gfile.stat(path).length
    with tf.io.gfile.GFile(path, "rb") as file:
        position = 0
        while position < size:
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
            payload = file.read(length)
            file.read(4)
            yield position, payload
            position += length + FRAME_OVERHEAD_BYTES


def masked_crc32c(data: bytes) -> int:
    """TFRecord's checksum in plain Python, for a few bytes (about 5 MB/s)."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _CRC32C_TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def _crc32c_table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


_CRC32C_TABLE = _crc32c_table()


def _temporary_name(path: str) -> str:
    """A name in the same folder that no pattern for finished files matches."""
    folder, name = os.path.split(path)
    return os.path.join(folder, f".{name}.{uuid.uuid4().hex[:8]}.tmp")


def _publish(temporary: str, path: str) -> None:
    """Renames a finished temporary file; on a local disk its bytes are on the disk before."""
    if "://" in path:
        tf.io.gfile.rename(temporary, path, overwrite=True)
        return
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)


def remove_if_there(path: str) -> None:
    if tf.io.gfile.exists(path):
        tf.io.gfile.remove(path)
