"""Subsets of a data set, chosen from the image ids alone."""

import hashlib
from collections import Counter
from collections.abc import Iterable

import numpy as np

# What manifests call the rule of `select_image_ids`.
RULE = "first by BLAKE2b (8 bytes) of the image id's decimal digits"


def select_image_ids(image_ids: Iterable[int], num_images: int) -> list[int]:
    """Chooses images by the rank of a hash of their ids.

    The ids are ranked by BLAKE2b (8 bytes) of their decimal digits, and the first `num_images`
    are taken. So the choice is the same on every machine and in any order of the ids, a smaller
    subset lies inside a larger one, and no file has to be kept to repeat it.

    Args:
        image_ids: distinct integers.
        num_images: how many to take, at least 1.

    Returns:
        The chosen ids in ascending order.

    Raises:
        ValueError: if an id comes twice, or there are fewer ids than asked for.
    """
    ids = [int(image_id) for image_id in image_ids]
    if len(set(ids)) != len(ids):
        twice = next(image_id for image_id, count in Counter(ids).items() if count > 1)
        raise ValueError(f"image id {twice} comes twice; a subset needs distinct ids")
    if num_images < 1:
        raise ValueError(f"num_images is {num_images}; a subset has at least one image")
    if num_images > len(ids):
        raise ValueError(
            f"a subset of {num_images} images was asked for, the data set has {len(ids)}; "
            "ask for fewer"
        )
    return sorted(sorted(ids, key=_rank)[:num_images])


def hash_shares(image_ids: Iterable[int]) -> np.ndarray:
    """Places images evenly in 0..1 by the hash of `select_image_ids`, each by its own id alone.

    To hold out the images below a share divides a data set in the same way on every machine, and an
    image stays on its side when others are added.

    Returns:
        float64 [N], in the order of the ids.
    """
    ranks = [int.from_bytes(_rank(int(image_id)), "big") for image_id in image_ids]
    return np.array(ranks, np.float64) / 2.0**64


def _rank(image_id: int) -> bytes:
    return hashlib.blake2b(str(image_id).encode(), digest_size=8).digest()


def choose_images(index, num_images, who):
    """Returns the records of `num_images` images of an index.

    Args:
        index: `store.RecordIndex`.
        num_images: int.
        who: str, the setting that asks for them, and of what, for the error.

    Raises:
        ValueError: if there are not as many.
    """
    try:
        chosen = select_image_ids(index.image_id, num_images)
    except ValueError as error:
        raise ValueError(f"{who}: {error}") from error
    return index.select(np.isin(index.image_id, chosen))


def keep_some(index, kept, needed, setting):
    """Returns the records of an index that are kept, at least one.

    Args:
        index: `store.RecordIndex` of N records.
        kept: bool [N].
        needed: str, what they have.
        setting: str, of `Pipeline`, that keeps those, with its verb.

    Raises:
        ValueError: if none is kept.
    """
    if not kept.any():
        raise ValueError(
            f"{index.directory}: no image has {needed}, and Pipeline.{setting} only those"
        )
    return index.select(kept)
