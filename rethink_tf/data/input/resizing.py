"""To what size an image is resized in training, and which part of it is taken.

Pure NumPy on sizes and draws; each image has its own. Letters: P images.
"""

from collections.abc import Sequence

import gin
import numpy as np

from rethink_tf.data.input import order

SAMPLINGS = ("choice", "range")


def content_sizes(geometry: dict) -> np.ndarray:
    """Returns int [P, 2], the size of what is seen of each image, of a `geometry`."""
    view = geometry.get("view")
    return geometry["size"] if view is None else view[..., 2:] - view[..., :2]


def shrink(geometry: dict, sizes: np.ndarray) -> dict:
    """Makes images smaller whose content is larger than it may be.

    Args:
        geometry: of a class below.
        sizes: int [P, 2], what the content is to be: its own size, or less.

    Returns:
        dict as of `geometry`; a view is cut, and stays where it begins.
    """
    if "view" not in geometry:
        return {"size": sizes}
    start = geometry["view"][:, :2]
    return {"size": geometry["size"], "view": np.concatenate([start, start + sizes], -1)}


class ShorterSide:
    """The shorter side at a given or drawn length, the longer one at most max_side."""

    num_draws = 1

    def __init__(self, min_side: int | Sequence[int], sampling: str | None, max_side: int):
        """Checks the settings.

        Args:
            min_side: shorter side after resizing, pixels; of several, one is drawn an image.
            sampling: how: "choice" takes one of min_side, "range" any whole number from the first
                to the second of two, both included. None where there is but one.
            max_side: longest side after resizing, pixels; wins over min_side.

        Raises:
            ValueError: if a number is out of its range, or it is not clear how to draw.
        """
        sides = [min_side] if isinstance(min_side, int) else list(min_side)
        if not sides or min(sides) < 1:
            raise ValueError(f"min_side is {min_side}; give one or more sides of at least 1 pixel")
        if sampling not in (None, *SAMPLINGS):
            raise ValueError(
                f"min_side_sampling is {sampling!r}; it must be one of {', '.join(SAMPLINGS)}, or "
                "None for a min_side of one length"
            )
        if len(sides) > 1 and sampling is None:
            raise ValueError(
                f"min_side is {min_side} and min_side_sampling is not given: bind it to 'choice' "
                "to draw one of these lengths, or to 'range' for any from the first to the second"
            )
        if sampling == "range" and len(sides) > 1 and (len(sides) > 2 or sides[0] > sides[1]):
            raise ValueError(
                f"min_side is {min_side}, and a range has a first and a last length, ascending; "
                "for a list of lengths bind min_side_sampling = 'choice'"
            )
        if max_side < max(sides):
            raise ValueError(
                f"max_side {max_side} is below min_side {max(sides)}; swap or raise it"
            )
        self.sides, self.sampling, self.max_side = sides, sampling, max_side

    def geometry(self, stored: np.ndarray, draws: np.ndarray) -> dict:
        """Says how to resize each image.

        Args:
            stored: int [P, 2], (height, width), pixels.
            draws: float [P, 1] in [0, 1).

        Returns:
            {"size": int64 [P, 2], (height, width)}.
        """
        draw = draws[..., 0]
        if self.sampling == "range":
            low, high = self.sides[0], self.sides[-1]
            sides = low + (draw * (high - low + 1)).astype(int)
        else:
            sides = np.array(self.sides)[(draw * len(self.sides)).astype(int)]
        return {"size": order.resized_shapes(stored[..., 0], stored[..., 1], sides, self.max_side)}

    def largest(self, stored: np.ndarray) -> np.ndarray:
        """Returns int64 [P, 2], the largest sizes that images may be drawn at."""
        return order.resized_shapes(stored[:, 0], stored[:, 1], max(self.sides), self.max_side)


@gin.register
class LargeScaleJitter:
    """A scale from a wide range, and a crop of at most a fixed size.

    The image is resized to fit the crop, times the scale. Of a larger one a random part is taken,
    the offsets of y and x drawn apart.

    Source: Ghiasi et al. 2021, arXiv:2012.07177, section 3, and their code. Detectron2's
    ResizeScale and FixedSizeCrop are the same, but for one draw for both offsets. Both pad smaller
    images to the size of the crop, and their networks see the padding; ours does not.
    """

    num_draws = 3

    def __init__(
        self,
        min_scale: float = 0.1,
        max_scale: float = 2.0,
        crop_size: Sequence[int] = (1024, 1024),
    ):
        """Checks the settings.

        Args:
            min_scale: smallest scale; 1 fits the image exactly into the crop.
            max_scale: largest scale.
            crop_size: (H, W) of the crop, pixels.

        Raises:
            ValueError: if a number is out of its range.
        """
        if not 0 < min_scale <= max_scale:
            raise ValueError(
                f"LargeScaleJitter: min_scale is {min_scale} and max_scale {max_scale}; they must "
                "be above 0 and ascend"
            )
        if len(crop_size) != 2 or min(crop_size) < 1:
            raise ValueError(
                f"LargeScaleJitter: crop_size is {crop_size}; it must be a height and a width of "
                "at least 1 pixel"
            )
        self.min_scale, self.max_scale = min_scale, max_scale
        self.crop_size = tuple(crop_size)

    def geometry(self, stored: np.ndarray, draws: np.ndarray) -> dict:
        """Says how to resize each image and which part of it to take.

        Args:
            stored: int [P, 2], (height, width), pixels.
            draws: float [P, 3] in [0, 1): scale, offset of y and of x.

        Returns:
            {"size": int64 [P, 2], (height, width) after resizing, "view": int64 [P, 4],
            (y1, x1, y2, x2), pixels of the resized image, the part to take}.
        """
        scale = self.min_scale + draws[..., :1] * (self.max_scale - self.min_scale)
        crop = np.asarray(self.crop_size)
        fitting = (crop / stored).min(-1, keepdims=True)
        size = np.maximum(np.floor(stored * fitting * scale + 0.5), 1)
        start = np.floor(np.maximum(size - crop, 0) * draws[..., 1:] + 0.5)
        view = np.concatenate([start, start + np.minimum(size, crop)], -1)
        return {"size": size.astype(np.int64), "view": view.astype(np.int64)}

    def largest(self, stored: np.ndarray) -> np.ndarray:
        """Returns int64 [P, 2], the largest sizes that images may be drawn at."""
        draws = np.zeros([len(stored), self.num_draws])
        draws[:, 0] = 1.0
        return content_sizes(self.geometry(stored, draws))
