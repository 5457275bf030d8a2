"""A detector's forward and backward pass, its plans, and how two of them are compared."""

import contextlib
import dataclasses

import numpy as np
import tensorflow as tf

from rethink_tf import execution
from rethink_tf.losses import DetectionLosses
from rethink_tf.models.detector import MaskRCNN

SEED = (1, 20)


def machine_plan(**changes):
    """Returns the plan of a run on this machine, but for op determinism, which stays off."""
    plan = execution.make_plan(tf.distribute.get_strategy(), deterministic=False)
    return dataclasses.replace(plan, **changes)


@contextlib.contextmanager
def with_plan(detector, **changes):
    """Within it, a detector has another plan."""
    before = detector.plan
    detector.plan = dataclasses.replace(before, **changes)
    try:
        yield detector
    finally:
        detector.plan = before


def with_parts_of(detector, **changes):
    """Returns a detector of 3 classes that shares another one's parts, but for the changes."""
    parts = {
        "backbone": lambda: detector.backbone,
        "fpn": lambda: detector.fpn,
        "rpn": lambda: detector.rpn,
        "box_head": lambda num_classes: detector.box_head,
        "mask_head": lambda num_classes: detector.mask_head,
    }
    other = MaskRCNN(3, plan=detector.plan, **parts | changes)
    other.create_variables()
    return other


def run_step(detector, batch, seed=SEED, padded=True):
    """Returns the training outputs, the losses by name and the gradients of their sum."""
    losses_fn = DetectionLosses()
    with tf.GradientTape() as tape:
        outputs = detector(batch, training=True, seed=tf.constant(seed), padded=padded)
        losses = losses_fn(outputs, losses_fn.counts(outputs, detector.rpn.num_samples))
        total = tf.add_n(list(losses.values()))
    return outputs, losses, tape.gradient(total, detector.trainable_variables)


def train_step(detector, batch, seed=SEED):
    """Returns the losses by name and the gradients of their sum."""
    return run_step(detector, batch, seed)[1:]


def assert_same_step(step, other, variables, tolerance=1e-4):
    (losses, gradients), (other_losses, other_gradients) = step, other
    assert losses.keys() == other_losses.keys()
    for name in losses:
        np.testing.assert_allclose(losses[name], other_losses[name], rtol=1e-4, atol=1e-7)
    for variable, gradient, expected in zip(variables, gradients, other_gradients, strict=True):
        error = float(tf.norm(tf.convert_to_tensor(gradient) - expected))
        scale = float(tf.norm(tf.convert_to_tensor(expected)))
        assert error <= tolerance * scale + 1e-6, f"{variable.name}: {error:.2e} of {scale:.2e}"
