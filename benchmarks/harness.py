"""What the benchmarks share: worker processes, interleaved repetitions, and the report.

Two sides of a comparison run in a process each, so that each has a peak memory of its own, and take
turns, so that a drift of the machine's speed meets both. Only one of them works at a time.
"""

import argparse
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time

import numpy as np

# Pieces of work repeated on both sides until each was measured this often.
DEFAULT_REPETITIONS = 5
_WORKER_FLAG = "--worker"


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the commands of a description as they stand, and shows defaults."""


def add_arguments(parser, name):
    """Adds the options of every benchmark to an argparse parser.

    Args:
        parser: argparse.ArgumentParser.
        name: str, of the benchmark; its JSON is `<name>.json` where no `--output` says otherwise.
    """
    parser.add_argument(
        "--repetitions", type=int, default=DEFAULT_REPETITIONS, help="measurements of each side"
    )
    parser.add_argument("--seed", type=int, default=1, help="of weights and data")
    parser.add_argument(
        "--output", type=pathlib.Path, default=pathlib.Path(f"{name}.json"), help="JSON to write"
    )
    parser.add_argument(_WORKER_FLAG, default=None, help="for the benchmark's own use")


class Worker:
    """A process that repeats one piece of work on request."""

    def __init__(self, module, side, arguments=()):
        """Starts the process and waits until it is ready.

        Args:
            module: str, of the benchmark, run as `python -m module`; calls `serve` when it is
                given `--worker=side`.
            side: str, which side to work for.
            arguments: list of str, further command line arguments.

        Raises:
            RuntimeError: if the process ends before it is ready.
        """
        command = [sys.executable, "-m", module, *arguments, f"{_WORKER_FLAG}={side}"]
        self.side = side
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.ready = self._read()

    def run(self):
        """Does the work once; returns what the work told, with `seconds` and `peak_bytes`."""
        self._process.stdin.write("run\n")
        self._process.stdin.flush()
        return self._read()

    def stop(self):
        """Ends the process."""
        self._process.stdin.close()
        self._process.wait()

    def _read(self):
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(
                f"{' '.join(self._process.args)} ended with status {self._process.wait()}; "
                "its own message stands above."
            )
        return json.loads(line)


def serve(make_work):
    """Is the body of a worker process: makes the work, then does it once for every request.

    Args:
        make_work: callable without arguments, returns the work, a callable whose result is None or
            a dict of further figures, and a dict of figures of the making itself.
    """
    # What libraries print must not mix with the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def answer(figures):
        answers.write(json.dumps(figures) + "\n")
        answers.flush()

    work, figures = make_work()
    answer(figures)
    for _ in sys.stdin:
        start = time.perf_counter()
        figures = work() or {}
        seconds = time.perf_counter() - start
        answer({"seconds": seconds, "peak_bytes": peak_bytes()} | figures)


def interleave(workers, repetitions, warmup=1):
    """Has the workers take turns.

    Args:
        workers: list of `Worker`.
        repetitions: int > 0, measured turns.
        warmup: int, turns before them that are not measured.

    Returns:
        {side: list of what `Worker.run` returned}.
    """
    measured = {worker.side: [] for worker in workers}
    for turn in range(warmup + repetitions):
        for worker in workers:
            figures = worker.run()
            if turn >= warmup:
                measured[worker.side].append(figures)
    return measured


def median(runs, key="seconds"):
    """Returns the median of one figure over the runs of one side."""
    return statistics.median(run[key] for run in runs)


def summary(measured, workers, side):
    """Returns one side's median seconds, peak memory and what its worker told when ready.

    Args:
        measured: of `interleave`.
        workers: list of `Worker`.
        side: str.
    """
    ready = next(worker.ready for worker in workers if worker.side == side)
    peak = max(run["peak_bytes"] for run in measured[side])
    return ready | {"seconds": median(measured[side]), "peak_bytes": peak}


def pass_on(flags):
    """Returns the command line that gives a worker the parsed flags."""
    arguments = []
    for key, value in settings(flags).items():
        if value is None or value is False:
            continue
        values = value if isinstance(value, list | tuple) else [value]
        arguments += [f"--{key}", *([] if value is True else map(str, values))]
    return arguments


def settings(flags):
    """Returns the flags that say what is measured, for the report."""
    own = (_WORKER_FLAG.strip("-"), "output", "repetitions")
    return {key: value for key, value in vars(flags).items() if key not in own}


def stop(workers):
    """Ends the workers' processes."""
    for worker in workers:
        worker.stop()


def peak_bytes():
    """Returns the most memory that this process held: of the GPU where there is one, or resident.

    A process without TensorFlow has no GPU.
    """
    tensorflow = sys.modules.get("tensorflow")
    if tensorflow is not None and tensorflow.config.list_logical_devices("GPU"):
        return tensorflow.config.experimental.get_memory_info("GPU:0")["peak"]
    status = pathlib.Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def matmul_rate(dtype="float32", size=2048, repetitions=15):
    """Measures the machine's rate of matrix products in TensorFlow.

    Args:
        dtype: str, "float32" or "bfloat16".
        size: int, of the square matrices.
        repetitions: int; the median counts.

    Returns:
        float, operations (multiplications and additions) a second.
    """
    import tensorflow as tf  # Late: the parent of the workers needs it here only.

    generator = np.random.default_rng(0)
    left, right = (
        tf.cast(tf.constant(generator.normal(size=[size, size]), tf.float32), dtype)
        for _ in range(2)
    )
    product = tf.function(lambda a, b: tf.reduce_sum(tf.cast(tf.matmul(a, b)[:1, :1], tf.float32)))
    seconds = []
    for _ in range(repetitions + 2):
        start = time.perf_counter()
        product(left, right).numpy()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / statistics.median(seconds[2:])


def machine():
    """Returns a dict that says where the figures come from."""
    model = platform.processor() or platform.machine()
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = names[0].split(":")[1].strip() if names else model
    return {
        "processor": model,
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "load_average": os.getloadavg()[0],
    }


def print_table(title, columns, rows):
    """Prints a table.

    Args:
        title: str.
        columns: list of str.
        rows: list of lists; floats are shown with three significant digits, None as "-".
    """

    def show(value):
        if value is None:
            return "-"
        return f"{value:.3g}" if isinstance(value, float) else str(value)

    cells = [columns, *([show(value) for value in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    print(f"\n{title}")
    for position, row in enumerate(cells):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)))
        if position == 0:
            print("  ".join("-" * width for width in widths))


def write_json(path, report):
    """Writes the report, with the machine's description, and says where.

    Args:
        path: pathlib.Path.
        report: dict for JSON.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine()} | report, indent=2) + "\n")
    print(f"\nWritten to {path}.")
