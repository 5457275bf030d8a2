"""Builds an experiment from its settings, from top to bottom.

Strategy, data, detector and optimizer, weights (the run's own newest checkpoint, else
`init_checkpoint`, else random), then the loops that train and evaluate them.
"""

import contextlib
import dataclasses
import os
from typing import Any

from rethink_tf import branching, config, config_record, files, summaries
from rethink_tf.data.input import reading
from rethink_tf.data.records import categories, splits
from rethink_tf.data.sources import shapes as _shapes  # noqa: F401  registered for gin files
from rethink_tf.diagnosis import texts
from rethink_tf.evaluation import inference
from rethink_tf.evaluation import test_time_augmentation as tta
from rethink_tf.evaluation import voc_metrics as _voc_metrics  # noqa: F401  registered for gin files
from rethink_tf.models import cascade as _cascade  # noqa: F401  registered for gin files
from rethink_tf.models import keypoint_head as _keypoint_head  # noqa: F401  registered for gin files
from rethink_tf.models import vgg as _vgg  # noqa: F401  registered for gin files
from rethink_tf.report import samples
from rethink_tf.settings import Settings
from rethink_tf.training import averaging as _averaging  # noqa: F401  registered for gin files
from rethink_tf.training import checkpoint_files, checkpoints, distribution, saving, step, stopping
from rethink_tf.training import history as history_lib
from rethink_tf.training import optimizer as optimizer_lib
from rethink_tf.training import schedules as _schedules  # noqa: F401  registered for gin files
from rethink_tf.training import workers as workers_lib
from rethink_tf.training.trainer import Trainer


@dataclasses.dataclass
class Experiment:
    """What `build` made, with the weights that training or evaluation starts from.

    Attributes:
        settings: `Settings`.
        strategy: `tf.distribute.Strategy`.
        pipeline: `Pipeline`.
        train_data: `Split` to train on, or None.
        test_data: `Split` to evaluate, or None.
        model: the detector, with its `ExecutionPlan`.
        schedule: the learning rate's, over the whole run whatever changed on the way.
        cascade_from: int, the first step that trains the later stages of a cascade.
        history: `History` of the run up to the step that it goes on from.
        optimizer: Keras optimizer, which counts the steps.
        average: `WeightAverage`, or None.
        checkpoint: `tf.train.Checkpoint` of the three.
        workers: `Workers`, or None where one process runs it all.
        stop: `StopRequest`, which the loops of the trainer and the evaluators ask.
        trainer: `Trainer`, where there is data to train on.
        evaluator: `Evaluator` of plain predictions, or None.
        augmented_evaluator: `Evaluator` by test augmentation, or None.
    """

    settings: Settings
    strategy: Any
    pipeline: Any
    train_data: splits.Split | None
    test_data: splits.Split | None
    model: Any
    schedule: Any
    cascade_from: int
    history: history_lib.History
    optimizer: Any
    average: Any
    checkpoint: Any
    workers: workers_lib.Workers | None
    stop: stopping.StopRequest
    trainer: Trainer | None = None
    evaluator: inference.Evaluator | None = None
    augmented_evaluator: inference.Evaluator | None = None

    @property
    def step(self):
        """The variable that counts the steps."""
        return self.optimizer.iterations

    @property
    def is_chief(self):
        """Whether this process writes for all workers."""
        return checkpoints.is_chief(self.strategy)

    @property
    def shapes(self):
        """What the pipeline must know of the program that its batches are for."""
        is_compiled = self.model.plan.static_shapes
        return {"multiple": self.model.coarsest_stride, "is_compiled": is_compiled}


def build(settings, resources):
    """Builds an experiment, and records it in its folder if it is to be trained.

    Args:
        settings: `Settings`.
        resources: `contextlib.ExitStack`, which holds the folder's lock until the run's end.

    Returns:
        `Experiment`.

    Raises:
        ValueError: if a part does not fit another, or another process trains into the folder.
    """
    strategy, plan = distribution.start_strategy(settings)
    workers = workers_lib.of(strategy)
    # A worker that is refused alone would leave the others waiting for it.
    together = workers.fail_together if workers else lambda action: action()
    together(lambda: _claim_folder(settings, strategy, resources))
    start = _find_start(settings, workers, together)
    history = together(lambda: _read_history(settings, start))
    schedule = history.continue_schedule(settings.schedule)
    parts = together(lambda: _prepare(settings, strategy, schedule))
    pipeline, losses, views, cascade_from, train_data, test_data = parts

    with strategy.scope():
        model = _make_detector(settings, train_data or test_data, plan)
        optimizer = settings.optimizer(learning_rate=schedule)
        optimizer.build(model.trainable_variables)
        optimizer_lib.scale_loss(optimizer, plan.precision)
        average = settings.weight_average(model) if settings.weight_average else None
    check_heads(pipeline, model, [each for each in (train_data, test_data) if each])

    experiment = Experiment(
        settings=settings,
        strategy=strategy,
        pipeline=pipeline,
        train_data=train_data,
        test_data=test_data,
        model=model,
        schedule=schedule,
        cascade_from=cascade_from,
        history=history,
        optimizer=optimizer,
        average=average,
        checkpoint=checkpoints.make_checkpoint(model, optimizer, average),
        workers=workers,
        stop=stopping.StopRequest(workers),
    )
    _load_weights(experiment, start)
    if train_data:
        experiment.trainer = _make_trainer(experiment, losses)
    if test_data and views:
        experiment.augmented_evaluator = _make_evaluator(experiment, views)
    if test_data and not (views and settings.mode == "evaluate"):
        experiment.evaluator = _make_evaluator(experiment)

    # All parts are made by now: what is still unused has no effect.
    config.check_all_used()
    if settings.mode != "evaluate":
        together(lambda: _record(experiment))
    return experiment


