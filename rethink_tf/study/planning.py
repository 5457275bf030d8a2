"""Which runs a study has, what each goes on from, and what it costs.

Schedules that differ only in when the rate drops share one trajectory up to the first drop of the
shorter one. So the longest schedule of an arm, a subset and a seed is trained from the start and
keeps a checkpoint at each shorter schedule's first drop, and the shorter ones run their tails.
Source: He et al. 2018 (arXiv:1811.08883), whose schedules are such: 2x to 6x cost 8.67 times 90,000
iterations in place of 20 times.
"""

import dataclasses
import itertools
import os
from collections.abc import Sequence

from rethink_tf import config, gin_values, metrics_file
from rethink_tf.report import collecting
from rethink_tf.study.settings import ALL, Study
from rethink_tf.training import schedule_rules


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of a study.

    Attributes:
        name: "arm/subset/schedule/seed-N", also its folder below `study_dir`/runs.
        arm: its name.
        subset: its name; `ALL` where the study has none.
        schedule: its name.
        seed: of the run.
        gin_files: of its command.
        gin_params: of its command.
        model_dir: its folder.
        num_steps: of its schedule.
        start_step: the step it goes on from; 0 for the start.
        batch_size: images a step.
        parent: name of the run it goes on from, or None.
    """

    name: str
    arm: str
    subset: str
    schedule: str
    seed: int
    gin_files: tuple[str, ...]
    gin_params: tuple[str, ...]
    model_dir: str
    num_steps: int
    start_step: int
    batch_size: int
    parent: str | None

    @property
    def steps(self) -> int:
        """Steps that the run computes itself."""
        return self.num_steps - self.start_step

    @property
    def images(self) -> int:
        """Images that the run itself is trained on, each time counted."""
        return self.steps * self.batch_size

    @property
    def flags(self) -> list[str]:
        """Flags of `rethink_tf.train`."""
        files = [f"--gin_file={name}" for name in self.gin_files]
        return files + [f"--gin_param={param}" for param in self.gin_params]


@dataclasses.dataclass(frozen=True)
class Schedule:
    """What a plan must know of a run's schedule.

    Attributes:
        num_steps: updates in all.
        branch_step: the last step up to which longer schedules are the same; 0 for none.
        rise: peak rate, steps of warm-up and its factor: runs share a start where these are alike.
        batch_size: images a step.
    """

    num_steps: int
    branch_step: int
    rise: tuple
    batch_size: int


def make_plan(study: Study) -> list[Run]:
    """Returns the runs of a study, each after the one that it goes on from.

    Raises:
        ConfigError: if gin files don't read, or say no schedule whose length follows without data.
    """
    runs = []
    subsets = study.subsets or {ALL: ()}
    for seed, subset, arm in itertools.product(study.seeds, subsets, study.arms):
        schedules = study.subset_schedules.get(subset, study.schedules)
        given = [*study.common, *study.arms[arm], *subsets[subset]]
        places = {"DATA_DIR": study.data_dir, "INIT_CHECKPOINT": study.init_checkpoints.get(arm)}
        given += [f"{macro}={place!r}" for macro, place in places.items() if place]
        runs += _trajectory(study, (arm, subset, seed), given, schedules)
    return runs


def _trajectory(study, key, given, schedules):
    """Returns the runs of one arm, subset and seed, the longest first."""
    arm, subset, seed = key
    read = {}
    for name, bindings in schedules.items():
        files, params = _split([*given, *bindings, *study.overlays, f"SEED={seed}"])
        read[name] = files, params, read_schedule(files, params)
    ordered = sorted(read, key=lambda name: -read[name][2].num_steps)
    trunk, *shorter = ordered
    longest = read[trunk][2]
    shared = {
        name: read[name][2].branch_step
        for name in shorter
        if study.branching
        and 0 < read[name][2].branch_step <= longest.branch_step
        and read[name][2].rise == longest.rise
        and not _is_past(
            _folder(study, _name(key, trunk)), longest.num_steps, read[name][2].branch_step
        )
    }
    runs = []
    for name in ordered:
        files, params, schedule = read[name]
        full = _name(key, name)
        folder = _folder(study, full)
        own, start, parent = [f"MODEL_DIR={folder!r}"], 0, None
        if name == trunk and shared:
            own.append(f"run.branch_steps={sorted(set(shared.values()))}")
        elif name in shared:
            start, parent = shared[name], runs[0].name
            own.append(f"run.continue_from={runs[0].model_dir!r}")
        runs.append(
            Run(
                full,
                arm,
                subset,
                name,
                seed,
                files,
                (*params, *own),
                folder,
                schedule.num_steps,
                start,
                schedule.batch_size,
                parent,
            )
        )
    return runs


def _name(key, schedule):
    arm, subset, seed = key
    return "/".join([arm, subset, schedule, f"seed-{seed}"])


def _is_past(folder, num_steps, step):
    """Whether a run is done that has not kept a checkpoint: a study got a schedule more since."""
    is_done = metrics_file.state(folder, num_steps) == metrics_file.DONE
    return is_done and not collecting.keeps_branch(folder, step)


def _folder(study, name):
    return os.path.join(study.study_dir, "runs", *name.split("/"))


def _split(given: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns gin files and bindings of a sequence that has both."""
    is_file = [each.endswith(".gin") and "=" not in each for each in given]
    pairs = list(zip(given, is_file, strict=True))
    return tuple(each for each, file in pairs if file), tuple(
        each for each, file in pairs if not file
    )


