"""Runs the runs of a study one after the other, each a process of its own."""

import collections
import os
import re
import time

from absl import logging

from rethink_tf import child, console, exit_codes, files, locking, metrics_file
from rethink_tf.metrics_file import COLLAPSED, OPEN
from rethink_tf.report import collecting
from rethink_tf.study import progress
from rethink_tf.study.planning import Run
from rethink_tf.study.settings import Study

RESTARTS = 10  # Of one run, after a process that asks for it or is killed.
_KEPT_LINES = 20
_SECONDS_BETWEEN_LOOKS = 0.1
_SECONDS_OF_SAVING = 120.0


class RunFailedError(RuntimeError):
    """A run was refused, or failed in a way that repeats; the message ends with its last lines."""


def run_all(study: Study, runs: list[Run], stop, show) -> list[str]:
    """Runs what is open of a study.

    A run that is done is passed over, one that was interrupted goes on from its newest checkpoint.
    A collapsed one, whose loss was not finite, is kept, and nothing goes on from it that needs a
    checkpoint which it did not reach.

    Args:
        study: the study.
        runs: its plan.
        stop: callable without arguments, whether to stop.
        show: callable of a text: the line of progress.

    Returns:
        The state of each run.

    Raises:
        RunFailedError: if a run was refused or failed otherwise.
        ValueError: if another process runs the study, or its folder is remote.
    """
    if files.is_remote(study.study_dir):
        raise ValueError(
            f"Study.study_dir is {study.study_dir}, and runs of this machine need a local folder: "
            "--jobs writes the commands for a launcher."
        )
    lock = locking.FolderLock(os.path.join(study.study_dir, "study.lock"), "runs a study")
    with lock:
        for number, run in enumerate(runs):
            left = sum(each.images for each in runs[number:])
            # Of the whole plan: a run that collapsed takes others with it.
            if collecting.states_of(runs)[run.name] == OPEN and not stop():
                _run_one(study, run, stop, _Line(study, run, number, len(runs), left, show))
        return list(collecting.states_of(runs).values())


def _run_one(study, run, stop, line):
    """Runs one run to its end, or until it is to stop."""
    for attempt in range(RESTARTS + 1):
        _wait_for_the_last(run, stop)
        line.begin()
        began = time.monotonic()
        code, last = _run_process(study, run, stop, line)
        if stop():
            return
        if code == exit_codes.DONE:
            images = (run.num_steps - line.first_step) * run.batch_size
            progress.note_time(study.study_dir, run, images, time.monotonic() - began)
            if _state(run) == OPEN:
                raise RunFailedError(
                    f"{run.name} ended without the evaluation of its last step, {run.num_steps}: "
                    "a study needs the mode train_and_evaluate, and evaluations in the run itself."
                )
            return
        if _state(run) == COLLAPSED:
            logging.warning("%s collapsed: %s", run.name, last[-1] if last else "")
            return
        if code != exit_codes.AGAIN and 0 < code <= 128:
            break
        logging.warning("%s ended with %d; starting it again (%d).", run.name, code, attempt + 1)
    said = "\n".join(last)
    raise RunFailedError(f"{run.name} ended with {code}. Its last lines:\n{said}")


def _wait_for_the_last(run, stop):
    """Waits for a run's process that a killed study has left: it saves before it ends.

    A process that does not end by then is named by the new one, which it refuses.
    """
    deadline = time.monotonic() + _SECONDS_OF_SAVING
    while time.monotonic() < deadline and not stop():
        try:
            path = os.path.join(run.model_dir, locking.TRAINING_LOCK)
            with locking.FolderLock(path, "is studied"):
                return
        except ValueError:
            time.sleep(_SECONDS_BETWEEN_LOOKS)


def _state(run):
    return metrics_file.state(run.model_dir, run.num_steps)


def _run_process(study, run, stop, line):
    """Starts a run; returns its exit code and its last lines, which are in its log."""
    path = log_path(study.study_dir, run)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    last = collections.deque(maxlen=_KEPT_LINES)
    # Into a file, and read from there: a pipe would fill up if this process were slow or gone.
    with (
        open(path, "ab") as log,
        open(path, errors="replace") as written,
        child.running("rethink_tf.train", run.flags, stdout=log, stderr=log) as process,
    ):
        written.seek(0, os.SEEK_END)
        is_running = True
        while is_running and not stop():
            time.sleep(_SECONDS_BETWEEN_LOOKS)
            # Asked before the reading: what it wrote last is read, too.
            is_running = process.poll() is None
            for text in written.read().splitlines():
                last.append(text)
                line.read(text)
    return process.returncode, list(last)


def log_path(study_dir, run):
    """Returns the file with what the processes of a run print."""
    return os.path.join(study_dir, "logs", f"{run.name.replace('/', '-')}.log")


class _Line:
    """The line of progress of a study, from the lines of the run that is under way."""

    def __init__(self, study, run, number, count, images_left, show):
        self._study, self._run, self._show = study, run, show
        self._place = f"{number + 1} of {count}"
        self._images_left = images_left
        self.begin()

    def begin(self):
        """Begins anew, for a process that was just started."""
        self._seen = None
        self.first_step = self._run.start_step

    def read(self, text):
        """Shows where the study is, if a line of a run says a step."""
        if found := re.search(r"Continuing from \S*step-(\d+)", text):
            self.first_step = int(found[1])
        found = re.search(r" step (\d+)/\d+ ", text)
        if not found:
            return
        step, now = int(found[1]), time.monotonic()
        if self._seen is None:
            self._seen = step, now
        first, since = self._seen
        rate = (step - first) * self._run.batch_size / (now - since) if step > first else None
        rate = rate or progress.measured_rate(self._study.study_dir)
        done = (step - self._run.start_step) * self._run.batch_size
        seconds = (self._images_left - done) / rate if rate else 0
        left = f", {console.duration(max(seconds, 0))} left" if rate else ""
        self._show(
            f"run {self._place}, {self._run.name}: step {step:,} of {self._run.num_steps:,}{left}"
        )
