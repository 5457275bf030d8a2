"""One training step on all replicas: the only GradientTape, the only division by replicas.

Letters: B images of one replica.
"""

import ctypes
import functools

import tensorflow as tf

from rethink_tf.losses import box_stages
from rethink_tf.training import optimizer as optimizer_lib


class TrainStep:
    """Forward, backward and update; call it with one distributed batch."""

    def __init__(
        self,
        detector,
        losses_fn,
        optimizer,
        strategy,
        seed,
        weight_decay=1e-4,
        jit_compile=False,
        cascade_from=0,
    ):
        """Sets up the step; all variables must exist and hold what the run starts from.

        Args:
            detector: `MaskRCNN`.
            losses_fn: `DetectionLosses`.
            optimizer: Keras optimizer; its `iterations` is the step.
            strategy: `tf.distribute.Strategy` that all of them were made under.
            seed: int, of the run.
            weight_decay: float; the loss has weight_decay / 2 times the sum of squared kernels.
            jit_compile: bool, whether XLA compiles the whole step.
            cascade_from: int, the first step that trains the later stages of a cascade. Until then
                the optimizer and the weight decay leave those alone.
        """
        self._detector, self._losses_fn = detector, losses_fn
        self._optimizer, self._strategy = optimizer, strategy
        self._seed, self._weight_decay = seed, weight_decay
        self._cascade_from, self._next_step = cascade_from, int(optimizer.iterations.numpy())
        # A retrace for each shape of batches, of which there are as many as buckets, and for each
        # number of stages.
        self._run = tf.function(
            self._on_all_replicas, jit_compile=jit_compile or None, autograph=False
        )

    @property
    def step(self):
        """The variable that counts the steps."""
        return self._optimizer.iterations

    def __call__(self, batch):
        """Runs the step.

        Args:
            batch: distributed dict as in `data.schema`.

        Returns:
            dict of float32 scalars: each loss by name, their sum as `total`, `learning_rate`,
            `gradient_norm`, and the mean number an image of `rpn_positives` and `roi_positives`
            (of later stages `roi_positives_stage2`, ...).
        """
        # Counted here: to read the variable would be to wait for the device at every step.
        num_stages = 1 if self._next_step < self._cascade_from else None
        self._next_step += 1
        num_traces = self._run.experimental_get_tracing_count()
        values = self._run(batch, num_stages)
        if self._run.experimental_get_tracing_count() > num_traces:
            _return_free_memory()
        return values

    def _on_all_replicas(self, batch, num_stages):
        on_one_replica = functools.partial(self._on_one_replica, num_stages=num_stages)
        values = self._strategy.run(on_one_replica, args=(batch,))
        values = {
            key: self._strategy.reduce(tf.distribute.ReduceOp.SUM, value, axis=None)
            for key, value in values.items()
        }
        # Read after the update, which sets it: the rate that this step used.
        return values | {"learning_rate": tf.cast(self._optimizer.learning_rate, tf.float32)}

    def _on_one_replica(self, batch, num_stages):
        replica = tf.distribute.get_replica_context()
        num_replicas = self._strategy.num_replicas_in_sync
        variables = self._detector.variables_of_stages(num_stages)
        seed = tf.stack([self._seed, tf.cast(self._optimizer.iterations, tf.int32)])
        decay_loss = self._decay_loss(variables) / num_replicas
        with tf.GradientTape() as tape:
            outputs = self._detector(batch, training=True, seed=seed, num_stages=num_stages)
            counts = self._losses_fn.counts(outputs, self._detector.rpn.num_samples)
            if num_replicas > 1:
                counts = replica.all_reduce(tf.distribute.ReduceOp.MEAN, counts)
            losses = self._losses_fn(outputs, counts)
            # Every loss was divided by the mean count of a replica, so the sum over the replicas
            # is num_replicas times the mean over the global batch. This is the only place where
            # that factor is taken out; gradients and reported losses are plain sums from here on.
            losses = {name: loss / num_replicas for name, loss in losses.items()}
            total = tf.add_n(list(losses.values()))
        gradients = tape.gradient(
            total, variables, unconnected_gradients=tf.UnconnectedGradients.ZERO
        )
        gradients = [tf.convert_to_tensor(gradient) for gradient in gradients]
        if num_replicas > 1:
            gradients = replica.all_reduce(tf.distribute.ReduceOp.SUM, gradients)
        gradients = [
            self._add_decay(gradient, variable)
            for gradient, variable in zip(gradients, variables, strict=True)
        ]
        self._optimizer.apply_gradients(
            zip(gradients, variables, strict=True), skip_gradients_aggregation=True
        )
        images = tf.cast(tf.shape(batch["image"])[0] * num_replicas, tf.float32)
        positives = {
            "roi_positives" + stage: _count(outputs["class_targets" + stage] > 0) / images
            for stage in box_stages(outputs)
        }
        positives["rpn_positives"] = _count(outputs["rpn_labels"] == 1) / images
        others = {
            "weight_decay": decay_loss,
            "total": total + decay_loss,
            # The norm is that of the summed gradient, the same on every replica.
            "gradient_norm": tf.linalg.global_norm(gradients) / num_replicas,
        }
        return losses | others | positives

    def _add_decay(self, gradient, variable):
        """Adds the gradient of the decay loss, which is weight_decay times the kernel."""
        if not optimizer_lib.decays(variable):
            return gradient
        # Not in the tape: its products would be ready at the start of the step, and be held as a
        # second copy of the model until the gradients are there.
        with tf.control_dependencies([gradient]):
            return gradient + self._weight_decay * tf.convert_to_tensor(variable)

    def _decay_loss(self, variables):
        squares = [tf.nn.l2_loss(each) for each in variables if optimizer_lib.decays(each)]
        return self._weight_decay * tf.add_n(squares)


def _return_free_memory():
    """Returns to the system what making a graph had needed; the C library keeps it otherwise."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim:
        trim(0)


def _count(mask):
    return tf.reduce_sum(tf.cast(mask, tf.float32))
