"""A step whose loss is not finite is named with its terms."""

import pytest

from rethink_tf.training import health


def test_the_first_bad_step_and_its_terms_are_named():
    history = [
        {"mask": 1.0, "rpn_box": 0.5},
        {"mask": float("nan"), "rpn_box": 0.5},
        {"mask": float("nan"), "rpn_box": float("inf")},
    ]
    with pytest.raises(health.NonFiniteLossError, match=r"Step 42: mask is not finite \(mask=nan"):
        health.check_finite(history, first_step=41)
    with pytest.raises(health.NonFiniteLossError, match="Step 7: mask, rpn_box is not finite"):
        health.check_finite(history[2:], first_step=7)


def test_finite_steps_pass():
    health.check_finite([{"mask": 0.0}], first_step=1)
