"""The input pipeline of training: ours against Model Garden's own, from the same records.

    python -m benchmarks.input_pipeline
    python -m benchmarks.input_pipeline --data=DIR    (made by python -m rethink_tf.data.coco)

Each side reads, decodes, mirrors half of the images, resizes them to `--min_side` within
`--max_side`, pads them and crops the masks; nothing consumes the batches. Without `--data`, images
with the statistics of COCO's photographs are drawn (`photographs`).

Every side is also run under `tf.config.experimental.enable_op_determinism`, which experiments turn
on where they train on a CPU: TensorFlow then runs an input pipeline in one thread and without
prefetching, as soon as it holds any op with a state.

What differs in the work, all of it in favour of Model Garden but the matching:

- Model Garden has one fixed shape for all images. By default it gets min_side x max_side, which
  pads to the shape of our landscape bucket: landscape images come out as large as ours, portrait
  ones at most min_side high, with 0.56 of our pixels. 1344 x 1344 (`--peer_size`), the shape in
  which no image comes out smaller than ours, is more work.
- It decodes JPEG with the fast transform, which is up to 18 levels off the accurate one.
- It matches anchors to objects here, which cannot be switched off, and we do in the training step.
  "without matching" is Model Garden with the anchors of level 6 alone: 0.3 % of them, and all the
  rest of the work.

Rates and CPU time are those of a window of `--seconds` in the steady state; each turn starts the
data set anew, so that no side prefetches while the other is measured. Arithmetic does not count
here, so that there is no share of the machine's matrix-product rate.
"""

import argparse
import gc
import os
import time

from benchmarks import harness, photographs

# Mask R-CNN R50-FPN: 16 images in 0.261 s on 8 V100.
# Source: MODEL_ZOO.md of Detectron2, "COCO Instance Segmentation Baselines".
V100_IMAGES_PER_SECOND = 7.7
PEER = "Model Garden"
NO_MATCHING = "without matching"
DETERMINISTIC = "deterministic"
SIDES = (
    "ours",
    PEER,
    f"{PEER}, {NO_MATCHING}",
    f"ours, {DETERMINISTIC}",
    f"{PEER}, {DETERMINISTIC}",
)
COLUMNS = (
    "side",
    "images/s",
    "ratio",
    "CPU ms an image",
    "CPU ratio",
    "images/s a core",
    "accelerators fed",
    "peak memory GB",
    "of it for data GB",
)


def make_parser():
    """Returns the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=harness.HelpFormatter)
    harness.add_arguments(parser, "input_pipeline")
    photographs.add_arguments(parser)
    parser.add_argument("--images", type=int, default=2, help="a batch")
    parser.add_argument("--min_side", type=int, default=800, help="pixels")
    parser.add_argument("--max_side", type=int, default=1333, help="pixels")
    parser.add_argument(
        "--peer_size", type=int, nargs=2, default=None, metavar=("H", "W"),
        help="Model Garden's image shape, pixels; min_side x max_side if not given",
    )  # fmt: skip
    parser.add_argument("--peer_dtype", default="float32", help="of Model Garden's images")
    parser.add_argument("--seconds", type=float, default=3.0, help="a measurement")
    parser.add_argument("--warmup_seconds", type=float, default=1.5, help="before it")
    parser.add_argument(
        "--accelerator_images_per_second", type=float, default=V100_IMAGES_PER_SECOND,
        help="training speed of an accelerator; default: V100, R50-FPN, Detectron2's model zoo",
    )  # fmt: skip
    return parser


def make_ours(flags):
    """Returns our data set."""
    from rethink_tf.data.input.pipeline import Pipeline
    from rethink_tf.data.records import store

    category_ids = [category["id"] for category in store.load_categories(flags.data)]
    pipeline = Pipeline(min_side=flags.min_side, max_side=flags.max_side)
    return pipeline.training(flags.data, category_ids, flags.images, flags.seed)


def make_peer(flags, with_matching):
    """Returns Model Garden's data set, of all its anchors or of those of the last level."""
    from official.vision.configs import maskrcnn as configs
    from official.vision.tasks import maskrcnn as tasks

    size = flags.peer_size or (flags.min_side, flags.max_side)
    model = configs.MaskRCNN(num_classes=91, input_size=[*size, 3])
    if not with_matching:
        model.min_level = model.max_level
    data = configs.DataConfig(
        input_path=os.path.join(flags.data, "*.tfrecord"),
        is_training=True,
        global_batch_size=flags.images,
        dtype=flags.peer_dtype,
        # Enough to shuffle all of a small data set; its own 10,000 records take 2 GB.
        shuffle_buffer_size=256,
        seed=flags.seed,
        parser=configs.Parser(aug_rand_hflip=True),
    )
    return tasks.MaskRCNNTask(configs.MaskRCNNTask(model=model)).build_inputs(data)


