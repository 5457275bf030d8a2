"""What a training step or a prediction costs on a TPU or GPU, by the accelerator's own compiler.

    pip install -e '.[accelerator]'
    python -m benchmarks.accelerator --target h100
    python -m benchmarks.accelerator --target v5e:2x2 --work prediction
    python -m benchmarks.accelerator --target h100 --gin_file=scratch_r101.gin --work step

No accelerator is needed. Without a gin file, ours with GroupNorm stands against Model Garden's
with batch normalization: R50-FPN, the same images, RoIs and proposals; the ratios are ours to
theirs. With one, the experiment's own detector, optimizer and sizes are compiled.

Temporary memory is what the program needs beside its arguments (weights, images). Traffic is what
its kernels read and write. On a TPU, its compiler's own count stands beside it. Below the table are
the places of the model that cause most traffic.
"""

import argparse
import functools
import math

from benchmarks import chips, harness, models

WORKS = ("gradients", "step", "prediction")
SIDES = {"ours": [models.OURS], "peer": [models.PEER], "both": [models.OURS, models.PEER]}
COLUMNS = {
    "target": None,
    "side": None,
    "temporary GB": ("temporary", 1e9),
    "traffic GB": ("traffic", 1e9),
    "kernels": ("kernels", 1),
    "program MB": ("program", 1e6),
    "compiler's GB": ("compilers_bytes", 1e9),
    "compile s": ("compile_seconds", 1),
}


