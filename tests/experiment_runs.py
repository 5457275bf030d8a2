"""What the tests of whole experiments share: the tiny overlay, and how to read what a run left."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import tensorflow as tf

from launch.local_workers import free_addresses

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]


def tiny(model_dir, data_dir, *params):
    """Returns the bindings of a tiny run."""
    return [f"MODEL_DIR={str(model_dir)!r}", f"DATA_DIR={str(data_dir)!r}", *params]


def start(gin_file, params, mode="train_and_evaluate", flags=(), **environment):
    """Starts a tiny run as a process of its own, its output as text in `stdout`."""
    flags = [f"--gin_file={gin_file}", "--gin_file=overlays/tiny.gin", f"--mode={mode}", *flags]
    flags += [f"--gin_param={param}" for param in params]
    return subprocess.Popen(
        [sys.executable, "-m", "rethink_tf.train", *flags],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONUNBUFFERED": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def start_workers(gin_file, params, mode="train_and_evaluate", count=2):
    """Starts a tiny run as worker processes on the loopback; see `start`."""
    addresses, processes = free_addresses(count), []
    for index in range(count):
        task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        bindings = [*params, "make_strategy.name='multi_worker_mirrored'"]
        processes.append(start(gin_file, bindings, mode, TF_CONFIG=json.dumps(task)))
    return processes


def read_until(process, text):
    """Reads what a process prints up to the line with a text."""
    read = []
    for line in process.stdout:
        read.append(line)
        if text in line:
            return
    raise AssertionError(f"The process ended without {text!r}:\n{''.join(read)}")


def finish(gin_file, params, mode="train_and_evaluate"):
    """Runs a tiny run as a process to its good end, and returns what it printed."""
    process = start(gin_file, params, mode)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    return output


def read_scalars(model_dir):
    """Returns {(name, step): value} of all TensorBoard scalars; of one written twice the last."""
    scalars = {}
    for path in sorted(
        pathlib.Path(model_dir, "tensorboard").glob("events.*"), key=os.path.getmtime
    ):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                if value.metadata.plugin_data.plugin_name == "scalars":
                    scalars[value.tag, event.step] = float(tf.make_ndarray(value.tensor))
    return scalars


def read_weights(model_dir, step):
    """Returns {name: array} of a run's checkpoint."""
    reader = tf.train.load_checkpoint(str(pathlib.Path(model_dir, "checkpoints", f"step-{step}")))
    names = [name for name in reader.get_variable_to_shape_map() if "VARIABLE_VALUE" in name]
    return {name: reader.get_tensor(name) for name in names if "save_counter" not in name}


def assert_equal_weights(expected, found):
    """Asserts that two results of `read_weights` are equal to the last bit."""
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(value, found[name], err_msg=name)


def read_metrics(model_dir):
    """Returns the lines of metrics.jsonl as dicts."""
    return [json.loads(line) for line in pathlib.Path(model_dir, "metrics.jsonl").open()]
