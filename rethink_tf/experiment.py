"""The one root of every experiment: builds the parts under the strategy and runs them.

The order, from the top: strategy, data, detector and optimizer, weights (the run's own newest
checkpoint, else `init_checkpoint`, else random), the check of the gin bindings, then training and
evaluation in turns.
"""

import contextlib
import functools
import os

import gin
import orbit

from rethink_tf import config, config_record
from rethink_tf.config_values import Count
from rethink_tf.data.input import reading
from rethink_tf.data.input.pipeline import Pipeline
from rethink_tf.data.records import categories, splits
from rethink_tf.data.sources import shapes as _shapes  # noqa: F401  registered for gin files
from rethink_tf.evaluation import inference
from rethink_tf.evaluation import test_time_augmentation as tta
from rethink_tf.evaluation import voc_metrics as _voc_metrics  # noqa: F401  registered for gin files
from rethink_tf.evaluation.coco_metrics import CocoMetrics
from rethink_tf.losses import DetectionLosses
from rethink_tf.models import cascade as _cascade  # noqa: F401  registered for gin files
from rethink_tf.models import keypoint_head as _keypoint_head  # noqa: F401  registered for gin files
from rethink_tf.models import vgg as _vgg  # noqa: F401  registered for gin files
from rethink_tf.models.detector import MaskRCNN
from rethink_tf.own_data import deriving
from rethink_tf.report import run_texts, samples
from rethink_tf.training import averaging as _averaging  # noqa: F401  registered for gin files
from rethink_tf.training import checkpoints, distribution, step, trainer, workers
from rethink_tf.training import schedules as _schedules  # noqa: F401  registered for gin files
from rethink_tf.training.optimizer import MomentumSGD

MODES = ("train", "evaluate", "train_and_evaluate")


