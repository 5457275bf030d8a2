"""Where the time and the memory of our training step go, by TensorFlow's own profiler.

    python -m benchmarks.profile --precision mixed_bfloat16

Takes the options of `benchmarks.train_step`. Time is summed over the threads that run operations,
so that all kinds together may take longer than the step; a kind's name is that of TensorFlow's
kernel (`_Mkl...`: oneDNN's). Memory is what the allocator of the CPU had given out when that was
most, by the operation that asked for it.
"""

import collections
import pathlib
import re
import tempfile
import time

from benchmarks import harness, models, train_step

MIB = 2**20
# The name of an operation of the graph and its kind; the runtime has events of its own.
_OPERATION = re.compile(r"[^:]+:(\w+)")


def make_parser():
    """Returns the parser of the command line."""
    parser = train_step.make_parser()
    parser.description = __doc__
    parser.set_defaults(output=pathlib.Path("profile.json"))
    parser.add_argument("--precision", default=models.PRECISIONS[0], choices=models.PRECISIONS)
    parser.add_argument("--rows", type=int, default=20, help="of each table")
    return parser


def record(step):
    """Runs a step under the profiler.

    Args:
        step: callable without arguments.

    Returns:
        float, seconds of the step, and its events as (picoseconds when it began, name,
        picoseconds it took, dict of its figures), by beginning.
    """
    import tensorflow as tf
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    options = tf.profiler.experimental.ProfilerOptions(host_tracer_level=3)
    with tempfile.TemporaryDirectory() as folder:
        with tf.profiler.experimental.Profile(folder, options):
            start = time.perf_counter()
            step()
            seconds = time.perf_counter() - start
        (path,) = pathlib.Path(folder).glob("**/*.xplane.pb")
        space = xplane_pb2.XSpace.FromString(path.read_bytes())
    events = []
    for plane in space.planes:
        names = {key: value.name for key, value in plane.stat_metadata.items()}
        for line in plane.lines:
            for event in line.events:
                figures = {}
                for stat in event.stats:
                    kind = stat.WhichOneof("value")
                    value = getattr(stat, kind)
                    figures[names[stat.metadata_id]] = (
                        names[value] if kind == "ref_value" else value
                    )
                began = line.timestamp_ns * 1000 + event.offset_ps
                name = plane.event_metadata[event.metadata_id].name
                events.append((began, name, event.duration_ps, figures))
    return seconds, sorted(events, key=lambda event: event[0])


def time_by_kind(events):
    """Returns {kind of operation: [seconds, how often]}, the longest first."""
    kinds = collections.defaultdict(lambda: [0.0, 0])
    for _, name, duration, _ in events:
        operation = _OPERATION.fullmatch(name)
        if operation:
            kinds[operation[1]][0] += duration / 1e12
            kinds[operation[1]][1] += 1
    return dict(sorted(kinds.items(), key=lambda item: -item[1][0]))


def memory_at_peak(events):
    """Returns the most bytes given out, and what of them the step had asked for.

    Returns:
        int, and a list of (bytes, operation, shape), the largest first. The rest was there before:
        variables, the batch.
    """
    live, peak, at_peak = {}, 0, []
    for _, name, _, figures in events:
        if name == "MemoryAllocation":
            live[figures["addr"]] = (
                figures["allocation_bytes"],
                figures["tf_op"],
                figures.get("shape", ""),
            )
        elif name == "MemoryDeallocation":
            live.pop(figures["addr"], None)
        if figures.get("bytes_allocated", 0) > peak and name.startswith("Memory"):
            peak, at_peak = figures["bytes_allocated"], list(live.values())
    return peak, sorted(at_peak, reverse=True)


def main():
    """Profiles one step after two others."""
    flags = make_parser().parse_args()
    step, _, _ = train_step.make_ours(flags, flags.precision)
    step(), step()
    seconds, events = record(step)
    kinds, (peak, tensors) = time_by_kind(events), memory_at_peak(events)
    harness.print_table(
        f"Time of a step of {seconds:.2f} s, {flags.precision}",
        ["kind", "seconds", "times"],
        [[kind, *figures] for kind, figures in list(kinds.items())[: flags.rows]],
    )
    harness.print_table(
        f"Memory at the peak of {peak / MIB:.0f} MiB",
        ["MiB", "operation", "shape"],
        [[size / MIB, operation, shape] for size, operation, shape in tensors[: flags.rows]],
    )
    report = {"seconds": seconds, "kinds": kinds, "peak_bytes": peak, "at_peak": tensors}
    harness.write_json(flags.output, {"settings": harness.settings(flags)} | report)


if __name__ == "__main__":
    main()
