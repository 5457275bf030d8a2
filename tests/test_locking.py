"""Locks of folders, held by real processes; leases on a file system in memory."""

import os
import signal
import subprocess
import sys

import pytest
from experiment_runs import REPOSITORY, read_until

from rethink_tf import exit_codes, files, locking

HOLDER = """
import sys, time
from rethink_tf import locking
with locking.FolderLock(sys.argv[1], "trains"):
    print("locked", flush=True)
    time.sleep(600)
"""


def test_one_process_holds_a_lock_and_a_killed_one_leaves_none_behind(tmp_path):
    path = str(tmp_path / "made" / "run" / "training.lock")
    command = [sys.executable, "-c", HOLDER, path]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as holder:
        read_until(holder, "locked")
        with pytest.raises(ValueError) as error, locking.FolderLock(path, "trains"):
            pass
        assert f"Process {holder.pid} on " in str(error.value)
        assert f"trains in {os.path.dirname(path)} since 2" in str(error.value)
        holder.send_signal(signal.SIGKILL)
    assert os.path.exists(path)
    with locking.FolderLock(path, "trains"):
        pass
    assert not os.path.exists(path)


def test_a_refused_start_leaves_no_folder(tmp_path):
    with locking.FolderLock(str(tmp_path / "a" / "b" / "training.lock"), "trains"):
        assert (tmp_path / "a" / "b").is_dir()
    assert list(tmp_path.iterdir()) == []


def make_lease(path):
    return locking.FolderLock(path, "trains", renewed_every=0.4, stale_after=2.0)


def test_a_lease_is_renewed_refused_to_others_and_taken_over_when_it_is_not():
    path = "ram://locks/run/training.lock"
    with make_lease(path):
        with pytest.raises(ValueError, match=rf"Process {os.getpid()} on .* trains in ram://"):
            make_lease(path).__enter__()
        left = files.read_text(path)
    assert not files.exists(path)
    # Of a process that was killed: nobody renews it.
    files.write_whole(path, left)
    with make_lease(path):
        assert files.read_text(path) != left
    # What a kill cuts is no lease.
    files.write_whole(path, left[:20])
    with make_lease(path):
        pass


ROBBED = """
import time
from rethink_tf import files, locking
path = "ram://locks/training.lock"
with locking.FolderLock(path, "trains", renewed_every=0.2, stale_after=1.0):
    files.write_whole(path, '{"id": "of another process"}')
    time.sleep(600)
"""


def test_a_process_whose_lease_was_taken_over_ends():
    command = [sys.executable, "-c", ROBBED]
    done = subprocess.run(command, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True, timeout=120)
    assert done.returncode == exit_codes.AGAIN, done.stderr
    assert "ram://locks/training.lock" in done.stderr and "this one ends at once" in done.stderr
