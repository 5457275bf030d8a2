"""Prediction: ours with GroupNorm against Model Garden's, in float32 and bfloat16.

    python -m benchmarks.predict

Every ratio is to Model Garden's prediction in float32. Both sides have random weights and no score
threshold, so that both find their full 100 detections and compute their masks. The columns are
those of `benchmarks.train_step`.
"""

import argparse
import functools
import time

from benchmarks import harness, models

TITLE = "Prediction, R{depth}-FPN, {images} images of {height}x{width}, {proposals} proposals"
NUM_DETECTIONS = 100


def make_parser():
    """Returns the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=harness.HelpFormatter)
    harness.add_arguments(parser, "predict")
    models.add_arguments(parser)
    parser.add_argument("--proposals", type=int, default=1000, help="an image")
    return parser


def make_batch(flags):
    """Returns the batch that both sides predict for."""
    from benchmarks import inputs

    return inputs.make_batch(flags.seed, flags.images, flags.height, flags.width, 1, flags.classes)


def make_ours(flags, precision):
    """Returns our prediction as a callable, and when its building began."""
    import tensorflow as tf

    from benchmarks import inputs
    from rethink_tf import execution
    from rethink_tf.evaluation.inference import Predictor
    from rethink_tf.models.box_head import BoxHead
    from rethink_tf.models.detector import MaskRCNN
    from rethink_tf.models.resnet import ResNet
    from rethink_tf.models.rpn import RPN
    from rethink_tf.training import distribution

    strategy = tf.distribute.get_strategy()
    plan = execution.make_plan(strategy, precision)
    distribution.set_up_tensorflow(flags.seed, plan)
    batch = make_batch(flags)
    start = time.perf_counter()
    detector = MaskRCNN(
        flags.classes,
        backbone=functools.partial(ResNet, flags.depth),
        rpn=functools.partial(RPN, test_proposals=flags.proposals),
        box_head=functools.partial(BoxHead, score_threshold=0.0, max_detections=NUM_DETECTIONS),
        plan=plan,
    )
    detector.create_variables()
    predictor = Predictor(detector, strategy, batch_spec=inputs.open_spec(batch))

    def predict():
        return {"detections": int((predictor(batch)["classes"] > 0).sum())}

    return predict, start


def make_peer(flags, precision):
    """Returns Model Garden's prediction as a callable, and when its building began."""
    import tensorflow as tf
    import tf_keras

    from benchmarks import peer

    tf_keras.utils.set_random_seed(flags.seed)
    tf_keras.mixed_precision.set_global_policy(precision)
    size = (flags.height, flags.width)
    task = peer.make_task(flags.classes, size, flags.depth, num_proposals=flags.proposals)
    images, labels = peer.make_inputs(task, make_batch(flags))
    start = time.perf_counter()
    model = task.build_model()
    predict_fn = tf.function(
        lambda images, anchors, shape: model(
            images, anchor_boxes=anchors, image_shape=shape, training=False
        )
    )

    def predict():
        outputs = predict_fn(images, labels["anchor_boxes"], labels["image_info"][:, 1, :])
        outputs["detection_masks"].numpy()
        return {"detections": int(outputs["num_detections"].numpy().sum())}

    return predict, start


def work(flags):
    """Makes the prediction of one side and runs it once."""
    side, precision = flags.worker.split("/")
    predict, start = (make_ours if side == models.OURS else make_peer)(flags, precision)
    predict()
    return predict, {"first_step": time.perf_counter() - start}


def main():
    """Runs the benchmark, or one side of it."""
    flags = make_parser().parse_args()
    if flags.worker:
        harness.serve(lambda: work(flags))
        return
    models.compare(
        flags,
        "benchmarks.predict",
        TITLE,
        functools.partial(operations, flags),
        extra=("detections", None),
    )


def operations(flags, parts, detections):
    """Returns the operations of one prediction of ours.

    Args:
        flags: of the command line.
        parts: of `flops.forward`.
        detections: float, of all images; each has a mask.
    """
    return parts.trunk + flags.images * flags.proposals * parts.roi + detections * parts.mask


if __name__ == "__main__":
    main()
