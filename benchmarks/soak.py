"""What a long run holds more and more of: memory, threads, file descriptors.

    python -m benchmarks.soak --steps 5000

It is the command that users run, on a small experiment with evaluations and checkpoints on the way.
From the operating system's account of its process, a line is fitted through each quantity over the
steps after the first fifth. What grows is the same number again for every so many steps; what has
grown once, such as a cache, is not seen after that fifth. Beside the slope stands what it would add
up to in 540,000 steps, and the largest and smallest value that the line was fitted to.
"""

import argparse
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import threading
import time

import numpy as np

from benchmarks import harness

QUANTITIES = ("memory MB", "threads", "file descriptors")
PAPERS_STEPS = 540_000
_SHARE_LEFT_OUT = 0.2


def make_parser():
    """Returns the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=harness.HelpFormatter)
    parser.add_argument("--steps", type=int, default=5000, help="of training")
    parser.add_argument("--evaluate_every", type=int, default=250, help="steps")
    parser.add_argument("--gin_file", nargs="+", default=["quickstart.gin", "overlays/tiny.gin"])
    parser.add_argument("--gin_param", nargs="*", default=[], help="further bindings")
    parser.add_argument("--seconds", type=float, default=1.0, help="between two samples")
    parser.add_argument(
        "--output", type=pathlib.Path, default=pathlib.Path("soak.json"), help="JSON to write"
    )
    return parser


def sample(pid):
    """Returns what a process holds, by the names of `QUANTITIES`; None when it has ended."""
    try:
        status = pathlib.Path(f"/proc/{pid}/status").read_text()
        descriptors = len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return None
    numbers = dict(re.findall(r"^(VmRSS|Threads):\s+(\d+)", status, re.MULTILINE))
    if "VmRSS" not in numbers:  # It has ended, and nobody has asked how.
        return None
    return {
        "memory MB": int(numbers["VmRSS"]) / 1000,
        "threads": int(numbers["Threads"]),
        "file descriptors": descriptors,
    }


def fit(samples, num_steps):
    """Fits a line through each quantity over the steps.

    Args:
        samples: list of dict: "step", and each of `QUANTITIES`.
        num_steps: int, of the whole run.

    Returns:
        list of dict, one a quantity: its name, per_1000_steps, in_540,000, and the least and the
        most of what was fitted.
    """
    kept = [each for each in samples if each["step"] >= _SHARE_LEFT_OUT * num_steps]
    steps = [each["step"] for each in kept]
    rows = []
    for name in QUANTITIES:
        values = [each[name] for each in kept]
        slope = np.polyfit(steps, values, 1)[0] if len(set(steps)) > 1 else float("nan")
        rows.append(
            {
                "quantity": name,
                "per 1,000 steps": slope * 1000,
                f"in {PAPERS_STEPS:,}": slope * PAPERS_STEPS,
                "least": min(values, default=float("nan")),
                "most": max(values, default=float("nan")),
            }
        )
    return rows


def run(flags, folder):
    """Runs the experiment and returns the samples of its process.

    Raises:
        RuntimeError: if it fails.
    """
    params = [
        f"STEPS={flags.steps}",
        f"MODEL_DIR={str(folder / 'run')!r}",
        f"DATA_DIR={str(folder / 'data')!r}",
        f"run.evaluate_every={flags.evaluate_every}",
        f"run.checkpoint_every={flags.evaluate_every}",
        "run.log_every=10",
        *flags.gin_param,
    ]
    command = [sys.executable, "-m", "rethink_tf.train"]
    command += [f"--gin_file={name}" for name in flags.gin_file]
    command += [f"--gin_param={each}" for each in params]
    samples, step = [], 0
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:

        def watch():
            while (found := sample(process.pid)) is not None:
                samples.append({"step": step} | found)
                time.sleep(flags.seconds)

        thread = threading.Thread(target=watch)
        thread.start()
        for line in process.stderr:
            if match := re.search(r"step (\d+)/\d+", line):
                step = int(match[1])
            if "Evaluated" in line or "error" in line:
                print(line.rstrip(), flush=True)
    thread.join()
    if process.returncode:
        raise RuntimeError(f"The run ended with {process.returncode}.")
    return samples


def main(argv=None):
    """Runs the benchmark and prints the slopes."""
    flags = make_parser().parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        samples = run(flags, pathlib.Path(folder))
    rows = fit(samples, flags.steps)
    names = list(rows[0])
    print("  ".join(f"{name:>18}" for name in names))
    for row in rows:
        texts = [row[name] if name == "quantity" else f"{row[name]:,.3f}" for name in names]
        print("  ".join(f"{text:>18}" for text in texts))
    flags.output.write_text(json.dumps({"slopes": rows, "samples": samples}, indent=1) + "\n")
    print(f"\nWritten to {flags.output}.")


if __name__ == "__main__":
    main()
