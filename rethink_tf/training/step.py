"""One training step on all replicas: the only GradientTape, the only division by replicas.

A step may take its images in several micro-batches, to fit into the memory of one: their gradients
are summed, and the weights change once.

Letters: B images of one replica, and of one micro-batch where there are several.
"""

import functools

import tensorflow as tf
from absl import logging

from rethink_tf.layers import normalization
from rethink_tf.losses import NAMES, box_stages
from rethink_tf.ops.content import split_padding
from rethink_tf.training import update


class TrainStep:
    """Forward, backward and update; call it with the distributed batches of one step."""

    def __init__(
        self,
        detector,
        losses_fn,
        optimizer,
        strategy,
        seed,
        weight_decay=1e-4,
        cascade_from=0,
        accumulate_steps=1,
        clip_norm=None,
        average=None,
        batch_spec=None,
    ):
        """Sets up the step; all variables must exist and hold what the run starts from.

        With micro-batches the losses and the gradient are those of the same images in one batch:
        means over all anchors, RoIs and samples of heads in the step. How many there are is known
        only after a forward pass, which comes first, without the heads and without gradients: about
        a quarter of the step's time. The draws go by the step and the image. Batch normalization
        alone differs: its statistics are those of the micro-batch, over all replicas, and its
        moving averages move once a micro-batch.

        Args:
            detector: `MaskRCNN`; its plan says whether XLA compiles the step.
            losses_fn: `DetectionLosses`.
            optimizer: Keras optimizer; its `iterations` is the step.
            strategy: `tf.distribute.Strategy` that all of them were made under.
            seed: int, of the run.
            weight_decay: float, as of `WeightUpdate`.
            cascade_from: int, the first step that trains the later stages of a cascade. Until then
                the optimizer and the weight decay leave those alone.
            accumulate_steps: int, micro-batches a step. From two on, the sum of the gradients is
                held beside the model.
            clip_norm: float or None, as of `WeightUpdate`.
            average: `WeightAverage` that follows the weights, or None.
            batch_spec: element spec of the distributed batches, without `ops.content.PADDING`. What
                is open in it, H and W, is open in the step's program, which serves all shapes.
                None makes a program for each shape, which XLA needs.

        Raises:
            ValueError: if clip_norm is not above 0.
        """
        self.accumulate_steps = accumulate_steps
        self._detector, self._losses_fn = detector, losses_fn
        self._optimizer, self._strategy = optimizer, strategy
        self._seed = seed
        self._update_weights = update.WeightUpdate(optimizer, weight_decay, clip_norm, average)
        # Of the run so far: a resumed one goes on where its optimizer counts.
        self._cascade_from, self._next_step = cascade_from, int(optimizer.iterations.numpy())
        self._batch_spec, self._programs = batch_spec, {}
        self._sums = self._make_sums() if accumulate_steps > 1 else {}

    @property
    def step(self):
        """The variable that counts the steps."""
        return self._optimizer.iterations

    def go_on_from(self, step):
        """Counts the steps from a checkpoint that was read since; step is an int."""
        self._next_step = step

    @property
    def loss_names(self):
        """The losses that every step has, their sum `total` first."""
        return ["total", *NAMES, *(head.loss_name for head in self._detector.heads)]

    def __call__(self, *batches):
        """Runs the step.

        Args:
            *batches: distributed dicts as in `data.schema`, `accumulate_steps` of them.

        Returns:
            dict of float32 scalars: each loss by name, their sum as `total`, `learning_rate`, the
            `gradient_norm` that clipping goes by, before it, and the mean number an image of
            `rpn_positives` and `roi_positives` (of later stages `roi_positives_stage2`, ...); in
            float16 also what `WeightUpdate` reports of the loss scale.

        Raises:
            ValueError: if there are more or fewer batches.
        """
        if len(batches) != self.accumulate_steps:
            raise ValueError(f"A step takes {self.accumulate_steps} batches, got {len(batches)}.")
        # Counted here: to read the variable would be to wait for the device at every step.
        num_stages = 1 if self._next_step < self._cascade_from else None
        self._next_step += 1
        num_traces = self.num_traces
        batches = [split_padding(batch) for batch in batches]

        def run(method, batch, padded, *rest):
            return self._program(method, num_stages, padded, rest)(batch, *rest)

        if self.accumulate_steps == 1:
            values = run(self._run_whole, *batches[0])
        else:
            # Put together here and not in a graph: each micro-batch keeps a shape of its own, and
            # no collective operation is inside of a loop.
            counts = [run(self._count_samples, *batch) for batch in batches]
            counts = {key: sum(each[key] for each in counts) for key in counts[0]}
            parts = [run(self._add_gradients, *batch, counts) for batch in batches]
            values = self._finish(num_stages)(parts)
        if self.num_traces > num_traces:
            self._detector.plan.operations.return_memory()
        return values

    @property
    def num_traces(self):
        """How many programs were made so far."""
        return sum(each.experimental_get_tracing_count() for each in self._programs.values())

    def _program(self, method, num_stages, padded, rest):
        """Returns a method as a program for batches that are padded or not."""
        key = method.__name__, num_stages, padded
        if key not in self._programs:
            signature = None
            if self._batch_spec is not None:
                rest = tf.nest.map_structure(tf.type_spec_from_value, rest)
                signature = [self._batch_spec, *rest]
            method = functools.partial(method, num_stages=num_stages, padded=padded)
            self._programs[key] = self._make_program(method, signature)
        return self._programs[key]

    def _finish(self, num_stages):
        """Returns `_use_gradients` as a program."""
        key = self._use_gradients.__name__, num_stages
        if key not in self._programs:
            method = functools.partial(self._use_gradients, num_stages=num_stages)
            self._programs[key] = self._make_program(method)
        return self._programs[key]

    def _make_program(self, method, signature=None):
        jit_compile = self._detector.plan.jit_compile or None
        return tf.function(method, signature, autograph=False, jit_compile=jit_compile)

    def _make_sums(self):
        """Makes a variable for the sum of each weight's gradients: every replica has its own."""
        with self._strategy.scope():
            return {
                variable.ref(): tf.Variable(
                    tf.zeros(variable.shape, variable.dtype),
                    trainable=False,
                    synchronization=tf.VariableSynchronization.ON_READ,
                    aggregation=tf.VariableAggregation.SUM,
                )
                for variable in self._detector.trainable_variables
            }

    def _run_whole(self, batch, num_stages, padded):
        """Runs a step of one batch."""

        def on_one_replica(batch):
            gradients, values = self._differentiate(batch, num_stages, padded)
            return values, self._update(gradients, num_stages)

        values, updated = self._strategy.run(on_one_replica, args=(batch,))
        return self._report([self._sum_over_replicas(values)], updated)

    def _count_samples(self, batch, num_stages, padded):
        """Returns how many samples of each kind a micro-batch has, on all replicas."""

        def on_one_replica(batch):
            # What the counts do not need, the heads and all gradients, is never computed.
            with normalization.averages_at_rest():
                return self._counts(self._look_at(batch, num_stages, padded))

        return self._sum_over_replicas(self._strategy.run(on_one_replica, args=(batch,)))

    def _add_gradients(self, batch, counts, num_stages, padded):
        """Adds the gradients of a micro-batch to the sums, given the counts of the whole step."""
        num_parts = self._strategy.num_replicas_in_sync * self.accumulate_steps
        counts = {name: count / num_parts for name, count in counts.items()}

        def on_one_replica(batch):
            gradients, values = self._differentiate(batch, num_stages, padded, counts)
            variables = self._detector.variables_of_stages(num_stages)
            for variable, gradient in zip(variables, gradients, strict=True):
                self._sums[variable.ref()].assign_add(gradient)
            return values

        return self._sum_over_replicas(self._strategy.run(on_one_replica, args=(batch,)))

    def _use_gradients(self, parts, num_stages):
        """Ends the step of micro-batches: updates by the sums and clears them."""

        def on_one_replica():
            variables = self._detector.variables_of_stages(num_stages)
            sums = [self._sums[variable.ref()] for variable in variables]
            values = self._update([tf.convert_to_tensor(each) for each in sums], num_stages)
            for each in sums:
                each.assign(tf.zeros_like(each))
            return values

        return self._report(parts, self._strategy.run(on_one_replica))

    def _sum_over_replicas(self, values):
        return {
            key: self._strategy.reduce(tf.distribute.ReduceOp.SUM, value, axis=None)
            for key, value in values.items()
        }

    def _report(self, parts, updated):
        """Joins the values of the micro-batches and of each replica's update."""
        values = {name: tf.add_n([part[name] for part in parts]) for name in parts[0]}
        updated = self._sum_over_replicas(updated)
        values["total"] += updated["weight_decay"]
        # Read after the update, which sets it: the rate that this step used.
        rate = tf.cast(self._optimizer.learning_rate, tf.float32)
        return values | updated | {"learning_rate": rate}

    def _look_at(self, batch, num_stages, padded):
        """Returns the detector's training outputs for a batch of this replica."""
        # By the step and not by a state: a resumed run draws as the unbroken one would.
        seed = tf.stack([self._seed, tf.cast(self._optimizer.iterations, tf.int32)])
        return self._detector(batch, training=True, seed=seed, num_stages=num_stages, padded=padded)

    def _counts(self, outputs):
        return self._losses_fn.counts(outputs, self._detector.rpn.num_samples)

    def _differentiate(self, batch, num_stages, padded, counts=None):
        """Returns this replica's part of the gradients of a batch, and of its losses and counts.

        Args:
            batch: of this replica.
            num_stages: int or None, as of the detector.
            padded: bool, as of the detector.
            counts: the mean counts of a replica and micro-batch; None for those of this batch.
        """
        num_replicas = self._strategy.num_replicas_in_sync
        variables = self._detector.variables_of_stages(num_stages)
        # Each loss is divided by the mean count of a replica and micro-batch, so that the sum over
        # them is num_parts times the mean over the global batch. This is the only place where that
        # factor is taken out; gradients and reported losses are plain sums from here on.
        num_parts = num_replicas * self.accumulate_steps
        with tf.GradientTape() as tape:
            outputs = self._look_at(batch, num_stages, padded)
            if counts is None:
                counts = self._counts(outputs)
                if num_replicas > 1:
                    replica = tf.distribute.get_replica_context()
                    counts = replica.all_reduce(tf.distribute.ReduceOp.MEAN, counts)
            losses = self._losses_fn(outputs, counts)
            losses = {name: loss / num_parts for name, loss in losses.items()}
            total = tf.add_n(list(losses.values()))
            scaled = self._update_weights.scaled(total)
        # A head may have no sample in a step: zeros keep the list whole.
        gradients = tape.gradient(
            scaled, variables, unconnected_gradients=tf.UnconnectedGradients.ZERO
        )
        images = tf.cast(tf.shape(batch["image"])[0] * num_parts, tf.float32)
        positives = {
            "roi_positives" + stage: _count(outputs["class_targets" + stage] > 0) / images
            for stage in box_stages(outputs)
        }
        positives["rpn_positives"] = _count(outputs["rpn_labels"] == 1) / images
        gradients = [tf.convert_to_tensor(gradient) for gradient in gradients]
        return gradients, losses | positives | {"total": total}

    def _update(self, gradients, num_stages):
        """Updates the weights; returns this replica's part of what `WeightUpdate` reports."""
        variables = self._detector.variables_of_stages(num_stages)
        return self._update_weights(gradients, variables, self._strategy.num_replicas_in_sync)


def cascade_start(schedule, cascade_steps):
    """Returns the first step that trains the later stages of a cascade; see `settings.Settings`."""
    if cascade_steps is None:
        return 0
    start = schedule.start_of_last(cascade_steps)
    if not 0 <= start < schedule.num_steps:
        raise ValueError(
            f"run.cascade_steps = {cascade_steps:,} would switch the cascade on at step {start:,} "
            f"of a schedule of {schedule.num_steps:,} steps: give a number above 0 and at most the "
            "schedule's length, a longer schedule, or None for a cascade from the start."
        )
    logging.info("The cascade's later stages train from step %d on.", start)
    return start


def _count(mask):
    return tf.reduce_sum(tf.cast(mask, tf.float32))
