"""Builds a pre-training from its settings: strategy, data, classifier, weights, and the loops."""

import dataclasses
import json
import os
from typing import Any

import tensorflow as tf

from rethink_tf import config, config_record
from rethink_tf.data.input import reading
from rethink_tf.models import vgg as _vgg  # noqa: F401  registered for gin files
from rethink_tf.pretraining import drawn as _drawn  # noqa: F401  registered for gin files
from rethink_tf.pretraining import images as images_lib
from rethink_tf.pretraining import inputs, step
from rethink_tf.pretraining.settings import Settings
from rethink_tf.training import checkpoint_files, checkpoints, distribution, saving, stopping
from rethink_tf.training import optimizer as optimizer_lib
from rethink_tf.training import schedules as _schedules  # noqa: F401  registered for gin files
from rethink_tf.training import workers as workers_lib
from rethink_tf.training.trainer import Trainer


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
    strategy, plan = distribution.start_strategy(settings)
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
        optimizer_lib.scale_loss(optimizer, plan.precision)
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


def _claim_folder(settings, strategy, resources):
    """Locks the folder, and compares the pre-training with its record."""
    if checkpoints.is_chief(strategy):
        saving.claim_folder(settings.model_dir, resources)
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
        batches = distribution.distribute(built.strategy, make_dataset)
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

    batches = distribution.distribute(built.strategy, make_dataset)
    return step.Evaluator(
        built.classifier,
        built.strategy,
        lambda: reading.naming_errors(batches, left_out),
        built.step_fn.step,
        settings.model_dir,
        built.stop.check,
        built.is_chief,
    )
