"""Stops a run that has gone wrong, before anything of it is saved."""

import math


class NonFiniteLossError(RuntimeError):
    """A loss or the gradient was NaN or infinite.

    Attributes:
        step: int, the first such step.
        terms: list of str, the names of what was not finite.
    """

    def __init__(self, step, problem, terms=()):
        """Takes the step, what was found there, and the names of the terms."""
        super().__init__(
            f"Step {step}: {problem}. Nothing of it was saved; the newest checkpoint is from "
            "before. Check the data of that step (of a detector, run.on_non_finite = 'skip' leaves "
            "out such a stretch of data, and run.init_checkpoint of another run takes its "
            "checkpoints). Or lower the learning rate or lengthen the warm-up, in another "
            "MODEL_DIR: this one keeps its run to its settings."
        )
        self.step, self.terms = step, list(terms)


def check_finite(history, first_step):
    """Checks the values of some steps.

    Args:
        history: list of dict name -> float, one dict a step.
        first_step: int, the step of the first of them (steps count finished updates from 1).

    Raises:
        NonFiniteLossError: naming the first such step, its bad terms and all its losses.
    """
    for step, values in enumerate(history, start=first_step):
        bad = [name for name, value in values.items() if not math.isfinite(value)]
        if bad:
            terms = ", ".join(f"{name}={value:.6g}" for name, value in values.items())
            raise NonFiniteLossError(step, f"{', '.join(bad)} is not finite ({terms})", bad)
