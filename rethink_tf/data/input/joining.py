"""Joins the parts of a pipeline: slots drawn, records read in parallel, batches, the report."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import tensorflow as tf

from rethink_tf.data import schema
from rethink_tf.data.input import reading, service, worker_share


@dataclasses.dataclass(frozen=True)
class Steps:
    """The steps of a pipeline, and how the slots of one are drawn.

    Attributes:
        all: callable that returns what each step is drawn from, a tuple each, from the first on.
        draw: callable of what is in such a tuple; returns the slots of the step (`slots`).
    """

    all: Callable[[], Iterable[tuple]]
    draw: Callable[..., dict]


@dataclasses.dataclass(frozen=True)
class Parts:
    """What a pipeline is joined from.

    Attributes:
        steps: what is read.
        read: callable from a slot to its data set of one element: (element, notes, ...).
        share: which images of a step this pipeline reads.
        spec: element spec of the batches.
        report: takes the notes.
        is_compiled: whether a compiler wants batches of a few shapes.
        parallel_records: records in work at a time.
    """

    steps: Steps
    read: Callable[[dict], tf.data.Dataset]
    share: worker_share.Share
    spec: dict
    report: reading.Report
    is_compiled: bool
    parallel_records: int

    def join(self, services: Sequence[str] = (), minutes: float = 0.0) -> tf.data.Dataset:
        """Batches of `spec` with `schema.PADDING`, in the order of the steps.

        Args:
            services: "host:port" of each service that reads in this process's place (`service`).
            minutes: how long to wait for one.
        """
        if services:
            batches_a_step = self.share.size // self.share.replica_batch_size
            batches = service.read_remotely(
                self._slots,
                self._read_batches,
                services,
                batches_a_step,
                minutes,
                self.report.counters,
            )
        else:
            batches = self._read_batches(self._slots())
        return _with_options(batches.map(self._finish).prefetch(2))

    def _slots(self, first=0, stride=1):
        """The slots of every stride-th step from the first on; "number" counts the steps."""

        def make_slots():
            steps = itertools.islice(self.steps.all(), first, None, stride)
            for number, step in enumerate(steps):
                slots = self.steps.draw(*step)
                yield slots | {"number": np.full(len(slots["row"]), number)}

        example = next(make_slots())
        signature = tf.nest.map_structure(lambda a: tf.TensorSpec(a.shape, a.dtype), example)
        return _with_options(tf.data.Dataset.from_generator(make_slots, output_signature=signature))

    def _read_batches(self, slots):
        """From slots of steps to (batch, number, is_padded, notes, ...) for each replica."""

        def read_slot(slot):
            told = slot["number"], slot["is_padded"]
            return self.read(slot).map(lambda element, *notes: (element, *told, *notes))

        elements = slots.unbatch().interleave(
            read_slot,
            cycle_length=self.parallel_records,
            block_length=1,  # each slot has one element, so the order of the slots is kept
            num_parallel_calls=self.parallel_records,
            deterministic=True,
        )
        return _with_options(elements.batch(self.share.replica_batch_size, drop_remainder=True))

    def _finish(self, batch, _, is_padded, *notes):
        batch = self.report.check(batch, *notes)
        batch = {key: tf.ensure_shape(batch[key], self.spec[key].shape) for key in self.spec}
        # The same for all replicas and workers. A program that a compiler makes serves both.
        count = 1 if self.is_compiled else tf.cast(is_padded[0], tf.int32)
        return batch | {schema.PADDING: tf.zeros([count], tf.bool)}


def _with_options(dataset):
    options = tf.data.Options()
    options.deterministic = True
    options.autotune.enabled = False  # its thread can delay the process's end by a minute
    # The plan shards; TensorFlow must not do it once more.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return dataset.with_options(options)