@deriving.settings_first
@gin.configurable(module="experiment")
def run(
    model_dir: str,
    data_dir: str,
    batch_size: Count,
    seed: int,
    schedule,
    mode="train_and_evaluate",
    settings=None,
    prepare_data=None,
    train_split="train",
    evaluation_split="val",
    strategy=distribution.make_strategy,
    pipeline=Pipeline,
    detector=MaskRCNN,
    losses=DetectionLosses,
    optimizer=MomentumSGD,
    weight_decay=1e-4,
    clip_norm: float | None = None,
    accumulate_steps=1,
    weight_average=None,
    cascade_steps: int | None = None,
    metrics=CocoMetrics,
    test_augmentation=None,
    init_checkpoint: str | None = None,
    evaluation_batch_size: int | None = None,
    log_every: Count = 20,
    checkpoint_every: Count = 1000,
    evaluate_every: Count | None = None,
    keep_newest: Count = 3,
    keep_best: Count = 1,
    precision="float32",
    jit_compile=False,
    deterministic=None,
    when_built=None,
):
    """Trains and evaluates one experiment.

    Args:
        model_dir: str, folder of checkpoints, summaries, results and pictures.
        data_dir: str, folder of the record directories.
        batch_size: int, images a step over all replicas.
        seed: int >= 0: weights, order of the data, flips and sampling.
        schedule: Keras learning rate schedule with `num_steps`.
        mode: "train", "evaluate" (the newest checkpoint) or "train_and_evaluate".
        settings: callable without arguments, returns bindings that follow from the data, which
            `own_data.deriving` makes before this is called; or None.
        prepare_data: callable taking `output`, makes the data where it is not there yet; or None.
        train_split: str, folder under data_dir.
        evaluation_split: str, the same.
        strategy: callable without arguments, returns a `tf.distribute.Strategy`.
        pipeline: callable without arguments, returns a `input.pipeline.Pipeline`.
        detector: callable taking num_classes, num_keypoints and static_shapes, returns the
            detector.
        losses: callable without arguments, returns `DetectionLosses`.
        optimizer: callable taking learning_rate, returns a Keras optimizer.
        weight_decay: float, of kernels.
        clip_norm: float, largest norm of the whole gradient, or None; see `TrainStep`.
        accumulate_steps: int, micro-batches that the images of a step come in; see `TrainStep`.
        weight_average: callable taking the detector, makes the `WeightAverage` to evaluate in place
            of the weights, or None.
        cascade_steps: int, how many of the schedule's last steps train the later stages of a
            cascade, by the schedule's rule (`PaperSchedule` counts them for 16 images); None for
            all steps.
        metrics: callable taking ground_truth, has_masks and has_keypoints, returns what measures
            detections: `CocoMetrics` or `VocMetrics`.
        test_augmentation: callable without arguments, returns a `TestTimeAugmentation`, or None.
            "train_and_evaluate" uses it once, after the last of the plain evaluations, which alone
            choose the best checkpoint; "evaluate" uses it alone.
        init_checkpoint: str or None, weights to start from where the folder has no checkpoint.
        evaluation_batch_size: int, images over all replicas; None for batch_size.
        log_every: int, steps from one log line (and summary) to the next.
        checkpoint_every: int, steps.
        evaluate_every: int, steps; None evaluates at the end only.
        keep_newest: int, checkpoints kept.
        keep_best: int, checkpoints kept of the highest headline of the metrics: COCO's AP (of
            keypoints, else of masks, else of boxes), VOC's mAP.
        precision: "float32" or "mixed_bfloat16", of the layers' arithmetic.
        jit_compile: bool, whether XLA compiles the step; shapes are then static.
        deterministic: bool, whether equal runs give equal numbers to the last bit; None for yes
            on a CPU without jit_compile, where it costs nothing, and no elsewhere.
        when_built: callable called once everything is built and checked, or None.

    Returns:
        dict of the last evaluation's metrics; empty if there was none.

    Raises:
        ValueError: if a value does not fit the others; the message names both.
    """
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}.")
    if mode != "evaluate":
        config_record.compare(model_dir)
    cascade_from = step.cascade_start(schedule, cascade_steps)
    strategy = strategy()
    with strategy.scope():
        distribution.set_up_tensorflow(seed, precision, jit_compile, deterministic)
    test_batch_size = evaluation_batch_size or batch_size
    distribution.check_batch_size(strategy, "batch_size", batch_size, accumulate_steps)
    distribution.check_batch_size(strategy, "evaluation_batch_size", test_batch_size)
    static_shapes = distribution.needs_static_shapes(strategy, jit_compile)

    pipeline, losses = pipeline(), losses()
    views = test_augmentation() if test_augmentation else None
    if prepare_data:
        prepare_data(output=data_dir)
    train_data, test_data = splits.open_splits(
        mode, data_dir, train_split, evaluation_split, pipeline
    )
    opened = [each for each in (train_data, test_data) if each]
    category_ids = splits.check_splits(opened, needs_keypoints=pipeline.include_keypoints)
    keypoints = opened[0].keypoints
    categories.check_run(
        model_dir, opened[0].categories, opened[0].directory, init_checkpoint, mode != "evaluate"
    )

    with strategy.scope():
        model = detector(
            num_classes=len(category_ids),
            num_keypoints=len(keypoints.names) if keypoints else 0,
            static_shapes=static_shapes,
        )
        _check_stages(model, cascade_steps)
        model.create_variables()
        optimizer = optimizer(learning_rate=schedule)
        optimizer.build(model.trainable_variables)
        average = weight_average(model) if weight_average else None
    global_step = optimizer.iterations
    _check_keypoints_included(pipeline, model)
    splits.check_splits(opened, needs_masks=model.mask_head is not None)
    checkpoint = checkpoints.make_checkpoint(model, optimizer, average)
    folder, best_folder = (os.path.join(model_dir, name) for name in ("checkpoints", "best"))
    checkpoints.load_weights(
        checkpoint, folder, init_checkpoint, mode == "evaluate", average, workers.of(strategy)
    )

    shapes = {"multiple": model.coarsest_stride, "is_compiled": static_shapes}
    loop = evaluator = augmented = None
    if train_data:
        counters = reading.PipelineCounters()
        batches = _training_batches(
            pipeline, train_data, batch_size, seed, accumulate_steps, global_step, counters, shapes
        )
        batches = strategy.distribute_datasets_from_function(batches)
        size = batch_size // (strategy.num_replicas_in_sync * accumulate_steps)
        spec = None if static_shapes else distribution.batch_spec(batches, size)
        train_step = step.TrainStep(
            model,
            losses,
            optimizer,
            strategy,
            seed,
            weight_decay,
            jit_compile,
            cascade_from,
            accumulate_steps,
            clip_norm,
            average,
            spec,
        )
        loop = trainer.Trainer(
            train_step, iter(batches), schedule.num_steps, batch_size, counters.as_dict
        )
    if test_data:
        evaluate_with = functools.partial(
            _make_evaluator,
            strategy=strategy,
            shapes=shapes,
            pipeline=pipeline,
            data=test_data,
            ground_truth=test_data.ground_truth(),
            batch_size=test_batch_size,
            model_dir=model_dir,
            global_step=global_step,
            metrics=metrics,
            average=average,
        )
        if views:
            augmented = evaluate_with(
                lambda _: tta.AugmentedPredictor(model, strategy, views, jit_compile, keypoints),
                augmentation=views,
            )
        if not (augmented and mode == "evaluate"):
            evaluator = evaluate_with(
                functools.partial(inference.Predictor, model, strategy, jit_compile)
            )
    is_chief = checkpoints.is_chief(strategy)
    config.check_all_used()
    if is_chief and mode != "evaluate":
        config_record.write(model_dir)
        categories.write(model_dir, opened[0].categories)
    if when_built:
        when_built()
    if is_chief:
        uses = {"training": train_data, "evaluation": test_data}
        plan = schedule, batch_size, evaluate_every if test_data else 0, checkpoint_every
        run_texts.log_header(uses, pipeline, model, strategy, plan, precision, model_dir)

    controller = _make_controller(
        loop, evaluator or augmented, global_step, strategy, log_every, model_dir
    )
    manage = functools.partial(
        checkpoints.make_manager, checkpoint, strategy=strategy, step=global_step
    )
    # Set only now: given to the constructor, Orbit would restore the newest checkpoint, also one
    # that does not read.
    controller.checkpoint_manager = manage(folder, interval=checkpoint_every, keep=keep_newest)
    if mode == "evaluate":
        controller.evaluate()
    else:
        best = checkpoints.BestKeeper(manage(best_folder, keep=keep_best), best_folder, is_chief)
        stops = _stops(schedule.num_steps, evaluate_every if evaluator else None)
        _train_and_evaluate(controller, evaluator, best, stops, model_dir)
        done = inference.evaluated_steps(model_dir, is_augmented=True)
        if augmented and int(optimizer.iterations.numpy()) not in done:
            controller.evaluator = augmented
            controller.evaluate()
    if is_chief:
        run_texts.log_closing(model_dir, loop, controller.evaluator)
    return controller.evaluator.metrics if controller.evaluator else {}


