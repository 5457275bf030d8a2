"""The training loop: an Orbit trainer that runs steps, watches them and says how it goes."""

import itertools
import time

import orbit
import tensorflow as tf
from absl import logging

from rethink_tf import console, summaries
from rethink_tf.training import health, stopping

# From this share of a step's time on, the log line says that the input is waited for.
SHOWN_WAIT = 0.1


class Trainer(orbit.AbstractTrainer):
    """Runs training steps for Orbit's controller.

    The loop is in Python: each batch is fetched eagerly and so has the static shape of its bucket,
    and TensorFlow runs ahead on its own where the device is asynchronous.

    Attributes:
        evaluation_steps: steps at which the run stops to evaluate, for the time left.
        evaluation_seconds: float, how long the last evaluation took; None before there was one.
        seconds: float, how long this start has trained.
    """

    def __init__(
        self,
        step_fn,
        batches,
        make_batches,
        total_steps,
        images_per_step,
        data_counts=dict,
        stop=None,
        describe=None,
    ):
        """Sets up the loop; nothing is trained yet.

        Args:
            step_fn: `TrainStep`.
            batches: iterable of distributed batches, or micro-batches, from the current step on.
            make_batches: callable without arguments, makes them anew from the step of then on.
            total_steps: int, of the whole run.
            images_per_step: int, global batch.
            data_counts: callable, returns {name: count} of what the input left out so far.
            stop: `StopRequest` that is asked after each step, or None.
            describe: callable taking a step, writes summaries of what the run is, or None.
        """
        self._step_fn, self._batches = step_fn, iter(batches)
        self._make_batches = make_batches
        self._total_steps, self._images_per_step = total_steps, images_per_step
        self._data_counts, self._stop, self._is_first = data_counts, stop, True
        self._describe, self._begins = describe, True
        self.evaluation_steps, self.evaluation_seconds, self.seconds = (), None, 0.0

    def go_on_from(self, step):
        """Goes on from a checkpoint that was read since; step is an int."""
        self._step_fn.go_on_from(step)
        self._batches, self._begins = iter(self._make_batches()), True

    def train(self, num_steps):
        """Runs some steps, checks their losses, writes summaries and one log line.

        Args:
            num_steps: int32 scalar tensor.

        Raises:
            NonFiniteLossError: if a loss is not finite; the controller has not saved by then.
            Stopped: if the run was told to stop, after fewer steps, with all of these done.
        """
        if self._is_first:
            logging.info("The first step takes longer: TensorFlow traces its graph.")
        if self._begins:
            self._begin_summaries()
        began = start = time.monotonic()
        num_untimed = 0
        history, waited, reason = [], 0.0, ""
        for _ in range(int(num_steps)):
            asked = time.monotonic()
            batches = list(itertools.islice(self._batches, self._step_fn.accumulate_steps))
            waited += time.monotonic() - asked
            history.append(self._step_fn(*batches))
            reason = self._stop.requested() if self._stop else ""
            if self._is_first and num_steps > 1 and not reason:
                # The first step compiles; it would spoil the rate and the time left.
                start, num_untimed, waited = time.monotonic(), 1, 0.0
            self._is_first = False
            if reason:
                break
        # Only here does Python wait for the device: reading each step's losses would stop it.
        history = [{name: float(value) for name, value in values.items()} for values in history]
        seconds = max(time.monotonic() - start, 1e-9)
        step = int(self._step_fn.step.numpy())
        # Before Orbit saves: a checkpoint of weights that are not finite would replace a good one.
        health.check_finite(history, step - len(history) + 1)
        # The losses of a cascade's later stages may begin within these steps.
        means = {}
        for name in history[-1]:
            present = [values[name] for values in history if name in values]
            means[name] = sum(present) / len(present)
        means["learning_rate"] = history[-1]["learning_rate"]
        rate = (len(history) - num_untimed) * self._images_per_step / seconds
        self._write_summaries(means, rate)
        self._log(step, means, rate, waited / seconds)
        self.seconds += time.monotonic() - began
        if reason:
            tf.summary.flush()
            raise stopping.Stopped(reason)

    def _begin_summaries(self):
        first = int(self._step_fn.step.numpy()) + 1
        summaries.begin(first)
        if self._describe:
            self._describe(first)
        self._begins = False

    def _write_summaries(self, values, images_per_second):
        for name, value in values.items():
            tf.summary.scalar(f"train/{name}", value)
        tf.summary.scalar("train/images_per_second", images_per_second)
        for name, count in self._data_counts().items():
            tf.summary.scalar(f"data/{name}", count)

    def _log(self, step, values, images_per_second, waiting):
        # The rest goes to TensorBoard only.
        losses = " ".join(f"{name} {values[name]:.4f}" for name in self._step_fn.loss_names)
        rate = f"{images_per_second:.1f} images/s"
        if waiting >= SHOWN_WAIT:
            rate += f", {waiting:.0%} of the time waiting for data"
        if skipped := self._data_counts().get("skipped_records"):
            rate += f", {skipped} records skipped so far"
        logging.info(
            "step %d/%d | %s | lr %.5f | %s | %s",
            step,
            self._total_steps,
            losses,
            values["learning_rate"],
            rate,
            self._left(step, images_per_second),
        )

    def _left(self, step, images_per_second):
        """Returns what is left to do, evaluations included: in time as soon as one was timed."""
        seconds = (self._total_steps - step) * self._images_per_step / images_per_second
        pending = sum(stop >= step for stop in self.evaluation_steps)
        evaluations = f"{pending} evaluation{'s' if pending > 1 else ''}"
        if not pending:
            return f"{console.duration(seconds)} left"
        if self.evaluation_seconds is None:
            return f"{console.duration(seconds)} and {evaluations} left"
        seconds += pending * self.evaluation_seconds
        return f"with {evaluations} {console.duration(seconds)} left"


def quiet_orbit():
    """Has Orbit's controller say once, as a log line, what no part of this package says.

    It prints and logs each of its lines, most of which repeat those of the trainer and evaluator.
    """
    orbit.controller._log = _log_saving


def _log_saving(message):
    if message.startswith("saved checkpoint to "):
        logging.info("S%s", message[1:].removesuffix("."))