def _claim_folder(settings, strategy, resources):
    """Locks the folder if it is to be trained in, and compares the experiment with its record."""
    is_training = settings.mode != "evaluate"
    if is_training and checkpoints.is_chief(strategy):
        saving.claim_folder(settings.model_dir, resources)
    rescales = settings.on_change == "rescale"
    config_record.compare(settings.model_dir, is_training, rescales)


def _find_start(settings, workers, together):
    """Returns the path of the checkpoint that the run goes on from, or None for a new run."""
    folder = os.path.join(settings.model_dir, "checkpoints")
    start = checkpoint_files.find_newest(folder, workers)
    if start or not settings.continue_from or settings.mode == "evaluate":
        return start
    cascade_from = together(lambda: step.cascade_start(settings.schedule, settings.cascade_steps))
    described = branching.describe(settings.schedule, cascade_from)
    return branching.find(settings.continue_from, described, workers)


def _read_history(settings, start):
    """Returns the `History` of the run, or of the one that it goes on from."""
    folder = settings.model_dir
    if start and not files.exists(os.path.join(folder, history_lib.FILE)):
        folder = os.path.dirname(os.path.dirname(start))
    began_with = config_record.recorded(folder, "run.batch_size") if start else None
    return history_lib.read(
        folder,
        checkpoint_files.step_of(start) if start else 0,
        settings.batch_size,
        began_with and int(began_with),
    )


def _prepare(settings, strategy, schedule):
    """Makes and checks what needs no variables, the data last: an error should not wait for them.

    Returns:
        The pipeline, the losses, the views of test augmentation or None, the first step of a
        cascade's later stages, and the `Split`s to train on and to evaluate.
    """
    cascade_from = step.cascade_start(schedule, settings.cascade_steps)
    size, parts = settings.batch_size, settings.accumulate_steps
    distribution.check_batch_size(strategy, "batch_size", size, parts)
    test_size = settings.evaluation_batch_size or size
    distribution.check_batch_size(strategy, "evaluation_batch_size", test_size)
    pipeline, losses = settings.pipeline(), settings.losses()
    views = settings.test_augmentation() if settings.test_augmentation else None
    return pipeline, losses, views, cascade_from, *open_data(settings, pipeline)


def _record(experiment):
    """Writes what was built into the run's folder, for later starts and for readers."""
    if experiment.is_chief:
        folder = experiment.settings.model_dir
        described = branching.describe(experiment.schedule, experiment.cascade_from)
        config_record.write(folder, dataclasses.asdict(experiment.model.plan), described)
        experiment.history.write(folder)
        categories.write(folder, experiment.train_data.categories)


def open_data(settings, pipeline):
    """Opens the data of a run, checked against each other and what the run's folder says.

    Args:
        settings: `Settings`.
        pipeline: `Pipeline`.

    Returns:
        `Split` to train on and `Split` to evaluate, None for what the mode needs not.

    Raises:
        ValueError: if they cannot be used or do not fit each other; the message says why.
    """
    if settings.prepare_data:
        settings.prepare_data(output=settings.data_dir)
    found = splits.open_splits(
        settings.mode,
        settings.data_dir,
        settings.train_split,
        settings.evaluation_split,
        pipeline,
    )
    opened = [each for each in found if each]
    splits.check_splits(opened, needs_keypoints=pipeline.include_keypoints)
    categories.check_run(
        settings.model_dir,
        opened[0].categories,
        opened[0].directory,
        settings.init_checkpoint,
        settings.mode != "evaluate",
    )
    return found


def _make_detector(settings, data, plan):
    """Returns the detector of a `Split`, with all variables."""
    model = settings.detector(
        num_classes=len(data.category_ids),
        num_keypoints=len(data.keypoints.names) if data.keypoints else 0,
        plan=plan,
    )
    if settings.cascade_steps is not None and len(model.box_head.stages) == 1:
        raise ValueError(
            f"run.cascade_steps = {settings.cascade_steps:,}, but the box head has one stage: "
            "include base/cascade.gin, or leave cascade_steps out."
        )
    model.create_variables()
    return model


