"""The one root of every experiment: builds the parts under the strategy and runs them.

The order, from the top: strategy, data, detector and optimizer, weights (the run's own newest
checkpoint, else `init_checkpoint`, else random), the check of the gin bindings, then training and
evaluation in turns.
"""

import json
import os

import gin
import orbit
import tensorflow as tf
import tf_keras
from absl import logging
from tensorflow.python.framework import config as framework_config

from rethink_tf import config
from rethink_tf.data import reading, splits
from rethink_tf.data import shapes as _shapes  # noqa: F401  registered for gin files
from rethink_tf.data.pipeline import Pipeline
from rethink_tf.evaluation import inference
from rethink_tf.evaluation import voc_metrics as _voc_metrics  # noqa: F401  registered for gin files
from rethink_tf.evaluation.coco_metrics import CocoMetrics
from rethink_tf.losses import DetectionLosses
from rethink_tf.models import cascade as _cascade  # noqa: F401  registered for gin files
from rethink_tf.models import keypoint_head as _keypoint_head  # noqa: F401  registered for gin files
from rethink_tf.models import vgg as _vgg  # noqa: F401  registered for gin files
from rethink_tf.models.detector import MaskRCNN
from rethink_tf.report import samples
from rethink_tf.training import checkpoints, distribution, step, trainer
from rethink_tf.training import schedules as _schedules  # noqa: F401  registered for gin files
from rethink_tf.training.optimizer import MomentumSGD
from rethink_tf.weights import detectron2, pickles

MODES = ("train", "evaluate", "train_and_evaluate")


@gin.configurable(module="experiment")
def run(
    model_dir,
    data_dir,
    batch_size,
    seed,
    schedule,
    mode="train_and_evaluate",
    prepare_data=None,
    train_split="train",
    evaluation_split="val",
    strategy=distribution.make_strategy,
    pipeline=Pipeline,
    detector=MaskRCNN,
    losses=DetectionLosses,
    optimizer=MomentumSGD,
    weight_decay=1e-4,
    cascade_steps=None,
    metrics=CocoMetrics,
    init_checkpoint=None,
    evaluation_batch_size=None,
    log_every=20,
    checkpoint_every=1000,
    evaluate_every=None,
    keep_newest=3,
    keep_best=1,
    precision="float32",
    jit_compile=False,
    deterministic=None,
):
    """Trains and evaluates one experiment.

    Args:
        model_dir: str, folder of checkpoints, summaries, results and pictures.
        data_dir: str, folder of the record directories.
        batch_size: int, images a step over all replicas.
        seed: int >= 0: weights, order of the data, flips and sampling.
        schedule: Keras learning rate schedule with `num_steps`.
        mode: "train", "evaluate" (the newest checkpoint) or "train_and_evaluate".
        prepare_data: callable taking `output`, makes the data where it is not there yet; or None.
        train_split: str, folder under data_dir.
        evaluation_split: str, the same.
        strategy: callable without arguments, returns a `tf.distribute.Strategy`.
        pipeline: callable without arguments, returns a `data.pipeline.Pipeline`.
        detector: callable taking num_classes, num_keypoints and static_shapes, returns the
            detector.
        losses: callable without arguments, returns `DetectionLosses`.
        optimizer: callable taking learning_rate, returns a Keras optimizer.
        weight_decay: float, of kernels.
        cascade_steps: int, how many of the schedule's last steps train the later stages of a
            cascade, by the schedule's rule (`PaperSchedule` counts them for 16 images); None for
            all steps.
        metrics: callable taking ground_truth, has_masks and has_keypoints, returns what measures
            detections: `CocoMetrics` or `VocMetrics`.
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

    Returns:
        dict of the last evaluation's metrics; empty if there was none.

    Raises:
        ValueError: if a value does not fit the others; the message names both.
    """
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}.")
    if mode != "evaluate":
        config.compare_with_folder(model_dir)
    cascade_from = _cascade_start(schedule, cascade_steps)
    strategy = strategy()
    set_up_tensorflow(seed, precision, jit_compile, deterministic)
    test_batch_size = evaluation_batch_size or batch_size
    _check_batch_size(strategy, "batch_size", batch_size)
    _check_batch_size(strategy, "evaluation_batch_size", test_batch_size)
    static_shapes = _needs_static_shapes(strategy, jit_compile)

    if prepare_data:
        prepare_data(output=data_dir)
    pipeline, losses = pipeline(), losses()
    train_data = test_data = None
    if mode != "evaluate":
        train_data = splits.open_split(data_dir, train_split, pipeline, is_training=True)
    if mode != "train":
        test_data = splits.open_split(data_dir, evaluation_split, pipeline, is_training=False)
    opened = [each for each in (train_data, test_data) if each]
    category_ids = splits.check_splits(opened, False, pipeline.include_keypoints)
    keypoints = opened[0].keypoints

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
    _check_keypoints_included(pipeline, model)
    splits.check_splits(opened, model.mask_head is not None, pipeline.include_keypoints)
    checkpoint = tf.train.Checkpoint(model=model, optimizer=optimizer)
    folder = os.path.join(model_dir, "checkpoints")
    checkpoints.load_weights(checkpoint, folder, init_checkpoint, required=mode == "evaluate")

    train_loop = evaluator = None
    if train_data:
        train_step = step.TrainStep(
            model, losses, optimizer, strategy, seed, weight_decay, jit_compile, cascade_from
        )
        train_loop = _make_trainer(
            train_step, strategy, pipeline, train_data, batch_size, seed, schedule.num_steps
        )
    if test_data:
        predictor = inference.Predictor(model, strategy, jit_compile)
        evaluator = _make_evaluator(
            predictor,
            pipeline,
            test_data,
            test_batch_size,
            model_dir,
            optimizer.iterations,
            metrics,
        )
    is_chief = checkpoints.is_chief(strategy)
    config.check_all_used()
    if is_chief and mode != "evaluate":
        config.write_operative_config(model_dir)

    controller = orbit.Controller(
        global_step=optimizer.iterations,
        trainer=train_loop,
        evaluator=evaluator,
        strategy=strategy,
        # Loops end at multiples of log_every, also after a resumption between two.
        steps_per_loop=lambda done: log_every - int(done) % log_every,
        summary_interval=1,  # whenever the trainer writes, which is once a loop
        summary_dir=os.path.join(model_dir, "tensorboard") if is_chief else None,
    )

    def make_manager(directory, interval, keep):
        return checkpoints.make_manager(
            checkpoint, directory, strategy, optimizer.iterations, interval, keep
        )

    # Set only now: given to the constructor, Orbit would restore the newest checkpoint, also one
    # that does not read.
    controller.checkpoint_manager = make_manager(folder, checkpoint_every, keep_newest)
    if mode == "evaluate":
        controller.evaluate()
    else:
        best_folder = os.path.join(model_dir, "best")
        best_manager = make_manager(best_folder, None, keep_best)
        best = checkpoints.BestKeeper(best_manager, best_folder, is_chief)
        stops = _stops(schedule.num_steps, evaluate_every if evaluator else None)
        _train_and_evaluate(controller, evaluator, best, stops, model_dir)
    if is_chief:
        _say_where(model_dir, evaluator)
    return evaluator.metrics if evaluator else {}


