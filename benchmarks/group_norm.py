"""Group normalization: our layer against Keras's, forward and backward.

    python -m benchmarks.group_norm

Measured is one call of a `tf.function` that normalizes a feature map and computes the gradients of
the map, the scale and the shift; a turn is the median of several calls, and the sides take turns.
The difference is the largest of the output and the three gradients between the two sides in
float32, each relative to the largest magnitude of Keras's.

There are a few operations a value and no matrix products, so that memory sets the limit: the share
is that of the machine's rate of copying memory, not of its matrix products. It counts the passes
over the map that no implementation can save where the map is larger than the caches: forward reads
it for the statistics, reads it again and writes the output; backward reads the map and the upstream
gradient for their sums, reads both again and writes a gradient. Memory is the peak of the process
above what it held before the map was made: the map, the upstream gradient, the output and the map's
gradient are four maps of it.
"""

import argparse
import concurrent.futures
import math
import os
import statistics
import time

import numpy as np

from benchmarks import harness

COLUMNS = (
    "shape",
    "dtype",
    "ours ms",
    "Keras ms",
    "ratio",
    "share of copy rate",
    "Keras's",
    "ours GB",
    "Keras GB",
    "ratio",
    "difference",
)
OURS, PEER = "ours", "Keras"
# The RPN's and pyramid's finest level, the box head's RoIs, and the backbone's fourth stage.
SHAPES = ("2x128x128x256", "1024x7x7x256", "2x32x32x1024")
DTYPES = ("float32", "bfloat16")
# Three passes over the map forward, five backward; see the module's description.
PASSES = 8
_COPY_BYTES = 2**28


