"""Tests of rethink_tf.training.schedules, with the numbers of the paper and of Detectron2."""

import gin
import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from rethink_tf.training import schedule_rules, schedules


@pytest.mark.parametrize(
    "multiple, images, num_steps, drops, rate",
    [
        (6, 16, 540_000, (480_000, 520_000), 0.02),
        (2, 16, 180_000, (120_000, 160_000), 0.02),
        (1, 16, 90_000, (30_000, 70_000), 0.02),
        (9, 64, 202_500, (187_500, 197_500), 0.08),
        (3, 16, 270_000, (210_000, 250_000), 0.02),
        (6, 8, 1_080_000, (960_000, 1_040_000), 0.01),
        (2.5, 16, 225_000, (165_000, 205_000), 0.02),
    ],
)
def test_the_papers_rule(multiple, images, num_steps, drops, rate):
    rule = schedule_rules.paper_schedule(multiple, images)
    assert rule == (num_steps, drops, pytest.approx(rate, rel=1e-12), 500)


def test_given_length_keeps_the_fractions():
    rule = schedule_rules.paper_schedule(6, 16, num_steps=5_400)
    assert rule == (5_400, (4_800, 5_200), 0.02, 500)
    assert schedule_rules.paper_schedule(6, 16, num_steps=540) == (540, (480, 520), 0.02, 54)
    # Too short for drops or warm-up of their own; still a schedule.
    assert schedule_rules.paper_schedule(6, 16, num_steps=2) == (2, (2, 2), 0.02, 0)


@pytest.mark.parametrize(
    ("schedule", "steps", "start"),
    [
        # The paper's cascade: the last 270,000 of 810,000.
        (schedules.PaperSchedule(9, 16), 270_000, 540_000),
        (schedules.PaperSchedule(9, 64), 270_000, 135_000),
        (schedules.PaperSchedule(9, 2), 270_000, 4_320_000),
        (schedules.PaperSchedule(9, 2, num_steps=6), 270_000, 4),
        (schedules.PaperSchedule(9, 16), 60_000, schedules.PaperSchedule(9, 16).drop_steps[0]),
        (schedules.PaperSchedule(2, 16), 270_000, -90_000),
        (schedules.StepwiseSchedule(1000, 0.5), 300, 700),
        (schedules.CosineSchedule(1000, 0.5), 300, 700),
    ],
)
def test_where_the_last_steps_start(schedule, steps, start):
    assert schedule.start_of_last(steps) == start


