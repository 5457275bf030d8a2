"""What worker processes agree on, in two real processes on the loopback."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest
import tensorflow as tf
import tf_keras
from experiment_runs import REPOSITORY

from launch.local_workers import free_addresses
from rethink_tf.training import checkpoints, saving, workers
from rethink_tf.training.optimizer import MomentumSGD

# What the two load weights from, one after the other; `make_folders` makes them.
CASES = ["whole", "damaged", "lagging", "nothing", "blind", "other", "all_damaged", "no_init"]

WORKER = """
import json, sys
import tensorflow as tf
strategy = tf.distribute.MultiWorkerMirroredStrategy()
from test_workers import CASES, make_checkpoint
from rethink_tf.training import checkpoint_files, checkpoints, workers

root, index = sys.argv[1:]
them = workers.of(strategy)
found = {"exchange": them.exchange(int(index) * "\u00e9x")}
for case in CASES:
    folder = f"{root}/{case}/{index}"
    with strategy.scope():
        checkpoint = make_checkpoint()
    try:
        init = f"{folder}/start" if case == "no_init" else None
        newest = checkpoint_files.find_newest(folder, them)
        checkpoints.load_weights(checkpoint, newest, folder, init, False, workers=them)
        found[case] = float(checkpoint.model.weight[0].numpy())
    except ValueError as error:
        found[case] = str(error)
with strategy.scope():
    variable = tf.Variable([0.0] * 3)
for name, step, value in (("step", int(index), 0.0), ("weights", 3, float(index))):
    strategy.experimental_local_results(variable)[0].assign([value] * 3)
    try:
        them.check_same_state(step, [variable])
    except ValueError as error:
        found[name] = str(error)
print("found", json.dumps(found), flush=True)
"""


class Model(tf_keras.Model):
    """A vector of equal numbers."""

    def __init__(self, value=0.0):
        super().__init__()
        self.weight = tf.Variable([value] * 100)
        self.built = True


def make_checkpoint(value=0.0):
    model, optimizer = Model(value), MomentumSGD(0.1)
    optimizer.build([model.weight])
    return checkpoints.make_checkpoint(model, optimizer)


def save(folder, *steps, offset=0.0):
    """Saves checkpoints whose weights are their steps."""
    for step in steps:
        checkpoint, here = make_checkpoint(step + offset), tf.distribute.get_strategy()
        step_counter = checkpoint.optimizer.iterations
        step_counter.assign(step)
        manager = saving.make_manager(checkpoint, str(folder), here, step_counter)
        manager.save(checkpoint_number=step)


def make_folders(root):
    """Makes the folders of each case, one a worker: what a file system shows it."""
    for case in CASES:
        for index in range(2):
            (root / case / str(index)).mkdir(parents=True)
    save(root / "whole" / "0", 2, 4)
    for case in CASES[1:3]:
        shutil.copytree(root / "whole" / "0", root / case / "0", dirs_exist_ok=True)
    for case in CASES[:3]:
        shutil.copytree(root / "whole" / "0", root / case / "1", dirs_exist_ok=True)
    _damage(root / "damaged" / "1" / "step-4")
    for path in (root / "lagging" / "1").glob("step-4.*"):
        path.unlink()
    save(root / "blind" / "0", 2, 4)
    for index in range(2):
        save(root / "other" / str(index), 4, offset=index)
        save(root / "all_damaged" / str(index), 4)
    _damage(root / "all_damaged" / "0" / "step-4")
    save(root / "no_init" / "0", 7)
    (root / "no_init" / "0" / "step-7.index").rename(root / "no_init" / "0" / "start.index")
    data = "data-00000-of-00001"
    (root / "no_init" / "0" / f"step-7.{data}").rename(root / "no_init" / "0" / f"start.{data}")


def _damage(path):
    path.with_name(path.name + ".data-00000-of-00001").write_bytes(b"")


def start(root, index, addresses):
    here = pathlib.Path(__file__).parent
    places = [str(each) for each in (here, here.parent, REPOSITORY)]
    task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, str(root), str(index)],
        env=os.environ | {"TF_CONFIG": json.dumps(task), "PYTHONPATH": os.pathsep.join(places)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What each of the two workers found, {case: value or error}, and the folder of the cases."""
    root = tmp_path_factory.mktemp("workers")
    make_folders(root)
    addresses = free_addresses(2)
    processes = [start(root, index, addresses) for index in range(2)]
    outputs = [process.communicate(timeout=400)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
    lines = [
        line.removeprefix("found ")
        for output in outputs
        for line in output.splitlines()
        if line.startswith("found ")
    ]
    return [json.loads(line) for line in lines], outputs


def both(found, case):
    """Returns what both workers found in a case: the same."""
    first, second = (each[case] for each in found[0])
    assert first == second
    return first


def test_texts_of_other_lengths_arrive_in_order(found):
    assert both(found, "exchange") == ["", "\u00e9x"]


@pytest.mark.parametrize(
    ("case", "value", "said"),
    [
        ("whole", 4.0, ""),
        ("damaged", 2.0, "step-4 cannot be read (worker 1: "),
        ("lagging", 2.0, "Passing over step-4"),
        ("nothing", 0.0, ""),
    ],
)
def test_the_newest_that_all_can_read_is_taken(found, case, value, said):
    assert both(found, case) == value
    assert all(said in output for output in found[1])


@pytest.mark.parametrize(
    ("case", "parts"),
    [
        ("blind", ["different checkpoints", "worker 0: step 4, 2; worker 1: none", "MODEL_DIR"]),
        ("other", ["step-4 is not the same on all workers", "worker 0: checksum", "worker 1: "]),
        ("all_damaged", ["None of the 1 checkpoints"]),
        ("no_init", ["worker 1: No checkpoint at"]),
        ("step", ["worker 0: step 0, weights", "worker 1: step 1, weights"]),
        ("weights", ["do not start from the same state: worker 0: step 3, weights with checksum"]),
    ],
)
def test_what_differs_stops_all_with_one_line(found, case, parts):
    # The paths are each worker's own here.
    for line in (each[case] for each in found[0]):
        assert "\n" not in line
        for part in parts:
            assert part in line


def test_one_process_has_nobody_to_ask(two_replicas):
    assert workers.of(tf.distribute.get_strategy()) is None
    assert workers.of(two_replicas) is None
