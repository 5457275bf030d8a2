"""The tf.data pipeline: record directories in, batches of `schema` out.

The plan says which records a step reads; each is read at its own offset (TensorFlow's C++ reader,
checksums checked), decoded and augmented in parallel, and the order of the plan is kept. So the
batches are a pure function of the records, the settings, the seed and the step.

A slot is one place of a batch. In training it has three candidates: its record, and two
stand-ins of the same bucket in case its record is corrupted (`reading`).

Letters: G images of a global batch, P of it in one input pipeline, B in one replica.
"""

from collections.abc import Sequence

import gin
import numpy as np
import tensorflow as tf

from rethink_tf.data import decode, plan, reading, records, schema, subsets
from rethink_tf.data.keypoints import KeypointLayout

NUM_CANDIDATES = 3  # the record and the two of `TrainingPlan.fallbacks`


@gin.register
class Pipeline:
    """Settings of the input, and the data sets made with them."""

    def __init__(
        self,
        min_side: int | Sequence[int] = 800,
        max_side: int = 1333,
        buckets: Sequence[Sequence[int]] | None = None,
        max_objects: int = schema.MAX_OBJECTS,
        include_masks: bool = True,
        mask_size: int = schema.MASK_SIZE,
        include_keypoints: bool = False,
        flip_probability: float = 0.5,
        keep_empty: bool = True,
        num_images: int | None = None,
        evaluation_min_side: int | None = None,
        parallel_records: int = 16,
        include_difficult: bool = True,
        evaluation_num_images: int | None = None,
    ):
        """Checks the settings; nothing is read yet.

        Args:
            min_side: shorter side after resizing, pixels; of several, one is drawn an image.
            max_side: longest side after resizing, pixels; wins over min_side.
            buckets: (H, W) each, pixels, the fixed shapes of batches; None for a landscape and a
                portrait one that hold min_side by max_side (`plan.default_buckets`).
            max_objects: object rows an image; more are cut by area.
            include_masks: whether training batches have masks; False for data without.
            mask_size: side of a mask crop.
            include_keypoints: whether training batches have keypoints. As in Detectron, images
                without a labelled keypoint are then not trained on.
            flip_probability: of mirroring a training image left and right.
            keep_empty: whether images without an object are trained on.
            num_images: train on that many images, chosen by `subsets`; None for all. With
                include_keypoints they are chosen from the images with a labelled keypoint.
            evaluation_min_side: shorter side in evaluation; None for the largest min_side.
            parallel_records: records in work at a time in one input pipeline.
            include_difficult: whether to train on objects marked as difficult (PASCAL VOC), as
                Detectron2 does; Detectron leaves them out. For keep_empty they are objects in any
                case; what they count in evaluation is for the metric to say.
            evaluation_num_images: evaluate that many images, chosen as `num_images` are; None for
                all, whatever is trained on.

        Raises:
            ValueError: if a number is out of its range.
        """
        self.min_sides = [min_side] if isinstance(min_side, int) else list(min_side)
        self.max_side = max_side
        self.evaluation_min_side = evaluation_min_side or max(self.min_sides, default=0)
        if min([*self.min_sides, self.evaluation_min_side]) < 1:
            raise ValueError(f"min_side is {min_side}; give one or more sides of at least 1 pixel")
        largest = max(*self.min_sides, self.evaluation_min_side)
        if max_side < largest:
            raise ValueError(f"max_side {max_side} is below min_side {largest}; swap or raise it")
        if not 0 <= flip_probability <= 1:
            raise ValueError(f"flip_probability is {flip_probability}, must be within 0..1")
        if min(max_objects, mask_size, parallel_records) < 1:
            raise ValueError(
                f"max_objects {max_objects}, mask_size {mask_size} and parallel_records "
                f"{parallel_records} must be at least 1"
            )
        self.buckets = [tuple(b) for b in buckets or plan.default_buckets(largest, max_side)]
        self.max_objects = max_objects
        self.mask_size = mask_size if include_masks else None
        self.include_keypoints = include_keypoints
        self.flip_probability = flip_probability
        self.keep_empty = keep_empty
        self.num_images = num_images
        self.parallel_records = parallel_records
        self.include_difficult = include_difficult
        self.evaluation_num_images = evaluation_num_images

    def selected_index(self, source: str | records.RecordIndex) -> records.RecordIndex:
        """The records of a directory or an index, or the `num_images` chosen from them."""
        return self._choose(source, self.num_images, "num_images")

    def evaluation_index(self, source: str | records.RecordIndex) -> records.RecordIndex:
        """The records evaluated: all, or the `evaluation_num_images` chosen from them."""
        return self._choose(source, self.evaluation_num_images, "evaluation_num_images")

    def training_index(self, source: str | records.RecordIndex) -> records.RecordIndex:
        """The records trained on: the selected ones, all or those with an object or keypoint.

        Raises:
            ValueError: if keypoints are to be included and no record has one.
        """
        index = self.selected_index(source)
        if self.include_keypoints:
            index = index.select(index.num_keypoints > 0)
            if not len(index):
                raise ValueError(
                    f"{index.directory}: no image has a labelled keypoint, and "
                    "Pipeline.include_keypoints keeps only images with one"
                )
        return index if self.keep_empty else index.select(index.num_objects > 0)

    def training(
        self,
        source: str | records.RecordIndex,
        category_ids: Sequence[int],
        global_batch_size: int,
        seed: int,
        start_step: int = 0,
        input_context: tf.distribute.InputContext | None = None,
        counters: reading.PipelineCounters | None = None,
        keypoints: KeypointLayout | None = None,
        accumulate_steps: int = 1,
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

        Returns:
            Batches as `schema.training_spec` says, B images each.

        Raises:
            ValueError: if G cannot be divided, or there is no record, no category or, where they
                are to be included, no keypoint.
        """
        index = self.training_index(source)
        share = _Share(global_batch_size, input_context, accumulate_steps)
        ids = sorted(set(category_ids))
        if not ids:
            raise ValueError(f"{index.directory}: no categories, so there is nothing to learn")
        if self.include_keypoints and keypoints is None:
            raise ValueError(f"{index.directory}: Pipeline.include_keypoints needs their layout")
        flip_order = keypoints.flip_order if self.include_keypoints else None
        bucket_of_row = self._assign(index, max(self.min_sides))
        training_plan = plan.TrainingPlan(bucket_of_row, global_batch_size, seed)

        def slots():
            for step, bucket, rows in training_plan.batches(start_step):
                rows = share.of(rows)
                candidates = np.column_stack([rows, training_plan.fallbacks(rows)])
                draws = plan.draw_uniforms(seed, step, index.image_id[candidates].ravel(), 2)
                flip, which = draws.reshape(*candidates.shape, 2).transpose(2, 0, 1)
                sides = np.array(self.min_sides)[(which * len(self.min_sides)).astype(int)]
                yield self._describe(
                    index,
                    rows,
                    candidates,
                    self.buckets[bucket],
                    (sides, self.max_side),
                    flip < self.flip_probability,
                )

        def load(serialized, place, bucket):
            parsed = decode.parse_image_and_objects(
                serialized, self.mask_size is not None, self.include_keypoints
            )
            element = decode.decode_image(parsed["image/encoded"], place, bucket)
            objects, notes = decode.decode_objects(
                parsed,
                place,
                element[schema.IMAGE_SCALE],
                tf.constant(ids, tf.int64),
                self.max_objects,
                self.mask_size,
                self.include_difficult,
                flip_order,
            )
            return element | objects, notes

        spec = schema.training_spec(
            share.replica_batch_size,
            self._static_shape(),
            self.max_objects,
            self.mask_size,
            flip_order and len(flip_order),
        )
        report = reading.Report(index, ids, self.max_objects, counters)
        return self._dataset(index, slots, NUM_CANDIDATES, load, share, spec, report)

    def evaluation(
        self,
        source: str | records.RecordIndex,
        global_batch_size: int,
        input_context: tf.distribute.InputContext | None = None,
        further_sizes: Sequence[tuple[int, int]] = (),
    ) -> tf.data.Dataset:
        """Each image once, bucket by bucket; padding images fill a bucket's last batch.

        A record that cannot be read is an error here: leaving an image out would change the AP.

        Args:
            source: a record directory or its index.
            global_batch_size: G, divisible by the number of replicas.
            input_context: which worker this is; None for one worker with one replica.
            further_sizes: (min_side, max_side) each, pixels. After each batch its images come again
                in each of these sizes, resized from the stored images, a batch each.

        Returns:
            Batches as `schema.evaluation_spec` says, B images each; every worker has as many.
        """
        index = self.evaluation_index(source)
        share = _Share(global_batch_size, input_context)
        sizes = [(self.evaluation_min_side, self.max_side), *further_sizes]
        group_of_row, shapes = self._evaluation_groups(index, further_sizes)

        def slots():
            for group, rows in plan.evaluation_batches(group_of_row, global_batch_size):
                rows = share.of(rows)
                flip = np.zeros([len(rows), 1], bool)
                for size, shape in zip(sizes, shapes[group], strict=True):
                    yield self._describe(index, rows, rows[:, np.newaxis], shape, size, flip)

        def load(serialized, place, bucket):
            encoded = decode.parse_image(serialized)["image/encoded"]
            return decode.decode_image(encoded, place, bucket), decode.no_notes()

        static_shape = None if further_sizes else self._static_shape()
        spec = schema.evaluation_spec(share.replica_batch_size, static_shape)
        return self._dataset(index, slots, 1, load, share, spec, reading.Report(index))

    def num_evaluation_batches(
        self,
        index: records.RecordIndex,
        global_batch_size: int,
        further_sizes: Sequence[tuple[int, int]] = (),
    ) -> int:
        """How many global batches `evaluation` gives, not counted again in further sizes."""
        group_of_row, _ = self._evaluation_groups(index, further_sizes)
        return sum(1 for _ in plan.evaluation_batches(group_of_row, global_batch_size))

    def _evaluation_groups(self, index, further_sizes):
        """Which images are evaluated together, and the shapes that they come in.

        In a further size a group has the smallest bucket that holds all of its images, so that none
        shrinks. The images that max_side makes smaller than min_side, which are longer than the
        others, are a group of their own then: in the others' bucket they would triple it.

        Returns:
            int64 [N], and {group: [(H, W) of the own size and of each further one]}.
        """
        group_of_row = 2 * self._assign(index, self.evaluation_min_side)
        if further_sizes:
            own = _resized(index, (self.evaluation_min_side, self.max_side))
            group_of_row += own.min(axis=-1) < self.evaluation_min_side
        shapes = {}
        for group in np.unique(group_of_row).tolist():
            inside = group_of_row == group
            shapes[group] = [self.buckets[group // 2]] + [
                plan.enclosing_bucket(_resized(index, size)[inside]) for size in further_sizes
            ]
        return group_of_row, shapes

    def _choose(self, source, num_images, setting):
        """The index of a directory, or an index, restricted to a subset where a number is given."""
        index = source if isinstance(source, records.RecordIndex) else records.load_index(source)
        if num_images is None:
            return index
        where = index.directory
        if self.include_keypoints:
            index, where = index.select(index.num_keypoints > 0), f"{where}'s images with keypoints"
        try:
            chosen = subsets.select_image_ids(index.image_id, num_images)
        except ValueError as error:
            raise ValueError(f"Pipeline.{setting}, for {where}: {error}") from error
        return index.select(np.isin(index.image_id, chosen))

    def _static_shape(self):
        return self.buckets[0] if len(self.buckets) == 1 else None

    def _assign(self, index, min_side):
        return plan.assign_buckets(_resized(index, (min_side, self.max_side)), self.buckets)

    @staticmethod
    def _describe(index, rows, candidates, shape, size, flip):
        """All that tf.data must know of P slots with n candidates each: arrays [P, ...].

        Their batch is of `shape`, their images are resized to `size`, (min_sides, max_side).
        """
        stored = np.stack([index.height[candidates], index.width[candidates]], -1)
        sizes = plan.resized_shapes(stored[..., 0], stored[..., 1], *size)
        places = {
            "row": candidates,
            "candidate": np.broadcast_to(np.arange(candidates.shape[1]), candidates.shape),
            "shard": index.shard[candidates],
            "offset": index.offset[candidates],
            "image_id": index.image_id[candidates],
            "flip": flip,
            "stored": stored.astype(np.int32),
            "size": plan.shrink_to_bucket(sizes, shape).astype(np.int32),
        }
        buckets = np.broadcast_to(np.array(shape, np.int32), [len(rows), 2])
        return {"row": rows, "bucket": buckets, "places": places}

    def _dataset(self, index, slots, num_candidates, load, share, spec, report):
        """Joins the parts: slots, parallel reading, batches, the report, prefetch."""

        def with_shapes(batch):
            return {key: tf.ensure_shape(batch[key], spec[key].shape) for key in spec}

        signature = _slot_signature(share.size, num_candidates)
        dataset = tf.data.Dataset.from_generator(slots, output_signature=signature).unbatch()
        dataset = dataset.interleave(
            lambda slot: reading.read_slot(slot, index.paths, load, spec),
            cycle_length=self.parallel_records,
            block_length=1,  # each slot has one element, so the order of the slots is kept
            num_parallel_calls=self.parallel_records,
            deterministic=True,
        )
        dataset = dataset.batch(share.replica_batch_size, drop_remainder=True)
        dataset = dataset.map(lambda batch, notes: with_shapes(report.check(batch, notes)))
        options = tf.data.Options()
        options.deterministic = True
        # The plan shards; TensorFlow must not do it once more.
        options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
        return dataset.prefetch(2).with_options(options)


def _resized(index, size):
    """Sizes int64 [N, 2] of all images, resized to (min_side, max_side)."""
    return plan.resized_shapes(index.height, index.width, *size)


class _Share:
    """The part of a global batch that one input pipeline reads, and one replica of it gets.

    Of several micro-batches, each is shared as a global batch is.
    """

    def __init__(
        self,
        global_batch_size: int,
        context: tf.distribute.InputContext | None,
        micro_batches: int = 1,
    ):
        context = context or tf.distribute.InputContext()
        replicas, pipelines = context.num_replicas_in_sync, context.num_input_pipelines
        parts = micro_batches * replicas
        if min(global_batch_size, parts) < 1 or global_batch_size % parts or replicas % pipelines:
            raise ValueError(
                f"a global batch of {global_batch_size} images cannot be shared equally by "
                f"{replicas} replicas fed by {pipelines} input pipelines in {micro_batches} "
                f"micro-batches; take a multiple of {parts}"
            )
        self.replica_batch_size = global_batch_size // parts
        self.size = global_batch_size // pipelines
        self._shape = (micro_batches, pipelines, self.size // micro_batches)
        self._pipeline = context.input_pipeline_id

    def of(self, rows: np.ndarray) -> np.ndarray:
        return rows.reshape(self._shape)[:, self._pipeline].ravel()


def _slot_signature(num_slots: int, num_candidates: int) -> dict:
    """What `Pipeline._describe` gives: P slots with n candidates each."""

    def of(dtype, *shape):
        return tf.TensorSpec([num_slots, *shape], dtype)

    n = num_candidates
    places = {
        "row": of(tf.int64, n),
        "candidate": of(tf.int32, n),
        "shard": of(tf.int32, n),
        "offset": of(tf.int64, n),
        "image_id": of(tf.int64, n),
        "flip": of(tf.bool, n),
        "stored": of(tf.int32, n, 2),
        "size": of(tf.int32, n, 2),
    }
    return {"row": of(tf.int64), "bucket": of(tf.int32, 2), "places": places}
