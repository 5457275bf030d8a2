"""The slots of a batch as arrays: which records may fill each, and what was drawn for them.

Pure NumPy; `reading` takes it from there. Letters: P slots, n candidates each, M object rows, H x W
the shape of a batch.
"""

from typing import NamedTuple

import numpy as np

from rethink_tf.data.input import copy_paste, order, resizing
from rethink_tf.data.records.store import RecordIndex


def slot_arrays(
    index: RecordIndex, rows, candidates, shapes, is_padded, flip, size_and_view: dict
) -> dict:
    """All that tf.data must know of P slots.

    Args:
        index: of the records.
        rows: int64 [P], the record of each slot, -1 for a padding image.
        candidates: int64 [P, n], the records that may fill it, the first one readable.
        shapes: int [P, 2], (H, W) of the batch, pixels.
        is_padded: bool [P], whether some image of the global batch leaves a part of it empty.
        flip: bool [P, n], whether to mirror.
        size_and_view: arrays [P, ...] of a `resizing` class. A stand-in takes the size of the image
            that it stands in for, so that the batch is as planned.

    Returns:
        {"row": int64 [P], "shape": int32 [P, 2], "is_padded": bool [P], "candidates":
        arrays [P, n, ...]}, as `reading.read_slot` and `decode` take them.
    """
    numbers = np.arange(candidates.shape[1], dtype=np.int32)
    drawn = {
        key: np.broadcast_to(value[:, np.newaxis], [*candidates.shape, value.shape[-1]])
        for key, value in size_and_view.items()
    }
    arrays = {
        "row": candidates,
        "number": np.broadcast_to(numbers, candidates.shape),
        "shard": index.shard[candidates],
        "offset": index.offset[candidates],
        "length": index.length[candidates],
        "image_id": index.image_id[candidates],
        "flip": flip,
        "stored": stored_sizes(index, candidates),
        **{key: value.astype(np.int32) for key, value in drawn.items()},
    }
    return {
        "row": rows,
        "shape": np.asarray(shapes, np.int32),
        "is_padded": np.asarray(is_padded, bool),
        "candidates": arrays,
    }


def stored_sizes(index: RecordIndex, rows) -> np.ndarray:
    """Height and width of records' stored images: int32 [*rows.shape, 2]."""
    return np.stack([index.height[rows], index.width[rows]], -1).astype(np.int32)


def evaluate(index: RecordIndex, rows, sizes, batch_shapes, share) -> dict:
    """What `slot_arrays` returns for this input pipeline's slots of a global batch of evaluation.

    Args:
        index: of the N images.
        rows: int64 [G], records of the global batch, -1 for a padding image.
        sizes: int [N, 2], of the images as evaluated, pixels.
        batch_shapes: `batch_shapes.BatchShapes`.
        share: `worker_share.Share`.
    """
    sizes = batch_shapes.limit(sizes[rows])
    there = sizes[rows >= 0]
    shape = batch_shapes.cover(there)
    is_padded = not (rows >= 0).all() or not batch_shapes.fills(there, shape)
    rows, sizes = share.of(rows), share.of(sizes)
    flip = np.zeros([len(rows), 1], bool)
    shapes, is_padded = np.repeat([shape], len(rows), 0), np.repeat(is_padded, len(rows))
    return slot_arrays(index, rows, rows[:, np.newaxis], shapes, is_padded, flip, {"size": sizes})


