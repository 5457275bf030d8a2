"""Padding: how much of a batch is image, and what the shapes of batches cost a training step.

    python -m benchmarks.batch_shapes

The images have the sizes of COCO's photographs, resized as evaluation and training resize them, in
three ways: in a landscape and a portrait shape for everything, as before the shapes followed from
the sizes (the network then also saw the padding, so that its step needs no masks); in a few shapes,
as a compiler gets them; and in tight ones. The share of content is that of the pixels of images in
the pixels of batches, over some epochs of the plan. The rate is that of training steps of R50-FPN
with GroupNorm on the first of those batches, of the same images on every side.
"""

import argparse
import itertools
import time

import numpy as np

from benchmarks import harness

# The commonest 30 sizes of `coco_mini`, 494 photographs of COCO's train2017 and val2017, with their
# counts: (height, width, images).
COCO_SIZES = (
    (480, 640, 113), (427, 640, 58), (640, 480, 41), (426, 640, 23), (375, 500, 17),
    (428, 640, 16), (640, 427, 16), (425, 640, 10), (424, 640, 9), (500, 375, 9), (333, 500, 8),
    (640, 426, 5), (374, 500, 4), (640, 428, 4), (640, 478, 4), (478, 640, 3), (360, 640, 3),
    (500, 333, 3), (484, 640, 3), (449, 640, 3), (433, 640, 3), (640, 425, 3), (612, 612, 2),
    (481, 640, 2), (332, 500, 2), (640, 359, 2), (406, 640, 2), (336, 448, 2), (429, 640, 2),
    (383, 640, 2),
)  # fmt: skip
BEFORE, FEW, TIGHT = "two fixed shapes", "few shapes", "tight"
# Shorter side in training: all lengths of a range, or one.
SIDES = ("800-800", "640-800", "512-800")
MAX_SIDE, MULTIPLE = 1333, 32
COLUMNS = ("shorter side", "shapes", "share of content", "shapes used", "images/s", "ratio")


