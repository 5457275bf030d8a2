"""What reaches the terminal: in processes of their own, with real file descriptors."""

import os
import subprocess
import sys

from experiment_runs import REPOSITORY

from rethink_tf import console, stderr_filter

NOISE = [
    "I0000 00:00:1750000000.1  123 service.cc:152] XLA service 0x7f initialized",
    "WARNING: All log messages before absl::InitializeLog() is called are written to STDERR",
    "W0000 00:00:1750000000.1  123 op_level_cost_estimator.cc:699] Error in PredictCost() for the "
    'op: op: "CropAndResize"',
    "2026-01-01 00:00:00.1: E external/x/cuda_fft.cc:467] Unable to register cuFFT factory: "
    "Attempting to register factory for plugin cuFFT when one has already been registered",
    "W0000 00:00:1750000000.1  12 computation_placer.cc:177] computation placer already registered",
]
NEWS = [
    "2026-01-01 00:00:00.1: E external/x/cuda_driver.cc:1] failed call to cuInit: (999)",
    "W0000 00:00:1750000000.1  123 collective_rma.cc:3] peer is unreachable",
    "F0000 00:00:1750000000.1  123 tensor.cc:3] Check failed: dtype() == expected",
    "terminate called after throwing an instance of 'std::bad_alloc'",
    "Information: I0000 00:00 inside a line",
]

SCRIPT = """
import logging as python_logging, os, pathlib, sys
from rethink_tf import console
console.start(quiet="quiet" in sys.argv)
from absl import logging
import rethink_tf.config
def native(text):
    os.write(2, text.encode())
def own(text, level="info", **options):
    code = compile(f"logging.{level}(text, **options)", rethink_tf.config.__file__, "exec")
    exec(code, {"logging": logging, "text": text, "options": options})
native("W0000 00:00:1.1  123 op_level_cost_estimator.cc:699] Error in PredictCost() for the op\\n")
own("step 1")
own("header\\n of two lines", extra=console.KEPT)
logging.info("a note of another package")
logging.warning("a warning of another package")
font = python_logging.getLogger("matplotlib.font_manager")
font.warning("Matplotlib is building the font cache; this may take a moment.")
font.warning("findfont: nothing found")
native("F0000 00:00:1.1  123 tensor.cc:3] Check failed\\n")
print("traceback", file=sys.stderr)
if "abort" in sys.argv:
    native("last words")
    os.abort()
"""


def run(*arguments, **environment):
    """Runs the script and returns what it wrote to the error output."""
    wanted = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments],
        cwd=REPOSITORY,
        env=wanted | environment,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    return done.stderr


def test_lines_of_this_package_and_warnings_of_all():
    output = run()
    own, header, warning, font = (
        "step 1",
        "header\n of two lines",
        "warning: a warning of another package",
        "warning: findfont: nothing found",
    )
    for line in (own, header, warning, font, "tensor.cc:3] Check failed", "traceback"):
        assert output.count(line) == 1, output
    for line in ("PredictCost", "a note of another package", "font cache"):
        assert line not in output
    assert output.index(own) < output.index(header) < output.index(warning)


def test_quiet_keeps_the_header_warnings_and_errors():
    output = run("quiet")
    assert "step 1" not in output
    for line in ("header\n of two", "a warning of another", "Check failed", "traceback"):
        assert line in output


def test_the_last_words_of_a_crash_are_shown_and_a_level_of_the_users_shows_all():
    output = run("abort")
    assert output.endswith("last words") and "Check failed" in output
    assert "PredictCost" in run(TF_CPP_MIN_LOG_LEVEL="0")


def test_the_filter_passes_on_what_it_does_not_know(monkeypatch):
    """Lines come whole, in pieces, without an end, and as bytes that are no text."""
    command = [sys.executable, stderr_filter.__file__]
    lines = [line for pair in zip(NOISE, NEWS, strict=True) for line in pair]
    text = "\n".join(lines).encode() + b"\n\xff\xfe\nno end"
    done = subprocess.run(command, input=text, stdout=subprocess.PIPE, check=True)
    assert done.stdout == "\n".join(NEWS).encode() + b"\n\xff\xfe\nno end"
    # A prompt is shown while the program that wrote it waits for the answer.
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdin.write(b"How many? ")
        process.stdin.flush()
        assert os.read(process.stdout.fileno(), 100) == b"How many? "
        process.stdin.write(b"3\n" + NOISE[0].encode() + b"\nend\n")
        process.stdin.close()
        assert process.stdout.read() == b"3\nend\n"

    without_driver = b"2026: E external/x/cuda_platform.cc:51] failed call to cuInit: UNKNOWN (303)"
    for paths, expected in (([], True), (["/dev/nvidia0"], False)):
        monkeypatch.setattr(stderr_filter.glob, "glob", lambda _, found=paths: found)
        monkeypatch.setattr(stderr_filter.os.path, "exists", lambda _: False)
        assert bool(stderr_filter.patterns().match(without_driver)) is expected
        assert not stderr_filter.patterns().match(NEWS[0].encode())


def test_durations():
    assert console.duration(59.9) == "00:00:59"
    assert console.duration(2 * 86400 + 3 * 3600 + 4 * 60 + 5) == "2d 03:04:05"
