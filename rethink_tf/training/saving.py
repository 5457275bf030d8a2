"""Saving checkpoints: when, where, how many are kept, and what a kill or a full disk leaves."""

import atexit
import os
import shutil
import tempfile
import time
import zlib

import tensorflow as tf
from absl import logging
from tensorflow.python.checkpoint import graph_view

from rethink_tf import files, locking
from rethink_tf.training import checkpoint_files, checkpoints

SECONDS_OF_A_DAY = 86400


class Manager(tf.train.CheckpointManager):
    """TensorFlow's manager, whose error on a full disk says how much was needed."""

    def save(self, *args, **kwargs):
        """Saves as the base class does; what a full disk cuts is removed again.

        Raises:
            files.DiskFullError: if there is no space; earlier checkpoints are whole.
        """
        path = os.path.join(self.directory, "step-*")
        try:
            with files.naming_full_disk(path):
                return super().save(*args, **kwargs)
        except files.DiskFullError as error:
            # The bytes that are free are those before the removal.
            said = files.DiskFullError(path, self._num_bytes())
            _remove_all(_unfinished(self.directory))
            raise said from error.__cause__

    def _num_bytes(self):
        """Returns how much room a checkpoint takes, about."""
        found = graph_view.ObjectGraphView(self.checkpoint).breadth_first_traversal()[0]
        variables = [each for each in found if isinstance(each, tf.Variable)]
        return sum(each.shape.num_elements() * each.dtype.size for each in variables)


def make_manager(checkpoint, directory, strategy, step, interval=None, keep=3):
    """Returns a checkpoint manager that writes where this worker may.

    Every worker must save, because variables may be gathered over the replicas; all but the chief
    write to a temporary folder, which no run reads and which is removed when the process ends.

    Args:
        checkpoint: `tf.train.Checkpoint`.
        directory: str, the chief's folder.
        strategy: `tf.distribute.Strategy`.
        step: variable that counts the steps.
        interval: int, steps between two saves, and from the step of now to the first one; None
            saves only when told to.
        keep: int, how many to keep.
    """
    if not checkpoints.is_chief(strategy):
        directory, keep = _make_scratch_folder(directory, strategy), 1
    _mend_list(directory)
    manager = Manager(
        checkpoint,
        directory,
        max_to_keep=keep,
        checkpoint_name="step",
        step_counter=step,
        checkpoint_interval=interval,
    )
    # Else the first call would save, whatever the interval. The constructor's argument takes a
    # last step of 0 for none.
    manager._last_checkpoint_step = int(step.numpy())
    return manager


def _make_scratch_folder(directory, strategy):
    """Makes the folder that a later worker writes to: after a kill, its restart clears the same."""
    resolver, run = strategy.cluster_resolver, zlib.crc32(directory.encode())
    task = f"{resolver.task_type}{resolver.task_id}"
    folder = os.path.join(tempfile.gettempdir(), f"rethink_tf_{os.getuid()}_{run:08x}_{task}")
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder, mode=0o700)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def claim_folder(model_dir, resources):
    """Locks a folder for the training of this process, and removes what killed ones have left.

    Args:
        model_dir: str.
        resources: `contextlib.ExitStack`, which holds the lock until the run's end.

    Raises:
        ValueError: if another process trains into the folder.
    """
    path = os.path.join(model_dir, locking.TRAINING_LOCK)
    resources.enter_context(locking.FolderLock(path, "trains"))
    remove_leftovers(model_dir)


def remove_leftovers(model_dir):
    """Removes what killed processes of a run left half written; its training lock is held.

    Args:
        model_dir: str.
    """
    found = []
    for folder in ("checkpoints", "best", "branches"):
        found += _unfinished(os.path.join(model_dir, folder))
    _remove_all(found)
    # An evaluation may be writing one beside.
    for folder in ("", "results", "pictures"):
        for path in tf.io.gfile.glob(os.path.join(model_dir, folder, ".*.tmp")):
            if time.time() - tf.io.gfile.stat(path).mtime_nsec / 1e9 > SECONDS_OF_A_DAY:
                tf.io.gfile.remove(path)
                found.append(path)
    if found:
        logging.info("Removed what an earlier start left half written: %s.", ", ".join(found))


def _unfinished(folder):
    """Returns what a save that was cut has left in a folder of checkpoints."""
    patterns = ("step-*_temp*", "step-*.tempstate*", "checkpoint.tmp*", ".*.tmp")
    return [
        path for pattern in patterns for path in tf.io.gfile.glob(os.path.join(folder, pattern))
    ]


def _remove_all(paths):
    for path in paths:
        if tf.io.gfile.isdir(path):
            tf.io.gfile.rmtree(path)
        else:
            tf.io.gfile.remove(path)


def save_start(manager):
    """Saves the random weights of a new run, which a manager takes for saved; see `make_manager`.

    Args:
        manager: of `make_manager`.
    """
    manager._last_checkpoint_step = None
    manager.save(checkpoint_number=0, check_interval=False)


def save_stopped(manager, step):
    """Saves the step at which a run is stopped, unless the newest checkpoint is of it.

    Args:
        manager: of `make_manager`.
        step: int, of the run.
    """
    if manager._last_checkpoint_step != step:
        manager.save(checkpoint_number=step, check_interval=False)
        logging.info("Saved step %d.", step)


def _mend_list(directory):
    """Writes TensorFlow's list of a folder's checkpoints again where it cannot be read.

    The manager would refuse the folder, although the checkpoints themselves may be whole.
    """
    path = os.path.join(directory, "checkpoint")
    if not tf.io.gfile.exists(path):
        return
    try:
        if tf.train.get_checkpoint_state(directory):
            return
    except ValueError:
        pass  # It is empty, or names no checkpoint.
    found = checkpoint_files.list_newest_first(directory)
    logging.warning("%s cannot be read: it is written again, with %d.", path, len(found))
    tf.io.gfile.remove(path)
    if found:
        # A manager deletes none but those that have a time after its last one, here 0.
        times = list(map(float, range(1, len(found) + 1)))
        tf.compat.v1.train.update_checkpoint_state(
            directory, found[0], found[::-1], None, times, 0.0
        )
