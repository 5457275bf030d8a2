"""The training step: ours with GroupNorm against Model Garden's, in float32 and bfloat16.

    python -m benchmarks.train_step

Time to the first step counts the building of the model and the first step with its trace, not the
imports.
"""

import argparse
import time

from benchmarks import harness

TITLE = "Training step, R{depth}-FPN, {images} images of {height}x{width}, {rois} RoIs an image"


def make_parser():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=harness.HelpFormatter)
    harness.add_arguments(parser, "train_step")
    parser.add_argument("--depth", type=int, default=50, help="of the ResNet")
    parser.add_argument("--images", type=int, default=2, help="a step")
    parser.add_argument("--height", type=int, default=512, help="pixels, a multiple of 64")
    parser.add_argument("--width", type=int, default=512, help="pixels, a multiple of 64")
    parser.add_argument("--rois", type=int, default=512, help="an image")
    parser.add_argument("--objects", type=int, default=20, help="an image")
    parser.add_argument("--classes", type=int, default=80)
    return parser


def make_ours(flags, precision):
    """Returns our step as a callable."""
    import functools

    import tensorflow as tf

    from benchmarks import inputs
    from rethink_tf import experiment
    from rethink_tf.losses import DetectionLosses
    from rethink_tf.models.box_head import BoxHead
    from rethink_tf.models.detector import MaskRCNN
    from rethink_tf.models.resnet import ResNet
    from rethink_tf.models.rpn import RPN
    from rethink_tf.training.optimizer import MomentumSGD
    from rethink_tf.training.step import TrainStep

    experiment._set_up_tensorflow(flags.seed, precision, False, None)
    batch = inputs.make_batch(
        flags.seed, flags.images, flags.height, flags.width, flags.objects, flags.classes
    )
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
    """Returns Model Garden's step as a callable."""
    import tensorflow as tf
    import tf_keras

    from benchmarks import inputs, peer

    tf_keras.utils.set_random_seed(flags.seed)
    tf_keras.mixed_precision.set_global_policy(precision)
    task = peer.make_task(
        flags.classes, (flags.height, flags.width), flags.depth, flags.rois, 1000
    )
    batch = peer.make_inputs(
        task,
        inputs.make_batch(
            flags.seed, flags.images, flags.height, flags.width, flags.objects, flags.classes
        ),
    )
    start = time.perf_counter()
    model = task.build_model()
    optimizer = tf_keras.optimizers.legacy.SGD(1e-3, momentum=0.9)
    train_step = tf.function(lambda each: task.train_step(each, model, optimizer))
    built = time.perf_counter() - start

    def step():
        return {"loss": float(train_step(batch)["loss"])}

    return step, start, built


def work(flags):
    """Makes the step of one side and runs it once."""
    side, precision = flags.worker.split("/")
    step, start, built = {"ours": make_ours, "Model Garden": make_peer}[side](flags, precision)
    step()
    return step, {"build": built, "first_step": time.perf_counter() - start}


def main():
    flags = make_parser().parse_args()
    if flags.worker:
        harness.serve(lambda: work(flags))
        return
    raise SystemExit("not yet")


if __name__ == "__main__":
    main()