def _training_batches(
    pipeline, data, batch_size, seed, accumulate_steps, global_step, counters, shapes
):
    """Returns the function that makes a worker's batches, from the step on where the run is."""
    start = int(global_step.numpy())

    def make_dataset(context):
        return pipeline.training(
            data.index,
            data.category_ids,
            batch_size,
            seed,
            start,
            context,
            counters,
            data.keypoints,
            accumulate_steps,
            **shapes,
        )

    return make_dataset


def _make_evaluator(
    make_predictor,
    strategy,
    shapes,
    pipeline,
    data,
    ground_truth,
    batch_size,
    model_dir,
    global_step,
    metrics,
    average,
    augmentation=None,
):
    """Returns the evaluator of a split, with the averaged weights where there are any.

    `make_predictor` takes the `batch_spec` of `inference.Predictor`.
    """
    further_sizes = augmentation.further_sizes if augmentation else ()

    def make_dataset(context):
        return pipeline.evaluation(data.index, batch_size, context, further_sizes, **shapes)

    batches = strategy.distribute_datasets_from_function(make_dataset)
    size = batch_size // strategy.num_replicas_in_sync
    is_compiled = shapes["is_compiled"]
    predictor = make_predictor(None if is_compiled else distribution.batch_spec(batches, size))

    def make_batches():
        return augmentation.group(batches) if augmentation else batches

    label = "-augmented" if augmentation else ""
    return inference.Evaluator(
        predictor=predictor,
        make_batches=make_batches,
        num_batches=pipeline.num_evaluation_batches(data.index, batch_size),
        ground_truth=ground_truth,
        category_ids=data.category_ids,
        model_dir=model_dir,
        step=global_step,
        is_chief=checkpoints.is_chief(strategy),
        pictures=samples.SamplePictures(ground_truth, model_dir, global_step, label),
        metrics=metrics,
        is_augmented=augmentation is not None,
        weights=average.in_use if average else contextlib.nullcontext,
    )


def _make_controller(loop, evaluator, global_step, strategy, log_every, model_dir):
    """Returns Orbit's controller, still without a checkpoint manager."""
    is_chief = checkpoints.is_chief(strategy)
    trainer.quiet_orbit()
    return orbit.Controller(
        global_step=global_step,
        trainer=loop,
        evaluator=evaluator,
        strategy=strategy,
        # Loops end at multiples of log_every, also after a resumption between two.
        steps_per_loop=lambda done: log_every - int(done) % log_every,
        summary_interval=1,  # whenever the trainer writes, which is once a loop
        summary_dir=os.path.join(model_dir, "tensorboard") if is_chief else None,
    )


def detector_builder():
    """Returns the parsed experiment's `detector`; see `run`."""
    return gin.get_bindings("experiment.run").get("detector", MaskRCNN)


def _train_and_evaluate(controller, evaluator, best, stops, model_dir):
    """Trains up to each stop and evaluates there, unless an earlier start of the run did."""
    start = int(controller.global_step.numpy())
    controller.trainer.evaluation_steps = stops if evaluator else []
    evaluated = inference.evaluated_steps(model_dir)
    for stop in stops:
        if stop < start or (stop == start and (stop in evaluated or not evaluator)):
            continue
        if stop > start:
            controller.train(stop)
        if evaluator:
            controller.evaluate()
            controller.trainer.evaluation_seconds = evaluator.last_seconds
            if evaluator.metrics:
                best.offer(evaluator.score, stop)


def _stops(num_steps, evaluate_every):
    """Returns the steps at which training stops to evaluate, the last one included."""
    return [*range(evaluate_every or num_steps, num_steps, evaluate_every or num_steps), num_steps]


def _check_stages(model, cascade_steps):
    if cascade_steps is not None and len(model.box_head.stages) == 1:
        raise ValueError(
            f"run.cascade_steps = {cascade_steps:,}, but the box head has one stage: include "
            "base/cascade.gin, or leave cascade_steps out."
        )


def _check_keypoints_included(pipeline, model):
    has_keypoints = model.keypoint_head is not None
    if pipeline.include_keypoints != has_keypoints:
        head = "a keypoint head" if has_keypoints else "no keypoint head"
        raise ValueError(
            f"Pipeline.include_keypoints is {pipeline.include_keypoints}, and the detector has "
            f"{head}: include 'base/keypoint_rcnn.gin', which sets both."
        )
