"""The past of runs: changes of the batch by the linear rule, and data that were left out."""

import json

import pytest

from rethink_tf.training import history
from rethink_tf.training.schedules import PaperSchedule, StepwiseSchedule


def write(folder, batches, skips=()):
    (folder / "history.json").write_text(json.dumps({"batches": batches, "skips": list(skips)}))


def test_the_papers_schedule_from_a_change_on(tmp_path):
    # 2x of 16 images has 180,000 steps, drops at 120,000 and 160,000. Half of it is done.
    write(tmp_path, [{"step": 0, "batch_size": 16}])
    found = history.read(tmp_path, 90000, 32)
    # The gin files' schedule is that of 32 images by now: 90,000 steps, drops at 60,000 and 80,000.
    schedule = found.continue_schedule(PaperSchedule(2, 32))
    assert schedule.num_steps == 90000 + 45000
    assert schedule.drop_steps == (90000 + 15000, 90000 + 35000)
    assert schedule.peak_learning_rate == pytest.approx(0.04)
    assert [float(schedule(step)) for step in (90000, 104999, 105000, 125000)] == pytest.approx(
        [0.04, 0.04, 0.004, 0.0004]
    )
    assert schedule.start_of_last(60000) == 105000
    assert found.images(90001) == 90000 * 16 + 32
    assert found.data_position(90000) == 45000

    # Its own numbers, of 16 images, are scaled where a schedule knows of no batch.
    absolute = found.continue_schedule(StepwiseSchedule(180000, 0.02, (120000, 160000)))
    assert (absolute.num_steps, absolute.drop_steps) == (schedule.num_steps, schedule.drop_steps)
    assert float(absolute(90000)) == pytest.approx(0.04)


def test_a_second_change_and_a_way_back(tmp_path):
    write(tmp_path, [{"step": 0, "batch_size": 16}, {"step": 1000, "batch_size": 8}])
    found = history.read(tmp_path, 3000, 16)
    assert found.images(3000) == 1000 * 16 + 2000 * 8
    assert found.continue_schedule(PaperSchedule(1, 16)).num_steps == 3000 + 88000
    # Of a checkpoint from before the changes, they did not happen.
    assert history.read(tmp_path, 1000, 16).batches == [{"step": 0, "batch_size": 16}]
    schedule = PaperSchedule(1, 16)
    assert history.read(tmp_path, 500, 16).continue_schedule(schedule) is schedule


def test_data_left_out_move_the_order_of_the_rest(tmp_path):
    found = history.read(tmp_path, 0, 16)
    assert found.data_position(7) == 7
    found.skip(4, 3)
    assert found.data_position(4) == 7 and found.data_position(10) == 13
    found.write(tmp_path)
    assert history.read(tmp_path, 10, 16).data_position(10) == 13
    assert history.read(tmp_path, 3, 16).data_position(3) == 3
    # Three batches of 16 are six of 8.
    assert history.read(tmp_path, 10, 8).data_position(10) == 26


@pytest.mark.parametrize("text", ["", "[]", "{", '{"batches": [], "skips": []}', '{"batches": 1}'])
def test_a_damaged_history_is_named(tmp_path, text):
    (tmp_path / "history.json").write_text(text)
    with pytest.raises(ValueError, match=r"history\.json is damaged"):
        history.read(tmp_path, 3, 16)
