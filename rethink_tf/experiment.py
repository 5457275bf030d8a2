"""The one root of every experiment: builds the parts under the strategy and runs them.

The order, from the top: strategy, data, detector and optimizer, weights (the run's own newest
checkpoint, else `init_checkpoint`, else random), the check of the gin bindings, then training and
evaluation in turns.
"""

import dataclasses
import json
import os

import gin
import orbit
import tensorflow as tf
import tf_keras
from absl import logging
from tensorflow.python.framework import config as framework_config

from rethink_tf import config
from rethink_tf.data import ground_truth, reading, records
from rethink_tf.data import shapes as _shapes  # noqa: F401  registered for gin files
from rethink_tf.data.pipeline import Pipeline
from rethink_tf.evaluation import inference
from rethink_tf.losses import DetectionLosses
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
        detector: callable taking num_classes and static_shapes, returns the detector.
        losses: callable without arguments, returns `DetectionLosses`.
        optimizer: callable taking learning_rate, returns a Keras optimizer.
        weight_decay: float, of kernels.
        init_checkpoint: str or None, weights to start from where the folder has no checkpoint.
        evaluation_batch_size: int, images over all replicas; None for batch_size.
        log_every: int, steps from one log line (and summary) to the next.
        checkpoint_every: int, steps.
        evaluate_every: int, steps; None evaluates at the end only.
        keep_newest: int, checkpoints kept.
        keep_best: int, checkpoints kept of the highest AP (of masks, or of boxes without masks).
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
    strategy = strategy()
    _set_up_tensorflow(seed, precision, jit_compile, deterministic)
    static_shapes = _check_replicas(strategy, batch_size, evaluation_batch_size, jit_compile)
    is_chief = checkpoints.is_chief(strategy)

    pipeline, losses = pipeline(), losses()
    if prepare_data:
        prepare_data(output=data_dir)
    train_data = None if mode == "evaluate" else _open_split(data_dir, train_split, pipeline)
    test_data = None if mode == "train" else _open_split(data_dir, evaluation_split, pipeline)
    category_ids = _check_splits(train_data, test_data)

    with strategy.scope():
        model = detector(num_classes=len(category_ids), static_shapes=static_shapes)
        model.create_variables()
        optimizer = optimizer(learning_rate=schedule)
        optimizer.build(model.trainable_variables)
    _check_masks(model, train_data, test_data)
    global_step = optimizer.iterations
    checkpoint = tf.train.Checkpoint(model=model, optimizer=optimizer)
    folder = os.path.join(model_dir, "checkpoints")
    _load_weights(checkpoint, folder, init_checkpoint, mode)

    evaluator = pictures = None
    if test_data:
        pictures = samples.SamplePictures(test_data.ground_truth, model_dir, global_step)
        evaluator = inference.Evaluator(
            detector=model,
            make_batches=_evaluation_batches(
                strategy, pipeline, test_data.index, evaluation_batch_size or batch_size
            ),
            num_batches=pipeline.num_evaluation_batches(
                test_data.index, evaluation_batch_size or batch_size
            ),
            strategy=strategy,
            ground_truth=test_data.ground_truth,
            category_ids=category_ids,
            model_dir=model_dir,
            step=global_step,
            is_chief=is_chief,
            jit_compile=jit_compile,
            on_image=pictures if is_chief else None,
        )
    train_loop = None
    if train_data:
        counters = reading.PipelineCounters()
        train_loop = trainer.Trainer(
            step.TrainStep(model, losses, optimizer, strategy, seed, weight_decay, jit_compile),
            _training_batches(
                strategy, pipeline, train_data, batch_size, seed, int(global_step.numpy()), counters
            ),
            global_step,
            schedule.num_steps,
            batch_size,
            counters.as_dict,
        )
    config.check_all_used()
    if is_chief and mode != "evaluate":
        config.write_operative_config(model_dir)

    summaries = os.path.join(model_dir, "tensorboard") if is_chief else None
    controller = orbit.Controller(
        global_step=global_step,
        trainer=train_loop,
        evaluator=evaluator,
        strategy=strategy,
        # Loops end at multiples of log_every, also after a resumption between two.
        steps_per_loop=lambda done: log_every - int(done) % log_every,
        summary_interval=1,  # whenever the trainer writes, which is once a loop
        summary_dir=summaries,
    )
    # Set only now: given to the constructor, Orbit would restore the newest checkpoint, also one
    # that does not read.
    controller.checkpoint_manager = checkpoints.make_manager(
        checkpoint, folder, strategy, global_step, checkpoint_every, keep_newest
    )
    best_folder = os.path.join(model_dir, "best")
    best = checkpoints.BestKeeper(
        checkpoints.make_manager(checkpoint, best_folder, strategy, global_step, keep=keep_best),
        best_folder,
        is_chief,
    )
    if mode == "evaluate":
        controller.evaluate()
    else:
        stops = _stops(schedule.num_steps, evaluate_every if evaluator else None)
        _train_and_evaluate(controller, evaluator, best, stops, model_dir)
    if is_chief:
        _say_where(model_dir, summaries, evaluator, pictures)
    return evaluator.metrics if evaluator else {}


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
    model = build(num_classes=detectron2.num_classes(arrays), static_shapes=False)
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
                name = "mask/AP" if "mask/AP" in evaluator.metrics else "box/AP"
                best.offer(evaluator.metrics[name], stop)


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