def _make_trainer(train_step, strategy, pipeline, data, batch_size, seed, num_steps):
    """Returns the trainer, its input at the step where the run is."""
    counters, start = reading.PipelineCounters(), int(train_step.step.numpy())

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
        )

    batches = iter(strategy.distribute_datasets_from_function(make_dataset))
    return trainer.Trainer(train_step, batches, num_steps, batch_size, counters.as_dict)


def _make_evaluator(predictor, pipeline, data, batch_size, model_dir, global_step, metrics):
    """Returns the evaluator of a split."""
    ground_truth, strategy = data.ground_truth(), predictor.strategy

    def make_dataset(context):
        return pipeline.evaluation(data.index, batch_size, context)

    return inference.Evaluator(
        predictor=predictor,
        make_batches=lambda: strategy.distribute_datasets_from_function(make_dataset),
        num_batches=pipeline.num_evaluation_batches(data.index, batch_size),
        ground_truth=ground_truth,
        category_ids=data.category_ids,
        model_dir=model_dir,
        step=global_step,
        is_chief=checkpoints.is_chief(strategy),
        pictures=samples.SamplePictures(ground_truth, model_dir, global_step),
        metrics=metrics,
    )


def convert_detectron2(checkpoint, output, input_format):
    """Writes a checkpoint of the parsed experiment's detector with Detectron2's weights.

    Args:
        checkpoint: str, Detectron2's `.pkl`.
        output: str, path of the checkpoint to write, without an ending.
        input_format: "BGR" or "RGB", the order of the channels it was trained with.

    Returns:
        int, the number of variables written.

    Raises:
        ValueError: if the file is not such a checkpoint, or not one of this detector.
    """
    arrays = pickles.load_arrays(checkpoint)
    build = gin.get_bindings("experiment.run").get("detector", MaskRCNN)
    model = build(
        num_classes=detectron2.num_classes(arrays),
        num_keypoints=detectron2.num_keypoints(arrays),
        static_shapes=False,
    )
    model.create_variables()
    detectron2.load(model, arrays, input_format)
    tf.io.gfile.makedirs(os.path.dirname(output) or ".")
    tf.train.Checkpoint(model=model).write(output)
    return len(model.variables)


