"""TensorBoard beside a run, as a real process."""

import contextlib
import io
import json
import signal
import socket
import subprocess
import sys
import threading
import urllib.request

import pytest

from rethink_tf import curves


class Lines(io.StringIO):
    """Text that tells when it has a whole line."""

    def __init__(self):
        super().__init__()
        self.has_line = threading.Event()

    def flush(self):
        self.has_line.set()


def test_tensorboard_answers_at_its_address_and_ends_with_the_run(tmp_path):
    output = Lines()
    with curves.tensorboard(str(tmp_path), output):
        assert output.has_line.wait(timeout=60)
        address = output.getvalue().removeprefix("TensorBoard: ").strip()
        with urllib.request.urlopen(f"{address}data/environment", timeout=60) as answer:
            found = json.load(answer)
        assert found["data_location"] == str(tmp_path)
    with pytest.raises(OSError):
        urllib.request.urlopen(address, timeout=5)


def test_a_killed_run_leaves_no_tensorboard_behind(tmp_path):
    code = "import sys, time; from rethink_tf import curves\n"
    code += "with curves.tensorboard(sys.argv[1]): time.sleep(600)"
    run = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, text=True
    )
    address = run.stdout.readline().removeprefix("TensorBoard: ").strip()
    host, port = address.removeprefix("http://").strip("/").split(":")
    connection = socket.create_connection((host, int(port)), timeout=60)
    run.send_signal(signal.SIGKILL)
    run.wait()
    # TensorBoard's end closes the connection, or resets it if it has not taken it yet.
    with contextlib.suppress(ConnectionResetError):
        assert connection.recv(1) == b""


def test_vertex_ai_names_the_folder_of_summaries(monkeypatch):
    monkeypatch.delenv("AIP_TENSORBOARD_LOG_DIR", raising=False)
    assert curves.summary_folder("/runs/r50") == "/runs/r50/tensorboard"
    assert curves.shown_folder("/runs/r50") == "/runs/r50"
    monkeypatch.setenv("AIP_TENSORBOARD_LOG_DIR", "gs://bucket/r50/logs/")
    for folder in (curves.summary_folder, curves.shown_folder):
        assert folder("/runs/r50") == "gs://bucket/r50/logs/"
