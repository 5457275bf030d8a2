"""One step of classification on all replicas, and the evaluation by top-1 and top-5.

Letters: B images of one replica, C classes.
"""

import time

import orbit
import tensorflow as tf
from absl import logging

from rethink_tf import console, metrics_file
from rethink_tf.training.update import WeightUpdate

_SUM = tf.distribute.ReduceOp.SUM


class ClassificationStep:
    """Forward, backward and update, as `training.trainer.Trainer` calls it.

    Attributes:
        images_seen: int64 variable, images trained on since the start of the run; those that could
            not be read are not among them.
    """

    accumulate_steps = 1
    loss_names = ("total", "classification")

    def __init__(
        self,
        classifier,
        optimizer,
        strategy,
        seed,
        weight_decay=1e-4,
        label_smoothing=0.0,
        clip_norm=None,
    ):
        """Sets up the step; all variables must exist.

        Args:
            classifier: `Classifier`; its plan says whether XLA compiles the step.
            optimizer: Keras optimizer; its `iterations` is the step.
            strategy: `tf.distribute.Strategy` that both were made under.
            seed: int, of the run.
            weight_decay: float, as of `WeightUpdate`.
            label_smoothing: float in [0, 1), the share of the target that all classes have alike
                (Szegedy et al. 2015, arXiv:1512.00567, section 7).
            clip_norm: float or None, as of `WeightUpdate`.

        Raises:
            ValueError: if label_smoothing is out of range.
        """
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"pretrain.label_smoothing must be in [0, 1), got {label_smoothing}.")
        self._classifier, self._optimizer, self._strategy = classifier, optimizer, strategy
        self._seed, self._smoothing = seed, label_smoothing
        self._update = WeightUpdate(optimizer, weight_decay, clip_norm)
        with strategy.scope():
            self.images_seen = tf.Variable(0, trainable=False, dtype=tf.int64, name="images_seen")
        jit_compile = classifier.plan.jit_compile or None
        self._program = tf.function(self._run, autograph=False, jit_compile=jit_compile)

    @property
    def step(self):
        """The variable that counts the steps."""
        return self._optimizer.iterations

    def __call__(self, batch):
        """Runs the step.

        Args:
            batch: distributed dict of `inputs.ImageInput`.

        Returns:
            dict of float32 scalars: `classification`, the mean cross-entropy of the images that
            were read, in nats, `weight_decay`, their sum `total`, `learning_rate`,
            `gradient_norm`, and `top1`, the share of the images that are classified right; in
            float16 also what `WeightUpdate` reports of the loss scale.
        """
        num_traces = self._program.experimental_get_tracing_count()
        values, num_images = self._program(batch)
        self.images_seen.assign_add(num_images)
        if self._program.experimental_get_tracing_count() > num_traces:
            self._classifier.plan.operations.return_memory()
        return values

    def _run(self, batch):
        num_replicas = self._strategy.num_replicas_in_sync

        def on_one_replica(batch):
            """Returns this replica's part of the values, and its images that were read."""
            weight = batch["weight"]
            count = tf.reduce_sum(weight)
            whole = count
            if num_replicas > 1:
                whole = tf.distribute.get_replica_context().all_reduce(_SUM, count)
            # Of the global batch: gradients and values are plain sums over replicas from here on.
            share = weight / tf.maximum(whole, 1.0)
            variables = self._classifier.trainable_variables
            with tf.GradientTape() as tape:
                seed = tf.stack([self._seed, tf.cast(self._optimizer.iterations, tf.int32)])
                logits = self._classifier(batch, training=True, seed=seed)
                loss = tf.reduce_sum(share * self._cross_entropy(logits, batch["label"]))
                scaled = self._update.scaled(loss)
            gradients = [tf.convert_to_tensor(each) for each in tape.gradient(scaled, variables)]
            values = {
                "total": loss,
                "classification": loss,
                "top1": tf.reduce_sum(share * _in_top(logits, batch["label"], 1)),
            }
            return values | self._update(gradients, variables, num_replicas), count

        values, count = self._strategy.run(on_one_replica, args=(batch,))
        values = {
            name: self._strategy.reduce(_SUM, value, axis=None) for name, value in values.items()
        }
        values["total"] += values["weight_decay"]
        # Read after the update, which sets it: the rate that this step used.
        values["learning_rate"] = tf.cast(self._optimizer.learning_rate, tf.float32)
        return values, tf.cast(self._strategy.reduce(_SUM, count, axis=None), tf.int64)

    def _cross_entropy(self, logits, labels):
        """Returns float32 [B], nats, of logits [B, C] and labels int32 [B]."""
        num_classes = logits.shape[-1]
        target = tf.one_hot(labels, num_classes) * (1.0 - self._smoothing)
        target += self._smoothing / num_classes
        return tf.nn.softmax_cross_entropy_with_logits(target, logits)


