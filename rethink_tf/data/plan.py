"""Which records a training or evaluation step reads, in which bucket and at which size.

Pure NumPy on the index: no image is read, so a run that resumes at step s finds its place in
milliseconds and goes on with the batches that an uninterrupted run would have had.

Letters: N records, G images of a global batch (all replicas), K batches.

A bucket is a fixed input shape (H, W). A global batch holds images of one bucket only, so that
all replicas of a step run the same shape. Each epoch is one permutation of the records; the
records that are left over in a bucket at its end start that bucket's first batch of the next one.
"""

from collections.abc import Iterator, Sequence

import numpy as np

# P6 has stride 64: with multiples of it every level of the pyramid has whole cells.
BUCKET_MULTIPLE = 64

_ORDER_STREAM = 1
_DRAW_STREAM = 2


def resized_shapes(heights, widths, min_sides, max_side: int) -> np.ndarray:
    """Sizes of images after resizing: the shorter side at min_side, the longer at most max_side.

    Args:
        heights: int [N], pixels.
        widths: int [N], pixels.
        min_sides: int or int [N], pixels.
        max_side: pixels.

    Returns:
        int64 [N, 2], (height, width), at least 1.

    Source: Detectron2's ResizeShortestEdge, its rounding included.
    """
    sides = np.stack([heights, widths], -1).astype(np.float64)
    sides *= (np.asarray(min_sides) / sides.min(-1))[..., np.newaxis]
    longest = sides.max(-1, keepdims=True)
    sides *= np.where(longest > max_side, max_side / longest, 1.0)
    return np.maximum(np.floor(sides + 0.5), 1).astype(np.int64)


def shrink_to_bucket(shapes: np.ndarray, bucket: Sequence[int]) -> np.ndarray:
    """Scales sizes down, never up, to where they fit a bucket.

    Args:
        shapes: int [N, 2], (height, width), pixels.
        bucket: (H, W), pixels.

    Returns:
        int64 [N, 2], within [1, H] and [1, W].
    """
    scale = np.minimum(1.0, (np.asarray(bucket) / shapes).min(-1, keepdims=True))
    fitted = np.floor(shapes * scale + 0.5).astype(np.int64)
    return np.clip(fitted, 1, np.asarray(bucket))


