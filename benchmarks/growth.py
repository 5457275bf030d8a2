"""How time and memory of our training step grow with the size of the work.

    python -m benchmarks.growth --plots plots

One size grows at a time, from a base of 2 images of 320x320 with 128 RoIs and 20 objects each:

- `side`: of the square images; the size is their area.
- `images`: a step, on one device.
- `rois`: sampled an image.
- `objects`: an image, in as many rows as there are objects.
- `replicas`: with `MirroredStrategy` on logical CPUs, one image each. They share the same cores, so
  that linear means twice the time of twice the replicas, and more than that is the cost of joining.

Each point is a process of its own: a step that builds and traces, then the measured ones, of which
the median counts. The points follow each other, so that a drift of the machine meets them unevenly.
The growth exponent of an axis is log(last / first seconds) / log(last / first size), nothing
subtracted: 1 is linear, 0 constant, and a fixed cost pulls it down. That of a point is the same
between it and the point before. Peak memory counts the whole process, libraries included, and the
first step.
"""

import json
import math
import pathlib
import time

from benchmarks import harness, models, train_step

COLUMNS = ("precision", "size", "seconds", "exponent", "peak GB", "exponent", "first step s")
AXES = ("side", "images", "rois", "objects", "replicas")
POINTS = {
    "side": (256, 384, 512, 640),
    "images": (1, 2, 4),
    "rois": (128, 256, 512, 1024),
    "objects": (1, 30, 100, 300),
    "replicas": (1, 2),
}
LABELS = {
    "side": "Pixels an image",
    "images": "Images a step",
    "rois": "RoIs an image",
    "objects": "Objects an image",
    "replicas": "Replicas, one image each",
}


def make_parser():
    """Returns the parser of the command line: that of `benchmarks.train_step` and more."""
    parser = train_step.make_parser()
    parser.description = __doc__
    parser.set_defaults(
        repetitions=2,
        output=pathlib.Path("growth.json"),
        height=320,
        width=320,
        rois=128,
        precisions=models.PRECISIONS[:1],
    )
    parser.add_argument("--axes", nargs="+", default=AXES, choices=AXES)
    for axis in AXES:
        parser.add_argument(
            f"--{axis}_points", nargs="+", type=int, default=POINTS[axis], help="in ascending order"
        )
    parser.add_argument("--plots", type=pathlib.Path, help="folder for one SVG an axis")
    return parser


def changes(axis, value):
    """Returns which flags of `benchmarks.train_step` a point changes, and its replicas.

    Args:
        axis: one of AXES.
        value: int, of the point.
    """
    if axis == "side":
        return {"height": value, "width": value}
    if axis == "objects":
        return {"objects": value, "max_objects": value}
    if axis == "replicas":
        return {"images": 1, "replicas": value}
    return {axis: value}


def exponent(before, after, key):
    """Returns the growth exponent of one figure between two points, or None where sizes are one."""
    if before["size"] == after["size"]:
        return None
    return math.log(after[key] / before[key]) / math.log(after["size"] / before["size"])


def work(flags):
    """Makes the step of one point and runs it once."""
    point = json.loads(flags.worker)
    replicas, precision = point.pop("replicas", None), point.pop("precision")
    vars(flags).update(point)
    if replicas is None:
        step, start, built = train_step.make_ours(flags, precision)
    else:
        from rethink_tf.training import distribution

        name = "mirrored" if replicas > 1 else "one_device"
        # In its scope the step takes this strategy, and every replica the same batch.
        with distribution.make_strategy(name, num_gpus=0, num_cpus=replicas).scope():
            step, start, built = train_step.make_ours(flags, precision)
    step()
    return step, {"build": built, "first_step": time.perf_counter() - start}


def measure(flags, point):
    """Returns the figures of one point.

    Args:
        flags: of the command line.
        point: str, JSON of the flags to change.
    """
    worker = harness.Worker("benchmarks.growth", point, harness.pass_on(flags))
    try:
        measured = harness.interleave([worker], flags.repetitions, warmup=0)
        return harness.summary(measured, [worker], point)
    finally:
        harness.stop([worker])


def plot(path, axis, results):
    """Writes one axis's plot.

    Args:
        path: pathlib.Path of the image.
        axis: one of AXES.
        results: {precision: {"points": list of dict}}.
    """
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.fonttype"] = "none"  # Text stays text: fewer bytes.
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(7, 2.6), layout="constrained")
    kinds = (("seconds", "Seconds a step", 1), ("peak_bytes", "Peak memory, GB", 1e9))
    for panel, (key, title, unit) in zip(panels, kinds, strict=True):
        top = 0
        for precision, result in results.items():
            sizes = [point["size"] for point in result["points"]]
            values = [point[key] / unit for point in result["points"]]
            panel.plot(sizes, values, marker="o", label=precision)
            top = max(top, *values)
        panel.set(title=title, xlabel=LABELS[axis], xlim=(0, None), ylim=(0, 1.1 * top))
        panel.grid(alpha=0.3)
    if len(results) > 1:
        panels[0].legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def measure_axis(flags, axis, precision, known):
    """Measures one axis.

    Args:
        flags: of the command line.
        axis: one of AXES.
        precision: str.
        known: dict, figures of points measured before, by point; gets the new ones.

    Returns:
        dict of the points and the axis's exponents.
    """
    base = {key: getattr(flags, key) for key in ("height", "width", "images", "rois")}
    base |= {"objects": flags.objects, "max_objects": flags.max_objects, "precision": precision}
    points = []
    for value in vars(flags)[f"{axis}_points"]:
        point = json.dumps(base | changes(axis, value))
        if point not in known:
            known[point] = measure(flags, point)
        points.append({"value": value, "size": value**2 if axis == "side" else value})
        points[-1] |= known[point]
    first, last = points[0], points[-1]
    exponents = {key: exponent(first, last, key) for key in ("seconds", "peak_bytes")}
    return {"points": points, "exponents": exponents}


def main():
    """Runs the benchmark, or one point of it."""
    flags = make_parser().parse_args()
    if flags.worker:
        harness.serve(lambda: work(flags))
        return
    report, known = {}, {}
    for axis in flags.axes:
        results = {each: measure_axis(flags, axis, each, known) for each in flags.precisions}
        report[axis], rows = results, []
        for precision, result in results.items():
            previous = [None, *result["points"][:-1]]
            for before, point in zip(previous, result["points"], strict=True):
                seconds, peak = (
                    before and exponent(before, point, key) for key in ("seconds", "peak_bytes")
                )
                cells = [point["seconds"], seconds, point["peak_bytes"] / 1e9, peak]
                rows.append([precision, point["value"], *cells, point["first_step"]])
            ends = result["exponents"]
            rows.append([precision, "all", None, ends["seconds"], None, ends["peak_bytes"], None])
        harness.print_table(f"{LABELS[axis]} ({axis}), R{flags.depth}-FPN", COLUMNS, rows)
        if flags.plots:
            plot(flags.plots / f"growth_{axis}.svg", axis, results)
        # After every axis, so that a run cut short is not lost.
        settings = harness.settings(flags) | {"plots": flags.plots and str(flags.plots)}
        harness.write_json(flags.output, {"settings": settings, "results": report})


if __name__ == "__main__":
    main()
