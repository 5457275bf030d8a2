"""COCO evaluation: metrics against pycocotools, pasting and encoding against Model Garden.

    python -m benchmarks.evaluation

Metrics: the same synthetic ground truth and detections through `coco_metrics.evaluate` and through
pycocotools as its users write it (index, `loadRes`, `evaluate`, `accumulate`, `summarize`, then AP
of each class). Time is from the dicts to the numbers; every number is compared. Detections for
masks have no box, so that pycocotools takes their areas from the masks as well.

Pasting: what a mask head predicts, 28 x 28 in a box, to COCO's run lengths of the whole image: ours
in one thread and in several, and Model Garden's `paste_instance_masks` with pycocotools' `encode`,
as its COCO evaluator has them. (Its pasting rounds boxes to whole pixels, so that its masks are not
quite the same.)

Peak memory is that of the process, its data and libraries (for Model Garden TensorFlow) included.
There is hardly any arithmetic here that a matrix product's rate would be a measure of.
"""

import argparse
import contextlib
import gc
import io
import time

import numpy as np

from benchmarks import detections, harness

MODULE = "benchmarks.evaluation"
PEERS = ("pycocotools", "faster-coco-eval")
MIB = 2**20


def make_parser():
    """Returns the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=harness.HelpFormatter)
    harness.add_arguments(parser, "evaluation")
    parser.set_defaults(repetitions=3)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--detections", type=int, default=100, help="an image")
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--objects", type=float, default=7.0, help="an image, in the mean")
    parser.add_argument("--crowds", type=float, default=0.01, help="share of the objects")
    parser.add_argument("--width", type=int, default=640, help="pixels, of half of the images")
    parser.add_argument("--height", type=int, default=480, help="pixels, of half of the images")
    parser.add_argument(
        "--smallest", type=float, default=0.04, help="side of an object, share of the image's"
    )
    parser.add_argument("--largest", type=float, default=0.8, help="the same")
    parser.add_argument("--pasted", type=int, default=40, help="images whose masks are pasted")
    parser.add_argument("--threads", type=int, default=2, help="that paste beside each other")
    parser.add_argument(
        "--plain", action="store_true", help="measure faster-coco-eval by itself as well"
    )
    parser.add_argument(
        "--parts", nargs="+", default=["bbox", "segm", "paste"], choices=["bbox", "segm", "paste"]
    )
    return parser


def make_statistics(flags, num_images=None):
    """Returns the statistics of the data set that is drawn."""
    return detections.Statistics(
        num_images or flags.images,
        flags.objects,
        flags.classes,
        flags.crowds,
        (flags.width, flags.height),
        flags.smallest,
        flags.largest,
    )


def make_data(flags, iou_type, num_images=None):
    """Returns the ground truth and the results."""
    statistics = make_statistics(flags, num_images)
    truth, outlines = detections.make_ground_truth(flags.seed, statistics)
    with_masks = iou_type == "segm"
    return truth, detections.make_results(
        flags.seed, statistics, truth, outlines, flags.detections, with_masks
    )


def measure_ours(truth, results, iou_type):
    """Returns all numbers: the summary, then AP by class."""
    from rethink_tf.evaluation import coco_metrics

    return list(coco_metrics.evaluate(truth, results, [iou_type]).values())


def measure_peer(library, truth, results, iou_type):
    """Returns the same numbers by an evaluation library's usual calls."""
    if library == "pycocotools":
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    else:
        from faster_coco_eval import COCO
        from faster_coco_eval import COCOeval_faster as COCOeval
    with contextlib.redirect_stdout(io.StringIO()):
        indexed = COCO()
        indexed.dataset = truth
        indexed.createIndex()
        evaluator = COCOeval(indexed, indexed.loadRes(results), iou_type)
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    numbers = evaluator.stats.tolist()
    for precision in np.moveaxis(evaluator.eval["precision"][:, :, :, 0, -1], -1, 0):
        valid = precision[precision > -1]
        numbers.append(float(valid.mean()) if valid.size else -1.0)
    return numbers


def metrics_work(flags, iou_type, side):
    """Makes the metrics' work of one side."""

    def measure(truth, results):
        if side == "ours":
            return measure_ours(truth, results, iou_type)
        return measure_peer(side, truth, results, iou_type)

    measure(*make_data(flags, iou_type, num_images=2))  # imports
    truth, results = make_data(flags, iou_type)
    keys = set(results[0])

    def work():
        # The peers write into annotations and results: theirs are copied before and cleaned after,
        # out of the time.
        copied = truth | {"annotations": [dict(entry) for entry in truth["annotations"]]}
        gc.collect()
        start = time.perf_counter()
        numbers = measure(copied, results)
        seconds = time.perf_counter() - start
        for result in results:
            for key in set(result) - keys:
                del result[key]
        return {"seconds": seconds, "numbers": numbers}

    return work, {"annotations": len(truth["annotations"]), "results": len(results)}