class TrainingSlots:
    """Draws the slots of training batches: stateless, by the seed, the epoch and the image."""

    def __init__(self, index, resizing, flip_probability, seed, paste_rows=None):
        """Sets up the draws; none is made yet.

        Args:
            index: `RecordIndex` of the training images.
            resizing: `resizing.ShorterSide` or `LargeScaleJitter`.
            flip_probability: of mirroring an image left and right.
            seed: of the run.
            paste_rows: M, for copy-paste: each slot then has a second one under "paste", with
                "draws" float32 [P, 1 + M] for `copy_paste.paste`. None for none.
        """
        self._index, self._resizing = index, resizing
        self._flip_probability, self._seed = flip_probability, seed
        self._paste_rows = paste_rows
        self._num_draws = 1 + resizing.num_draws
        self._stand_ins = _StandIns(index)

    def sizes(self, rows: np.ndarray, passes: np.ndarray) -> np.ndarray:
        """Returns int [n, 2], what is seen of images drawn for their epochs, and pasted onto them.

        Args:
            rows: int64 [n], records.
            passes: int64 [n], epochs.
        """
        layers, _ = self._drawn(rows, passes)
        return np.max([layer.sizes for layer in layers], axis=0)

    def geometry(self, rows, passes, batch_shapes) -> dict:
        """Returns how images are resized, and which part is taken, as a class of `resizing` says.

        Args:
            rows: int64 [n], records.
            passes: int64 [n], the epochs that they are drawn for.
            batch_shapes: `batch_shapes.BatchShapes`; an image that none holds is shrunk.
        """
        (own, *_), _ = self._drawn(rows, passes)
        return resizing.shrink(own.geometry, batch_shapes.limit(own.sizes))

    def expected_sizes(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns int [n, 2], some thousand sizes as drawn first, and int [2] that hold all."""
        count = len(self._index)
        passes, rows = np.divmod(np.arange(max(4096, count)), count)
        some = np.linspace(0, len(rows) - 1, min(len(rows), 8192)).astype(int)
        largest = self._resizing.largest(stored_sizes(self._index, np.arange(count)))
        return self.sizes(rows[some], passes[some]), largest.max(0)

    def draw(self, rows, passes, share, batch_shapes) -> dict:
        """Returns what `slot_arrays` does for this input pipeline's slots of a step.

        Each micro-batch has the shape of its own images, over all replicas and workers.

        Args:
            rows: int64 [G], records of the global batch.
            passes: int64 [G], the epochs that they are drawn for.
            share: `worker_share.Share`.
            batch_shapes: `batch_shapes.BatchShapes`.
        """
        layers, paste_draws = self._drawn(rows, passes)
        sizes = np.stack([batch_shapes.limit(layer.sizes) for layer in layers])
        shapes, is_padded = [], []
        for each in np.split(sizes, share.micro_batches, axis=1):
            shapes.append(batch_shapes.cover(each.max(0)))
            is_padded.append(not batch_shapes.fills(each[0], shapes[-1]))
        count = len(rows) // share.micro_batches
        shapes, is_padded = (share.of(np.repeat(each, count, 0)) for each in (shapes, is_padded))
        slots, *pasted = (
            self._describe(layer, size, share, shapes, is_padded)
            for layer, size in zip(layers, sizes, strict=True)
        )
        if pasted:
            slots["paste"] = pasted[0] | {"draws": share.of(paste_draws)}
        return slots

    def _drawn(self, rows, passes):
        """Returns [`_Layer`], the second of which is pasted onto the first, and `paste`'s draws.

        The numbers of an image are one stream: its own, which of all records is pasted, that one's,
        and those of `copy_paste.paste`.
        """
        own, count = self._num_draws, len(self._index)
        ids = self._index.image_id[rows]
        if self._paste_rows is None:
            return [self._layer(rows, order.draw_uniforms(self._seed, passes, ids, own))], None
        num_draws = own + 1 + own + copy_paste.num_draws(self._paste_rows)
        draws = order.draw_uniforms(self._seed, passes, ids, num_draws)
        first, which, second, paste = np.split(draws, np.cumsum([own, 1, own]), -1)
        second_rows = (which[:, 0] * count).astype(np.int64)
        layers = [self._layer(rows, first), self._layer(second_rows, second)]
        return layers, paste.astype(np.float32)

    def _layer(self, rows, draws):
        geometry = self._resizing.geometry(stored_sizes(self._index, rows), draws[:, 1:])
        return _Layer(rows, draws[:, :1] < self._flip_probability, geometry)

    def _describe(self, layer, sizes, share, shapes, is_padded):
        """Describes this pipeline's share of a layer, whose content is to be of `sizes`."""
        geometry = resizing.shrink(layer.geometry, sizes)
        geometry = {key: share.of(value) for key, value in geometry.items()}
        rows = share.of(layer.rows)
        candidates = np.column_stack([rows, self._stand_ins.of(rows)])
        flip = np.broadcast_to(share.of(layer.flip), candidates.shape)
        return slot_arrays(self._index, rows, candidates, shapes, is_padded, flip, geometry)


class _Layer(NamedTuple):
    """Images of a global batch as drawn: `rows` int64 [G], `flip` bool [G, 1], and their
    `geometry`, what a class of `resizing` says."""

    rows: np.ndarray
    flip: np.ndarray
    geometry: dict

    @property
    def sizes(self):
        """What is seen of each image, int [G, 2]."""
        return resizing.content_sizes(self.geometry)


class _StandIns:
    """Two other records for each, of the same orientation, should its own be corrupted."""

    def __init__(self, index):
        self._is_portrait = (index.height > index.width).astype(np.int64)
        self._counts = np.bincount(self._is_portrait, minlength=2)
        self._rows = np.argsort(self._is_portrait, kind="stable")
        self._rank = np.argsort(self._rows, kind="stable")

    def of(self, rows):
        """Returns int64 [P, 2]; the row itself where no other has its orientation.

        They lie a third and two thirds of all away, because damage tends to hit neighbours in a
        shard.
        """
        kind = self._is_portrait[rows]
        count, start = self._counts[kind], self._counts[0] * kind
        stride = np.maximum(count // 3, 1)[:, np.newaxis] * [1, 2]
        rank = ((self._rank[rows] - start)[:, np.newaxis] + stride) % count[:, np.newaxis]
        return self._rows[start[:, np.newaxis] + rank]