def make_parser():
    """Returns the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=harness.HelpFormatter)
    harness.add_arguments(parser, "group_norm")
    parser.add_argument(
        "--shapes", nargs="+", type=_shape, default=SHAPES, help="channels a multiple of 32"
    )
    parser.add_argument("--dtypes", nargs="+", default=DTYPES, choices=DTYPES)
    parser.add_argument("--calls", type=int, default=10, help="in a turn")
    return parser


def _shape(text):
    """Checks a shape of the command line, which stays text so that workers can be given it."""
    parts = text.split("x")
    if len(parts) < 3 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is no shape such as 2x128x128x256")
    if int(parts[-1]) % 32:
        raise argparse.ArgumentTypeError(f"{text!r}: 32 groups do not divide the channels")
    return text


def _sizes(shape):
    return [int(size) for size in shape.split("x")]


def make_pass(side, shape, dtype, seed):
    """Makes the layer of one side and its data.

    Args:
        side: OURS or PEER.
        shape: str, such as "2x128x128x256".
        dtype: one of DTYPES.
        seed: int, of the data.

    Returns:
        callable without arguments: the output and the gradients of map, scale and shift.
    """
    import tensorflow as tf
    import tf_keras

    from rethink_tf import execution
    from rethink_tf.layers import normalization

    generator = np.random.default_rng(seed)
    sizes = _sizes(shape)
    # A mean other than 0, as the output of a convolution has.
    inputs = generator.standard_normal(sizes, np.float32) + np.float32(0.5)
    upstream = generator.standard_normal(sizes, np.float32)
    inputs, upstream = (tf.cast(tf.constant(each), dtype) for each in (inputs, upstream))
    policy = dtype if dtype == "float32" else f"mixed_{dtype}"
    settings = {"epsilon": normalization.EPSILON, "dtype": policy}
    if side == OURS:
        layer = normalization.GroupNormalization(normalization.GN_GROUPS, **settings)
        execution.make_plan(tf.distribute.get_strategy(), policy).give_to(layer)
    else:
        layer = tf_keras.layers.GroupNormalization(normalization.GN_GROUPS, **settings)
    layer.build(sizes)
    for variable in layer.trainable_variables:
        variable.assign_add(generator.normal(0, 0.5, variable.shape))

    @tf.function
    def run(inputs, upstream):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            output = layer(inputs)
        return output, *tape.gradient(output, [inputs, layer.gamma, layer.beta], upstream)

    return lambda: run(inputs, upstream)


def work(flags):
    """Makes the pass of one side; a turn is the median of several calls."""
    import tensorflow  # noqa: F401  What the import holds is not counted.

    side, shape, dtype = flags.worker.split("/")
    start_bytes = harness.peak_bytes()
    run = make_pass(side, shape, dtype, flags.seed)

    def turn():
        seconds = []
        for _ in range(flags.calls):
            start = time.perf_counter()
            run()[-1].numpy()
            seconds.append(time.perf_counter() - start)
        return {"seconds": statistics.median(seconds)}

    return turn, {"start_bytes": start_bytes}


def differences(shape, seed):
    """Compares the two sides in float32, in this process.

    Args:
        shape: str.
        seed: int.

    Returns:
        dict: the largest difference of each of the output and the gradients, relative to the
        largest magnitude of Keras's.
    """
    names = ("output", "d_inputs", "d_gamma", "d_beta")
    results = {}
    ours, peer = (make_pass(side, shape, "float32", seed)() for side in (OURS, PEER))
    for name, own, other in zip(names, ours, peer, strict=True):
        own, other = own.numpy(), other.numpy()
        results[name] = float(abs(own - other).max() / abs(other).max())
    return results


def copy_rate(repetitions=9):
    """Measures how fast all cores together copy memory.

    Args:
        repetitions: int; the median counts.

    Returns:
        float, bytes read and written a second.
    """
    cores = len(os.sched_getaffinity(0))
    # Filled, so that all pages are there before the clock runs.
    sources = [np.ones(_COPY_BYTES // cores, np.uint8) for _ in range(cores)]
    targets = [np.zeros_like(each) + np.uint8(2) for each in sources]
    seconds = []
    with concurrent.futures.ThreadPoolExecutor(cores) as pool:
        for _ in range(repetitions + 1):
            start = time.perf_counter()
            list(pool.map(np.copyto, targets, sources))
            seconds.append(time.perf_counter() - start)
    return 2 * sum(each.nbytes for each in sources) / statistics.median(seconds[1:])


def measure(flags, shape, dtype):
    """Returns {side: figures} of one shape and dtype."""
    arguments = harness.pass_on(flags)
    # Started together, which takes longer than to measure; from then on they take turns.
    with concurrent.futures.ThreadPoolExecutor() as pool:
        started = [
            pool.submit(
                harness.Worker, "benchmarks.group_norm", f"{side}/{shape}/{dtype}", arguments
            )
            for side in (OURS, PEER)
        ]
    workers = [each.result() for each in started]
    measured = harness.interleave(workers, flags.repetitions)
    harness.stop(workers)
    results = {}
    for worker in workers:
        own = harness.summary(measured, workers, worker.side)
        own["extra_bytes"] = own["peak_bytes"] - own["start_bytes"]
        results[worker.side.split("/")[0]] = own
    return results


def main():
    """Runs the benchmark, or one side of it."""
    flags = make_parser().parse_args()
    if flags.worker:
        harness.serve(lambda: work(flags))
        return
    results, rows = {}, []
    measured = {
        (shape, each): measure(flags, shape, each)
        for shape in flags.shapes
        for each in flags.dtypes
    }
    # TensorFlow starts in this process here; a GPU is free again by now.
    rate = None if _has_gpu() else copy_rate()
    for (shape, dtype), sides in measured.items():
        ours, peer = sides[OURS], sides[PEER]
        moved = PASSES * math.prod(_sizes(shape)) * (4 if dtype == "float32" else 2)
        for own in sides.values():
            own["share_of_copy_rate"] = rate and moved / own["seconds"] / rate
        own = {
            "seconds_ratio": ours["seconds"] / peer["seconds"],
            "extra_bytes_ratio": ours["extra_bytes"] / max(peer["extra_bytes"], 1),
            "differences": differences(shape, flags.seed) if dtype == "float32" else None,
        }
        results[f"{shape}/{dtype}"] = sides | own
        rows.append(
            [
                shape,
                dtype,
                1e3 * ours["seconds"],
                1e3 * peer["seconds"],
                own["seconds_ratio"],
                ours["share_of_copy_rate"],
                peer["share_of_copy_rate"],
                ours["extra_bytes"] / 1e9,
                peer["extra_bytes"] / 1e9,
                own["extra_bytes_ratio"],
                own["differences"] and max(own["differences"].values()),
            ]
        )
    harness.print_table("Group normalization, forward and backward", COLUMNS, rows)
    harness.write_json(
        flags.output,
        {"settings": harness.settings(flags), "copy_rate": rate, "results": results},
    )


def _has_gpu():
    import tensorflow as tf

    return bool(tf.config.list_physical_devices("GPU"))


if __name__ == "__main__":
    main()
