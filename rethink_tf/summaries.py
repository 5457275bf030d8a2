"""What TensorBoard shows of a run beside its scalars and pictures.

Everything is written to the default writer, that of Orbit's controller; where a process has none,
nothing is.
"""

import ast
import re
import time

import numpy as np
import tensorflow as tf
from tensorflow.python.ops import summary_ops_v2


def begin(step):
    """Says that the run goes on from before a step: TensorBoard drops what it has from there on.

    A run that was killed has written summaries of steps beyond the checkpoint that it goes on from.

    Args:
        step: int, the first that is written after this.
    """
    if not summary_ops_v2.has_default_writer():
        return
    log = tf.compat.v1.SessionLog(status=tf.compat.v1.SessionLog.START)
    event = tf.compat.v1.Event(wall_time=time.time(), step=step, session_log=log)
    summary_ops_v2.import_event(event.SerializeToString())


def write_settings(step, text, bindings):
    """Writes the settings of a run, as text and as hyper-parameters.

    Args:
        step: int.
        text: str, gin's operative config.
        bindings: {name: text of the value}, as of `config_record.canonical_bindings`.
    """
    # Only now: it takes part of a second.
    from tensorboard.plugins.hparams import summary_v2

    indented = "".join(f"    {line}\n" for line in text.splitlines())  # a block of code in Markdown
    tf.summary.text("config", indented, step=step)
    hparams = summary_v2.hparams_pb(hyperparameters(bindings))
    tf.summary.experimental.write_raw_pb(hparams.SerializeToString(), step=step)


def hyperparameters(bindings):
    """Returns {short name: bool, int, float or str}, without where things lie.

    Args:
        bindings: as of `write_settings`.
    """
    named = {}
    for name, value in bindings.items():
        if value.startswith("%"):  # MODEL_DIR and DATA_DIR
            continue
        short = re.sub(r"(\w+\.)+(?=\w+\.\w+$)", "", name)
        named[name if short in named else short] = _plain(value)
    return named


def _plain(value):
    if value.startswith("@"):
        return re.sub(r"(\w+\.)+(?=\w)", "", value)
    try:
        found = ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value
    return found if isinstance(found, (bool, int, float, str)) else value


def write_precision_recall(name, precision, step=None):
    """Writes a curve for TensorBoard's tab of precision-recall curves.

    Args:
        name: str, its tag.
        precision: float [R], at R recalls from 0 to 1.
        step: int, None for the default step.
    """
    from tensorboard.plugins.pr_curve import metadata

    # The tab's curves run along a threshold of the score, on which the recall falls.
    precision = np.asarray(precision, np.float64)[::-1]
    recall = np.linspace(1.0, 0.0, len(precision))
    is_reached = precision > 0
    # Counts are of 1000 objects: how many there are, a mean over categories does not say. The tab
    # cuts off the end of a curve whose counts round to 0.
    right = 1000 * recall * is_reached
    wrong = right * (1 / np.where(is_reached, precision, 1.0) - 1)
    rows = [right, wrong, np.zeros_like(right), 1000 - right, precision, recall]
    described = metadata.create_summary_metadata(name, "", len(precision))
    tf.summary.write(
        f"{name}/pr_curves",
        np.stack(rows).astype(np.float32),
        step=step,
        metadata=tf.compat.v1.SummaryMetadata.FromString(described.SerializeToString()),
    )