def work(flags):
    """Makes the data set of one side, and the work of drawing batches from it."""
    import tensorflow as tf
    import tf_keras

    tf_keras.utils.set_random_seed(flags.seed)
    side, _, variant = flags.worker.partition(", ")
    if variant == DETERMINISTIC:
        tf.config.experimental.enable_op_determinism()
    if side == PEER:
        import official.vision.tasks.maskrcnn  # noqa: F401  before memory is measured
    start_bytes = harness.peak_bytes()
    dataset = make_peer(flags, variant != NO_MATCHING) if side == PEER else make_ours(flags)
    return lambda: draw(dataset, flags) | {"start_bytes": start_bytes}, {}


def draw(dataset, flags):
    """Draws batches for the time that the flags say; returns rates of the measured window."""
    batches = iter(dataset)
    end = time.perf_counter() + flags.warmup_seconds
    next(batches)
    while time.perf_counter() < end:
        next(batches)
    count, cpu, start = 0, time.process_time(), time.perf_counter()
    while time.perf_counter() < start + flags.seconds:
        next(batches)
        count += flags.images
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    del batches
    gc.collect()
    return {"images": count, "images_per_second": count / seconds, "cpu_seconds": cpu / count}


def make_rows(measured, accelerator_rate):
    """Turns the runs of all sides into the rows of the table.

    Args:
        measured: {side: runs} of `harness.interleave`.
        accelerator_rate: float, images/s that one accelerator trains on.

    Returns:
        list of lists, by `COLUMNS`.
    """
    peer_rate, peer_cpu = (
        harness.median(measured[PEER], key) for key in ("images_per_second", "cpu_seconds")
    )
    rows = []
    for side, runs in measured.items():
        rate, cpu = (harness.median(runs, key) for key in ("images_per_second", "cpu_seconds"))
        peak = max(run["peak_bytes"] for run in runs)
        memory = [peak / 1e9, (peak - runs[0]["start_bytes"]) / 1e9]
        speed = [rate, rate / peer_rate, 1e3 * cpu, peer_cpu / cpu, 1 / cpu]
        rows.append([side, *speed, rate / accelerator_rate, *memory])
    return rows


def run(flags):
    """Measures all sides on the records of `flags.data`, and reports."""
    workers = []
    try:
        for side in SIDES:
            workers.append(
                harness.Worker("benchmarks.input_pipeline", side, harness.pass_on(flags))
            )
        measured = harness.interleave(workers, flags.repetitions)
    finally:
        harness.stop(workers)
    rows = make_rows(measured, flags.accelerator_images_per_second)
    harness.print_table(
        f"Input of training, {flags.min_side}/{flags.max_side} with masks, {flags.images} images a "
        f"batch, {harness.machine()['cores']} cores; ratios to {PEER}",
        list(COLUMNS),
        rows,
    )
    print(f"\nAn accelerator trains on {flags.accelerator_images_per_second} images/s.")
    return {
        "flags": {key: value for key, value in vars(flags).items() if key != "output"},
        "table": [dict(zip(COLUMNS, row, strict=True)) for row in rows],
        "runs": measured,
    }


def main():
    """Runs the benchmark, or one side of it."""
    flags = make_parser().parse_args()
    if flags.worker:
        harness.serve(lambda: work(flags))
        return
    with photographs.records_of(flags) as flags.data:
        report = run(flags)
    harness.write_json(flags.output, report)


if __name__ == "__main__":
    main()
