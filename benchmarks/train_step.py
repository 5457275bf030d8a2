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

from benchmarks import harness

TITLE = "Training step, R{depth}-FPN, {images} images of {height}x{width}, {rois} RoIs an image"
COLUMNS = (
    "side",
    "precision",
    "seconds",
    "ratio",
    "share of matmul rate",
    "peak GB",
    "ratio",
    "first step s",
    "ratio",
    "masks an image",
)
PRECISIONS = ("float32", "mixed_bfloat16")
OURS, PEER = "ours", "Model Garden"


def make_parser():
    """Returns the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=harness.HelpFormatter)
    harness.add_arguments(parser, "train_step")
    add_model_arguments(parser)
    parser.add_argument("--rois", type=int, default=512, help="an image")
    parser.add_argument("--objects", type=int, default=20, help="an image")
    parser.add_argument("--max_objects", type=int, default=100, help="rows for objects an image")
    return parser


def add_model_arguments(parser):
    """Adds what the prediction's benchmark has too."""
    parser.add_argument("--depth", type=int, default=50, help="of the ResNet")
    parser.add_argument("--images", type=int, default=2, help="at a time")
    parser.add_argument("--height", type=int, default=512, help="pixels, a multiple of 64")
    parser.add_argument("--width", type=int, default=512, help="pixels, a multiple of 64")
    parser.add_argument("--classes", type=int, default=80, help="without background")
    parser.add_argument("--precisions", nargs="+", default=PRECISIONS, choices=PRECISIONS)


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

    from rethink_tf import experiment
    from rethink_tf.losses import DetectionLosses
    from rethink_tf.models.box_head import BoxHead
    from rethink_tf.models.detector import MaskRCNN
    from rethink_tf.models.resnet import ResNet
    from rethink_tf.models.rpn import RPN
    from rethink_tf.training.optimizer import MomentumSGD
    from rethink_tf.training.step import TrainStep

    experiment.set_up_tensorflow(flags.seed, precision)
    batch = make_batch(flags)
    start = time.perf_counter()
    detector = MaskRCNN(
        flags.classes,
        backbone=functools.partial(ResNet, flags.depth),
        rpn=functools.partial(RPN, train_pre_nms=2000, train_proposals=1000),
        box_head=functools.partial(BoxHead, num_samples=flags.rois),
    )
    detector.create_variables()
    optimizer = MomentumSGD(1e-3)
    optimizer.build(detector.trainable_variables)
    train_step = TrainStep(
        detector, DetectionLosses(), optimizer, tf.distribute.get_strategy(), flags.seed
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
    step, start, built = (make_ours if side == OURS else make_peer)(flags, precision)
    step()
    return step, {"build": built, "first_step": time.perf_counter() - start}


def arithmetic(flags, masks):
    """Returns the operations of one step of ours: three times those of the forward pass.

    Args:
        flags: of the command line.
        masks: float, RoIs an image with a mask.
    """
    from benchmarks import flops

    forward = flops.forward(
        flags.depth, flags.images, flags.height, flags.width, flags.classes, flags.rois, masks
    )
    return 3 * forward


def main():
    """Runs the benchmark, or one side of it."""
    flags = make_parser().parse_args()
    if flags.worker:
        harness.serve(lambda: work(flags))
        return
    arguments = harness.pass_on(flags)
    workers = [
        harness.Worker("benchmarks.train_step", f"{side}/{precision}", arguments)
        for precision in flags.precisions
        for side in (OURS, PEER)
    ]
    measured = harness.interleave(workers, flags.repetitions)
    rates = {each: harness.matmul_rate(each.removeprefix("mixed_")) for each in flags.precisions}
    base = harness.summary(measured, workers, f"{PEER}/{flags.precisions[0]}")
    results = {}
    for worker in workers:
        own = harness.summary(measured, workers, worker.side)
        masks = harness.median(measured[worker.side], "masks")
        own["masks"] = masks
        rate = rates[worker.side.split("/")[1]]
        if worker.side.startswith(OURS):
            own["share_of_matmul_rate"] = arithmetic(flags, masks) / own["seconds"] / rate
        for key in ("seconds", "peak_bytes", "first_step"):
            own[f"{key}_ratio"] = own[key] / base[key]
        results[worker.side] = own
    harness.stop(workers)
    harness.print_table(
        TITLE.format(**vars(flags)),
        COLUMNS,
        [
            [
                *side.split("/"),
                own["seconds"],
                own["seconds_ratio"],
                own.get("share_of_matmul_rate"),
                own["peak_bytes"] / 1e9,
                own["peak_bytes_ratio"],
                own["first_step"],
                own["first_step_ratio"],
                own["masks"],
            ]
            for side, own in results.items()
        ],
    )
    harness.write_json(
        flags.output,
        {"settings": harness.settings(flags), "matmul_rate": rates, "results": results},
    )


if __name__ == "__main__":
    main()
