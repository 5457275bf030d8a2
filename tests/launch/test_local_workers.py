"""The supervisor of local workers: real processes that fail in every way."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys

import pytest

from launch import local_workers

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]

# A worker that writes what it is told, and behaves as its script says, which knows `index` and how
# often this worker has been `started` before.
WORKER = """
import json, os, pathlib, signal, sys, time
config = json.loads(os.environ["TF_CONFIG"])
index = config["task"]["index"]
seen = pathlib.Path(sys.argv[1], f"starts-{index}")
started = len(seen.read_text().splitlines()) if seen.exists() else 0
with seen.open("a") as file:
    print(json.dumps(config), file=file)

def stop_with(code, number=signal.SIGTERM):
    signal.signal(number, lambda *_: os._exit(code))

def ready(others=1):
    pathlib.Path(sys.argv[1], f"ready-{index}-{started}").touch()
    while others and len(list(pathlib.Path(sys.argv[1]).glob(f"ready-*-{started}"))) <= others:
        time.sleep(0.01)
"""


def start(tmp_path, script, *options, workers=2):
    (tmp_path / "worker.py").write_text(WORKER + script)
    command = [REPOSITORY / "launch" / "local_workers.sh", f"--logs={tmp_path / 'logs'}"]
    command += ["--backoff=0.01", "--grace=20", *options, str(workers), "--"]
    return subprocess.Popen(
        [*command, sys.executable, tmp_path / "worker.py", tmp_path],
        env=os.environ | {"PYTHON": sys.executable},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(tmp_path, script, *options, workers=2):
    process = start(tmp_path, script, *options, workers=workers)
    output, _ = process.communicate(timeout=60)
    return process.returncode, output


def starts(tmp_path, index):
    return [json.loads(line) for line in (tmp_path / f"starts-{index}").open()]


def test_workers_get_one_cluster_and_their_own_logs(tmp_path):
    code, output = run(tmp_path, "print(f'from {index}')", workers=3)
    assert code == 0
    configs = [starts(tmp_path, index)[0] for index in range(3)]
    addresses = configs[0]["cluster"]["worker"]
    assert len(set(addresses)) == 3
    assert [each["cluster"]["worker"] for each in configs] == [addresses] * 3
    assert [each["task"] for each in configs] == [
        {"type": "worker", "index": index} for index in range(3)
    ]
    assert "from 0" in output and "from 1" not in output
    assert (tmp_path / "logs" / "worker-2.log").read_text() == "from 2\n"


@pytest.mark.parametrize(
    "how", ["sys.exit(75)", "os.kill(os.getpid(), signal.SIGKILL)", "os.abort()", "os._exit(137)"]
)
def test_a_lost_worker_starts_all_again_with_fresh_ports(tmp_path, how):
    script = f"""
stop_with(75)
ready()
if index == 1 and not started:
    {how}
while not started:
    time.sleep(0.01)
"""
    code, output = run(tmp_path, script)
    assert code == 0, output
    assert re.search(r"worker 1 (was killed by signal|ended with)", output)
    assert "restart 1 of 10" in output
    for index in range(2):
        first, second = starts(tmp_path, index)
        assert first["cluster"] != second["cluster"]


def test_one_worker_of_a_given_cluster_starts_again_in_it(tmp_path, monkeypatch):
    given = {"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 1}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(given))
    code, output = run(tmp_path, "sys.exit(0 if started else 75)", "--keep_cluster", workers=1)
    assert code == 0, output
    assert starts(tmp_path, 1) == [given, given]


def test_a_refusal_stops_the_others_and_is_final(tmp_path):
    script = """
stop_with(75)
ready()
if index == 1:
    sys.exit("error: no such folder")
while True:
    time.sleep(0.01)
"""
    code, output = run(tmp_path, script)
    assert code == 1
    assert "worker 1 ended with 1 (error: no such folder; all of it: " in output
    assert "restart" not in output


def test_a_worker_that_does_not_stop_is_killed_and_restarts_end(tmp_path):
    script = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
ready()
if index == 0:
    sys.exit(75)
while True:
    time.sleep(0.01)
"""
    code, output = run(tmp_path, script, "--restarts=1", "--grace=0.2")
    assert code == 75
    assert output.count("worker 1 did not stop within 0.2 s and is killed") == 2
    assert "1 restarts are used up" in output
    assert len(starts(tmp_path, 0)) == 2


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)], ids=["TERM", "INT"]
)
def test_signals_go_to_all_workers_whose_code_it_ends_with(tmp_path, number, code):
    script = f"""
stop_with({code}, signal.{number.name})
ready()
if index == 0:
    print("all run", flush=True)
while True:
    time.sleep(0.01)
"""
    process = start(tmp_path, script)
    for line in process.stdout:
        if "all run" in line:
            break
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == code, output
    assert len(starts(tmp_path, 0)) == len(starts(tmp_path, 1)) == 1


def test_a_command_that_is_not_there_is_one_line(tmp_path):
    done = subprocess.run(
        [REPOSITORY / "launch" / "local_workers.sh", "2", "--", "./no-such-command"],
        env=os.environ | {"PYTHON": sys.executable},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "error: the workers cannot be started" in done.stderr
    assert "no-such-command" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("codes", "decided"),
    [
        ([0, 0], 0),
        ([0, 75], None),
        ([-9, 75], None),
        ([137, 0], None),
        ([75, 1], 1),
        ([130, 75], 130),
        ([2, -9], 2),
        ([130, 1], 1),
    ],
)
def test_what_is_final_wins_over_what_starts_again(codes, decided):
    assert local_workers.decide(codes) == decided
