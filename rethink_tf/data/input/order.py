"""Which records a training or evaluation step reads, and at which size.

Pure NumPy on the index: no image is read, so a run that resumes at step s finds its position in
milliseconds and goes on with the batches that an uninterrupted run would have had.

Each epoch, a pass over the records, is one permutation of them; what is left over at its end starts
the first batch of the next one. Within an epoch some batches in a row, a window, share out their
images anew, so that images of like sizes meet in a batch (`batch_shapes`): the sizes are drawn by
the seed, the epoch and the image, and so are known before.

Letters: N records, G images of a global batch (all replicas), K batches.
"""

from collections.abc import Callable, Iterator

import numpy as np

from rethink_tf.data.input import batch_shapes

# Batches of a window: the more, the less padding, and the longer the draws of sizes.
WINDOW = 64
# With fixed shapes, each of them may leave one batch of a window to images of other shapes.
WINDOW_FIXED = 256

_ORDER_STREAM = 1
_DRAW_STREAM = 2
_WINDOW_STREAM = 3


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


def draw_uniforms(seed: int, passes, image_ids: np.ndarray, count: int) -> np.ndarray:
    """Draws that depend on the seed, the epoch and the image only, not on batch or replica.

    Args:
        seed: of the run, >= 0.
        passes: int or int [N], the epoch that each image is drawn for, >= 0.
        image_ids: int64 [N].
        count: draws an image.

    Returns:
        float64 [N, count] in [0, 1).
    """
    passes = np.broadcast_to(passes, len(image_ids))
    raw = [
        _bits(_DRAW_STREAM, seed, int(image_id) % 2**64, int(number), count)
        for image_id, number in zip(image_ids, passes, strict=True)
    ]
    # The upper 53 bits of each word, as NumPy's own doubles are made.
    return (np.array(raw, np.uint64).reshape(-1, count) >> np.uint64(11)) * 2.0**-53


class TrainingPlan:
    """The endless sequence of training batches: a function of the sizes, the seed and the step."""

    def __init__(
        self,
        num_records: int,
        global_batch_size: int,
        seed: int,
        sizes: Callable[[np.ndarray, np.ndarray], np.ndarray],
        shapes: batch_shapes.BatchShapes,
    ):
        """Plans over N records.

        Args:
            num_records: N.
            global_batch_size: G, over all replicas and workers.
            seed: >= 0.
            sizes: callable of rows int64 [n] and the epochs that they are read in, int64 [n];
                returns int [n, 2], the images' sizes as drawn, pixels.
            shapes: of the batches.

        Raises:
            ValueError: if there is no record, or a number is out of range.
        """
        if not num_records:
            raise ValueError("there is no record to train on (all left out, or an empty directory)")
        if global_batch_size < 1 or not 0 <= seed < 2**63:
            raise ValueError(
                f"global_batch_size is {global_batch_size} (must be >= 1) and seed {seed} "
                "(must be in 0..2**63-1)"
            )
        self._num_records, self._global_batch_size = num_records, global_batch_size
        self._seed, self._sizes, self._shapes = seed, sizes, shapes
        self._window = WINDOW if shapes.fixed is None else WINDOW_FIXED

    def batches(self, start_step: int = 0) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Yields (step, rows int64 [G], epochs int64 [G]) from start_step on, without end.

        A record comes once an epoch; one that is left over comes in the first batches of the next,
        drawn for its own epoch. Fewer than G records fill a batch over several epochs, which then
        holds a record twice.
        """
        if start_step < 0:
            raise ValueError(f"start_step is {start_step}, must be >= 0")
        # The batch is in the epoch in which its last image is.
        size = self._global_batch_size
        epoch = ((start_step + 1) * size - 1) // self._num_records
        while True:
            first, last = (self._steps_before(each) for each in (epoch, epoch + 1))
            rows, passes = self._stream(first * size, last * size)
            for start in range(0, last - first, self._window):
                stop = min(start + self._window, last - first)
                if first + stop <= start_step:
                    continue
                part = slice(start * size, stop * size)
                order = self._share_out(epoch, start, rows[part], passes[part])
                for k in range(max(start_step - first - start, 0), stop - start):
                    batch = part.start + order[k * size : (k + 1) * size]
                    yield first + start + k, rows[batch], passes[batch]
            epoch += 1

    def _steps_before(self, epoch: int) -> int:
        """Batches that are complete before an epoch."""
        return epoch * self._num_records // self._global_batch_size

    def _stream(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """The records from start to stop of all epochs' permutations in a row: rows and epochs."""
        rows, passes = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        count = self._num_records
        for epoch in range(start // count, -(-stop // count)):
            # Sorting random words is a permutation that does not depend on NumPy's version.
            order = np.argsort(_bits(_ORDER_STREAM, self._seed, epoch, 0, count), kind="stable")
            own = order[max(start - epoch * count, 0) : stop - epoch * count]
            rows.append(own)
            passes.append(np.full(len(own), epoch))
        return np.concatenate(rows), np.concatenate(passes)

    def _share_out(self, epoch, start, rows, passes):
        """Returns the order of a window's images, int [n], in which each G share a batch."""
        sizes = self._shapes.limit(self._sizes(rows, passes))
        order = batch_shapes.group(sizes, self._global_batch_size, self._shapes)
        order = order.reshape(-1, self._global_batch_size)
        # The batches come in an order of their own, so that sizes do not.
        draws = _bits(_WINDOW_STREAM, self._seed, epoch, start, len(order))
        return order[np.argsort(draws, kind="stable")].ravel()


def evaluation_batches(
    sizes: np.ndarray, global_batch_size: int, shapes: batch_shapes.BatchShapes
) -> np.ndarray:
    """Returns int64 [K, G]: each record once, with others of like sizes; -1 fills the last batch.

    Args:
        sizes: int [N, 2], of the images as evaluated, pixels.
        global_batch_size: G.
        shapes: of the batches.
    """
    # Every replica gets as many images: a strategy cannot leave one out.
    missing = -len(sizes) % global_batch_size
    # Padding images are small, so that they fill a batch of small ones.
    padded = np.pad(shapes.limit(sizes), [(0, missing), (0, 0)], constant_values=1)
    order = batch_shapes.group(padded, global_batch_size, shapes)
    return np.where(order < len(sizes), order, -1).reshape(-1, global_batch_size)


def _bits(stream: int, seed: int, key: int, step: int, count: int) -> np.ndarray:
    """Random words, uint64 [count]; a bit generator's stream is fixed for good (NumPy's NEP 19),
    which `Generator.permutation` and its like are not."""
    counter = np.array([0, step, 0, stream], np.uint64)
    generator = np.random.Philox(key=np.array([seed, key], np.uint64), counter=counter)
    return generator.random_raw(count)
