"""Checkpoints of real files: the newest that reads, the best, and clear errors."""

import json
import os
import time

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from rethink_tf.training import averaging, checkpoint_files, checkpoints, saving
from rethink_tf.training.optimizer import MomentumSGD


class _Model(tf_keras.Model):
    def __init__(self, value):
        super().__init__()
        self.weight = tf.Variable([value] * 100)


def _save(folder, steps, keep=5):
    model, step = _Model(0.0), tf.Variable(0, dtype=tf.int64)
    manager = saving.make_manager(
        tf.train.Checkpoint(model=model), str(folder), tf.distribute.get_strategy(), step, keep=keep
    )
    for number in steps:
        model.weight.assign([float(number)] * 100)
        manager.save(checkpoint_number=number)


def _restore(folder):
    model = _Model(-1.0)
    path = checkpoint_files.find_newest(str(folder))
    if path:
        checkpoints.restore(tf.train.Checkpoint(model=model), path)
    return path, float(model.weight[0])


def test_the_newest_is_restored_by_step_not_by_name(tmp_path):
    _save(tmp_path, [900, 1000])
    path, value = _restore(tmp_path)
    assert path.endswith("step-1000") and value == 1000.0


@pytest.mark.parametrize("damage", ["truncate", "remove_data", "flip"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path, damage):
    _save(tmp_path, [1, 2])
    data = tmp_path / "step-2.data-00000-of-00001"
    content = bytearray(data.read_bytes())
    if damage == "truncate":
        data.write_bytes(content[: len(content) // 2])
    elif damage == "remove_data":
        data.unlink()
    else:
        content[20] ^= 0xFF
        data.write_bytes(content)
    path, value = _restore(tmp_path)
    assert path.endswith("step-1") and value == 1.0


@pytest.mark.parametrize("content", [b"", b"\0garbage", b'model_checkpoint_path: "'])
def test_a_damaged_list_of_checkpoints_does_not_matter(tmp_path, content):
    """Not to what is read, nor to saving on, which keeps as many as before."""
    _save(tmp_path, [3, 4])
    (tmp_path / "checkpoint").write_bytes(content)
    assert _restore(tmp_path)[1] == 4.0
    _save(tmp_path, [5], keep=2)
    paths = checkpoint_files.list_newest_first(str(tmp_path))
    assert [path.rpartition("-")[2] for path in paths] == ["5", "4"]


def test_an_empty_folder_restores_nothing(tmp_path):
    assert _restore(tmp_path) == (None, -1.0)


def test_only_damaged_checkpoints_are_an_error(tmp_path):
    _save(tmp_path, [1])
    (tmp_path / "step-1.data-00000-of-00001").write_bytes(b"")
    with pytest.raises(ValueError, match="None of the 1 checkpoints"):
        _restore(tmp_path)


def test_only_the_newest_are_kept(tmp_path):
    _save(tmp_path, [1, 2, 3], keep=2)
    assert [p.rpartition("-")[2] for p in checkpoint_files.list_newest_first(str(tmp_path))] == [
        "3",
        "2",
    ]


def test_the_first_save_comes_after_the_interval_like_every_other(tmp_path):
    """By a new run, and by one that goes on from between two of them."""
    model, step = _Model(0.0), tf.Variable(0, dtype=tf.int64)
    checkpoint = tf.train.Checkpoint(model=model)
    saved = []
    for stop in (9, 23):
        manager = saving.make_manager(
            checkpoint, str(tmp_path), tf.distribute.get_strategy(), step, interval=4
        )
        while step < stop:
            step.assign_add(1)
            if manager.save(checkpoint_number=step):
                saved.append(int(step))
    assert saved == [4, 8, 13, 17, 21]
    # At the end of a run it saves whatever the interval.
    assert manager.save(checkpoint_number=step, check_interval=False)


def test_a_checkpoint_of_other_freezing_is_refused_or_read_as_weights(tmp_path):
    """The weights are found by name, the velocities by place."""

    def make(freeze_at):
        model = tf_keras.Sequential([tf_keras.layers.Dense(2) for _ in range(3)])
        for layer in model.layers[:freeze_at]:
            layer.trainable = False
        model.build([None, 2])  # All kernels have one shape.
        optimizer = MomentumSGD(0.1)
        optimizer.build(model.trainable_variables)
        average = averaging.WeightAverage(model)
        return model, checkpoints.make_checkpoint(model, optimizer, average), average

    model, checkpoint, average = make(freeze_at=0)
    average.start()
    path = checkpoint.save(str(tmp_path / "runs" / "step"))
    other, of_other, average = make(freeze_at=1)
    with pytest.raises(ValueError, match=r"trained 6 weights, and this one trains 4.*freeze_at"):
        checkpoints.restore(of_other, path)
    before = other.get_weights()
    with pytest.raises(ValueError, match=r"leaves 2 weights .* pre-trained, and no weights are"):
        checkpoints.load_weights(of_other, None, str(tmp_path / "none"), None, required=False)
    for found, old in zip(other.get_weights(), before, strict=True):
        np.testing.assert_array_equal(found, old)
    checkpoints.load_weights(of_other, None, str(tmp_path / "none"), path, False, average)
    for pair in zip(other.layers, model.layers, strict=True):
        for found, expected in zip(*(layer.get_weights() for layer in pair), strict=True):
            np.testing.assert_array_equal(found, expected)
    # The averages are of the same weights, whatever is frozen.
    assert [each.name.split("/")[:-1] for each in average.variables] == [
        each.name.split(":")[0].split("/") for layer in other.layers for each in layer.weights
    ]

    # And back again: what a run with a frozen layer left starts one without.
    path = of_other.save(str(tmp_path / "frozen" / "step"))
    free, of_free, average = make(freeze_at=0)
    checkpoints.load_weights(of_free, None, str(tmp_path / "none"), path, False, average)
    np.testing.assert_array_equal(free.layers[0].kernel, model.layers[0].kernel)
    with pytest.raises(ValueError, match=r"trained 4 weights, and this one trains 6"):
        checkpoints.restore(of_free, path)


def test_the_best_is_kept_across_a_restart(tmp_path):
    model, step = _Model(0.0), tf.Variable(0, dtype=tf.int64)

    def keeper():
        manager = saving.make_manager(
            tf.train.Checkpoint(model=model),
            str(tmp_path),
            tf.distribute.get_strategy(),
            step,
            keep=1,
        )
        return checkpoints.BestKeeper(manager, str(tmp_path))

    first = keeper()
    assert first.offer(0.3, 10)
    assert not first.offer(0.3, 20)
    assert not keeper().offer(0.2, 30)
    assert keeper().offer(0.4, 40)
    assert json.loads((tmp_path / "best.json").read_text()) == {"score": 0.4, "step": 40}
    assert [p.rpartition("-")[2] for p in checkpoint_files.list_newest_first(str(tmp_path))] == [
        "40"
    ]


@pytest.mark.parametrize("content", ["", '{"score": 0.', '{"step": 40}', "[1]"])
def test_a_cut_record_of_the_best_does_not_stop_a_run(tmp_path, caplog, content):
    (tmp_path / "best.json").write_text(content)
    model, step = _Model(0.0), tf.Variable(0, dtype=tf.int64)
    manager = saving.make_manager(
        tf.train.Checkpoint(model=model), str(tmp_path), tf.distribute.get_strategy(), step, keep=1
    )
    with caplog.at_level("WARNING", logger="absl"):
        keeper = checkpoints.BestKeeper(manager, str(tmp_path))
    assert f"{tmp_path}/best.json is damaged" in caplog.text
    assert keeper.offer(0.1, 50)
    assert json.loads((tmp_path / "best.json").read_text()) == {"score": 0.1, "step": 50}


def test_initialize_names_what_is_missing(tmp_path):
    with pytest.raises(ValueError, match="No checkpoint at"):
        checkpoints.initialize(_Model(0.0), str(tmp_path / "nothing"))


def test_initialize_from_a_folder_and_refuses_another_model(tmp_path):
    _save(tmp_path, [5])
    model = _Model(0.0)
    checkpoints.initialize(model, str(tmp_path))
    assert float(model.weight[0]) == 5.0
    model.other = tf.Variable(1.0)
    with pytest.raises(ValueError, match="does not fit the detector"):
        checkpoints.initialize(model, str(tmp_path))


def test_what_a_kill_left_half_written_is_removed_and_nothing_else(tmp_path):
    folder = tmp_path / "checkpoints"
    _save(folder, [3])
    (tmp_path / "results").mkdir()
    (folder / "step-4_temp").mkdir()
    cut = [folder / "step-4_temp" / "part-00000-of-00001.data", folder / "step-4.tempstate12"]
    cut += [folder / "checkpoint.tmp0a1b", folder / ".step-4.tmp"]
    old, new = tmp_path / ".config.gin.1.tmp", tmp_path / "results" / ".detections-3.json.2.tmp"
    for path in (*cut, old, new):
        path.write_bytes(b"half")
    yesterday = time.time() - 1.1 * saving.SECONDS_OF_A_DAY
    os.utime(old, (yesterday, yesterday))

    saving.remove_leftovers(str(tmp_path))
    assert not any(path.exists() for path in (*cut, folder / "step-4_temp", old))
    # An evaluation beside may be writing it.
    assert new.exists()
    path, value = _restore(folder)
    assert path.endswith("step-3") and value == 3.0
