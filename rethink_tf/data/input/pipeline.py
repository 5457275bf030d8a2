"""The tf.data pipeline: record directories in, batches of `schema` out.

The plan says which records a step reads; each is read at its own offset (TensorFlow's C++ reader,
checksums checked), decoded and augmented in parallel, and the order of the plan is kept. So the
batches are a pure function of the records, the settings, the seed and the step.

A slot holds one image of a batch. In training it has three candidates: its record, and two
stand-ins if that is corrupted (`reading`). With copy-paste it has a second slot inside, of the
image whose objects are pasted.

Letters: G images of a global batch, P of it in one input pipeline, B in one replica.
"""

import dataclasses
import itertools
import re
from collections.abc import Sequence

import gin
import numpy as np
import tensorflow as tf
from absl import logging

from rethink_tf.data import schema
from rethink_tf.data.input import (
    batch_shapes,
    copy_paste,
    decode,
    joining,
    order,
    reading,
    resizing,
    slots,
    worker_share,
)
from rethink_tf.data.records import store, subsets
from rethink_tf.data.records.keypoints import KeypointLayout


@gin.register
@dataclasses.dataclass(eq=False)
class Pipeline:
    """Settings of the input, and the data sets made with them; nothing is read before.

    Attributes:
        min_side: shorter side after resizing, pixels; of several, one is drawn an image, as
            min_side_sampling says.
        max_side: longest side after resizing, pixels; wins over min_side.
        buckets: (H, W) each, pixels, the fixed shapes of batches, and the one that holds all
            of them; an image that none holds is shrunk. None for shapes as tight as the images
            of each batch allow or, where a compiler wants a few, for those that
            `batch_shapes.choose_shapes` finds.
        max_shapes: how many those are at most.
        max_objects: object rows an image; more are cut by area.
        include_masks: whether training batches have masks; False for data without.
        mask_size: side of a mask crop.
        include_keypoints: whether training batches have keypoints. As in Detectron, images
            without a labelled keypoint are then not trained on.
        flip_probability: of mirroring a training image left and right.
        keep_empty: whether images without an object, or with crowds alone, are trained on.
        num_images: train on that many images, chosen by `subsets`; None for all. With
            include_keypoints they are chosen from the images with a labelled keypoint.
        evaluation_min_side: shorter side in evaluation; None for the largest min_side.
        parallel_records: records in work at a time in one input pipeline.
        include_difficult: whether to train on objects marked as difficult (PASCAL VOC), as
            Detectron2 does; Detectron leaves them out. For keep_empty they are objects in any
            case; what they count in evaluation is for the metric to say.
        evaluation_num_images: evaluate that many images, chosen as `num_images` are; None for
            all, whatever is trained on.
        min_side_sampling: for a min_side of several: "choice" draws one of them, "range" any
            length from the first to the second.
        jitter: resizes and crops training images in place of min_side, max_side and buckets,
            which are those of evaluation then; or None.
        copy_paste: whether objects of a second image are pasted onto each training image.
        max_skipped_share: which share of the records may be skipped because they cannot be read,
            before training stops.
        held_out: for data of one split: images of a hash (`subsets`) below this share of all
            hashes are evaluated alone, the others trained on alone.
        services: "host:port" each, where `rethink_tf.data.serve` reads the records of training in
            place of this host; the batches and their order are the same.
        service_minutes: how long to wait for a service at the start, and for a batch of one.

    Raises:
        ValueError: if a number is out of its range, or a setting does not fit another.
    """

    min_side: int | Sequence[int] = 800
    max_side: int = 1333
    buckets: Sequence[Sequence[int]] | None = None
    max_shapes: int = 8
    max_objects: int = schema.MAX_OBJECTS
    include_masks: bool = True
    mask_size: int = schema.MASK_SIZE
    include_keypoints: bool = False
    flip_probability: float = 0.5
    keep_empty: bool = True
    num_images: int | None = None
    evaluation_min_side: int | None = None
    parallel_records: int = 16
    include_difficult: bool = True
    evaluation_num_images: int | None = None
    min_side_sampling: str | None = None
    jitter: resizing.LargeScaleJitter | None = None
    copy_paste: bool = False
    held_out: float = 0.0
    max_skipped_share: float = 0.1
    services: Sequence[str] = ()
    service_minutes: float = 2.0

    def __post_init__(self):
        self._check()
        sampling = self.min_side_sampling
        self.shorter_side = resizing.ShorterSide(self.min_side, sampling, self.max_side)
        sides = self.shorter_side.sides
        if self.jitter and len(sides) > 1:
            raise ValueError(
                f"min_side is {self.min_side} beside a jitter, which draws the sizes of training: "
                "give the one side of evaluation, or bind Pipeline.jitter = None"
            )
        self.evaluation_min_side = self.evaluation_min_side or max(sides)
        self._evaluation_side = resizing.ShorterSide(self.evaluation_min_side, None, self.max_side)
        self.buckets = self.buckets and [tuple(bucket) for bucket in self.buckets]
        self.mask_size = self.mask_size if self.include_masks else None

    def _check(self):
        if self.copy_paste and self.include_keypoints:
            raise ValueError(
                "copy_paste and include_keypoints are both set, and keypoints that a pasted object "
                "hides are not found out: bind Pipeline.copy_paste = False"
            )
        if self.copy_paste and not self.include_masks:
            raise ValueError(
                "copy_paste needs masks, and include_masks is False: take a detector and data with "
                "masks, or bind Pipeline.copy_paste = False"
            )
        for name in ("flip_probability", "max_skipped_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}, must be within 0..1")
        for name in ("max_objects", "mask_size", "parallel_records", "max_shapes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, must be at least 1")
        given = self.services
        is_text = isinstance(given, str)
        if is_text or not all(re.fullmatch(r"(\[.+\]|[^:]+):\d+", str(each)) for each in given):
            raise ValueError(f"services is {given!r}, must be a list such as ['host0:5050']")

    def selected_index(self, source: str | store.RecordIndex) -> store.RecordIndex:
        """The records of a directory or an index, or the `num_images` chosen from them."""
        return self._choose(source, self.num_images, "num_images", True)

    def evaluation_index(self, source: str | store.RecordIndex) -> store.RecordIndex:
        """The records evaluated: all, or the `evaluation_num_images` chosen from them."""
        return self._choose(source, self.evaluation_num_images, "evaluation_num_images", False)

    def training_index(self, source: str | store.RecordIndex) -> store.RecordIndex:
        """The records trained on: the selected ones, all or those with an object or keypoint.

        Raises:
            ValueError: if no record has an object, or keypoint, where it has to.
        """
        index = chosen = self.selected_index(source)
        if self.include_keypoints:
            kept = index.num_keypoints > 0
            index = subsets.keep_some(index, kept, "a labelled keypoint", "include_keypoints keeps")
        if not self.keep_empty:
            kept, what = index.num_objects > 0, "an object that is no crowd"
            index = subsets.keep_some(index, kept, what, "keep_empty = False keeps")
        if len(index) < len(chosen):
            missing = "labelled keypoint" if self.include_keypoints else "object (crowds aside)"
            count = f"{len(chosen) - len(index)} of {len(chosen)} images"
            logging.info("%s: %s left out, without any %s.", index.directory, count, missing)
        return index

    def mean_training_pixels(self, index: store.RecordIndex) -> float:
        """Returns the mean area of an image in training, pixels, without padding.

        Args:
            index: of the images to train on; each is drawn once, with a seed of its own.
        """
        rule = self.jitter or self.shorter_side
        stored = np.stack([index.height, index.width], -1)
        draws = np.random.default_rng(0).random([len(stored), rule.num_draws])
        sizes = resizing.content_sizes(rule.geometry(stored, draws))
        return float(sizes.prod(-1, dtype=np.float64).mean())

    def training(
        self,
        source: str | store.RecordIndex,
        category_ids: Sequence[int],
        global_batch_size: int,
        seed: int,
        start_step: int = 0,
        input_context: tf.distribute.InputContext | None = None,
        counters: reading.PipelineCounters | None = None,
        keypoints: KeypointLayout | None = None,
        accumulate_steps: int = 1,
        multiple: int = 32,
        is_compiled: bool = False,
    ) -> tf.data.Dataset:
        """Training batches from a step on, without end.

        Each global batch comes as the shares of this pipeline's replicas, one element each, in
        the order of the replicas: what `strategy.distribute_datasets_from_function` wants. In
        micro-batches it is the same images in the same order, cut into as many global batches.

        Args:
            source: a record directory or its index.
            category_ids: ids of the data set's categories; class k is the k-th smallest.
            global_batch_size: G, divisible by the number of replicas.
            seed: of the run, >= 0.
            start_step: step of the first batch.
            input_context: which worker this is; None for one worker with one replica.
            counters: where skipped records and cut objects are counted.
            keypoints: of the data set; needed where `include_keypoints` is set.
            accumulate_steps: micro-batches a step, of G / accumulate_steps images each.
            multiple: of the sides of a batch, pixels: the network's coarsest stride.
            is_compiled: whether a compiler wants batches of a few shapes.

        Returns:
            Batches as `schema.training_spec` says, B images each, with `schema.PADDING`.

        Raises:
            ValueError: if G cannot be divided, or there is no record, no category or, where they
                are to be included, no keypoint.
        """
        index = self.training_index(source)
        share = worker_share.Share(global_batch_size, input_context, accumulate_steps)
        ids = sorted(set(category_ids))
        self._check_contents(index, ids, keypoints)
        flip_order = keypoints.flip_order if self.include_keypoints else None
        num_keypoints = flip_order and len(flip_order)
        drawn, shapes = self.training_slots(index, seed, multiple, is_compiled)
        plan = order.TrainingPlan(len(index), global_batch_size, seed, drawn.sizes, shapes)

        rows = self.max_objects, self.mask_size, num_keypoints
        spec = schema.training_spec(share.replica_batch_size, shapes.only, *rows)
        read = self._reader(index, tf.constant(ids, tf.int64), spec, flip_order)
        report = reading.Report(index, ids, self.max_objects, counters, self.max_skipped_share)
        steps = joining.Steps(
            lambda: (batch[1:] for batch in plan.batches(start_step)),
            lambda rows, passes: drawn.draw(rows, passes, share, shapes),
        )
        parts = joining.Parts(steps, read, share, spec, report, is_compiled, self.parallel_records)
        return parts.join(self.services, self.service_minutes)

    def _check_contents(self, index, category_ids, keypoints):
        if not category_ids:
            raise ValueError(f"{index.directory}: no categories, so there is nothing to learn")
        if self.include_keypoints and keypoints is None:
            raise ValueError(f"{index.directory}: Pipeline.include_keypoints needs their layout")

    def training_slots(self, index, seed, multiple, is_compiled):
        """What `training` draws with: a `slots.TrainingSlots` and `batch_shapes.BatchShapes`."""
        drawn = slots.TrainingSlots(
            index,
            self.jitter or self.shorter_side,
            self.flip_probability,
            seed,
            self.max_objects if self.copy_paste else None,
        )
        shapes = batch_shapes.make_shapes(
            None if self.jitter else self.buckets,
            multiple,
            self.max_shapes if is_compiled else None,
            drawn.expected_sizes,
        )
        return drawn, shapes

    def _reader(self, index, category_ids, spec, flip_order):
        """Returns the function from a slot to its data set of one training element and notes."""
        shards = reading.Shards(index.paths)
        if self.copy_paste:
            return self._pasting_reader(shards, category_ids, spec)

        def load(serialized, drawn, shape):
            """Decodes one record for its slot of the batch."""
            parsed = decode.parse_image_and_objects(
                serialized, self.mask_size is not None, self.include_keypoints
            )
            element = decode.decode_image(parsed["image/encoded"], drawn, shape)
            objects, notes = decode.decode_objects(
                parsed,
                drawn,
                element[schema.IMAGE_SCALE],
                category_ids,
                self.max_objects,
                self.mask_size,
                self.include_difficult,
                flip_order,
            )
            return element | objects, notes

        return lambda slot: reading.read_slot(slot, shards, load, spec)

    def _pasting_reader(self, shards, category_ids, spec):
        """As `_reader`, where a slot's image gets objects of another one; notes are of both."""

        def load(serialized, drawn, shape):
            parsed = decode.parse_image_and_objects(serialized, with_masks=True)
            element = decode.decode_image(parsed["image/encoded"], drawn, shape)
            chosen, notes = decode.choose_objects(
                parsed, drawn, category_ids, self.max_objects, True, self.include_difficult
            )
            return copy_paste.hold(element, chosen, drawn, self.max_objects), notes

        held = copy_paste.held_spec(spec, self.jitter is not None)

        def read(slot):
            draws = slot["paste"]["draws"]

            def paste(first, second):
                element, cut = copy_paste.paste(
                    first[0], second[0], draws, self.max_objects, self.mask_size
                )
                return element, first[1] | {"cut": first[1]["cut"] + cut}, second[1]

            pair = [reading.read_slot(s, shards, load, held) for s in (slot, slot["paste"])]
            return tf.data.Dataset.zip(tuple(pair)).map(paste)

        return read

    def evaluation(
        self,
        source: str | store.RecordIndex,
        global_batch_size: int,
        input_context: tf.distribute.InputContext | None = None,
        further_sizes: Sequence[tuple[int, int]] = (),
        multiple: int = 32,
        is_compiled: bool = False,
        counters: reading.PipelineCounters | None = None,
    ) -> tf.data.Dataset:
        """Each image once, with others of like sizes; padding images fill the last batch.

        A record that cannot be read is an error here: leaving an image out would change the AP.

        Args:
            source: a record directory or its index.
            global_batch_size: G, divisible by the number of replicas.
            input_context: which worker this is; None for one worker with one replica.
            further_sizes: (min_side, max_side) each, pixels. After each batch its images come again
                in each of these sizes, resized from the stored images, a batch each.
            multiple: of the sides of a batch, pixels: the network's coarsest stride.
            is_compiled: whether a compiler wants batches of a few shapes.
            counters: where the error of a record that cannot be read is kept.

        Returns:
            Batches as of `schema.evaluation_spec` with `schema.PADDING`, on every worker as many.
        """
        index = self.evaluation_index(source)
        share = worker_share.Share(global_batch_size, input_context)
        stored = slots.stored_sizes(index, np.arange(len(index)))
        sizes = [self.evaluation_sizes(stored)] + [
            resizing.ShorterSide(side, None, longest).largest(stored)
            for side, longest in further_sizes
        ]
        limit = self.max_shapes if is_compiled else None
        # Those of test augmentation follow from their own sizes.
        shapes = [
            batch_shapes.make_shapes(
                buckets, multiple, limit, lambda each=each: (each, each.max(0))
            )
            for each, buckets in itertools.zip_longest(sizes, [self.buckets])
        ]
        shards = reading.Shards(index.paths)
        batches = order.evaluation_batches(sizes[0], global_batch_size, shapes[0])

        def load(serialized, drawn, shape):
            encoded = decode.parse_image(serialized)["image/encoded"]
            return decode.decode_image(encoded, drawn, shape), decode.no_notes()

        def read(slot):
            return reading.read_slot(slot, shards, load, spec)

        only = None if further_sizes else shapes[0].only
        spec = schema.evaluation_spec(share.replica_batch_size, only)
        report = reading.Report(index, counters=counters)
        views = list(zip(sizes, shapes, strict=True))
        steps = joining.Steps(
            lambda: ((rows, *view) for rows in batches for view in views),
            lambda rows, each, own: slots.evaluate(index, rows, each, own, share),
        )
        parts = joining.Parts(steps, read, share, spec, report, is_compiled, self.parallel_records)
        return parts.join()

    def evaluation_sizes(self, stored: np.ndarray) -> np.ndarray:
        """Returns int64 [n, 2], what images of sizes int [n, 2] are resized to for evaluation."""
        return self._evaluation_side.largest(stored)

    def num_evaluation_batches(self, index: store.RecordIndex, global_batch_size: int) -> int:
        """How many global batches `evaluation` gives, not counted again in further sizes."""
        return -(-len(self.evaluation_index(index)) // global_batch_size)

    def _choose(self, source, num_images, setting, is_training):
        """The index of a directory, or an index, restricted to what is used of it."""
        index = source if isinstance(source, store.RecordIndex) else store.load_index(source)
        if self.held_out:
            is_held_out = subsets.hash_shares(index.image_id) < self.held_out
            index = index.select(is_held_out != is_training)
        if num_images is None:
            return index
        where = index.directory
        if self.include_keypoints:
            index, where = index.select(index.num_keypoints > 0), f"{where}'s images with keypoints"
        return subsets.choose_images(index, num_images, f"Pipeline.{setting}, for {where}")
