"""Which images share a batch, and the shape of the batch.

Images of like sizes share a batch, so that little of its shape is padding. Where nothing compiles
for a fixed shape, a batch is as large as its largest image; a compiler gets a few shapes instead.

Pure NumPy. Letters: n images, B images of a batch, S shapes.
"""

from collections.abc import Callable, Sequence

import numpy as np


class BatchShapes:
    """The shapes that batches come in: the tightest of each batch, or some that are given."""

    def __init__(self, fixed: Sequence[Sequence[int]] | None = None, multiple: int = 32):
        """Takes the shapes.

        Args:
            fixed: (H, W) each, pixels; None for shapes as tight as the multiple allows. If none of
                them holds all others, the one that does is added, for batches of images that share
                no other.
            multiple: int, of both sides of a tight shape, pixels: the coarsest stride of the
                network.
        """
        self.multiple, self.fixed = multiple, None
        if fixed is not None:
            self._given = np.array([tuple(shape) for shape in fixed])
            # A landscape and a portrait image may meet in the last batch of a window.
            around = self._given.max(0)
            has_around = (self._given == around).all(1).any()
            self.fixed = self._given if has_around else np.vstack([self._given, around])

    @property
    def only(self) -> tuple[int, int] | None:
        """(H, W) of all batches where there is but one shape, else None."""
        return (
            tuple(map(int, self.fixed[0]))
            if self.fixed is not None and len(self.fixed) == 1
            else None
        )

    def limit(self, sizes: np.ndarray) -> np.ndarray:
        """Shrinks sizes int [n, 2] that no given shape holds to where one does."""
        if self.fixed is None:
            return sizes
        scale = (self._given / sizes[:, np.newaxis]).min(-1)  # [n, S]
        best = self._given[scale.argmax(1)]
        shrunk = np.floor(sizes * np.minimum(scale.max(1), 1.0)[:, np.newaxis] + 0.5)
        return np.clip(shrunk.astype(np.int64), 1, best)

    def cover(self, sizes: np.ndarray) -> tuple[int, int]:
        """Returns the (H, W) of a batch of images of sizes int [B, 2]."""
        height, width = self._covers(np.max(sizes, axis=0)[np.newaxis])[0]
        return int(height), int(width)

    def areas(self, sizes: np.ndarray) -> np.ndarray:
        """Returns int [n], the areas of the smallest shapes that hold sizes int [n, 2]."""
        return self._covers(sizes).prod(-1)

    def fills(self, sizes: np.ndarray, shape: Sequence[int]) -> bool:
        """Tells whether every image, rounded up to the multiple, is as large as the shape."""
        return bool((_round_up(np.asarray(sizes), self.multiple) >= np.asarray(shape)).all())

    def numbers(self, sizes: np.ndarray) -> np.ndarray:
        """Returns int [n], the smallest given shape that holds each of sizes int [n, 2]."""
        holds = (sizes[:, np.newaxis] <= self.fixed).all(-1)  # [n, S]
        areas = self.fixed.prod(-1)
        smallest = np.where(holds, areas, areas.max() + 1).argmin(1)
        return np.where(holds.any(1), smallest, areas.argmax())

    def _covers(self, sizes):
        if self.fixed is None:
            return _round_up(np.maximum(sizes, 1), self.multiple)
        return self.fixed[self.numbers(sizes)]


def make_shapes(
    buckets: Sequence[Sequence[int]] | None,
    multiple: int,
    max_shapes: int | None,
    expect: Callable[[], tuple[np.ndarray, np.ndarray]],
) -> BatchShapes:
    """Returns the shapes of the batches of a data set.

    Args:
        buckets: (H, W) each, pixels, or None.
        multiple: int, of the sides of shapes that are not given, pixels.
        max_shapes: int, how many a compiler wants at most; None for tight ones.
        expect: callable, returns the arguments sizes and largest of `choose_shapes`.
    """
    if not buckets and max_shapes is not None:
        buckets = choose_shapes(*expect(), max_shapes, multiple)
    return BatchShapes(buckets or None, multiple)


