"""Pre-trains a backbone as the parsed gin files describe: trains, evaluates, and writes it."""

import contextlib
import json
import os
import tempfile

from absl import logging

from rethink_tf import console, files, metrics_file
from rethink_tf.models import classifier_parts
from rethink_tf.pretraining.building import build
from rethink_tf.pretraining.settings import Settings
from rethink_tf.training import controllers, saving, stopping
from rethink_tf.training import workers as workers_lib
from rethink_tf.training.health import NonFiniteLossError
from rethink_tf.weights import origins

BACKBONE = "backbone"  # The checkpoint in the model's folder that detectors start from.
REPORT_FILE = "pretraining.json"


def run(when_built=None):
    """Runs the pre-training of the parsed gin files.

    Args:
        when_built: callable called once everything is built and checked, or None.

    Returns:
        dict of what `pretraining.json` holds.

    Raises:
        ValueError: if a value does not fit the others; the message names both.
        Stopped: if the run was told to stop, and has saved.
        WorkerLostError: if another worker of the run is gone.
    """
    settings = Settings()
    with contextlib.ExitStack() as resources, workers_lib.naming_losses():
        built = build(settings, resources)
        if when_built:
            when_built()
        if built.is_chief:
            _log_header(built)
        try:
            train(built)
            report = finish(built)
        except stopping.Stopped:
            workers_lib.end_together(built.workers)
            raise
        workers_lib.end_together(built.workers)
        return report


def train(built):
    """Trains to the schedule's end, and evaluates on the way.

    Args:
        built: `Pretraining`.

    Raises:
        Stopped: if the run was told to stop; its last step is saved by then.
    """
    settings, step_of = built.settings, built.step_fn.step
    controller = controllers.make_controller(
        built.trainer,
        built.evaluator,
        built.strategy,
        step_of,
        built.checkpoint,
        settings.model_dir,
        log_every=settings.log_every,
        checkpoint_every=settings.checkpoint_every,
        keep=settings.keep_newest,
    )
    num_steps = settings.schedule.num_steps
    every = settings.evaluate_every or num_steps
    evaluations = [*range(every, num_steps, every), num_steps]
    built.trainer.evaluation_steps = evaluations
    evaluated = metrics_file.evaluated_steps(settings.model_dir)
    with built.stop:
        try:
            for stop in evaluations:
                start = int(step_of.numpy())
                # An earlier start of the run may have been here.
                if stop < start or (stop == start and stop in evaluated):
                    continue
                if stop > start:
                    controller.train(stop)
                controller.evaluate()
                built.trainer.evaluation_seconds = built.evaluator.last_seconds
        except stopping.Stopped:
            saving.save_stopped(controller.checkpoint_manager, int(step_of.numpy()))
            raise
        except NonFiniteLossError as error:
            if built.is_chief:
                metrics_file.append_collapse(settings.model_dir, error.step, error.terms)
            raise


def finish(built):
    """Writes the backbone and what it was trained with, at the end of a run.

    Args:
        built: `Pretraining`.

    Returns:
        dict: images_seen, objects_seen (an image is one), pixels_seen (of the images as the network
        had them), seconds (in training, over all starts), steps, batch, top1 and top5 of the
        last evaluation, and data, what was trained on in one line.
    """
    settings = built.settings
    num_steps, seen = settings.schedule.num_steps, int(built.step_fn.images_seen.numpy())
    side = built.classifier.image_size
    last = [
        line
        for line in metrics_file.read_evaluations(settings.model_dir)
        if line["step"] == num_steps
    ]
    report = {
        "images_seen": seen,
        "objects_seen": seen,
        "pixels_seen": seen * side * side,
        "seconds": round(built.clock.seconds, 1),
        "steps": num_steps,
        "batch": settings.batch_size,
        "top1": last[-1]["top1"] if last else None,
        "top5": last[-1]["top5"] if last else None,
        "data": built.train_images.description,
    }
    path = os.path.join(settings.model_dir, BACKBONE)
    _write_backbone(built, path)
    if built.is_chief:
        text = json.dumps(report, indent=1) + "\n"
        files.write_whole(os.path.join(settings.model_dir, REPORT_FILE), text)
        logging.info(
            "Done in %s: %d images seen, %s in training.",
            console.duration(console.seconds_of_process()),
            seen,
            console.duration(built.clock.seconds),
            extra=console.KEPT,
        )
        logging.info("Detectors start from it by INIT_CHECKPOINT: %s", path, extra=console.KEPT)
    return report


def _write_backbone(built, path):
    """Writes the checkpoint; every worker must, because statistics are gathered over replicas."""
    with tempfile.TemporaryDirectory() as scratch:
        if not built.is_chief:
            path = os.path.join(scratch, BACKBONE)
        classifier = built.classifier
        origin = origins.Origin(
            "rethink_tf.pretrain", "RGB", classifier.pixel_mean, classifier.pixel_std
        )
        prepared = origin.preprocessing(classifier.backbone)
        classifier_parts.write(classifier.pretrained_parts(), prepared, path)


def _log_header(built):
    settings, classifier = built.settings, built.classifier
    count = sum(each.shape.num_elements() for each in classifier.trainable_variables)
    num_steps = settings.schedule.num_steps
    epochs = num_steps * settings.batch_size / built.train_images.num_images
    lines = [
        f"Data   training on {built.train_images.description}",
        f"       validation on {built.test_images.description}",
        f"Model  {type(classifier.backbone).__name__} as a classifier: {count / 1e6:.2f} M "
        "parameters",
        f"Plan   {num_steps:,} steps of {settings.batch_size} images of {classifier.image_size} "
        f"pixels ({epochs:.1f} epochs), peak rate {settings.schedule.peak_learning_rate:g} after "
        f"{settings.schedule.warmup_steps:,} steps of warm-up",
        f"Folder {settings.model_dir}",
    ]
    logging.info("%s", "\n".join(lines), extra=console.KEPT)
