"""What the benchmarks of the training step and of prediction share: options, comparison, table."""

import functools

from benchmarks import harness

PRECISIONS = ("float32", "mixed_bfloat16")
OURS, PEER = "ours", "Model Garden"
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
)


def add_arguments(parser):
    """Adds the options of the model, its images and its precisions to an argparse parser."""
    parser.add_argument("--depth", type=int, default=50, help="of the ResNet")
    parser.add_argument("--images", type=int, default=2, help="at a time")
    parser.add_argument("--height", type=int, default=512, help="pixels, a multiple of 64")
    parser.add_argument("--width", type=int, default=512, help="pixels, a multiple of 64")
    parser.add_argument("--classes", type=int, default=80, help="without background")
    parser.add_argument("--precisions", nargs="+", default=PRECISIONS, choices=PRECISIONS)


def compare(flags, module, title, operations, extra):
    """Measures both sides in all precisions, prints the table and writes the JSON.

    Every ratio is to the peer in the first precision.

    Args:
        flags: of the command line.
        module: str, the benchmark; its workers are "side/precision" and tell `first_step`, seconds.
        title: str, of the table; the flags are put into it.
        operations: callable taking the parts of `flops.forward` and the median of `extra`, returns
            the operations of one run of ours.
        extra: (figure of the workers' runs, its column or None for the JSON alone).
    """
    workers = [
        harness.Worker(module, f"{side}/{precision}", harness.pass_on(flags))
        for precision in flags.precisions
        for side in (OURS, PEER)
    ]
    try:
        measured = harness.interleave(workers, flags.repetitions)
    finally:
        harness.stop(workers)
    results = {each.side: harness.summary(measured, workers, each.side) for each in workers}
    rates = {each: harness.matmul_rate(each.removeprefix("mixed_")) for each in flags.precisions}
    parts = _count_operations(flags)
    base, rows = dict(results[f"{PEER}/{flags.precisions[0]}"]), []
    figure, column = extra
    for name, own in results.items():
        side, precision = name.split("/")
        own[figure] = harness.median(measured[name], figure)
        if side == OURS:
            rate = operations(parts, own[figure]) / own["seconds"]
            own["share_of_matmul_rate"] = rate / rates[precision]
        for key in ("seconds", "peak_bytes", "first_step"):
            own[f"{key}_ratio"] = own[key] / base[key]
        rows.append(
            [
                side,
                precision,
                own["seconds"],
                own["seconds_ratio"],
                own.get("share_of_matmul_rate"),
                own["peak_bytes"] / 1e9,
                own["peak_bytes_ratio"],
                own["first_step"],
                own["first_step_ratio"],
                *([own[figure]] if column else []),
            ]
        )
    columns = [*COLUMNS, *([column] if column else [])]
    harness.print_table(title.format(**vars(flags)), columns, rows)
    report = {"settings": harness.settings(flags), "matmul_rate": rates, "results": results}
    harness.write_json(flags.output, report)


def _count_operations(flags):
    """Returns `flops.Forward` of the detector that the flags describe."""
    # Late: TensorFlow is not needed before.
    from benchmarks import flops
    from rethink_tf.models.detector import MaskRCNN
    from rethink_tf.models.resnet import ResNet

    detector = MaskRCNN(flags.classes, backbone=functools.partial(ResNet, flags.depth))
    detector.create_variables()
    return flops.forward(detector, flags.images, flags.height, flags.width)
