"""Orbit's controller: when the loop of training logs, writes summaries, saves and evaluates."""

import os

import orbit

from rethink_tf import curves
from rethink_tf.training import checkpoints, saving, trainer


def make_controller(
    training, evaluator, strategy, step, checkpoint, model_dir, *, log_every, checkpoint_every, keep
):
    """Returns an `orbit.Controller` of a run.

    Args:
        training: `Trainer`, or None.
        evaluator: `orbit.AbstractEvaluator`, or None.
        strategy: `tf.distribute.Strategy`.
        step: variable that counts the steps.
        checkpoint: `tf.train.Checkpoint`, of `model_dir/checkpoints`.
        model_dir: str.
        log_every: int, steps from one log line and summary to the next.
        checkpoint_every: int, steps.
        keep: int, newest checkpoints kept.
    """
    trainer.quiet_orbit()
    summaries = curves.summary_folder(model_dir)
    controller = orbit.Controller(
        global_step=step,
        trainer=training,
        evaluator=evaluator,
        strategy=strategy,
        # Loops end at multiples of log_every, also after a resumption between two.
        steps_per_loop=lambda done: log_every - int(done) % log_every,
        summary_interval=1,  # Whenever the trainer writes, which is once a loop.
        summary_dir=summaries if checkpoints.is_chief(strategy) else None,
    )
    # Set only now: given to the constructor, Orbit would restore the newest checkpoint, also one
    # that does not read.
    folder = os.path.join(model_dir, "checkpoints")
    controller.checkpoint_manager = saving.make_manager(
        checkpoint, folder, strategy, step, interval=checkpoint_every, keep=keep
    )
    return controller