class Evaluator(orbit.AbstractEvaluator):
    """Classifies the validation images, for Orbit's controller.

    Attributes:
        metrics: dict of the last evaluation: top1 and top5, shares of the images that were read,
            and images, their number.
        last_seconds: float, how long it took.
        seconds: float, how long all evaluations of this start took.
    """

    def __init__(self, classifier, strategy, make_batches, step, model_dir, check_stop, is_chief):
        """Sets up the evaluation.

        Args:
            classifier: `Classifier`.
            strategy: `tf.distribute.Strategy`.
            make_batches: callable without arguments, returns an iterable of distributed batches
                that has all validation images once.
            step: variable that counts the steps.
            model_dir: str, whose `metrics.jsonl` gets a line.
            check_stop: callable that raises `Stopped` if the run is told to stop.
            is_chief: bool, whether this process writes.
        """
        self._classifier, self._strategy, self._make_batches = classifier, strategy, make_batches
        self._step, self._model_dir, self._check_stop = step, model_dir, check_stop
        self._is_chief = is_chief
        self.metrics, self.last_seconds, self.seconds = {}, None, 0.0
        self._program = tf.function(self._count, autograph=False)

    def evaluate(self, num_steps):
        """Evaluates all images; num_steps is not used.

        Raises:
            ValueError: if none of them could be read.
        """
        start, counts = time.monotonic(), tf.zeros([3])
        for batch in self._make_batches():
            counts += self._program(batch)
            self._check_stop()
        read, first, fifth = counts.numpy().tolist()
        if not read:
            raise ValueError("None of the validation images could be read; the warnings say why.")
        self.metrics = {"top1": first / read, "top5": fifth / read, "images": int(read)}
        self.last_seconds = time.monotonic() - start
        self.seconds += self.last_seconds
        if self._is_chief:
            self._record()

    def _count(self, batch):
        """Returns float32 [3]: the images that were read, those right at first, and among five."""

        def on_one_replica(batch):
            logits, weight = self._classifier(batch), batch["weight"]
            hits = [_in_top(logits, batch["label"], k) for k in (1, 5)]
            return tf.stack(
                [tf.reduce_sum(weight * each) for each in (tf.ones_like(weight), *hits)]
            )

        return self._strategy.reduce(
            _SUM, self._strategy.run(on_one_replica, args=(batch,)), axis=None
        )

    def _record(self):
        step = int(self._step.numpy())
        seconds = round(self.last_seconds, 3)
        line = {"step": step} | self.metrics | {"seconds": seconds, "time": time.time()}
        metrics_file.append(self._model_dir, line)
        for name in ("top1", "top5"):
            tf.summary.scalar(f"evaluation/{name}", self.metrics[name])
        logging.info(
            "Evaluated %d images at step %d in %.1f s: top-1 %.4f, top-5 %.4f.",
            self.metrics["images"],
            step,
            seconds,
            self.metrics["top1"],
            self.metrics["top5"],
            extra=console.KEPT,
        )


def _in_top(logits, labels, k):
    """Returns float32 [B], 1 where fewer than k classes have a higher logit than the label's."""
    own = tf.gather(logits, labels, axis=1, batch_dims=1)
    # So said, a logit that is not a number counts as higher.
    higher = tf.reduce_sum(tf.cast(~(logits <= own[:, tf.newaxis]), tf.int32), 1)
    return tf.cast(higher < k, tf.float32)
