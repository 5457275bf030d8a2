"""Runs that are told to stop, as real processes with real signals."""

import contextlib
import http.server
import re
import signal
import subprocess
import sys
import threading

from experiment_runs import (
    REPOSITORY,
    assert_equal_weights,
    finish,
    read_scalars,
    read_until,
    read_weights,
    start,
    tiny,
)

from rethink_tf import exit_codes

# No checkpoint by interval: those that are there are of the signals.
PARAMS = ["STEPS=8", "run.checkpoint_every=1000", "run.evaluation_batch_size=1"]

# The main thread is in C for good: Python's own handlers never run.
BUSY = """
import ctypes
from rethink_tf.training.stopping import StopRequest
with StopRequest():
    print("ready", flush=True)
    while True:
        ctypes.CDLL(None).sleep(60)
"""

WAITING = """
import time
from rethink_tf.training.stopping import StopRequest
with StopRequest() as stop:
    while not (reason := stop.requested()):
        time.sleep(0.01)
print("stopped by", reason, flush=True)
"""


def stop_at(text, params, number):
    """Sends a run a signal at a line; returns its exit code and the last line after that."""
    with start("quickstart.gin", params) as process:
        read_until(process, text)
        process.send_signal(number)
        output = process.stdout.read()
    assert "Traceback" not in output
    assert number is signal.SIGKILL or number.name in output
    return process.returncode, (output.splitlines() or [""])[-1]


def test_a_run_that_is_stopped_and_killed_goes_on_to_the_same_end(tmp_path):
    unbroken, broken = (
        tiny(tmp_path / name, tmp_path / "data", *PARAMS) for name in ("unbroken", "broken")
    )
    finish("quickstart.gin", unbroken, mode="train")
    found = [stop_at("step 2/8", broken, signal.SIGINT)]
    # It loses the steps since: those after the second checkpoint are computed twice.
    assert stop_at("step 5/8", broken, signal.SIGKILL)[0] == -signal.SIGKILL
    found += [
        stop_at("step 5/8", broken, signal.SIGTERM),
        # Of 4 images, one a batch: all steps are done then.
        stop_at("Evaluating 4 images", broken, signal.SIGTERM),
    ]
    again = "The same command goes on from the newest checkpoint."
    assert found == [
        (exit_codes.INTERRUPTED, f"Stopped by SIGINT. {again}"),
        (exit_codes.AGAIN, f"Stopped by SIGTERM. {again}"),
        (exit_codes.AGAIN, f"Stopped by SIGTERM. {again}"),
    ]
    steps = {
        int(re.search(r"step-(\d)", path.name)[1])
        for path in (tmp_path / "broken" / "checkpoints").glob("step-*.index")
    }
    assert len(steps) == 3 and 2 <= min(steps) < 5 and max(steps) == 8
    assert not (tmp_path / "broken" / "metrics.jsonl").exists()

    output = finish("quickstart.gin", broken)
    assert "Evaluated 4 images at step 8" in output
    whole, parts = tmp_path / "unbroken", tmp_path / "broken"
    assert_equal_weights(read_weights(whole, 8), read_weights(parts, 8))
    expected, found = read_scalars(whole), read_scalars(parts)
    losses = [key for key in expected if key[0].startswith("train/") and "per_second" not in key[0]]
    assert ("train/mask", 8) in losses
    for key in losses:
        assert found[key] == expected[key], key


@contextlib.contextmanager
def started(code, **environment):
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(REPOSITORY)} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with process:
        yield process
        process.kill()


def test_a_second_signal_ends_at_once_whatever_the_main_thread_does():
    with started(BUSY) as process:
        read_until(process, "ready")
        process.send_signal(signal.SIGTERM)
        read_until(process, "A second signal ends it at once")
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 128 + signal.SIGTERM


def test_google_cloud_announces_that_it_takes_the_machine_away():
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):  # noqa: N802  the name that the standard library calls
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"TERMINATE_ON_HOST_MAINTENANCE")

        def log_message(self, *args):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"127.0.0.1:{server.server_address[1]}"
        with started(WAITING, GCE_METADATA_IP=address) as process:
            read_until(process, "stopped by Google Compute Engine's host maintenance")
        server.shutdown()
    assert asked == ["/computeMetadata/v1/instance/maintenance-event"]