def enclosing_bucket(shapes: np.ndarray) -> tuple[int, int]:
    """The smallest bucket that holds all of some sizes, int [N, 2] in pixels."""
    height, width = -(-np.max(shapes, axis=0) // BUCKET_MULTIPLE) * BUCKET_MULTIPLE
    return int(height), int(width)


def default_buckets(min_side: int, max_side: int) -> tuple[tuple[int, int], ...]:
    """A landscape and a portrait bucket, or one square: 800, 1333 give 832x1344 and 1344x832."""
    short, long = enclosing_bucket([(min_side, max_side)])
    return ((short, short),) if short == long else ((short, long), (long, short))


def assign_buckets(shapes: np.ndarray, buckets: Sequence[Sequence[int]]) -> np.ndarray:
    """Picks for each image the bucket that it fits with the least padding.

    Of buckets of the same area it is the one of nearest aspect ratio, then the first. An image
    that fits none gets the one where it must shrink least.

    Args:
        shapes: int [N, 2], resized (height, width), pixels.
        buckets: (H, W) each, pixels.

    Returns:
        int64 [N], the number of the bucket.
    """
    sizes = np.asarray(buckets, np.float64)  # [buckets, 2]
    scale = np.minimum(1.0, (sizes / shapes[:, np.newaxis]).min(-1))  # [N, buckets]
    aspect = np.log(shapes[:, :1] / shapes[:, 1:])
    distance = np.abs(aspect - np.log(sizes[:, 0] / sizes[:, 1])).round(6)
    area = np.broadcast_to(sizes.prod(-1), scale.shape)
    order = np.lexsort((distance, area, -scale), axis=-1)  # the last key counts first
    return order[:, 0]


def draw_uniforms(seed: int, step: int, image_ids: np.ndarray, count: int) -> np.ndarray:
    """Draws that depend on the seed, the step and the image only, not on batch or replica.

    Args:
        seed: of the run, >= 0.
        step: training step, >= 0.
        image_ids: int64 [N].
        count: draws an image.

    Returns:
        float64 [N, count] in [0, 1).
    """
    raw = [_bits(_DRAW_STREAM, seed, int(image_id) % 2**64, step, count) for image_id in image_ids]
    # The upper 53 bits of each word, as NumPy's own doubles are made.
    return (np.stack(raw).astype(np.uint64) >> np.uint64(11)) * 2.0**-53


class TrainingPlan:
    """The endless sequence of training batches: a pure function of (buckets, seed, step)."""

    def __init__(self, bucket_of_row: np.ndarray, global_batch_size: int, seed: int):
        """Plans over N records.

        Args:
            bucket_of_row: int [N], the bucket of each record of the index.
            global_batch_size: G, over all replicas and workers.
            seed: >= 0.

        Raises:
            ValueError: if there is no record, or a number is out of range.
        """
        if not len(bucket_of_row):
            raise ValueError("there is no record to train on (all left out, or an empty directory)")
        if global_batch_size < 1 or not 0 <= seed < 2**63:
            raise ValueError(
                f"global_batch_size is {global_batch_size} (must be >= 1) and seed {seed} "
                "(must be in 0..2**63-1)"
            )
        self._bucket_of_row = np.asarray(bucket_of_row, np.int64)
        self._global_batch_size = global_batch_size
        self._seed = seed
        self._counts = np.bincount(self._bucket_of_row)
        self._rows_by_bucket = np.argsort(self._bucket_of_row, kind="stable")
        self._place = np.argsort(self._rows_by_bucket, kind="stable")
        self._bucket_start = np.cumsum(self._counts) - self._counts

    def batches(self, start_step: int = 0) -> Iterator[tuple[int, int, np.ndarray]]:
        """Yields (step, bucket, rows int64 [G]) from start_step on, without end.

        A record comes once an epoch; one that is left over comes at the start of the next. A
        bucket of fewer than G records fills a batch over several epochs, and then a batch may
        hold a record twice.
        """
        epoch, step = self._epoch_of(start_step)
        carried = self._carried(epoch)
        while True:
            buckets, rows, carried = self._epoch_batches(epoch, carried)
            for k in range(max(start_step - step, 0), len(buckets)):
                yield step + k, int(buckets[k]), rows[k]
            step += len(buckets)
            epoch += 1

    def fallbacks(self, rows: np.ndarray) -> np.ndarray:
        """Two stand-ins of the same bucket for each row, should its record be corrupted.

        They lie a third and two thirds of the bucket away, because damage tends to hit
        neighbours in a shard.

        Args:
            rows: int [P].

        Returns:
            int64 [P, 2]; the row itself where its bucket has no other.
        """
        bucket = self._bucket_of_row[rows]
        count, start = self._counts[bucket], self._bucket_start[bucket]
        stride = np.maximum(count // 3, 1)[:, np.newaxis] * [1, 2]
        place = ((self._place[rows] - start)[:, np.newaxis] + stride) % count[:, np.newaxis]
        return self._rows_by_bucket[start[:, np.newaxis] + place]

    def _steps_before(self, epoch: int) -> int:
        """Batches that were completed before an epoch: each bucket is one long stream."""
        return sum(epoch * int(count) // self._global_batch_size for count in self._counts)

    def _epoch_of(self, step: int) -> tuple[int, int]:
        """The epoch in which a step's batch is completed, and that epoch's first step."""
        if step < 0:
            raise ValueError(f"start_step is {step}, must be >= 0")
        # _steps_before(e) <= e * N / G, so no earlier epoch reaches the step.
        epoch = step * self._global_batch_size // len(self._bucket_of_row)
        while self._steps_before(epoch + 1) <= step:
            epoch += 1
        return epoch, self._steps_before(epoch)

    def _order(self, epoch: int) -> np.ndarray:
        raw = _bits(_ORDER_STREAM, self._seed, epoch, 0, len(self._bucket_of_row))
        return np.argsort(raw, kind="stable")

    def _carried(self, epoch: int) -> list[np.ndarray]:
        """The rows that each bucket has left over when an epoch starts."""
        wanted = [epoch * int(count) % self._global_batch_size for count in self._counts]
        carried = [np.zeros(0, np.int64) for _ in wanted]
        while any(len(have) < want for have, want in zip(carried, wanted, strict=True)):
            epoch -= 1
            order = self._order(epoch)
            for bucket, have in enumerate(carried):
                rows = order[self._bucket_of_row[order] == bucket]
                carried[bucket] = np.concatenate([rows, have])
        return [have[len(have) - want :] for have, want in zip(carried, wanted, strict=True)]

    def _epoch_batches(self, epoch: int, carried: list[np.ndarray]):
        """Batches completed in one epoch, in the order of their completion.

        Returns:
            int64 [K] buckets, int64 [K, G] rows, and what each bucket has left over.
        """
        size, order = self._global_batch_size, self._order(epoch)
        bucket_of_place = self._bucket_of_row[order]
        buckets, batches, completed_at, left = [], [], [], []
        for bucket, have in enumerate(carried):
            places = np.flatnonzero(bucket_of_place == bucket)
            rows = np.concatenate([have, order[places]])
            count = len(rows) // size
            batches.append(rows[: count * size].reshape(count, size))
            left.append(rows[count * size :])
            completed_at.append(places[size - 1 - len(have) :: size])
            buckets.append(np.full(count, bucket))
        sequence = np.argsort(np.concatenate(completed_at), kind="stable")
        return np.concatenate(buckets)[sequence], np.concatenate(batches)[sequence], left


def evaluation_batches(bucket_of_row: np.ndarray, global_batch_size: int):
    """Yields (bucket, rows int64 [G]): each record once, bucket by bucket, in index order.

    The last batch of a bucket is filled with row -1.
    """
    for bucket in np.unique(bucket_of_row):
        rows = np.flatnonzero(bucket_of_row == bucket)
        rows = np.pad(rows, (0, -len(rows) % global_batch_size), constant_values=-1)
        for batch in rows.reshape(-1, global_batch_size):
            yield int(bucket), batch


def _bits(stream: int, seed: int, key: int, step: int, count: int) -> np.ndarray:
    """Random words, uint64 [count]; a bit generator's stream is fixed for good (NumPy's NEP 19),
    which `Generator.permutation` and its like are not."""
    counter = np.array([0, step, 0, stream], np.uint64)
    generator = np.random.Philox(key=np.array([seed, key], np.uint64), counter=counter)
    return generator.random_raw(count)