def paste_work(flags, side):
    """Makes the pasting's work of one side."""
    drawn = detections.make_small_masks(
        flags.seed, make_statistics(flags), flags.pasted, flags.detections
    )
    if side == "Model Garden":
        from official.vision.ops import mask_ops
        from pycocotools import mask as coco_mask

        def encode(masks, boxes, size):
            corners = np.concatenate([boxes[:, 1::-1], (boxes[:, 2:] - boxes[:, :2])[:, ::-1]], -1)
            pasted = mask_ops.paste_instance_masks(masks, corners, *size)
            return [coco_mask.encode(np.asfortranarray(mask)) for mask in pasted]

        return lambda: [encode(*each) for each in drawn] and None, {}

    from rethink_tf.evaluation import overlap, pasting

    def serial():
        for masks, boxes, size in drawn:
            pasting.paste_and_encode(masks, boxes, *size)

    def parallel():
        with overlap.InOrder(pasting.paste_and_encode, flags.threads) as threads:
            for masks, boxes, size in drawn:
                threads.put(masks, boxes, *size)
            threads.finish()

    return serial if side == "serial" else parallel, {}


def compare_metrics(flags, iou_type):
    """Measures both sides in turns, prints a table and returns its figures."""
    sides = ["ours", *(PEERS if flags.plain else PEERS[:1])]
    arguments = harness.pass_on(flags)
    workers = [harness.Worker(MODULE, f"{iou_type}/{side}", arguments) for side in sides]
    runs = {worker.side: [] for worker in workers}
    for turn in range(flags.repetitions):
        # Ours in between once more than the slow peers, which come at most twice.
        for worker in workers if turn < min(2, flags.repetitions) else workers[:1]:
            runs[worker.side].append(worker.run())
    harness.stop(workers)
    ours = runs[workers[0].side]
    rows, report = [], dict(workers[0].ready)
    for worker, side in zip(workers, sides, strict=True):
        own = runs[worker.side]
        seconds, peak = harness.median(own), harness.median(own, "peak_bytes")
        difference = float(np.max(np.abs(np.subtract(own[0]["numbers"], ours[0]["numbers"]))))
        rows.append([side, seconds, seconds / harness.median(ours), difference, peak / MIB])
        report[side] = {
            "seconds": [run["seconds"] for run in own],
            "times_ours": seconds / harness.median(ours),
            "largest_difference": difference,
            "peak_bytes": peak,
            "numbers": own[0]["numbers"],
        }
    title = (
        f"{iou_type}: {flags.images} images, {report['annotations']} objects, "
        f"{report['results']} detections, {flags.classes} classes"
    )
    columns = ["side", "seconds", "times ours", "largest difference", "peak MiB"]
    harness.print_table(title, columns, rows)
    return report


def compare_pasting(flags):
    """The same for pasting and encoding."""
    sides = ["serial", "threads", "Model Garden"]
    workers = [harness.Worker(MODULE, f"paste/{side}", harness.pass_on(flags)) for side in sides]
    runs = harness.interleave(workers, flags.repetitions)
    harness.stop(workers)
    serial = harness.median(runs["paste/serial"])
    rows, report = [], {}
    for side in sides:
        own = runs[f"paste/{side}"]
        seconds, peak = harness.median(own), harness.median(own, "peak_bytes")
        rows.append([side, flags.pasted / seconds, seconds / serial, peak / MIB])
        report[side] = {"images_a_second": flags.pasted / seconds, "peak_bytes": peak}
    size = f"{flags.width}x{flags.height}"
    title = f"Pasting and encoding, {flags.detections} masks an image of {size}"
    columns = ["side", "images/s", "times ours, serial", "peak MiB"]
    harness.print_table(title, columns, rows)
    return report


def make_work(flags):
    """Returns the work of one side."""
    part, _, side = flags.worker.partition("/")
    return paste_work(flags, side) if part == "paste" else metrics_work(flags, part, side)


def main():
    """Runs the benchmark, or one side of it."""
    flags = make_parser().parse_args()
    if flags.worker:
        harness.serve(lambda: make_work(flags))
        return
    report = {key: str(value) for key, value in vars(flags).items()}
    report = {"flags": report}
    for part in flags.parts:
        report[part] = compare_pasting(flags) if part == "paste" else compare_metrics(flags, part)
    harness.write_json(flags.output, report)


if __name__ == "__main__":
    main()
