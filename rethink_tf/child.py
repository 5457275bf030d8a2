"""Processes that end with this one, however it ends: kill -9 leaves none of them behind."""

import contextlib
import subprocess
import sys

# Its input ends with the parent, whose end of the pipe no other process has.
_RUN = """
import os, runpy, signal, sys, threading, time
def end_with_parent():
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    # A run saves first. TensorBoard may lose a signal that comes while it starts.
    time.sleep(600)
    os._exit(1)
threading.Thread(target=end_with_parent, daemon=True).start()
del sys.argv[0]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


@contextlib.contextmanager
def running(module, flags, **options):
    """Runs a Python module until the context ends, with SIGTERM then.

    Args:
        module: str, such as "rethink_tf.train".
        flags: list of str.
        **options: of `subprocess.Popen`.

    Yields:
        `subprocess.Popen`.
    """
    process = subprocess.Popen(
        [sys.executable, "-c", _RUN, module, *flags],
        stdin=subprocess.PIPE,
        # Ctrl-C is for this process, which ends the other one when it is done itself.
        start_new_session=True,
        **options,
    )
    try:
        yield process
    finally:
        process.stdin.close()
        process.wait()
