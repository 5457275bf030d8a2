"""Micro-batches, clipping and the average in the training step, against all images at once."""

import functools

import numpy as np
import pytest
import tensorflow as tf
from small_detector import Run, make_batch

from rethink_tf.models.mask_head import MaskHead
from rethink_tf.training.averaging import WeightAverage

IMAGES, SWITCH, CLIP, DECAY = 4, 1, 0.5, 0.6
# So few proposals that every image has all of them: then the losses' divisors are equal too.
OPTIONS = {"cascade_from": SWITCH, "clip_norm": CLIP, "proposals": 12}
average = functools.partial(WeightAverage, decay=DECAY)


@pytest.fixture(scope="module")
def one_device():
    return tf.distribute.OneDeviceStrategy("CPU:0")


def train(strategy, **options):
    """Trains a step without and a step with the later stages; keeps the states in between."""
    run = Run(strategy, average=average, **OPTIONS | options)
    run.layers = [run.model]
    run.states = [run.state(run.layers)]
    run.averages = []
    for _ in range(2):
        run.train(1, make_batch(IMAGES))
        run.states.append(run.state(run.layers))
        run.averages.append([each.numpy() for each in run.average.variables])
    return run


@pytest.fixture(scope="module")
def whole(one_device):
    """The run whose steps are one batch."""
    return train(one_device)


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [({"accumulate_steps": 4}, 1e-5), ({"accumulate_steps": 2, "jit_compile": True}, 1e-4)],
)
def test_micro_batches_are_the_batch_at_once(one_device, whole, options, tolerance):
    check_alike(train(one_device, **options), whole, tolerance)


def test_micro_batches_on_two_replicas(two_replicas, whole):
    check_alike(train(two_replicas, accumulate_steps=2), whole, 1e-5)


def check_alike(run, whole, tolerance):
    for found, expected in zip(run.history, whole.history, strict=True):
        assert found == pytest.approx(expected, rel=10 * tolerance)
    for step in (1, 2):
        start, found, expected = whole.states[0], run.states[step], whole.states[step]
        for before, value, target in zip(start, found, expected, strict=True):
            moved = np.linalg.norm(target - before)
            assert np.linalg.norm(value - target) <= 100 * tolerance * moved + 1e-9
    for found, expected in zip(run.averages[-1], whole.averages[-1], strict=True):
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=10 * tolerance)
    assert int(run.optimizer.iterations) == 2


def test_stages_that_stand_still_do_so(whole):
    later = [
        each for stage in whole.model.box_head.stages[1:] for each in stage.trainable_variables
    ]
    places = [
        place
        for place, variable in enumerate(whole.model.trainable_variables)
        if any(variable is each for each in later)
    ]
    assert places
    for place in places:
        np.testing.assert_array_equal(whole.states[0][place], whole.states[1][place])
        assert np.any(whole.states[1][place] != whole.states[2][place])


def test_the_gradient_is_clipped_before_the_decay_is_added(whole):
    # The first velocity is the clipped gradient and the decay.
    count = len(whole.model.trainable_variables)
    weights, velocities = whole.states[0], whole.states[1][count:]
    squares = 0.0
    for variable, weight, velocity in zip(
        whole.model.trainable_variables, weights[:count], velocities, strict=True
    ):
        decay = 1e-4 if "kernel" in variable.name else 0.0
        if "stage" in variable.name and not np.any(velocity):
            continue
        squares += np.sum((velocity - decay * weight) ** 2)
    norm = whole.history[0]["gradient_norm"]
    assert norm > 2 * CLIP and squares**0.5 == pytest.approx(CLIP, rel=1e-4)


def test_the_average_follows_the_weights(whole):
    count = len(whole.model.trainable_variables)
    expected = whole.states[0][:count]
    for step, state in enumerate(whole.states[1:], start=1):
        decay = min(DECAY, (1 + step) / (10 + step))
        expected = [
            decay * old + (1 - decay) * new
            for old, new in zip(expected, state[:count], strict=True)
        ]
    # This model has no other floating variable.
    for found, value in zip(whole.averages[-1], expected, strict=True):
        np.testing.assert_allclose(found, value, rtol=1e-5, atol=1e-7)


def test_the_mask_losses_count_by_micro_batch(one_device):
    # Images with different numbers of masks: the step is the mean of steps of each image alone.
    rng = np.random.default_rng(3)
    batch = make_batch(2) | {"masks": rng.integers(0, 256, [2, 3, 28, 28]).astype(np.uint8)}
    batch["classes"][1, 1:] = 0
    batch["boxes"][1, 1:] = 0
    mask_head = functools.partial(MaskHead, num_convs=1, channels=16)
    single = Run(one_device, mask_head=mask_head, cascade_from=9)
    start = single.state([single.model])
    ends = []
    for image in range(2):
        for variable in [single.optimizer.iterations, *single.optimizer.velocities]:
            variable.assign(tf.zeros_like(variable))
        for variable, value in zip(single.model.trainable_variables, start, strict=False):
            variable.assign(value)
        single.train(1, {key: value[image : image + 1] for key, value in batch.items()})
        ends.append(single.state([single.model]))
    both = Run(one_device, mask_head=mask_head, cascade_from=9, accumulate_steps=2)
    both.train(1, batch)
    for name in ("mask", "box_class", "rpn_box", "roi_positives", "total"):
        values = [each[name] for each in single.history]
        assert both.history[0][name] == pytest.approx(np.mean(values), rel=1e-5), name
    assert single.history[0]["roi_positives"] != single.history[1]["roi_positives"]
    for before, first, second, found in zip(start, *ends, both.state([both.model]), strict=True):
        mean = (first + second) / 2
        moved = np.linalg.norm(mean - before)
        assert np.linalg.norm(found - mean) <= 1e-4 * moved + 1e-8


def test_a_step_takes_its_micro_batches(one_device):
    run = Run(one_device, accumulate_steps=2)
    with pytest.raises(ValueError, match="takes 2 batches, got 1"):
        run.step(make_batch(1))
    run.options["clip_norm"] = -1.0
    with pytest.raises(ValueError, match="clip_norm is -1.0: it must be above 0"):
        run.make_step()
