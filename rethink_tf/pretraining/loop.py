"""Pre-trains a backbone as the parsed gin files describe: builds, trains, evaluates, writes it."""

import contextlib
import dataclasses
import json
import os
import tempfile
import time
from typing import Any

import tensorflow as tf
from absl import logging

from rethink_tf import config, config_record, console, execution, files, locking, metrics_file
from rethink_tf.data.input import reading
from rethink_tf.models import classifier_parts
from rethink_tf.models import vgg as _vgg  # noqa: F401  registered for gin files
from rethink_tf.pretraining import drawn as _drawn  # noqa: F401  registered for gin files
from rethink_tf.pretraining import images as images_lib
from rethink_tf.pretraining import inputs, step
from rethink_tf.pretraining.settings import Settings
from rethink_tf.training import (
    checkpoint_files,
    checkpoints,
    controllers,
    distribution,
    saving,
    stopping,
)
from rethink_tf.training import schedules as _schedules  # noqa: F401  registered for gin files
from rethink_tf.training import workers as workers_lib
from rethink_tf.training.health import NonFiniteLossError
from rethink_tf.training.trainer import Trainer

BACKBONE = "backbone"  # The checkpoint in the model's folder that detectors start from.
REPORT_FILE = "pretraining.json"


class Clock(tf.train.experimental.PythonState):
    """How long a run has trained, over all of its starts; a part of its checkpoints.

    Attributes:
        before: float, seconds of the starts before this one, up to the checkpoint.
        trainer: `Trainer` of this start, or None.
    """

    def __init__(self):
        """Starts at 0."""
        self.before, self.trainer = 0.0, None

    @property
    def seconds(self):
        """The time in training so far."""
        return self.before + (self.trainer.seconds if self.trainer else 0.0)

    def serialize(self):
        """Returns the state as text."""
        return json.dumps(self.seconds)

    def deserialize(self, string_value):
        """Takes the state of a checkpoint."""
        self.before = json.loads(string_value)


@dataclasses.dataclass
class Pretraining:
    """What `build` made, with the weights that training starts from.

    Attributes:
        settings: `Settings`.
        strategy: `tf.distribute.Strategy`.
        workers: `Workers`, or None where one process runs it all.
        train_images: `ImageRecords` or `ImageFolders`.
        test_images: the same, of the validation images.
        classifier: `Classifier`.
        step_fn: `ClassificationStep`.
        checkpoint: `tf.train.Checkpoint` of a run.
        clock: `Clock`.
        stop: `StopRequest`.
        trainer: `Trainer`.
        evaluator: `step.Evaluator`.
    """

    settings: Settings
    strategy: Any
    workers: Any
    train_images: Any
    test_images: Any
    classifier: Any
    step_fn: step.ClassificationStep
    checkpoint: Any
    clock: Clock
    stop: stopping.StopRequest
    trainer: Trainer | None = None
    evaluator: step.Evaluator | None = None

    @property
    def is_chief(self):
        """Whether this process writes for all workers."""
        return checkpoints.is_chief(self.strategy)


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
            _end_together(built)
            raise
        _end_together(built)
        return report


