"""Two worker processes, of which one is told to stop, is killed, or is refused."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest
from experiment_runs import (
    REPOSITORY,
    assert_equal_weights,
    read_until,
    read_weights,
    start_workers,
    tiny,
)

from rethink_tf import exit_codes, locking

PARAMS = ["STEPS=36", "run.checkpoint_every=5", "run.keep_newest=20", "make_shapes.num_train=80"]


def end(processes):
    """Waits for the end of all, and returns their exit codes and what they printed since."""
    outputs = [process.communicate(timeout=200)[0] for process in processes]
    return [process.returncode for process in processes], outputs


def newest_step(model_dir):
    names = [path.name for path in (model_dir / "checkpoints").glob("step-*.index")]
    return max(int(re.search(r"\d+", name)[0]) for name in names)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, data_dir):
    """Returns the weights of a job that nobody disturbs."""
    folder = tmp_path_factory.mktemp("unbroken")
    processes = start_workers("quickstart.gin", tiny(folder, data_dir, *PARAMS), "train")
    codes, outputs = end(processes)
    assert codes == [0, 0], outputs
    return read_weights(folder, 36)


def test_a_job_whose_workers_are_stopped_and_killed_ends_like_one_whose_are_not(
    tmp_path, data_dir, unbroken
):
    broken = tiny(tmp_path / "broken", data_dir, *PARAMS)

    # One is told, and both stop after the same step, which only the first one writes.
    processes = start_workers("quickstart.gin", broken, "train")
    read_until(processes[1], "Starting from random weights")
    read_until(processes[0], "step 2/36")
    processes[1].send_signal(signal.SIGTERM)
    codes, outputs = end(processes)
    assert codes == [exit_codes.AGAIN] * 2, outputs
    stopped = newest_step(tmp_path / "broken")
    assert 2 <= stopped < 36

    processes = start_workers("quickstart.gin", broken, "train")
    read_until(processes[0], f"step {stopped + 1}/36")
    processes[1].kill()
    began = time.monotonic()
    codes, outputs = end(processes)
    assert codes == [exit_codes.AGAIN, -signal.SIGKILL], outputs
    # A bound that is promised, and not a measure of speed.
    assert time.monotonic() - began < 60
    assert "Traceback" not in outputs[0]
    last = [line for line in outputs[0].splitlines() if line.startswith("error: ")][-1]
    assert re.match(r"error: The connection to .*worker.* is lost", last), outputs[0]

    processes = start_workers("quickstart.gin", broken, "train")
    codes, outputs = end(processes)
    assert codes == [0, 0], outputs
    assert all("Continuing from" in output for output in outputs)
    assert_equal_weights(unbroken, read_weights(tmp_path / "broken", 36))


def test_the_supervisor_of_local_workers_brings_a_broken_job_to_the_same_end(
    tmp_path, data_dir, unbroken
):
    params = tiny(tmp_path / "run", data_dir, *PARAMS, "make_strategy.name='multi_worker_mirrored'")
    flags = ["--gin_file=quickstart.gin", "--gin_file=overlays/tiny.gin", "--mode=train"]
    flags.append("--tensorboard")
    flags += [f"--gin_param={each}" for each in params]
    job = subprocess.Popen(
        [REPOSITORY / "launch" / "local_workers.sh", "2", f"--logs={tmp_path / 'logs'}", "--"]
        + [sys.executable, "-m", "rethink_tf.train", *flags],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHON": sys.executable, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    output, is_killed = "", False
    for line in job.stdout:
        output += line
        if "step 7/36" in line and not is_killed:
            is_killed = True
            second = re.search(r"workers run as processes \d+, (\d+)", output)[1]
            os.kill(int(second), signal.SIGKILL)
    assert job.wait(timeout=60) == 0, output
    assert "worker 1 was killed by signal 9" in output and "restart 1 of 10" in output
    assert "Continuing from" in output
    assert "TensorBoard: http://localhost:" in output
    assert_equal_weights(unbroken, read_weights(tmp_path / "run", 36))


def test_workers_whose_chief_is_refused_end_with_it(tmp_path):
    folder = tmp_path / "run"
    # Only the chief takes the lock.
    with locking.FolderLock(str(folder / "training.lock"), "trains"):
        processes = start_workers("quickstart.gin", tiny(folder, tmp_path / "data", "STEPS=1"))
        codes, outputs = end(processes)
    assert codes == [exit_codes.REFUSED] * 2
    for output in outputs:
        assert f"error: worker 0: Process {os.getpid()} on" in output
        assert f"trains in {folder}" in output and "Traceback" not in output
    assert not folder.exists()