def _train_and_evaluate(controller, evaluator, best, stops, model_dir):
    """Trains up to each stop and evaluates there, unless an earlier start of the run did."""
    start = int(controller.global_step.numpy())
    evaluated = _evaluated_steps(model_dir)
    for stop in stops:
        if stop < start or (stop == start and (stop in evaluated or not evaluator)):
            continue
        if stop > start:
            controller.train(stop)
        if evaluator:
            controller.evaluate()
            if evaluator.metrics:
                best.offer(evaluator.score, stop)


def _stops(num_steps, evaluate_every):
    """Returns the steps at which training stops to evaluate, the last one included."""
    return [*range(evaluate_every or num_steps, num_steps, evaluate_every or num_steps), num_steps]


def _evaluated_steps(model_dir):
    """Returns the steps that metrics.jsonl has a whole line of."""
    path = os.path.join(model_dir, "metrics.jsonl")
    if not tf.io.gfile.exists(path):
        return set()
    steps = set()
    with tf.io.gfile.GFile(path) as file:
        for line in file:
            try:
                steps.add(json.loads(line)["step"])
            except ValueError:
                logging.warning("%s has a line that is not JSON: %r", path, line[:80])
    return steps


def set_up_tensorflow(seed, precision, jit_compile=False, deterministic=None):
    """Sets the seed, the precision policy and op determinism of this process; see `run`."""
    tf_keras.utils.set_random_seed(seed)
    tf_keras.mixed_precision.set_global_policy(precision)
    if deterministic is None:
        deterministic = not jit_compile and not tf.config.list_physical_devices("GPU")
    if deterministic:
        tf.config.experimental.enable_op_determinism()
    else:
        framework_config.disable_op_determinism()


def _cascade_start(schedule, cascade_steps):
    """Returns the first step that trains the later stages of a cascade; see `run`."""
    if cascade_steps is None:
        return 0
    start = schedule.start_of_last(cascade_steps)
    if not 0 <= start < schedule.num_steps:
        raise ValueError(
            f"run.cascade_steps = {cascade_steps:,} would switch the cascade on at step {start:,} "
            f"of a schedule of {schedule.num_steps:,} steps: give a number above 0 and at most the "
            "schedule's length, a longer schedule, or None for a cascade from the start."
        )
    logging.info("The cascade's later stages train from step %d on.", start)
    return start


def _check_stages(model, cascade_steps):
    if cascade_steps is not None and len(model.box_head.stages) == 1:
        raise ValueError(
            f"run.cascade_steps = {cascade_steps:,}, but the box head has one stage: include "
            "base/cascade.gin, or leave cascade_steps out."
        )


def _check_batch_size(strategy, name, size):
    replicas = strategy.num_replicas_in_sync
    if size < 1 or size % replicas:
        raise ValueError(
            f"{name} = {size} images cannot be shared equally by {replicas} replicas: take a "
            f"multiple of {replicas}."
        )


def _check_keypoints_included(pipeline, model):
    has_keypoints = model.keypoint_head is not None
    if pipeline.include_keypoints != has_keypoints:
        head = "a keypoint head" if has_keypoints else "no keypoint head"
        raise ValueError(
            f"Pipeline.include_keypoints is {pipeline.include_keypoints}, and the detector has "
            f"{head}: include 'base/keypoint_rcnn.gin', which sets both."
        )


def _needs_static_shapes(strategy, jit_compile):
    """Tells whether XLA compiles the step; refuses what it cannot compile."""
    replicas = strategy.num_replicas_in_sync
    on_tpu = isinstance(strategy, tf.distribute.TPUStrategy)
    if jit_compile and replicas > 1 and not on_tpu:
        raise ValueError(
            f"jit_compile compiles the step of one device, and the strategy has {replicas} "
            "replicas: take the one_device strategy, a TPU, or jit_compile = False."
        )
    logging.info("%d replica(s).", replicas)
    return jit_compile or on_tpu


def _say_where(model_dir, evaluator):
    lines = [
        f"TensorBoard: tensorboard --logdir={os.path.join(model_dir, 'tensorboard')}",
        f"Checkpoints: {os.path.join(model_dir, 'checkpoints')}, "
        f"the best in {os.path.join(model_dir, 'best')}",
    ]
    if evaluator and evaluator.metrics:
        lines += [
            f"Detections, in COCO's form: {evaluator.results_path}",
            f"Metrics of every evaluation: {os.path.join(model_dir, 'metrics.jsonl')}",
            f"Picture of detections: {evaluator.pictures.newest}",
        ]
    logging.info("Done.\n  %s", "\n  ".join(lines))
