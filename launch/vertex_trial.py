"""One trial of a sweep, inside its container: `launch.vertex --sweep` starts it.

Vertex AI adds a flag --NAME=value for each parameter. They become gin bindings; the trial trains in
a folder of its own, and reports its evaluations as Vertex AI reads them.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time

from launch import commands
from launch.vertex_sweep import metric_id
from rethink_tf import cluster, metrics_file

_TRAIN_FLAGS = ("--gin_file=", "--gin_param=", "--mode=")


def split_arguments(arguments, trial):
    """Returns the metric, the trial's folder and the arguments of `rethink_tf.train`.

    Args:
        arguments: list of str, as Vertex AI calls the container.
        trial: str, its number.

    Raises:
        ValueError: if an argument is not a flag with a value.
    """
    metric, train, params = "", [], []
    for argument in arguments:
        found = re.fullmatch(r"--([\w./]+)=(.*)", argument, re.DOTALL)
        if not found:
            raise ValueError(f"{argument!r} is not a flag --NAME=value.")
        if found[1] == "sweep_metric":
            metric = found[2]
        elif found[1] == "gin_param":
            params.append(found[2])
        elif argument.startswith(_TRAIN_FLAGS):
            train.append(argument)
        else:
            # Discrete values come as floats, and counts are integers.
            whole = re.fullmatch(r"(-?\d+)\.0*", found[2])
            params.append(f"{found[1]}={whole[1] if whole else found[2]}")
    folder = commands.check_model_dir(params).rstrip("/") + f"/trial-{trial}"
    params.append(f"MODEL_DIR={folder!r}")
    return metric, folder, [*train, *(f"--gin_param={each}" for each in params)]


def report(metric, model_dir, trial, path):
    """Writes the evaluations of a run as Vertex AI reads them.

    Args:
        metric: str, a name in `metrics.jsonl`.
        model_dir: str, the run's folder.
        trial: str.
        path: str, the file that Vertex AI reads.

    Returns:
        int, how many evaluations there were.

    Raises:
        ValueError: if no evaluation has the metric.
    """
    evaluations = metrics_file.read_evaluations(model_dir)
    lines = [
        {
            "timestamp": found.get("time", time.time()),
            "trial": trial,
            metric_id(metric): str(float(found[metric])),
            "global_step": str(found["step"]),
            "checkpoint_path": "",
        }
        for found in evaluations
        if metric in found and not found.get("test_augmentation")
    ]
    if not lines:
        names = ", ".join(sorted({name for found in evaluations for name in found}))
        raise ValueError(f"{metrics_file.path_in(model_dir)} has no {metric!r}; it has {names}.")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    return len(lines)


def main(arguments=None):
    """Trains, reports, and returns the exit code of the training."""
    trial = os.environ.get("CLOUD_ML_TRIAL_ID", "0")
    try:
        metric, folder, train = split_arguments(
            sys.argv[1:] if arguments is None else arguments, trial
        )
    except ValueError as error:
        sys.exit(f"error: {error}")
    process = subprocess.Popen([sys.executable, "-m", "rethink_tf.train", *train])
    signal.signal(signal.SIGTERM, lambda number, _: process.send_signal(number))
    code = process.wait()
    if code:
        return code if code > 0 else 128 - code
    if not cluster.is_first(os.environ):
        return 0  # Of several workers the first one reports.
    # Vertex AI mounts buckets under /gcs.
    folder = folder.replace("gs://", "/gcs/", 1)
    path = os.environ.get("CLOUD_ML_HP_METRIC_FILE", "/tmp/hypertune/output.metrics")
    try:
        report(metric, folder, trial, path)
    except (OSError, ValueError) as error:
        sys.exit(f"error: the trial has no result to report: {error}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
