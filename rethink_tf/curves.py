"""TensorBoard beside a run: its address is printed, and it ends with the run."""

import contextlib
import os
import re
import subprocess
import sys
import threading

from rethink_tf import child

_VERTEX_AI = "AIP_TENSORBOARD_LOG_DIR"


def summary_folder(model_dir):
    """Returns the folder of a run's summaries.

    Args:
        model_dir: str.

    Returns:
        str; on Vertex AI the folder that its managed TensorBoard watches.
    """
    return os.environ.get(_VERTEX_AI) or os.path.join(model_dir, "tensorboard")


def shown_folder(model_dir):
    """Returns the folder to give TensorBoard for a run: str.

    It is the one above the summaries: of a run in that folder itself, the tab of hyper-parameters
    shows no metrics.

    Args:
        model_dir: str.
    """
    return os.environ.get(_VERTEX_AI) or model_dir


@contextlib.contextmanager
def tensorboard(model_dir, output=sys.stdout):
    """Runs TensorBoard on a run's summaries, on a free port of this machine.

    Args:
        model_dir: str.
        output: file, where its address goes, or why it did not start.
    """
    with child.running(
        "tensorboard.main",
        ["--port=0", "--host=localhost", f"--logdir={shown_folder(model_dir)}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        reader = threading.Thread(target=_announce, args=(process, output), daemon=True)
        reader.start()
        yield
    reader.join()


def _announce(process, output):
    """Prints the address once it is known, and reads on: a full pipe would stop TensorBoard."""
    address, last = None, ""
    for line in process.stderr:
        found = re.search(r"http://\S+", line)
        if found and not address:
            address = found[0]
            print(f"TensorBoard: {address}", file=output, flush=True)
        last = line.strip() or last
    if not address:
        print(f"TensorBoard did not start: {last}", file=output, flush=True)
