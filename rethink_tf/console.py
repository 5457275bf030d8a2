"""What a person sees of a run: its own lines, each once, and the warnings and errors of all.

The library logs through absl, an entry module calls `start`. Lines of this package are shown with
the time of day, tables as they are; of other packages warnings and errors alone. What TensorFlow's
C++ parts write goes through `stderr_filter`. TF_CPP_MIN_LOG_LEVEL=0 shows all of it.

This module imports no TensorFlow: it must be started before.
"""

import atexit
import contextlib
import logging as python_logging
import os
import pathlib
import re
import subprocess
import sys
import time

from absl import logging

from rethink_tf import stderr_filter

# `logging.info(..., extra=KEPT)` is shown by --quiet as well: header, evaluations and the end.
KEPT = {"is_kept": True}

_PACKAGE = str(pathlib.Path(__file__).parent) + os.sep
# Notes at the level of warnings; each names its source.
_NOTES = {
    # matplotlib, which pycocotools imports and nothing here draws with.
    "matplotlib": r"Matplotlib (is building the font cache|created a temporary cache directory)",
}
_is_quiet = False
_started = time.monotonic()


def start(quiet=False):
    """Sets up the lines of this process; to be called by an entry module, before TensorFlow comes.

    Args:
        quiet: bool, whether header, evaluations, warnings and the end are all that is shown.
    """
    global _is_quiet
    _is_quiet = quiet
    # Keras 3, which nothing here uses, and what it imports take a second of every start.
    os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
    if os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2") not in ("0", "1"):
        _filter_native_lines()
    logging.set_verbosity(logging.INFO)
    logging.use_absl_handler()
    handler = logging.get_absl_handler()
    handler.python_handler.stream = sys.stderr
    handler.setFormatter(_Formatter())
    handler.addFilter(_is_shown)


def leave(exit_code):
    """Ends the process at once, after what is registered with `atexit` and written so far.

    The interpreter's own end would take apart what TensorFlow's threads still work on: the end of a
    pipeline that reads ahead took up to a minute.

    Args:
        exit_code: int.
    """
    atexit._run_exitfuncs()
    python_logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(exit_code)


def shows_bars():
    """Whether progress bars are drawn: to a terminal, as a file would keep every state of them."""
    return not _is_quiet and sys.stderr.isatty()


def seconds_of_process():
    """Returns how long ago this module was imported, which an entry module does first."""
    return time.monotonic() - _started


def duration(seconds):
    """Returns seconds as "1d 02:03:04" or "02:03:04"."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    clock = f"{hour:02d}:{minute:02d}:{second:02d}"
    return f"{days}d {clock}" if days else clock


class _Formatter(python_logging.Formatter):
    """The time of day and the message; a message of several lines as it is."""

    def format(self, record):
        message = record.getMessage()
        if record.levelno >= python_logging.WARNING:
            message = f"{record.levelname.lower()}: {message}"
        if "\n" not in message:
            message = f"{time.strftime('%H:%M:%S', time.localtime(record.created))} {message}"
        if record.exc_info:
            message += "\n" + self.formatException(record.exc_info)
        return message


def _is_shown(record):
    """Whether a line is shown; a filter of Python's logging."""
    if record.levelno >= python_logging.WARNING:
        pattern = _NOTES.get(record.name.partition(".")[0])
        return pattern is None or not re.match(pattern, record.getMessage())
    if not record.pathname.startswith(_PACKAGE):
        return False
    return not _is_quiet or getattr(record, "is_kept", False)


def _filter_native_lines():
    """Sends what is written to file descriptor 2 through `stderr_filter`, but for Python's own.

    C++ writes to the descriptor, Python to a copy of the one that was there. The filter is a
    process of its own, so that the last words of one that crashes are not lost.
    """
    try:
        own = os.dup(2)
    except OSError:  # there is no error output
        return
    sys.stderr.flush()
    sys.stderr = os.fdopen(own, "w", buffering=1, errors="backslashreplace")
    command = [sys.executable, "-I", "-S", stderr_filter.__file__]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=own, stderr=own)
    os.dup2(child.stdin.fileno(), 2)
    child.stdin.close()

    def finish():
        """Lets the filter end, and waits for its last lines unless a child process goes on."""
        os.dup2(own, 2)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(timeout=1)

    atexit.register(finish)