def make_parser():
    """Returns the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=harness.HelpFormatter)
    harness.add_arguments(parser, "batch_shapes")
    parser.add_argument("--sides", nargs="+", default=SIDES, help="least and most, pixels")
    parser.add_argument("--images", type=int, default=16, help="of a global batch, for the share")
    parser.add_argument("--records", type=int, default=8192, help="for the share")
    parser.add_argument("--max_shapes", type=int, default=8, help="of the few")
    parser.add_argument("--batches", type=int, default=6, help="of 2 images, timed; 0 for none")
    parser.add_argument("--precision", default="mixed_bfloat16")
    return parser


def make_plan(flags, side, shapes, num_images):
    """Returns the `order.TrainingPlan` of one way, and its shapes.

    Args:
        flags: of the command line.
        side: str, "LEAST-MOST", the shorter side.
        shapes: BEFORE, FEW or TIGHT.
        num_images: int, of a global batch.
    """
    from rethink_tf.data.input import batch_shapes, order, resizing

    low, high = map(int, side.split("-"))
    counts = np.array(COCO_SIZES)
    generator = np.random.default_rng(flags.seed)
    share = counts[:, 2] / counts[:, 2].sum()
    stored = counts[generator.choice(len(counts), flags.records, p=share), :2]
    resize = resizing.ShorterSide((low, high), "range", MAX_SIDE)

    def sizes(rows, passes):
        draws = order.draw_uniforms(flags.seed, passes, rows, 1)
        return resize.place(stored[rows], draws)["size"]

    fixed = None
    if shapes == BEFORE:
        short, long = (-(-each // 64) * 64 for each in (high, MAX_SIDE))
        fixed = [(short, long), (long, short)]
    elif shapes == FEW:
        rows = np.arange(flags.records)
        largest = resize.largest(stored).max(0)
        fixed = batch_shapes.choose_shapes(sizes(rows, 0), largest, flags.max_shapes, MULTIPLE)
    shapes = batch_shapes.BatchShapes(fixed, MULTIPLE)
    return order.TrainingPlan(flags.records, num_images, flags.seed, sizes, shapes), sizes, shapes


def share_of_content(flags, side, way):
    """Returns the share of content over two epochs, and the number of shapes used."""
    training_plan, sizes, shapes = make_plan(flags, side, way, flags.images)
    steps, content, area, used = 2 * flags.records // flags.images, 0, 0, set()
    for _, rows, passes in itertools.islice(training_plan.batches(), steps):
        own = sizes(rows, passes)
        shape = shapes.cover(own)
        content += own.prod(-1).sum()
        area += flags.images * shape[0] * shape[1]
        used.add(shape)
    return content / area, len(used)


def make_step(flags, side, way):
    """Returns a callable that trains on the same images in the shapes of one way."""
    import tensorflow as tf

    from benchmarks import inputs
    from rethink_tf import execution
    from rethink_tf.data import schema
    from rethink_tf.losses import DetectionLosses
    from rethink_tf.models.detector import MaskRCNN
    from rethink_tf.training import distribution
    from rethink_tf.training.optimizer import MomentumSGD
    from rethink_tf.training.step import TrainStep

    strategy = tf.distribute.get_strategy()
    plan = execution.make_plan(strategy, flags.precision)
    distribution.set_up_tensorflow(flags.seed, plan)
    detector = MaskRCNN(80, plan=plan)
    detector.create_variables()
    optimizer = MomentumSGD(1e-4)
    optimizer.build(detector.trainable_variables)
    # Of batches that were tight for a global batch of some more images, two at a time.
    training_plan, sizes, _ = make_plan(flags, side, TIGHT, flags.images)
    shapes, batches = make_plan(flags, side, way, flags.images)[2], []
    for step, rows, passes in itertools.islice(training_plan.batches(), flags.batches):
        own = sizes(rows, passes)
        shape, own = shapes.cover(own), own[:2]
        batch = inputs.make_batch(step, 2, *own.min(0).tolist(), 8, 80)
        # The images differ in size, and what is beyond each is padding.
        batch[schema.IMAGE] = tf.image.pad_to_bounding_box(batch[schema.IMAGE], 0, 0, *shape)
        batch[schema.IMAGE_SIZE] = tf.constant(own, tf.int32)
        is_full = way == BEFORE or shapes.fills(own, shape)
        batch[schema.PADDING] = tf.zeros([0 if is_full else 1], tf.bool)
        batches.append(batch)
    spec = inputs.open_spec(batches[0])
    train_step = TrainStep(
        detector, DetectionLosses(), optimizer, strategy, flags.seed, batch_spec=spec
    )

    def step():
        for batch in batches:
            loss = float(train_step(batch)["total"])
        return {"loss": loss, "programs": train_step.num_traces}

    return step


def work(flags):
    """Makes the work of one way, and trains once."""
    side, way = flags.worker.split("/")
    start = time.perf_counter()
    step = make_step(flags, side, way)
    step()
    return step, {"first": time.perf_counter() - start}


def main():
    """Runs the benchmark, or one side of it."""
    flags = make_parser().parse_args()
    if flags.worker:
        harness.serve(lambda: work(flags))
        return
    rows, results = [], {}
    for side in flags.sides:
        found = {way: share_of_content(flags, side, way) for way in (BEFORE, FEW, TIGHT)}
        rates = measure(flags, side) if flags.batches else {}
        for way, (share, used) in found.items():
            rate = rates.get(way)
            ratio = rate / rates[BEFORE] if rate else None
            rows.append([side, way, share, used, rate, ratio])
            results[f"{side}/{way}"] = {"share": share, "shapes": used, "images_per_second": rate}
    harness.print_table("Shapes of batches, COCO's sizes", COLUMNS, rows)
    harness.write_json(flags.output, {"settings": harness.settings(flags), "results": results})


def measure(flags, side):
    """Returns the images a second of two ways, in turns."""
    arguments = harness.pass_on(flags)
    workers = [
        harness.Worker("benchmarks.batch_shapes", f"{side}/{way}", arguments)
        for way in (BEFORE, TIGHT)
    ]
    try:
        measured = harness.interleave(workers, flags.repetitions)
    finally:
        harness.stop(workers)
    return {
        each.side.split("/")[1]: 2 * flags.batches / harness.median(measured[each.side])
        for each in workers
    }


if __name__ == "__main__":
    main()
