"""Runs an experiment: builds it from the parsed gin files, trains it and evaluates it."""

import contextlib
import os

import gin

from rethink_tf import branching, files, following, going_back, locking, metrics_file
from rethink_tf.building import build
from rethink_tf.models.detector import MaskRCNN
from rethink_tf.own_data import deriving
from rethink_tf.report import run_data, run_texts
from rethink_tf.settings import Settings
from rethink_tf.training import checkpoints, controllers, saving, stopping, workers


def run(mode=None, when_built=None, follows=False):
    """Runs the experiment of the parsed gin files.

    Args:
        mode: "train", "evaluate" or "train_and_evaluate"; None for what the gin files say.
        follows: bool, in mode "evaluate": whether to evaluate each checkpoint as it comes.
        when_built: callable called once everything is built and checked, or None.

    Returns:
        dict of the last evaluation's metrics; empty if there was none.

    Raises:
        ValueError: if a value does not fit the others; the message names both.
        Stopped: if the run was told to stop, and has saved.
        WorkerLostError: if another worker of the run is gone.
    """
    # Before `Settings` are made, which take what follows from the data like any binding.
    deriving.bind_settings(is_training=mode != "evaluate")
    settings = Settings(mode=mode) if mode else Settings()
    if follows and settings.mode != "evaluate":
        raise ValueError("--follow evaluates what another process trains: add --mode=evaluate.")
    with contextlib.ExitStack() as resources, workers.naming_losses():
        if follows:
            following.wait_for_start(settings.model_dir, settings.follow_timeout)
        experiment = build(settings, resources)
        evaluates_each = follows or (
            settings.mode == "train_and_evaluate" and not settings.evaluate_in_background
        )
        if experiment.is_chief and evaluates_each:
            path = os.path.join(settings.model_dir, "evaluation.lock")
            resources.enter_context(locking.FolderLock(path, "evaluates each checkpoint"))
        if when_built:
            when_built()
        if experiment.is_chief:
            _log_header(experiment)
        act = {"evaluate": follow if follows else evaluate}.get(settings.mode, train)
        try:
            last = act(experiment)
        except stopping.Stopped:
            workers.end_together(experiment.workers)
            raise
        workers.end_together(experiment.workers)
        if experiment.is_chief:
            run_texts.log_closing(experiment.settings.model_dir, experiment.trainer, last)
        return last.metrics if last else {}


def train(experiment):
    """Trains to the schedule's end, and evaluates on the way where there is an evaluator.

    Args:
        experiment: `Experiment` with a trainer.

    Returns:
        The `Evaluator` of the last evaluation, or None.

    Raises:
        Stopped: if the run was told to stop; its last step is saved by then.
    """
    controller, settings = _make_controller(experiment), experiment.settings
    beside = contextlib.nullcontext()
    if settings.mode != "train" and settings.evaluate_in_background and experiment.is_chief:
        beside = following.in_background(settings)
    with experiment.stop, beside as process:
        try:
            last = _train_and_evaluate(experiment, controller)
            if process:
                following.finish(process, experiment.stop)
            return last
        except stopping.Stopped:
            saving.save_stopped(controller.checkpoint_manager, int(experiment.step.numpy()))
            raise


