"""Saving on a disk that is full: a real file system of a few hundred kilobytes."""

import contextlib
import os
import subprocess

import pytest
import tensorflow as tf
import tf_keras

from rethink_tf import files
from rethink_tf.training import checkpoint_files, checkpoints, saving
from rethink_tf.training.optimizer import MomentumSGD


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(folder)]
    with contextlib.suppress(OSError):
        if subprocess.run(command, capture_output=True, check=False).returncode == 0:
            yield folder
            subprocess.run(["umount", str(folder)], check=True)
            return
    pytest.skip("mounting a small file system needs root")


class Model(tf_keras.Model):
    def __init__(self):
        super().__init__()
        self.weight = tf.Variable(tf.random.normal([60_000]))  # 240 kB, and as much of velocity
        self.built = True


def test_the_last_checkpoint_stays_whole_and_the_line_says_what_was_needed(small_disk):
    model, optimizer = Model(), MomentumSGD(0.1)
    optimizer.build([model.weight])
    checkpoint = checkpoints.make_checkpoint(model, optimizer)
    folder = str(small_disk / "checkpoints")
    step = optimizer.iterations
    manager = saving.make_manager(checkpoint, folder, tf.distribute.get_strategy(), step)
    step.assign(1)
    manager.save(checkpoint_number=1)
    step.assign(2)
    with pytest.raises(files.DiskFullError) as error:
        manager.save(checkpoint_number=2)
    assert "480," in str(error.value) and "bytes are needed and" in str(error.value)
    assert folder in str(error.value)
    assert checkpoint_files.find_newest(folder) == f"{folder}/step-1"
    assert sorted(os.listdir(folder)) == [
        "checkpoint",
        "step-1.data-00000-of-00001",
        "step-1.index",
    ]
    # With room again, by the same manager.
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    manager.save(checkpoint_number=2)
    assert checkpoint_files.find_newest(folder) == f"{folder}/step-2"


def test_other_files_that_do_not_fit_are_named_and_leave_nothing(small_disk):
    files.write_whole(small_disk / "results" / "a.json", "whole")
    with pytest.raises(files.DiskFullError, match=r"results/a\.json could not be .*1,000,000 by"):
        files.write_whole(small_disk / "results" / "a.json", b"x" * 1_000_000)
    assert os.listdir(small_disk / "results") == ["a.json"]
    assert (small_disk / "results" / "a.json").read_text() == "whole"