def check_heads(pipeline, model, opened):
    """Checks that pipeline and data have what the detector's heads need.

    Args:
        pipeline: `Pipeline`.
        model: the detector; it needs no variables.
        opened: list of `Split`.

    Raises:
        ValueError: if they have not; the message says what to include.
    """
    has_keypoints = model.keypoint_head is not None
    if pipeline.include_keypoints != has_keypoints:
        head = "a keypoint head" if has_keypoints else "no keypoint head"
        raise ValueError(
            f"Pipeline.include_keypoints is {pipeline.include_keypoints}, and the detector has "
            f"{head}: include 'base/keypoint_rcnn.gin', which sets both."
        )
    splits.check_splits(opened, needs_masks=model.mask_head is not None)


def _load_weights(experiment, start):
    settings = experiment.settings
    checkpoints.load_weights(
        experiment.checkpoint,
        start,
        os.path.join(settings.model_dir, "checkpoints"),
        settings.init_checkpoint,
        required=settings.mode == "evaluate",
        average=experiment.average,
        workers=experiment.workers,
    )


def _make_trainer(experiment, losses):
    """Returns the loop of training."""
    settings, strategy, data = experiment.settings, experiment.strategy, experiment.train_data
    counters = reading.PipelineCounters()

    def make_dataset(context):
        """Returns a worker's batches of training, from the step on where the run is."""
        start = experiment.history.data_position(int(experiment.step.numpy()))
        return experiment.pipeline.training(
            data.index,
            data.category_ids,
            settings.batch_size,
            settings.seed,
            start,
            context,
            counters,
            data.keypoints,
            settings.accumulate_steps,
            **experiment.shapes,
        )

    def make_batches():
        return distribution.distribute(strategy, make_dataset)

    def make_named_batches():
        return reading.naming_errors(make_batches(), counters)

    def describe(step):
        bindings = config_record.canonical_bindings(config.called_selectors())
        summaries.write_settings(step, config_record.operative_config(), bindings)

    batches = make_batches()
    size = settings.batch_size // (strategy.num_replicas_in_sync * settings.accumulate_steps)
    train_step = step.TrainStep(
        experiment.model,
        losses,
        experiment.optimizer,
        strategy,
        settings.seed,
        weight_decay=settings.weight_decay,
        cascade_from=experiment.cascade_from,
        accumulate_steps=settings.accumulate_steps,
        clip_norm=settings.clip_norm,
        average=experiment.average,
        batch_spec=_batch_spec(experiment, batches, size),
    )
    return Trainer(
        train_step,
        reading.naming_errors(batches, counters),
        make_named_batches,
        experiment.schedule.num_steps,
        settings.batch_size,
        lambda: counters.as_dict() | {"stretches_left_out": len(experiment.history.skips)},
        experiment.stop,
        describe,
    )


def _make_evaluator(experiment, views=None):
    """Returns the evaluator of the test data; `views` is the test augmentation, None for none."""
    settings, strategy, data = experiment.settings, experiment.strategy, experiment.test_data
    batch_size = settings.evaluation_batch_size or settings.batch_size
    further_sizes = views.further_sizes if views else ()
    counters = reading.PipelineCounters()

    def make_dataset(context):
        """Returns a worker's batches of evaluation."""
        return experiment.pipeline.evaluation(
            data.index, batch_size, context, further_sizes, counters=counters, **experiment.shapes
        )

    batches = distribution.distribute(strategy, make_dataset)

    def named_batches():
        return reading.naming_errors(batches, counters)

    if views:
        flip_order = data.keypoints.flip_order if data.keypoints else ()
        predictor = tta.AugmentedPredictor(experiment.model, strategy, views, flip_order)
    else:
        spec = _batch_spec(experiment, batches, batch_size // strategy.num_replicas_in_sync)
        predictor = inference.Predictor(experiment.model, strategy, spec)
    ground_truth, average = data.ground_truth(), experiment.average
    label = "-augmented" if views else ""
    return inference.Evaluator(
        predictor=predictor,
        make_batches=lambda: views.group(named_batches()) if views else named_batches(),
        num_batches=experiment.pipeline.num_evaluation_batches(data.index, batch_size),
        ground_truth=ground_truth,
        category_ids=data.category_ids,
        model_dir=settings.model_dir,
        step=experiment.step,
        is_chief=experiment.is_chief,
        pictures=samples.SamplePictures(ground_truth, settings.model_dir, experiment.step, label),
        metrics=settings.metrics,
        is_augmented=views is not None,
        weights=average.in_use if average else contextlib.nullcontext,
        check_stop=experiment.stop.check,
        last_step=experiment.schedule.num_steps,
        when_recorded=None
        if views
        else texts.LowApLog(settings.model_dir, config_record.operative_config),
    )


def _batch_spec(experiment, batches, size):
    """Returns the spec of one program for all shapes; None where XLA makes one for each."""
    is_compiled = experiment.model.plan.static_shapes
    return None if is_compiled else distribution.batch_spec(batches, size)
