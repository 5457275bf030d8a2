"""Keypoints in COCO's files: what their names say, and the checks of an object's own.

COCO gives a keypoint as the indices of its pixel; positions here are continuous, so half a pixel is
added. Nothing here needs TensorFlow. Letters: N objects, K keypoints.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from rethink_tf.data.records import keypoint_sides

HALF_PIXEL = 0.5


@dataclasses.dataclass(frozen=True)
class KeypointLayout:
    """The keypoints that every object of a data set may have.

    Attributes:
        names: K names, in order.
        flip_pairs: pairs of positions in `names` that change places in a mirrored image.
    """

    names: tuple[str, ...]
    flip_pairs: tuple[tuple[int, int], ...]

    @classmethod
    def from_names(
        cls, names: Sequence[str], flip_pairs: Sequence[str] | None = None
    ) -> "KeypointLayout":
        """Pairs names that differ by their side alone; see `keypoint_sides`.

        Args:
            names: K names, different from one another.
            flip_pairs: "NAME:NAME" each, pairs that the names do not tell. None for none; given, be
                it empty, a name may state a side and have no partner.

        Raises:
            ValueError: if a name comes twice, a pair stated is none, or, without flip_pairs, a name
                with "left" or "right" in it has no partner.
        """
        if len(set(names)) < len(names):
            raise ValueError(f"keypoint names {list(names)} are not distinct")
        stated = keypoint_sides.read_pairs(flip_pairs or (), names)
        taken = {position for pair in stated for position in pair}
        rest = [position for position in range(len(names)) if position not in taken]
        found = keypoint_sides.find_pairs([names[position] for position in rest])
        pairs = sorted([*stated, *((rest[a], rest[b]) for a, b in found)])
        for name in keypoint_sides.find_one_sided(names, pairs) if flip_pairs is None else ():
            if keypoint_sides.states_side_in_words(name):
                other = keypoint_sides.mirrored_name(name)
                raise ValueError(
                    f"keypoint {name!r} has no {other!r} beside it, which it becomes in a mirrored "
                    "image; add that keypoint, name this one without its side, or state the pairs "
                    "by --flip_pairs=NAME:NAME,... (--flip_pairs= for none)"
                )
        return cls(tuple(names), tuple(pairs))

    @classmethod
    def from_manifest(cls, manifest: dict) -> "KeypointLayout | None":
        """Reads what `as_dict` left under "keypoints"; None for records without keypoints."""
        found = manifest.get("keypoints")
        if not found:
            return None
        return cls(tuple(found["names"]), tuple(tuple(pair) for pair in found["flip_pairs"]))

    def as_dict(self) -> dict:
        """The same in plain values, for the manifest."""
        return {"names": list(self.names), "flip_pairs": [list(pair) for pair in self.flip_pairs]}

    @property
    def flip_order(self) -> list[int]:
        """The keypoint that each one becomes in a mirrored image."""
        order = list(range(len(self.names)))
        for first, second in self.flip_pairs:
            order[first], order[second] = second, first
        return order


def find_layout(
    categories: Sequence[dict],
    annotations: Sequence[Any],
    flip_pairs: Sequence[str] | None = None,
) -> KeypointLayout | None:
    """Finds the keypoints of a COCO file.

    Args:
        categories: checked entries; those with keypoints list their names under "keypoints".
        annotations: entries, unchecked.
        flip_pairs: as of `KeypointLayout.from_names`.

    Returns:
        None if no category names keypoints, or no annotation has any.

    Raises:
        ValueError: if the names are none, two categories name different ones, or a pair is none.
    """
    named = [category for category in categories if category.get("keypoints")]
    if not named or not any(isinstance(a, dict) and a.get("keypoints") for a in annotations):
        return None
    first = named[0]
    for category in named:
        names = category["keypoints"]
        if not isinstance(names, list) or not all(isinstance(n, str) and n for n in names):
            raise ValueError(
                f"category {category['id']}: keypoints is {names!r}, not a list of names"
            )
        if names != first["keypoints"]:
            raise ValueError(
                f"categories {first['id']} and {category['id']} have different keypoints "
                f"({first['keypoints']} and {names}); one data set has one list of them"
            )
    return KeypointLayout.from_names(first["keypoints"], flip_pairs)


def keypoints_problem(annotation: dict, num_keypoints: int) -> str | None:
    """Says what is wrong with an annotation's keypoints, or None; having none is fine."""
    values = annotation.get("keypoints")
    if not values:
        return None
    if not isinstance(values, list) or len(values) != 3 * num_keypoints:
        length = f" of {len(values)}" if isinstance(values, list) else ""
        return (
            f"keypoints is a {type(values).__name__}{length}, "
            f"not a list of 3 x {num_keypoints} numbers"
        )
    for value in values:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return f"keypoints has {value!r}, which is not a number"
        if not math.isfinite(value) or abs(value) > 1e6:
            return f"keypoints has {value!r}, which is no place in an image"
    unknown = set(values[2::3]) - {0, 1, 2}
    return f"a keypoint's visibility is {min(unknown)}, not 0, 1 or 2" if unknown else None


def read_keypoints(annotations: Sequence[dict], num_keypoints: int | None = None) -> np.ndarray:
    """Reads the keypoints of N checked annotations.

    Args:
        annotations: N entries; one without keypoints has none labelled.
        num_keypoints: K; None for as many as they have.

    Returns:
        float64 [N, K, 3], (y, x, visibility), pixels, all zero where the visibility is.
    """
    if num_keypoints is None:
        num_keypoints = max((len(a.get("keypoints") or ()) for a in annotations), default=0) // 3
    none = [0] * 3 * num_keypoints
    values = [annotation.get("keypoints") or none for annotation in annotations]
    flat = np.reshape(np.float64(values), [len(annotations), num_keypoints, 3])
    x, y, visibility = np.moveaxis(flat, -1, 0)
    keypoints = np.stack([y + HALF_PIXEL, x + HALF_PIXEL, visibility], -1)
    return np.where(visibility[..., np.newaxis] > 0, keypoints, 0)


def count_labelled(annotations: Sequence[dict]) -> int:
    """Counts the keypoints that are labelled, without those of crowds."""
    return sum(
        visibility > 0
        for annotation in annotations
        if not annotation["iscrowd"]
        for visibility in (annotation.get("keypoints") or [])[2::3]
    )