@pytest.mark.parametrize(
    ("epochs", "num_steps", "drops", "warmup"),
    [
        # Detectron2's mask_rcnn_R_50_FPN_{100,200,400}ep_LSJ; the last drop there is at 2 and 4
        # times 177,546.
        (100, 184_375, (163_889, 177_546), 500),
        (200, 368_750, (327_778, 355_093), 1_000),
        (400, 737_500, (655_556, 710_185), 2_000),
    ],
)
def test_epochs_of_detectron2s_large_scale_jitter(epochs, num_steps, drops, warmup):
    settings = {"warmup_fraction": 500 / 184_375, "warmup_factor": 0.067}
    schedule = schedules.EpochSchedule(epochs, 118_000, 64, base_learning_rate=0.025, **settings)

    assert (schedule.num_steps, schedule.drop_steps) == (num_steps, drops)
    assert schedule.warmup_steps == warmup
    rates = [float(schedule(step)) for step in (0, warmup // 2, warmup, *drops)]
    # A linear rise from 0.067 of 0.1.
    np.testing.assert_allclose(rates, [0.0067, 0.05335, 0.1, 0.01, 0.001], rtol=1e-5)
    again = schedules.EpochSchedule.from_config(schedule.get_config())
    assert (again.num_steps, again.drop_steps) == (num_steps, drops)


def test_epochs_of_another_batch_or_length():
    other = schedules.EpochSchedule(10, 1_000, 32, base_learning_rate=0.025)
    assert other.num_steps == 312 and other.peak_learning_rate == 0.05  # 312.5 steps
    short = schedules.EpochSchedule(10, 1_000, 32, num_steps=27, warmup_fraction=0.1)
    assert (short.num_steps, short.drop_steps, short.warmup_steps) == (27, (24, 26), 3)
    for name, value in (("epochs", 0), ("images_per_epoch", 0), ("warmup_fraction", 2)):
        arguments = {"epochs": 1, "images_per_epoch": 9, "images_per_step": 3} | {name: value}
        with pytest.raises(ValueError, match=f"{name} is {value}"):
            schedules.EpochSchedule(**arguments)


def test_rate_for_16_images_can_be_given():
    # 35k images: rate 0.04, factor 0.02 at each drop.
    schedule = schedules.PaperSchedule(6, 16, base_learning_rate=0.04, decay_factor=0.02)
    rates = [float(schedule(step)) for step in (479_999, 480_000, 520_000)]
    np.testing.assert_allclose(rates, [0.04, 0.0008, 0.000016], rtol=1e-6)
    assert schedule_rules.paper_schedule(6, 32, base_learning_rate=0.04).peak_learning_rate == 0.08


def test_short_runs_have_tails_of_their_own():
    # PASCAL VOC: 144,000 steps, drops at the fractions of 6x.
    rule = schedule_rules.paper_schedule(1.6, 16, tails=(16_000, 5_333))
    assert rule == (144_000, (128_000, 138_667), 0.02, 500)
    # A tenth of the 10k images' schedule, with half the images a step.
    rule = schedule_rules.paper_schedule(22 / 90, 8, tails=(6_000, 2_000))
    assert rule == (44_000, (32_000, 40_000), 0.01, 500)
    assert schedule_rules.paper_schedule(0.1, 16, tails=()) == (9_000, (), 0.02, 500)


@pytest.mark.parametrize("call", ["python", "graph", "variable", "jit"])
def test_rates_by_step(call):
    schedule = schedules.PaperSchedule(6, 16)
    rate_of = {
        "python": schedule,
        "graph": tf.function(schedule),
        "variable": lambda step: schedule(tf.Variable(step, dtype=tf.int64)),
        "jit": tf.function(schedule, jit_compile=True),
    }[call]
    expected = {
        0: 0.02 / 3,
        # Detectron: factor * (1 - alpha) + alpha with alpha = 250 / 500.
        250: 0.02 * (0.5 / 3 + 0.5),
        499: 0.02 * (1 / 3 / 500 + 499 / 500),
        500: 0.02,
        479_999: 0.02,
        480_000: 0.002,
        519_999: 0.002,
        520_000: 0.0002,
        539_999: 0.0002,
        600_000: 0.0002,
    }
    for step, rate in expected.items():
        actual = rate_of(tf.constant(step, tf.int64))
        assert actual.dtype == tf.float32 and actual.shape == ()
        np.testing.assert_allclose(actual, rate, rtol=2e-7)


def test_drops_fall_on_their_step_where_float32_has_none():
    # 16,777,217 = 2**24 + 1 is the first integer that float32 cannot hold.
    drop = 2**24 + 1
    schedule = schedules.StepwiseSchedule(2 * drop, 1.0, drop_steps=[drop])
    assert float(schedule(drop - 1)) == 1.0
    assert float(schedule(drop)) == np.float32(0.1)


def test_stepwise_by_fractions_and_without_drops_or_warmup():
    schedule = schedules.StepwiseSchedule(1000, 0.5, drop_fractions=(0.8, 0.95), warmup_steps=10)
    assert schedule.drop_steps == (800, 950) and schedule.num_steps == 1000
    constant = schedules.StepwiseSchedule(10, 0.5, drop_steps=(), warmup_steps=0)
    assert {float(constant(step)) for step in range(12)} == {0.5}
    # The paper's 6x by default.
    assert schedules.StepwiseSchedule(540_000, 0.02).drop_steps == (480_000, 520_000)


def test_cosine():
    schedule = schedules.CosineSchedule(1100, 0.4, warmup_steps=100, final_factor=0.1)
    rates = [float(schedule(step)) for step in (0, 50, 100, 600, 1100, 5000)]
    # 0.4 * (1/3, 2/3, 1), halfway 0.4 * 0.55, then 0.4 * 0.1 for good.
    np.testing.assert_allclose(rates, [0.4 / 3, 0.8 / 3, 0.4, 0.22, 0.04, 0.04], rtol=1e-6)


@hypothesis.settings(max_examples=50, deadline=None)
@hypothesis.given(
    multiple=st.floats(0.7, 12),
    images=st.integers(1, 256),
    num_steps=st.none() | st.integers(1, 1_000_000),
)
def test_laws_of_the_rule(multiple, images, num_steps):
    rule = schedule_rules.paper_schedule(multiple, images, num_steps)
    assert 0 <= rule.warmup_steps <= rule.num_steps
    assert 0 <= rule.drop_steps[0] <= rule.drop_steps[1] <= rule.num_steps
    assert rule.peak_learning_rate == pytest.approx(0.02 * images / 16)
    if num_steps is None:
        # Images seen do not depend on the images a step, up to rounding.
        assert rule.num_steps * images == pytest.approx(multiple * 90_000 * 16, abs=images)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: schedule_rules.paper_schedule(0.5, 16), "45,000 steps, no more than the 60,000"),
        (lambda: schedule_rules.paper_schedule(0.5, 64), "11,250 steps, no more than the 15,000"),
        (
            lambda: schedule_rules.paper_schedule(1.6, 16, tails=(144_000,)),
            "144,000 steps, no more",
        ),
        (
            lambda: schedule_rules.paper_schedule(6, 16, tails=(2, 6)),
            r"tails are \[2, 6\].* descend",
        ),
        (lambda: schedule_rules.paper_schedule(6, 16, tails=(2, -6)), r"tails are \[2, -6\]"),
        (lambda: schedule_rules.paper_schedule(0, 16), "multiple is 0"),
        (lambda: schedule_rules.paper_schedule(6, -16), "images_per_step is -16"),
        (lambda: schedule_rules.paper_schedule(6, 16, num_steps=0), "num_steps is 0"),
        (lambda: schedule_rules.paper_schedule(6, 16, 100, 500), "500 steps does not fit .* 100"),
        (lambda: schedule_rules.paper_schedule(6, 16, warmup_steps=-1), "warm-up of -1"),
        (lambda: schedules.StepwiseSchedule(10, 0.0), "peak_learning_rate is 0.0"),
        (lambda: schedules.StepwiseSchedule(10, 1, drop_steps=[8, 6]), r"drop_steps are \[8, 6\]"),
        (lambda: schedules.StepwiseSchedule(10, 1, drop_steps=[11]), r"drop_steps are \[11\]"),
        (lambda: schedules.StepwiseSchedule(10, 1, decay_factor=0), "decay_factor is 0"),
        (lambda: schedules.StepwiseSchedule(10, 1, warmup_factor=2), "warmup_factor is 2"),
        (lambda: schedules.CosineSchedule(10, float("nan")), "peak_learning_rate is nan"),
        (lambda: schedules.CosineSchedule(10, 1, final_factor=2), "final_factor is 2"),
    ],
)
def test_impossible_schedules_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "schedule",
    [
        schedules.PaperSchedule(
            9, 64, num_steps=700, warmup_steps=20, decay_factor=0.2, tails=[9, 3]
        ),
        schedules.StepwiseSchedule(100, 0.3, drop_steps=[50], warmup_steps=7),
        schedules.CosineSchedule(100, 0.3, final_factor=0.01),
    ],
    ids=lambda schedule: type(schedule).__name__,
)
def test_serialised_and_back(schedule):
    config = tf_keras.optimizers.schedules.serialize(schedule)
    again = tf_keras.optimizers.schedules.deserialize(config)
    assert type(again) is type(schedule) and again.get_config() == schedule.get_config()
    for step in (0, 5, 49, 50, 99):
        assert float(again(step)) == float(schedule(step))


def test_gin_makes_a_schedule_that_an_optimizer_takes_and_saves():
    gin.parse_config(
        [
            "BATCH_SIZE = 64",
            "PaperSchedule.multiple = 9",
            "PaperSchedule.images_per_step = %BATCH_SIZE",
        ]
    )
    schedule = gin.get_configurable("PaperSchedule")()
    assert (schedule.num_steps, schedule.drop_steps) == (202_500, (187_500, 197_500))
    optimizer = tf_keras.optimizers.SGD(schedule)
    again = tf_keras.optimizers.SGD.from_config(optimizer.get_config())
    weight = tf.Variable(1.0)
    again.apply_gradients([(tf.constant(1.0), weight)])
    # Step 0: 0.08 / 3.
    np.testing.assert_allclose(weight, 1 - 0.08 / 3, rtol=1e-6)