def _train_and_evaluate(experiment, controller):
    settings, evaluator = experiment.settings, experiment.evaluator
    _save_where_to_go_back_to(experiment, controller.checkpoint_manager)
    best = _make_best(experiment)
    evaluations = _evaluations(experiment)
    experiment.trainer.evaluation_steps = evaluations
    described = branching.describe(experiment.schedule, experiment.cascade_from)
    num_steps = experiment.schedule.num_steps
    branches = {branching.branch_step(described), *settings.branch_steps} & set(
        range(1, num_steps + 1)
    )

    start = int(experiment.step.numpy())
    evaluated = metrics_file.evaluated_steps(settings.model_dir)
    for stop in sorted({*evaluations, *branches, num_steps}):
        # An earlier start of the run may have been here.
        if stop < start:
            continue
        if stop > start:
            going_back.train(experiment, controller, stop)
        if stop in branches:
            _keep_branch(experiment, stop)
        if stop in evaluations and not (stop == start and stop in evaluated):
            controller.evaluate()
            experiment.trainer.evaluation_seconds = evaluator.last_seconds
            if evaluator.metrics:
                best.offer(evaluator.score, stop)

    if settings.evaluate_in_background:
        return None
    if experiment.augmented_evaluator:
        evaluated = metrics_file.evaluated_steps(settings.model_dir, is_augmented=True)
        if int(experiment.step.numpy()) not in evaluated:
            controller.evaluator = experiment.augmented_evaluator
            controller.evaluate()
    return controller.evaluator


def evaluate(experiment):
    """Evaluates the weights that an experiment was built with.

    Args:
        experiment: `Experiment` with an evaluator.

    Returns:
        The `Evaluator`, which has the metrics.
    """
    controller = _make_controller(experiment)
    controller.evaluate()
    return controller.evaluator


def follow(experiment):
    """Evaluates each checkpoint of a run that another process trains; see `following.follow`.

    Args:
        experiment: `Experiment` with an evaluator.

    Returns:
        The `Evaluator`, which has the metrics.
    """
    return following.follow(experiment, _make_controller(experiment), _make_best(experiment))


def detector_builder():
    """Returns the parsed experiment's `detector`; see `Settings`."""
    return gin.get_bindings("experiment.run").get("detector", MaskRCNN)


def _make_controller(experiment):
    """Returns Orbit's controller."""
    settings = experiment.settings
    return controllers.make_controller(
        experiment.trainer,
        experiment.evaluator or experiment.augmented_evaluator,
        experiment.strategy,
        experiment.step,
        experiment.checkpoint,
        settings.model_dir,
        log_every=settings.log_every,
        checkpoint_every=settings.checkpoint_every,
        keep=settings.keep_newest,
    )


def _make_manager(experiment, folder, **options):
    return saving.make_manager(
        experiment.checkpoint, folder, experiment.strategy, experiment.step, **options
    )


def _make_best(experiment):
    folder = os.path.join(experiment.settings.model_dir, "best")
    manager = _make_manager(experiment, folder, keep=experiment.settings.keep_best)
    return checkpoints.BestKeeper(manager, folder, experiment.is_chief)


def _keep_branch(experiment, step):
    """Saves for ever the checkpoint that a run of a longer schedule goes on from."""
    folder = os.path.join(experiment.settings.model_dir, branching.FOLDER)
    if not files.exists(os.path.join(folder, f"step-{step}.index")):
        manager = _make_manager(experiment, folder, keep=None)
        manager.save(checkpoint_number=step, check_interval=False)


def _save_where_to_go_back_to(experiment, manager):
    """Saves the start of a new run that is to go back to it after a loss that is not finite."""
    if experiment.settings.on_non_finite == "skip" and not int(experiment.step.numpy()):
        saving.save_start(manager)


def _log_header(experiment):
    """Says what is run on what, in the log and for reports."""
    settings = experiment.settings
    evaluate_every = settings.evaluate_every if experiment.test_data else 0
    splits = {"training": experiment.train_data, "evaluation": experiment.test_data}
    run_data.write(settings.model_dir, run_data.describe(splits, experiment.pipeline))
    run_texts.log_header(
        splits,
        experiment.pipeline,
        experiment.model,
        experiment.strategy,
        (experiment.schedule, settings.batch_size, evaluate_every, settings.checkpoint_every),
        settings.model_dir,
    )


def _evaluations(experiment):
    """Returns the steps at which training stops to evaluate, the last one included."""
    if not experiment.evaluator or experiment.settings.evaluate_in_background:
        return []
    num_steps = experiment.schedule.num_steps
    every = experiment.settings.evaluate_every or num_steps
    return [*range(every, num_steps, every), num_steps]