def build(settings, resources):
    """Builds a pre-training, and records it in its folder.

    Args:
        settings: `Settings`.
        resources: `contextlib.ExitStack`, which holds the folder's lock until the run's end.

    Returns:
        `Pretraining`.

    Raises:
        ValueError: if a part does not fit another, or another process trains into the folder.
    """
    strategy = settings.strategy()
    plan = execution.make_plan(
        strategy, settings.precision, settings.jit_compile, settings.deterministic
    )
    distribution.set_up_tensorflow(settings.seed, plan)
    workers = workers_lib.of(strategy)
    together = workers.fail_together if workers else lambda action: action()
    together(lambda: _claim_folder(settings, strategy, resources))
    folder = os.path.join(settings.model_dir, "checkpoints")
    start = checkpoint_files.find_newest(folder, workers)
    image_input, train_images, test_images = together(lambda: _open_data(settings, strategy))

    with strategy.scope():
        classifier = settings.classifier(num_classes=train_images.num_classes, plan=plan)
        classifier.create_variables(image_input.image_size)
        optimizer = settings.optimizer(learning_rate=settings.schedule)
        optimizer.build(classifier.trainable_variables)
    step_fn = step.ClassificationStep(
        classifier,
        optimizer,
        strategy,
        settings.seed,
        settings.weight_decay,
        settings.label_smoothing,
        settings.clip_norm,
    )
    clock, stop = Clock(), stopping.StopRequest(workers)
    checkpoint = tf.train.Checkpoint(
        model=classifier, optimizer=optimizer, images_seen=step_fn.images_seen, clock=clock
    )
    checkpoints.load_weights(checkpoint, start, folder, None, required=False, workers=workers)
    built = Pretraining(
        settings=settings,
        strategy=strategy,
        workers=workers,
        train_images=train_images,
        test_images=test_images,
        classifier=classifier,
        step_fn=step_fn,
        checkpoint=checkpoint,
        clock=clock,
        stop=stop,
    )
    clock.trainer = built.trainer = _make_trainer(built, image_input)
    built.evaluator = _make_evaluator(built, image_input)
    config.check_all_used()
    if built.is_chief:
        config_record.write(settings.model_dir, dataclasses.asdict(plan))
    return built


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
            step_now = int(step_of.numpy())
            if saving.save_if_new(controller.checkpoint_manager, step_now):
                logging.info("Saved step %d.", step_now)
            raise
        except NonFiniteLossError as error:
            if built.is_chief:
                event = {"event": "not_finite", "step": error.step, "time": time.time()}
                metrics_file.append(settings.model_dir, event)
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


def _claim_folder(settings, strategy, resources):
    """Locks the folder, and compares the pre-training with its record."""
    if checkpoints.is_chief(strategy):
        path = os.path.join(settings.model_dir, "training.lock")
        resources.enter_context(locking.FolderLock(path, "trains"))
        saving.remove_leftovers(settings.model_dir)
    config_record.compare(settings.model_dir)


def _open_data(settings, strategy):
    """Returns the `ImageInput`, and the images of training and of validation."""
    distribution.check_batch_size(strategy, "batch_size", settings.batch_size)
    test_size = settings.evaluation_batch_size or settings.batch_size
    distribution.check_batch_size(strategy, "evaluation_batch_size", test_size)
    image_input = settings.input()
    if settings.prepare_data:
        settings.prepare_data(output=settings.data_dir)
    splits = (images_lib.TRAIN, images_lib.VALIDATION)
    found = [settings.data(data_dir=settings.data_dir, split=split) for split in splits]
    return image_input, *found


def _make_trainer(built, image_input):
    """Returns the loop of training."""
    settings, step_fn, left_out = built.settings, built.step_fn, inputs.LeftOut()

    def make_dataset(context):
        """Returns a worker's batches, from the step on where the run is."""
        start = int(step_fn.step.numpy())
        return image_input.training(
            built.train_images, settings.batch_size, settings.seed, start, context, left_out
        )

    def make_batches():
        batches = built.strategy.distribute_datasets_from_function(make_dataset)
        return reading.naming_errors(batches, left_out)

    return Trainer(
        step_fn,
        make_batches(),
        make_batches,
        settings.schedule.num_steps,
        settings.batch_size,
        left_out.as_dict,
        built.stop,
    )


def _make_evaluator(built, image_input):
    """Returns the evaluator of the validation images."""
    settings, left_out = built.settings, inputs.LeftOut()
    size = settings.evaluation_batch_size or settings.batch_size

    def make_dataset(context):
        """Returns a worker's batches of an evaluation."""
        return image_input.evaluation(built.test_images, size, context, left_out)

    batches = built.strategy.distribute_datasets_from_function(make_dataset)
    return step.Evaluator(
        built.classifier,
        built.strategy,
        lambda: reading.naming_errors(batches, left_out),
        built.step_fn.step,
        settings.model_dir,
        built.stop.check,
        built.is_chief,
    )


def _write_backbone(built, path):
    """Writes the checkpoint; every worker must, because statistics are gathered over replicas."""
    with tempfile.TemporaryDirectory() as scratch:
        if not built.is_chief:
            path = os.path.join(scratch, BACKBONE)
        parts = built.classifier.pretrained_parts()
        classifier_parts.write(parts, built.classifier.pixel_std, path)


def _end_together(built):
    """Waits for the other workers: a process that ends takes its connections with it."""
    if built.workers:
        built.workers.exchange("")


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
