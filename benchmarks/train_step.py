"""The training step: ours with GroupNorm against Model Garden's, in float32 and bfloat16.

    python -m benchmarks.train_step

Every ratio is to Model Garden's step in float32. The step to the first is the building of the model
and the first step with its trace; imports are not counted. The share of the machine's rate is that
of the convolutions' and matrix products' arithmetic alone, as if it were all that a step does, over
the rate that one large matrix product reaches here in that precision. Model Garden's masks are
always those of a fixed number of RoIs, ours those of the positives, whose mean number is shown.
"""

import argparse
import functools
import time

from benchmarks import harness, models

TITLE = "Training step, R{depth}-FPN, {images} images of {height}x{width}, {rois} RoIs an image"


def make_parser():
    """Returns the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=harness.HelpFormatter)
    harness.add_arguments(parser, "train_step")
    models.add_arguments(parser)
    parser.add_argument("--rois", type=int, default=512, help="an image")
    parser.add_argument(
        "--freeze_at", type=int, default=0, help="parts of our backbone; see ResNet"
    )
    parser.add_argument("--objects", type=int, default=20, help="an image")
    parser.add_argument("--max_objects", type=int, default=100, help="rows for objects an image")
    return parser


def make_batch(flags):
    """Returns the batch that both sides train on."""
    from benchmarks import inputs

    return inputs.make_batch(
        flags.seed,
        flags.images,
        flags.height,
        flags.width,
        flags.objects,
        flags.classes,
        flags.max_objects,
    )


def make_ours(flags, precision):
    """Builds our step.

    Returns:
        step: callable without arguments, returns a dict of the loss and the positives an image.
        start: float, when the building began (`time.perf_counter`).
        built: float, seconds that it took, without any trace.
    """
    import tensorflow as tf

    from benchmarks import inputs
    from rethink_tf import execution
    from rethink_tf.losses import DetectionLosses
    from rethink_tf.models.box_head import BoxHead
    from rethink_tf.models.detector import MaskRCNN
    from rethink_tf.models.resnet import ResNet
    from rethink_tf.models.rpn import RPN
    from rethink_tf.training import distribution
    from rethink_tf.training.optimizer import MomentumSGD
    from rethink_tf.training.step import TrainStep

    strategy = tf.distribute.get_strategy()
    plan = execution.make_plan(strategy, precision)
    distribution.set_up_tensorflow(flags.seed, plan)
    batch = make_batch(flags)
    start = time.perf_counter()
    detector = MaskRCNN(
        flags.classes,
        backbone=functools.partial(ResNet, flags.depth, freeze_at=flags.freeze_at),
        rpn=functools.partial(RPN, train_pre_nms=2000, train_proposals=1000),
        box_head=functools.partial(BoxHead, num_samples=flags.rois),
        plan=plan,
    )
    detector.create_variables()
    optimizer = MomentumSGD(1e-3)
    optimizer.build(detector.trainable_variables)
    train_step = TrainStep(
        detector,
        DetectionLosses(),
        optimizer,
        strategy,
        flags.seed,
        batch_spec=inputs.open_spec(batch),
    )
    built = time.perf_counter() - start

    def step():
        values = train_step(batch)
        return {"loss": float(values["total"]), "masks": float(values["roi_positives"])}

    return step, start, built


def make_peer(flags, precision):
    """Builds Model Garden's step; returns as `make_ours`."""
    import tensorflow as tf
    import tf_keras

    from benchmarks import peer

    tf_keras.utils.set_random_seed(flags.seed)
    tf_keras.mixed_precision.set_global_policy(precision)
    size = (flags.height, flags.width)
    task = peer.make_task(
        flags.classes, size, flags.depth, flags.rois, max_objects=flags.max_objects
    )
    batch = peer.make_inputs(task, make_batch(flags))
    start = time.perf_counter()
    model = task.build_model()
    optimizer = tf_keras.optimizers.legacy.SGD(1e-3, momentum=0.9)
    train_step = tf.function(lambda each: task.train_step(each, model, optimizer))
    built = time.perf_counter() - start
    masks = task.task_config.model.mask_sampler.num_sampled_masks

    def step():
        return {"loss": float(train_step(batch)["loss"]), "masks": float(masks)}

    return step, start, built


def work(flags):
    """Makes the step of one side and runs it once."""
    side, precision = flags.worker.split("/")
    step, start, built = (make_ours if side == models.OURS else make_peer)(flags, precision)
    step()
    return step, {"build": built, "first_step": time.perf_counter() - start}


def operations(flags, parts, masks):
    """Returns the operations of one step of ours: three times those of the forward pass.

    Args:
        flags: of the command line.
        parts: of `flops.forward`.
        masks: float, RoIs an image with a mask.
    """
    return 3 * (parts.trunk + flags.images * (flags.rois * parts.roi + masks * parts.mask))


def main():
    """Runs the benchmark, or one side of it."""
    flags = make_parser().parse_args()
    if flags.worker:
        harness.serve(lambda: work(flags))
        return
    models.compare(
        flags,
        "benchmarks.train_step",
        TITLE,
        functools.partial(operations, flags),
        extra=("masks", "masks an image"),
    )


if __name__ == "__main__":
    main()
