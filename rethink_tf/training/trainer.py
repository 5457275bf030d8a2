"""The training loop: an Orbit trainer that runs steps, watches them and says how it goes."""

import itertools
import time

import orbit
import tensorflow as tf
from absl import logging

from rethink_tf.training import health

# Shown in this order in the log line; the rest goes to TensorBoard only.
LOGGED = tuple("total rpn_objectness rpn_box box_class box_regression mask keypoint".split())


class Trainer(orbit.AbstractTrainer):
    """Runs training steps for Orbit's controller.

    The loop is in Python: each batch is fetched eagerly and so has the static shape of its bucket,
    and TensorFlow runs ahead on its own where the device is asynchronous.
    """

    def __init__(self, step_fn, batches, total_steps, images_per_step, data_counts=dict):
        """Takes the parts.

        Args:
            step_fn: `TrainStep`.
            batches: iterator over distributed batches, or micro-batches, from the current step on.
            total_steps: int, of the whole run.
            images_per_step: int, global batch.
            data_counts: callable, returns {name: count} of what the input left out so far.
        """
        self._step_fn, self._batches = step_fn, batches
        self._total_steps, self._images_per_step = total_steps, images_per_step
        self._data_counts, self._is_first = data_counts, True

    def train(self, num_steps):
        """Runs some steps, checks their losses, writes summaries and one log line.

        Args:
            num_steps: int32 scalar tensor.

        Raises:
            NonFiniteLossError: if a loss is not finite; the controller has not saved by then.
        """
        history, start, num_timed = [], time.monotonic(), int(num_steps)
        for _ in range(int(num_steps)):
            batches = itertools.islice(self._batches, self._step_fn.accumulate_steps)
            history.append(self._step_fn(*batches))
            if self._is_first and num_steps > 1:
                # The first step compiles; it would spoil the rate and the time left.
                start, num_timed = time.monotonic(), num_timed - 1
            self._is_first = False
        history = [{name: float(value) for name, value in values.items()} for values in history]
        seconds = max(time.monotonic() - start, 1e-9)
        step = int(self._step_fn.step.numpy())
        health.check_finite(history, step - len(history) + 1)
        # Names may join in between: the losses of a cascade's later stages.
        means = {}
        for name in history[-1]:
            present = [values[name] for values in history if name in values]
            means[name] = sum(present) / len(present)
        means["learning_rate"] = history[-1]["learning_rate"]
        rate = num_timed * self._images_per_step / seconds
        self._write_summaries(means, rate)
        self._log(step, means, rate)

    def _write_summaries(self, values, images_per_second):
        for name, value in values.items():
            tf.summary.scalar(f"train/{name}", value)
        tf.summary.scalar("train/images_per_second", images_per_second)
        for name, count in self._data_counts().items():
            tf.summary.scalar(f"data/{name}", count)

    def _log(self, step, values, images_per_second):
        losses = " ".join(f"{name} {values[name]:.4f}" for name in LOGGED if name in values)
        left = (self._total_steps - step) * self._images_per_step / images_per_second
        logging.info(
            "step %d/%d | %s | lr %.5f | %.1f images/s | %s left",
            step,
            self._total_steps,
            losses,
            values["learning_rate"],
            images_per_second,
            format_duration(left),
        )


def format_duration(seconds):
    """Returns seconds as "1d 02:03:04" or "02:03:04"."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    clock = f"{hour:02d}:{minute:02d}:{second:02d}"
    return f"{days}d {clock}" if days else clock