def _set_up_tensorflow(seed, precision, jit_compile, deterministic):
    """Sets the seed, the precision policy and op determinism of this process."""
    tf_keras.utils.set_random_seed(seed)
    tf_keras.mixed_precision.set_global_policy(precision)
    if deterministic is None:
        deterministic = not jit_compile and not tf.config.list_physical_devices("GPU")
    if deterministic:
        tf.config.experimental.enable_op_determinism()
    else:
        framework_config.disable_op_determinism()


def _check_replicas(strategy, batch_size, evaluation_batch_size, jit_compile):
    """Checks the batch sizes against the replicas; returns whether shapes must be static."""
    replicas = strategy.num_replicas_in_sync
    for name, size in (
        ("batch_size", batch_size),
        ("evaluation_batch_size", evaluation_batch_size or batch_size),
    ):
        if size < 1 or size % replicas:
            raise ValueError(
                f"{name} = {size} images cannot be shared equally by {replicas} replicas: "
                f"take a multiple of {replicas}."
            )
    on_tpu = isinstance(strategy, tf.distribute.TPUStrategy)
    if jit_compile and replicas > 1 and not on_tpu:
        raise ValueError(
            f"jit_compile compiles the step of one device, and the strategy has {replicas} "
            "replicas: take the one_device strategy, a TPU, or jit_compile = False."
        )
    logging.info("%d replica(s), %d images each.", replicas, batch_size // replicas)
    return jit_compile or on_tpu


@dataclasses.dataclass(frozen=True)
class _Split:
    """One record directory: its index and what its manifest and ground truth say."""

    directory: str
    index: records.RecordIndex
    category_ids: list
    has_masks: bool
    ground_truth: dict | None


def _open_split(data_dir, name, pipeline):
    """Opens a record directory, restricted to the images that the pipeline keeps."""
    directory = os.path.join(data_dir, name)
    manifest = records.load_manifest(directory)
    index = pipeline.selected_index(directory)
    return _Split(
        directory,
        index,
        sorted(each["id"] for each in records.load_categories(directory)),
        manifest.get("has_masks", True),
        ground_truth.load_ground_truth(directory, index.image_id),
    )


def _check_splits(train_data, test_data):
    """Checks that the splits have the same categories, and returns their ids."""
    ids = (train_data or test_data).category_ids
    if test_data and test_data.category_ids != ids:
        raise ValueError(
            f"{train_data.directory} and {test_data.directory} have different categories, ids "
            f"{ids} and {test_data.category_ids}: convert both from files with the same "
            "'categories'."
        )
    return ids


def _check_masks(model, *splits):
    for split in splits:
        if split and model.mask_head and not split.has_masks:
            raise ValueError(
                f"{split.directory} has no masks, and the detector has a mask head: bind "
                "MaskRCNN.mask_head = None and Pipeline.include_masks = False for boxes only."
            )


def _load_weights(checkpoint, folder, init_checkpoint, mode):
    """Resumes the run, or starts it from a checkpoint, or from random weights."""
    restored = checkpoints.restore_newest(checkpoint, folder)
    if restored:
        logging.info("Continuing from %s.", restored)
    elif init_checkpoint:
        checkpoints.initialize(checkpoint.model, init_checkpoint)
        logging.info("Starting from the weights in %s.", init_checkpoint)
    elif mode == "evaluate":
        raise ValueError(
            f"There is no checkpoint in {folder} to evaluate: train first, or give weights with "
            "--gin_param='run.init_checkpoint=\"...\"'."
        )
    else:
        logging.info("Starting from random weights.")


def _training_batches(strategy, pipeline, data, batch_size, seed, start_step, counters):
    """Returns the iterator over distributed training batches from a step on."""

    def make_dataset(context):
        return pipeline.training(
            data.index, data.category_ids, batch_size, seed, start_step, context, counters
        )

    return iter(strategy.distribute_datasets_from_function(make_dataset))


def _evaluation_batches(strategy, pipeline, index, batch_size):
    """Returns the function that makes a pass over the distributed evaluation batches."""

    def make_dataset(context):
        return pipeline.evaluation(index, batch_size, context)

    return lambda: strategy.distribute_datasets_from_function(make_dataset)


def _say_where(model_dir, summaries, evaluator, pictures):
    lines = [
        f"TensorBoard: tensorboard --logdir={summaries}",
        f"Checkpoints: {os.path.join(model_dir, 'checkpoints')}, "
        f"the best in {os.path.join(model_dir, 'best')}",
    ]
    if evaluator and evaluator.metrics:
        lines += [
            f"COCO results: {evaluator.results_path}",
            f"Metrics of every evaluation: {os.path.join(model_dir, 'metrics.jsonl')}",
            f"Picture of detections: {pictures.newest}",
        ]
    logging.info("Done.\n  %s", "\n  ".join(lines))
