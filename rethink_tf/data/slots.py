"""The places of a batch as arrays: which records may fill each, and what was drawn for them.

Pure NumPy; `reading` takes it from there. Letters: P slots, n candidates each, M object rows.
"""

from collections.abc import Sequence

import numpy as np

from rethink_tf.data import copy_paste, plan
from rethink_tf.data.records import RecordIndex


def describe(
    index: RecordIndex, rows, candidates, bucket: Sequence[int], flip, size_and_view: dict
) -> dict:
    """All that tf.data must know of P slots.

    Args:
        index: of the records.
        rows: int64 [P], the record of each slot, -1 for a padding image.
        candidates: int64 [P, n], the records that may fill it, the first one readable.
        bucket: (H, W), pixels.
        flip: bool [P, n], whether to mirror.
        size_and_view: arrays [P, n, ...] of a `resizing` class.

    Returns:
        {"row": int64 [P], "bucket": int32 [P, 2], "places": arrays [P, n, ...]}; `places` is what
        `reading.read_slot` and `decode` take.
    """
    numbers = np.arange(candidates.shape[1], dtype=np.int32)
    places = {
        "row": candidates,
        "candidate": np.broadcast_to(numbers, candidates.shape),
        "shard": index.shard[candidates],
        "offset": index.offset[candidates],
        "image_id": index.image_id[candidates],
        "flip": flip,
        "stored": stored_sizes(index, candidates),
        **size_and_view,
    }
    buckets = np.broadcast_to(np.array(bucket, np.int32), [len(rows), 2])
    return {"row": rows, "bucket": buckets, "places": places}


def stored_sizes(index: RecordIndex, rows) -> np.ndarray:
    """Height and width of records' stored images: int32 [*rows.shape, 2]."""
    return np.stack([index.height[rows], index.width[rows]], -1).astype(np.int32)


def resized(index: RecordIndex, size: tuple[int, int]) -> np.ndarray:
    """Sizes int64 [N, 2] of all images, resized to (min_side, max_side)."""
    return plan.resized_shapes(index.height, index.width, *size)


def evaluation_groups(index: RecordIndex, buckets, own, further_sizes) -> tuple[np.ndarray, dict]:
    """Which images are evaluated together, and the shapes that they come in.

    In a further size a group has the smallest bucket that holds all of its images, so that none
    shrinks. The images that max_side makes smaller than min_side, which are longer than the others,
    are a group of their own then: in the others' bucket they would triple it.

    Args:
        index: of the N images.
        buckets: (H, W) each, pixels, of the own size.
        own: (min_side, max_side), the size of all evaluations.
        further_sizes: more of them, of test-time augmentation.

    Returns:
        int64 [N], and {group: [(H, W) of the own size and of each further one]}.
    """
    own_sizes, *others = [resized(index, size) for size in (own, *further_sizes)]
    group_of_row = 2 * plan.assign_buckets(own_sizes, buckets)
    if others:
        group_of_row += own_sizes.min(axis=-1) < own[0]
    shapes = {}
    for group in np.unique(group_of_row).tolist():
        inside = group_of_row == group
        enclosing = [plan.enclosing_bucket(sizes[inside]) for sizes in others]
        shapes[group] = [buckets[group // 2], *enclosing]
    return group_of_row, shapes


class TrainingSlots:
    """Draws the slots of training batches: stateless, by the seed, the step and the image."""

    def __init__(self, index, training_plan, resizing, flip_probability, seed, paste_rows=None):
        """Takes the parts.

        Args:
            index: `RecordIndex` of the training images.
            training_plan: `plan.TrainingPlan` over it.
            resizing: `resizing.ShorterSide` or `LargeScaleJitter`.
            flip_probability: of mirroring an image left and right.
            seed: of the run.
            paste_rows: M, for copy-paste: each slot then has a second one under "paste", with
                "draws" float32 [P, 1 + M] for `copy_paste.paste`. None for none.
        """
        self._index, self._plan, self._resizing = index, training_plan, resizing
        self._flip_probability, self._seed = flip_probability, seed
        self._paste_rows = paste_rows
        self._num_draws = 1 + resizing.num_draws

    def draw(self, step: int, bucket: Sequence[int], rows: np.ndarray) -> dict:
        """Returns what `describe` does for the records `rows` int64 [P] of a step's batch."""
        candidates = self._candidates(rows)
        ids = self._index.image_id[candidates].ravel()
        draws = plan.draw_uniforms(self._seed, step, ids, self._num_draws)
        slots = self._describe(rows, candidates, bucket, draws.reshape(*candidates.shape, -1))
        if self._paste_rows is None:
            return slots
        return slots | {"paste": self._draw_second(step, bucket, rows)}

    def _draw_second(self, step, bucket, rows):
        """The slots of the images that are pasted from; any record, whatever its own bucket."""
        first, paste = self._num_draws, copy_paste.num_draws(self._paste_rows)
        ids = self._index.image_id[rows]
        # A longer draw of an image starts with the numbers of the shorter one, used already.
        draws = plan.draw_uniforms(self._seed, step, ids, first + 1 + self._num_draws + paste)
        which, draws, paste_draws = np.split(draws[:, first:], [1, 1 + self._num_draws], -1)
        rows = (which[:, 0] * len(self._index)).astype(np.int64)
        candidates = self._candidates(rows)
        draws = np.broadcast_to(draws[:, np.newaxis], [*candidates.shape, self._num_draws])
        slots = self._describe(rows, candidates, bucket, draws)
        return slots | {"draws": paste_draws.astype(np.float32)}

    def _candidates(self, rows):
        return np.column_stack([rows, self._plan.fallbacks(rows)])

    def _describe(self, rows, candidates, bucket, draws):
        stored = stored_sizes(self._index, candidates)
        place = self._resizing.place(stored, draws[..., 1:], bucket)
        flip = draws[..., 0] < self._flip_probability
        return describe(self._index, rows, candidates, bucket, flip, place)
