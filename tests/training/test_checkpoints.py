"""Checkpoints of real files: the newest that reads, the best, and clear errors."""

import json

import pytest
import tensorflow as tf
import tf_keras

from rethink_tf.training import checkpoint_files, checkpoints


class _Model(tf_keras.Model):
    def __init__(self, value):
        super().__init__()
        self.weight = tf.Variable([value] * 100)


def _save(folder, steps, keep=5):
    model, step = _Model(0.0), tf.Variable(0, dtype=tf.int64)
    manager = checkpoints.make_manager(
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


def test_a_damaged_state_file_does_not_matter(tmp_path):
    _save(tmp_path, [3])
    (tmp_path / "checkpoint").write_bytes(b"\0garbage")
    assert _restore(tmp_path)[1] == 3.0


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


def test_the_best_is_kept_across_a_restart(tmp_path):
    model, step = _Model(0.0), tf.Variable(0, dtype=tf.int64)

    def keeper():
        manager = checkpoints.make_manager(
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