def read_schedule(gin_files: Sequence[str], gin_params: Sequence[str]) -> Schedule:
    """Returns the numbers of an experiment's schedule, as the run computes them.

    Raises:
        ConfigError: if they do not follow from what is bound.
    """
    values = gin_values.Values(gin_files, gin_params)
    reference = values.get("run.schedule")
    kind = getattr(reference, "name", None)
    bound = values.of(kind) if kind else {}
    try:
        rule = _RULES[kind](bound)
    except (KeyError, TypeError, ValueError) as error:
        known = ", ".join(_RULES)
        raise config.ConfigError(
            f"The length of the schedule does not follow from {', '.join(gin_files)} with "
            f"{', '.join(gin_params)} (run.schedule is {kind}, with {bound}; {known} are known): "
            f"{type(error).__name__} {error}"
        ) from error
    cascade_steps, cascade_from = values.get("run.cascade_steps"), 0
    if cascade_steps is not None:
        cascade_from = _start_of_last(kind, bound, cascade_steps, rule.num_steps)
    changes = [step for step in (*rule.drop_steps, cascade_from) if step > 0]
    # As `branching.branch_step`: what falls from the start shares nothing.
    branch_step = min(changes) if rule.drop_steps else 0
    rise = rule.peak_learning_rate, rule.warmup_steps, bound.get("warmup_factor")
    return Schedule(rule.num_steps, branch_step, rise, values.get("run.batch_size"))


def _paper(bound):
    names = ("multiple", "images_per_step", "num_steps", "warmup_steps", "base_learning_rate")
    known = {name: bound[name] for name in (*names, "tails") if name in bound}
    return schedule_rules.paper_schedule(**known)


def _stepwise(bound):
    num_steps = bound["num_steps"]
    known = {name: bound[name] for name in ("drop_steps", "drop_fractions") if name in bound}
    drops = schedule_rules.drops_of(num_steps, **known)
    return _schedule(num_steps, drops, bound["peak_learning_rate"], bound.get("warmup_steps"))


def _epochs(bound):
    images = bound["images_per_step"]
    num_steps = bound.get("num_steps") or schedule_rules.steps_of_epochs(
        bound["epochs"], bound["images_per_epoch"], images
    )
    fractions = bound.get("drop_fractions", schedule_rules.DROP_FRACTIONS)
    drops = schedule_rules.drops_of(num_steps, None, fractions)
    base = bound.get("base_learning_rate", schedule_rules.LEARNING_RATE)
    peak = base * images / schedule_rules.IMAGES_PER_STEP
    return _schedule(num_steps, drops, peak, round(bound.get("warmup_fraction", 0) * num_steps))


def _cosine(bound):
    peak = bound["peak_learning_rate"]
    return _schedule(bound["num_steps"], (), peak, bound.get("warmup_steps"))


def _schedule(num_steps, drops, peak, warmup_steps):
    warmup_steps = schedule_rules.warmup_length(warmup_steps, num_steps)
    return schedule_rules.Schedule(num_steps, drops, peak, warmup_steps)


_RULES = {
    "PaperSchedule": _paper,
    "StepwiseSchedule": _stepwise,
    "EpochSchedule": _epochs,
    "CosineSchedule": _cosine,
}


def _start_of_last(kind, bound, steps, num_steps):
    if kind != "PaperSchedule":
        return num_steps - steps
    return schedule_rules.start_of_last(
        steps, bound["multiple"], bound["images_per_step"], bound.get("num_steps")
    )