def make_parser():
    """Returns the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=harness.HelpFormatter)
    harness.add_arguments(parser, "accelerator")
    parser.add_argument("--target", nargs="+", default=["h100"], choices=chips.CHIPS)
    parser.add_argument("--work", default="gradients", choices=WORKS)
    parser.add_argument("--side", default="both", choices=SIDES, help="without a gin file")
    parser.add_argument("--gin_file", nargs="*", default=[], help="an experiment and overlays")
    parser.add_argument("--gin_param", nargs="*", default=[], help="further bindings")
    parser.add_argument(
        "--size", type=int, nargs=2, help="of an experiment's images, in place of its largest"
    )
    parser.add_argument("--precision", default="mixed_bfloat16")
    parser.add_argument("--depth", type=int, default=50, help="of the ResNet")
    parser.add_argument("--images", type=int, default=2, help="a chip")
    parser.add_argument("--height", type=int, default=832, help="pixels, a multiple of 64")
    parser.add_argument("--width", type=int, default=1344, help="pixels, a multiple of 64")
    parser.add_argument("--classes", type=int, default=80, help="without background")
    parser.add_argument("--rois", type=int, default=512, help="an image, in training")
    parser.add_argument("--proposals", type=int, default=1000, help="an image")
    parser.add_argument("--objects", type=int, default=20, help="an image")
    parser.add_argument("--places", type=int, default=25, help="how many are listed")
    return parser


def lower(flags, side, target):
    """Returns the work of one side as a serialized HLO module."""
    import tensorflow as tf

    platform = {"tpu": "TPU", "cuda": "GPU"}[chips.CHIPS[target].platform]
    if flags.gin_file:
        function, arguments = _of_experiment(flags, platform)
    else:
        function, arguments = (_ours if side == models.OURS else _of_peer)(flags, platform)
    # The compiler's interface refuses the keyword arguments that a partial function binds.
    compiled = tf.function(lambda *each: function(*each), jit_compile=True, autograph=False)
    return compiled.experimental_get_compiler_ir(*arguments)(stage="hlo_serialized")


def _batch(flags, size, max_objects=100, num_keypoints=0):
    import tensorflow as tf

    from benchmarks import inputs
    from rethink_tf.data import schema
    from rethink_tf.ops.content import split_padding

    batch = inputs.make_batch(
        flags.seed, flags.images, *size, flags.objects, flags.classes, max_objects
    )
    batch, _ = split_padding(batch)
    if num_keypoints:
        batch[schema.KEYPOINTS] = tf.zeros([flags.images, max_objects, num_keypoints, 3])
    return batch


def _plan(flags, platform):
    import tensorflow as tf

    from rethink_tf import execution
    from rethink_tf.training import distribution

    plan = execution.plan_for(platform, "", flags.precision, jit_compile=True)
    distribution.set_up_tensorflow(flags.seed, plan)
    return plan, tf.distribute.get_strategy()


def _ours(flags, platform):
    """Returns the work as a function, and its arguments."""
    from rethink_tf.losses import DetectionLosses
    from rethink_tf.models.box_head import BoxHead
    from rethink_tf.models.detector import MaskRCNN
    from rethink_tf.models.resnet import ResNet
    from rethink_tf.models.rpn import RPN
    from rethink_tf.training.optimizer import MomentumSGD

    plan, strategy = _plan(flags, platform)
    detector = MaskRCNN(
        flags.classes,
        backbone=functools.partial(ResNet, flags.depth),
        rpn=functools.partial(
            RPN,
            train_pre_nms=2000,
            train_proposals=flags.proposals,
            test_proposals=flags.proposals,
        ),
        box_head=functools.partial(BoxHead, num_samples=flags.rois, score_threshold=0.0),
        plan=plan,
    )
    batch = _batch(flags, (flags.height, flags.width))
    return _work(flags, detector, MomentumSGD(1e-3), DetectionLosses(), strategy, batch)


def _of_experiment(flags, platform):
    """As `_ours`, with the detector, optimizer, losses and sizes of an experiment."""
    import gin

    from benchmarks import experiments
    from rethink_tf import config, experiment
    from rethink_tf.losses import DetectionLosses
    from rethink_tf.training.optimizer import MomentumSGD

    name = flags.gin_file[0]
    config.parse(flags.gin_file, [*experiments.parameters_for(name), *flags.gin_param])
    plan, strategy = _plan(flags, platform)
    flags.classes = experiments.num_classes_of(name)
    bound = gin.get_bindings("experiment.run")
    pipeline = bound["pipeline"]()
    num_keypoints = 17 if pipeline.include_keypoints else 0
    detector = experiment.detector_builder()(
        num_classes=flags.classes, num_keypoints=num_keypoints, plan=plan
    )
    size = flags.size or image_size(pipeline)
    batch = _batch(flags, size, pipeline.max_objects, num_keypoints)
    optimizer = bound.get("optimizer", MomentumSGD)(learning_rate=1e-3)
    losses = bound.get("losses", DetectionLosses)()
    return _work(flags, detector, optimizer, losses, strategy, batch)


def image_size(pipeline):
    """Returns the height and width of the largest batches of an experiment, multiples of 64."""
    if pipeline.jitter:
        sides = pipeline.jitter.crop_size
    else:
        sides = pipeline.evaluation_min_side, pipeline.max_side
    return [math.ceil(side / 64) * 64 for side in sides]


def _work(flags, detector, optimizer, losses, strategy, batch):
    from rethink_tf.evaluation.inference import Predictor
    from rethink_tf.training.step import TrainStep

    detector.create_variables()
    if flags.work == "prediction":
        predictor = Predictor(detector, strategy)
        return functools.partial(predictor._on_all_replicas, padded=False), [batch]
    optimizer.build(detector.trainable_variables)
    step = TrainStep(detector, losses, optimizer, strategy, flags.seed)
    method = step._run_whole if flags.work == "step" else step._differentiate
    return functools.partial(method, num_stages=None, padded=False), [batch]


def _of_peer(flags, platform):
    """As `_ours`, of Model Garden."""
    import tensorflow as tf
    import tf_keras

    from benchmarks import peer

    tf_keras.utils.set_random_seed(flags.seed)
    tf_keras.mixed_precision.set_global_policy(flags.precision)
    size = flags.height, flags.width
    task = peer.make_task(flags.classes, size, flags.depth, flags.rois, flags.proposals)
    images, labels = peer.make_inputs(task, _batch(flags, size))
    model = task.build_model()
    if flags.work == "prediction":
        shape = labels["image_info"][:, 1, :]
        predict = functools.partial(model, training=False)
        return (
            lambda images, anchors, shape: predict(images, anchor_boxes=anchors, image_shape=shape),
            [images, labels["anchor_boxes"], shape],
        )
    if flags.work == "step":
        optimizer = tf_keras.optimizers.legacy.SGD(1e-3, momentum=0.9)
        optimizer.iterations  # noqa: B018  made here: a compiled program makes no variable
        optimizer._create_all_weights(model.trainable_variables)
        return lambda images, labels: task.train_step((images, labels), model, optimizer), [
            images,
            labels,
        ]

    def differentiate(images, labels):
        with tf.GradientTape() as tape:
            outputs = model(
                images,
                image_shape=labels["image_info"][:, 1, :],
                anchor_boxes=labels["anchor_boxes"],
                gt_boxes=labels["gt_boxes"],
                gt_classes=labels["gt_classes"],
                gt_masks=labels["gt_masks"],
                training=True,
            )
            outputs = tf.nest.map_structure(lambda each: tf.cast(each, tf.float32), outputs)
            losses = task.build_losses(outputs, labels, aux_losses=model.losses)
        return losses, tape.gradient(losses["total_loss"], model.trainable_variables)

    return differentiate, [images, labels]


def work(flags):
    """Lowers and compiles one side for one target; nothing is left to repeat."""
    side, target = flags.worker.split("/")
    chips.prepare()
    figures = chips.compile_for(target, lower(flags, side, target))
    figures["places"] = figures["places"][: flags.places]
    return lambda: None, figures


def report(flags, results):
    """Prints the table, the ratios and the places, and writes the JSON."""
    rows = []
    for (target, side), figures in results.items():
        rows.append([target, side, *_row(figures)])
        theirs = results.get((target, models.PEER))
        if theirs and side == models.OURS:
            # A compiler that does not tell a figure says 0.
            ratios = {key: figures[key] / value for key, value in theirs.items()
                      if key != "places" and value}  # fmt: skip
            rows.append([target, "ratio", *_row(ratios, is_ratio=True)])
    what = " ".join(flags.gin_file) or f"R{flags.depth}-FPN, {flags.height}x{flags.width}"
    title = f"{flags.work} of {what}, {flags.images} images, {flags.precision}"
    harness.print_table(title, list(COLUMNS), rows)
    for (target, side), figures in results.items():
        memory = chips.CHIPS[target].memory
        share = (figures["temporary"] + figures["arguments"]) / memory
        bound = figures["traffic"] / chips.CHIPS[target].bandwidth
        print(f"\n{target}, {side}: {share:.1%} of the chip's memory, weights and images included;")
        print(f"at least {1000 * bound:.1f} ms by its traffic. Most of it:")
        for place, size in figures["places"]:
            print(f"{size / 1e9:8.2f} GB {place}")
    harness.write_json(
        flags.output,
        {
            "settings": harness.settings(flags),
            "results": {"/".join(key): figures for key, figures in results.items()},
        },
    )


def _row(figures, is_ratio=False):
    columns = [column for column in COLUMNS.values() if column]
    return [
        figures[key] / unit if key in figures and unit > 1 and not is_ratio else figures.get(key)
        for key, unit in columns
    ]


def main():
    """Runs the benchmark, or compiles one side."""
    flags = make_parser().parse_args()
    if flags.worker:
        harness.serve(lambda: work(flags))
        return
    results = {}
    for target in flags.target:
        for side in [models.OURS] if flags.gin_file else SIDES[flags.side]:
            worker = harness.Worker(
                "benchmarks.accelerator", f"{side}/{target}", harness.pass_on(flags)
            )
            results[target, side] = worker.ready
            worker.stop()
    report(flags, results)


if __name__ == "__main__":
    main()
