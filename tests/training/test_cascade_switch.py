"""The switch of a run to its cascade: what stands still before it, and what goes on after it."""

import numpy as np
import pytest
import tensorflow as tf
from small_detector import DROP, STEPS, Run

SWITCH = DROP - 1
LATER = {f"{name}_stage{n}" for name in ("box_class", "box_regression") for n in (2, 3)}


@pytest.fixture(scope="module")
def one_device():
    return tf.distribute.OneDeviceStrategy("CPU:0")


@pytest.fixture(scope="module")
def without(one_device):
    """The run that never switches."""
    run = Run(one_device, cascade_from=STEPS)
    run.train(SWITCH + 1)
    return run


@pytest.fixture(scope="module")
def switched(one_device):
    """The run that switches, and the state of the later stages at the start and at the switch."""
    run = Run(one_device, cascade_from=SWITCH)
    later = run.model.box_head.stages[1:]
    run.states = [run.state(later)]
    run.train(SWITCH)
    run.states.append(run.state(later))
    run.trained_before = int(run.model.box_head.stages_trained.numpy())
    run.train(1)
    run.states.append(run.state(later))
    run.rpn_after = run.state([run.model.rpn])
    run.train(1)
    return run


def test_until_the_switch_the_later_stages_stand_still(switched):
    start, before, after = switched.states
    for first, second in zip(start, before, strict=True):
        np.testing.assert_array_equal(first, second)
    # Neither decayed nor pushed by an old velocity: their first step is their own.
    assert all(np.any(second != third) for second, third in zip(before, after, strict=True))
    assert switched.trained_before == 1
    assert int(switched.model.box_head.stages_trained) == 3
    for step, values in enumerate(switched.history):
        assert LATER <= values.keys() if step >= SWITCH else not LATER & values.keys()
        names = {"rpn_objectness", "rpn_box", "box_class", "box_regression", "weight_decay"}
        total = sum(values[name] for name in names | (LATER & values.keys()))
        assert values["total"] == pytest.approx(total, rel=1e-5)


def test_what_was_trained_continues_and_so_does_the_schedule(switched, without):
    # At the first step of the cascade the losses of everything else are those of the run without
    # it, for it is the same run up to there.
    for step in range(SWITCH + 1):
        for name in ("rpn_objectness", "rpn_box", "box_class", "box_regression", "learning_rate"):
            expected = without.history[step][name]
            assert switched.history[step][name] == pytest.approx(expected, rel=1e-6), name
    # The RPN's own losses do not see the cascade: if rate and velocity go on, so do its weights.
    for found, expected in zip(switched.rpn_after, without.state([without.model.rpn]), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)
    rates = [values["learning_rate"] for values in switched.history]
    np.testing.assert_allclose(rates, [0.01, 0.01, 0.01, 0.001], rtol=1e-6)
    assert int(switched.optimizer.iterations) == STEPS


def test_a_run_that_starts_again_at_the_switch_goes_on_alike(tmp_path, one_device, switched):
    first = Run(one_device, cascade_from=SWITCH)
    first.train(SWITCH)
    saved = tf.train.Checkpoint(model=first.model, optimizer=first.optimizer)
    path = saved.write(str(tmp_path / "checkpoint"))

    second = Run(one_device, cascade_from=SWITCH)
    checkpoint = tf.train.Checkpoint(model=second.model, optimizer=second.optimizer)
    checkpoint.read(path).assert_consumed()
    # As a new process would: the step is made once the weights are there.
    assert int(second.model.box_head.stages_trained) == 1
    second.make_step()
    second.train(STEPS - SWITCH)
    for found, expected in zip(second.history, switched.history[SWITCH:], strict=True):
        assert found == pytest.approx(expected, rel=1e-5)


def test_two_replicas_switch_as_one_does(two_replicas, switched):
    run = Run(two_replicas, cascade_from=SWITCH)
    run.train(STEPS)
    assert int(run.model.box_head.stages_trained.numpy()) == 3
    for found, expected in zip(run.history, switched.history, strict=True):
        assert found == pytest.approx(expected, rel=2e-2)
