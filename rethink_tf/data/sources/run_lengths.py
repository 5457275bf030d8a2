"""COCO's run lengths, read and checked in Python. Nothing here needs TensorFlow."""


def read_counts(segmentation: dict) -> list[int]:
    """Returns the run lengths of an uncompressed or a compressed RLE.

    Args:
        segmentation: COCO's form, with "size" and "counts".

    Returns:
        Pixels of each run, down the columns; the first run is of zeros.

    Raises:
        ValueError: saying what is wrong, if they are none or do not fill "size".
    """
    counts = segmentation["counts"]
    if isinstance(counts, str):
        counts = _decompress(counts)
    if not isinstance(counts, list) or not all(type(c) is int and c >= 0 for c in counts):
        raise ValueError("RLE counts are not integers >= 0")
    size = segmentation["size"]
    if not (isinstance(size, list) and len(size) == 2 and all(type(n) is int for n in size)):
        raise ValueError(f"RLE size is {size!r}, not [height, width]")
    if sum(counts) != size[0] * size[1]:
        raise ValueError(f"RLE counts add up to {sum(counts)}, not to {size[0]} x {size[1]}")
    return counts


def _decompress(text: str) -> list[int]:
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
            raise ValueError(f"RLE counts hold the character {character!r} where none can be")
        value |= (code & 0x1F) << shift
        shift += 5
        more = bool(code & 0x20)
        if not more:
            if code & 0x10:
                value -= 1 << shift
            counts.append(value + counts[-2] if len(counts) > 2 else value)
            value = shift = 0
    if more:
        raise ValueError("RLE counts end within a number")
    return counts
