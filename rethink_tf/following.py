"""Evaluates each new checkpoint of a run that another process trains, until that ends."""

import contextlib
import os
import tempfile
import time

import tensorflow as tf
from absl import logging

from rethink_tf import child, config_record, console, metrics_file
from rethink_tf.training import checkpoint_files, checkpoints, stopping

_SECONDS_BETWEEN_LOOKS = 2.0


def wait_for_start(model_dir, timeout):
    """Waits for the first checkpoint of a run.

    Args:
        model_dir: str.
        timeout: float, seconds.

    Raises:
        ValueError: if there is none by then.
    """
    folder = os.path.join(model_dir, "checkpoints")
    start, is_said = time.monotonic(), False
    while not checkpoint_files.list_newest_first(folder):
        if time.monotonic() - start > timeout:
            raise ValueError(
                f"There was no checkpoint in {folder} within {timeout:g} s (run.follow_timeout): "
                "is the run trained in another MODEL_DIR?"
            )
        if not is_said:
            logging.info("Waiting for the first checkpoint in %s.", folder, extra=console.KEPT)
        is_said = True
        time.sleep(_SECONDS_BETWEEN_LOOKS)


def follow(experiment, controller, best):
    """Evaluates the checkpoints of a run, the oldest first, as they come.

    It ends with the checkpoint of the schedule's last step, or when there was no new one for
    `run.follow_timeout`. A checkpoint that the run deletes before its turn is skipped.

    Args:
        experiment: `Experiment` with an evaluator.
        controller: Orbit's, of the experiment.
        best: `BestKeeper`, to which the scores are offered.

    Returns:
        The `Evaluator`.

    Raises:
        ValueError: if several workers are to follow.
    """
    settings, evaluator = experiment.settings, controller.evaluator
    if experiment.workers:
        raise ValueError("--follow is for one process: start it without make_strategy's workers.")
    is_augmented, num_deleted = evaluator is experiment.augmented_evaluator, 0
    for path in _new_checkpoints(settings, is_augmented):
        step = checkpoint_files.step_of(path)
        try:
            checkpoints.restore(experiment.checkpoint, path)
        except (ValueError, tf.errors.OpError) as error:
            if tf.io.gfile.exists(path + ".index"):
                raise
            num_deleted += 1
            logging.warning(
                "Step %d was deleted by the run before its evaluation (%s); %d so far. A larger "
                "run.keep_newest or run.checkpoint_every helps.",
                step,
                type(error).__name__,
                num_deleted,
            )
            continue
        controller.evaluate()
        if evaluator.metrics and not is_augmented:
            best.offer(evaluator.score, step)
    return evaluator


def _new_checkpoints(settings, is_augmented):
    """Yields the paths of checkpoints that were not evaluated, until the last or a timeout."""
    folder = os.path.join(settings.model_dir, "checkpoints")
    done = metrics_file.evaluated_steps(settings.model_dir, is_augmented)
    waited_since = time.monotonic()
    while True:
        paths = checkpoint_files.list_newest_first(folder)
        new = [path for path in reversed(paths) if checkpoint_files.step_of(path) not in done]
        if new:
            # One at a time: the run may delete the next one meanwhile.
            done.add(checkpoint_files.step_of(new[0]))
            yield new[0]
            waited_since = time.monotonic()
            continue
        if _last_step(settings.model_dir) in done:
            return
        if time.monotonic() - waited_since > settings.follow_timeout:
            logging.warning(
                "No new checkpoint in %s for %g s (run.follow_timeout): ending.",
                folder,
                settings.follow_timeout,
            )
            return
        time.sleep(_SECONDS_BETWEEN_LOOKS)


@contextlib.contextmanager
def in_background(settings):
    """Has a process follow this run on `run.background_gpus` until the context ends.

    Args:
        settings: `Settings` of a run that was built: the process gets the values in force.

    Yields:
        `subprocess.Popen`.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".gin") as file:
        file.write(config_record.operative_config())
        file.flush()
        flags = [f"--gin_file={file.name}", "--mode=evaluate", "--follow", "--quiet"]
        flags += ["--gin_param=make_strategy.name='one_device'"]
        flags += ["--gin_param=make_strategy.num_cpus=1"]
        environment = {name: value for name, value in os.environ.items() if name != "TF_CONFIG"}
        environment["CUDA_VISIBLE_DEVICES"] = settings.background_gpus
        logging.info(
            "Evaluating beside training, on %s.",
            f"the GPUs {settings.background_gpus}" if settings.background_gpus else "the CPU",
        )
        with child.running("rethink_tf.train", flags, env=environment) as process:
            yield process


def finish(process, stop):
    """Waits until a process of `in_background` has evaluated the last checkpoint.

    Args:
        process: `subprocess.Popen`.
        stop: `StopRequest`.

    Raises:
        RuntimeError: if it failed.
        Stopped: if the run is told to stop.
    """
    if process.poll() is None:
        logging.info("Training is done; waiting for the evaluation beside it.")
    while process.poll() is None:
        if stop.reason:
            raise stopping.Stopped(stop.reason)
        time.sleep(0.2)
    if process.returncode:
        raise RuntimeError(
            f"The evaluation beside training ended with {process.returncode}; its lines above say "
            "why. --mode=evaluate --follow evaluates the checkpoints that are there."
        )


def _last_step(model_dir):
    schedule = (config_record.read(model_dir) or {}).get("schedule") or {}
    return schedule.get("num_steps")