def group(sizes: np.ndarray, batch_size: int, shapes: BatchShapes) -> np.ndarray:
    """Orders images so that those of a batch are of like sizes.

    With given shapes, images of the same one share batches as far as they fill them. The others are
    split in two where that saves the most padding, by height or by width, and each part again.

    Args:
        sizes: int [n, 2], pixels; n a multiple of B.
        batch_size: int B.
        shapes: of the batches.

    Returns:
        int [n]; each B in a row share a batch.
    """
    batches, rest = [], np.arange(len(sizes))
    if shapes.fixed is not None:
        numbers = shapes.numbers(sizes)
        left = []
        for number in np.unique(numbers):
            rows = np.flatnonzero(numbers == number)
            full = len(rows) - len(rows) % batch_size
            batches.append(rows[:full])
            left.append(rows[full:])
        rest = np.concatenate(left)
    return np.concatenate([*batches, *_split(rest, sizes, batch_size, shapes)])


def _split(rows, sizes, batch_size, shapes):
    """Splits rows into batches; returns a list of int arrays."""
    count = len(rows) // batch_size
    if count < 2:
        return [rows]
    cuts, best = np.arange(1, count) * batch_size, None
    for axis in (0, 1):
        order = rows[np.lexsort((sizes[rows, 1 - axis], sizes[rows, axis]))]
        ordered = sizes[order]
        # The cost of a cut: both parts as if each were one batch of its largest height and width.
        before = np.maximum.accumulate(ordered)[cuts - 1]
        after = np.maximum.accumulate(ordered[::-1])[::-1][cuts]
        cost = shapes.areas(before) * cuts + shapes.areas(after) * (len(rows) - cuts)
        if best is None or cost.min() < best[0]:
            best = cost.min(), order, cuts[cost.argmin()]
    _, order, cut = best
    parts = [_split(part, sizes, batch_size, shapes) for part in (order[:cut], order[cut:])]
    return parts[0] + parts[1]


def choose_shapes(
    sizes: np.ndarray, largest: Sequence[int], count: int, multiple: int
) -> list[tuple[int, int]]:
    """Chooses a few shapes that hold images with little padding.

    From a shape for each size that occurs, the two whose union costs least are joined until there
    are few enough. Then each side of each shape is moved to where the sizes cost less.

    Args:
        sizes: int [n, 2], pixels, as they are to be expected.
        largest: (height, width) that hold every size there may be; one shape has them.
        count: int S > 0, how many.
        multiple: int, of every side, pixels.

    Returns:
        list of at most S (H, W), by area.
    """
    found, weights = np.unique(_round_up(np.asarray(sizes), multiple), axis=0, return_counts=True)
    around = np.maximum(_round_up(np.asarray(largest), multiple), found.max(0))
    shapes, weight = found.astype(np.int64), weights.astype(np.float64)
    while len(shapes) > max(count - 1, 1):
        union = np.maximum(shapes[:, np.newaxis], shapes[np.newaxis]).prod(-1)
        own = shapes.prod(-1) * weight
        cost = union * (weight[:, np.newaxis] + weight) - own[:, np.newaxis] - own
        np.fill_diagonal(cost, np.inf)
        first, second = np.unravel_index(cost.argmin(), cost.shape)
        shapes[first] = np.maximum(shapes[first], shapes[second])
        weight[first] += weight[second]
        shapes, weight = np.delete(shapes, second, 0), np.delete(weight, second)
    if count > 1:
        shapes = _refine(shapes, around, found, weights)
        shapes = np.unique(np.vstack([shapes, around]), axis=0)
    else:
        shapes = around[np.newaxis]
    return [tuple(map(int, shape)) for shape in shapes[np.argsort(shapes.prod(-1), kind="stable")]]


def _refine(shapes, around, sizes, weights):
    """Moves one side of one shape at a time while that lowers the area of all images' shapes."""

    def cost(shapes):
        every = np.vstack([shapes, around])
        holds = (sizes[:, np.newaxis] <= every).all(-1)
        return (np.where(holds, every.prod(-1), np.iinfo(np.int64).max).min(1) * weights).sum()

    best, improved = cost(shapes), True
    sides = [np.unique(sizes[:, axis]) for axis in (0, 1)]
    while improved:
        improved = False
        for index in np.ndindex(*shapes.shape):
            for side in sides[index[1]]:
                moved = shapes.copy()
                moved[index] = side
                value = cost(moved)
                if value < best:
                    shapes, best, improved = moved, value, True
    return shapes


def _round_up(sizes, multiple):
    return -(-sizes // multiple) * multiple
