"""A program that copies its input to its output without known notes of TensorFlow's C++ parts.

`console` runs it on what the libraries below Python write to the error output. Every pattern names
its source. What it does not know it passes on at once, a line without an end after a moment. It
imports as little as it can, for it starts with every run.
"""

import glob
import os
import re
import select
import signal
import sys

# Seconds that a line without an end is waited for.
PATIENCE = 0.1

PATTERNS = [
    # absl, where TF_CPP_MIN_LOG_LEVEL does not reach it: what a GPU and XLA say of themselves.
    rb"I\d{4} \d\d:\d\d:",
    # absl, before the first of its lines.
    rb"WARNING: All log messages before absl::InitializeLog\(\) is called",
    # TensorFlow, grappler's estimates: CropAndResize of a number of boxes known only when it runs.
    rb"W\d{4} .*op_level_cost_estimator\.cc:\d+\] Error in PredictCost\(\) for the op",
    # TensorFlow Lite's converter, of settings that it takes from a file of ours; its interpreter.
    rb"W\d{4} .*tf_tfl_flatbuffer_helpers\.cc:\d+\] Ignored ",
    rb"INFO: Created TensorFlow Lite XNNPACK delegate for CPU\.",
    # TensorFlow, where several of its libraries register the same thing.
    rb".*Unable to register cu\w+ factory: Attempting to register factory for plugin",
    rb".*computation_placer\.cc:\d+\] computation placer already registered",
]
# Error 303: there is no driver. Without a GPU none is needed; with one, the line stays.
WITHOUT_GPU = [rb".*failed call to cuInit: .*\(303\)"]


def patterns():
    """Returns the pattern of the lines to leave out on this machine."""
    has_gpu = glob.glob("/dev/nvidia*") or os.path.exists("/dev/dxg")
    return re.compile(b"|".join(PATTERNS + ([] if has_gpu else WITHOUT_GPU)))


def copy(source, target, unwanted):
    """Copies lines until the end of the input.

    Args:
        source: int, file descriptor.
        target: int, file descriptor.
        unwanted: pattern that matches the lines to leave out, from their start.
    """
    rest, is_shown = b"", False
    while True:
        if rest and not is_shown and not select.select([source], [], [], PATIENCE)[0]:
            # A prompt, or a progress bar: the rest of its line follows as it comes.
            is_shown = not unwanted.match(rest)
        if is_shown:
            _write(target, rest)
            rest = b""
        chunk = os.read(source, 65536)
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if is_shown or not unwanted.match(line):
                _write(target, line + b"\n")
            is_shown = False
        if not chunk:
            if is_shown or not unwanted.match(rest):
                _write(target, rest)
            return


def _write(target, data):
    while data:
        data = data[os.write(target, data) :]


if __name__ == "__main__":
    # It ends with what it reads from, and not before: the last lines of a run say why it stopped.
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    try:
        copy(sys.stdin.fileno(), sys.stdout.fileno(), patterns())
    except BrokenPipeError:
        sys.exit(0)
