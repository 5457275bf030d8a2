"""What a run does after a loss that is not finite: it stops, or goes back and leaves data out."""

import os
import time

from absl import logging

from rethink_tf import metrics_file
from rethink_tf.training import checkpoint_files, checkpoints
from rethink_tf.training.health import NonFiniteLossError


def train(experiment, controller, stop):
    """Trains up to a step.

    Args:
        experiment: `Experiment`.
        controller: Orbit's, of the experiment.
        stop: int, the step.

    Raises:
        NonFiniteLossError: if a loss is not finite and `run.on_non_finite` stops the run, or has
            gone back `run.max_skips` times before.
    """
    while int(experiment.step.numpy()) < stop:
        try:
            controller.train(stop)
        except NonFiniteLossError as error:
            settings, skips = experiment.settings, experiment.history.skips
            if settings.on_non_finite != "skip" or len(skips) >= settings.max_skips:
                if experiment.is_chief:
                    metrics_file.append_collapse(settings.model_dir, error.step, error.terms)
                raise
            _go_back(experiment, error)


def _go_back(experiment, error):
    """Reads the newest checkpoint again, and leaves out the images of the steps since."""
    settings, history = experiment.settings, experiment.history
    folder = os.path.join(settings.model_dir, "checkpoints")
    newest = checkpoint_files.find_newest(folder, experiment.workers)
    checkpoints.restore(experiment.checkpoint, newest)
    step = checkpoint_files.step_of(newest)
    history.skip(step, error.step - step)
    if experiment.is_chief:
        history.write(settings.model_dir)
        event = {
            "event": metrics_file.SKIP,
            "step": error.step,
            "terms": error.terms,
            "back_to": step,
            "skips": len(history.skips),
            "time": time.time(),
        }
        metrics_file.append(settings.model_dir, event)
    experiment.trainer.go_on_from(step)
    logging.warning(
        "%s Going back to step %d; the images of the steps since are left out. Times it went back: "
        "%d (run.max_skips: %d).",
        str(error).partition(". Nothing")[0] + ".",
        step,
        len(history.skips),
        settings.max_skips,
    )
