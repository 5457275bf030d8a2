"""What a study compares, as gin files bind it."""

import dataclasses
import re
from collections.abc import Mapping, Sequence

import gin

_SEEN = ("images", "objects", "pixels", "seconds")
ALL = "all"  # The subset of a study without subsets.


@gin.register
@dataclasses.dataclass(frozen=True)
class Study:
    """Arms x schedules x subsets of the data x seeds.

    An arm, a subset and a schedule are each a sequence of gin files (`*.gin`) and bindings
    (`NAME=value`), which a run gets in this order: common, arm, subset, schedule, overlays, seed;
    of two, the later wins, and bindings win over files. The arms share subsets, seeds and so the
    order of the images: differences are paired.

    Attributes:
        study_dir: folder of all runs, of their logs and of the plan.
        arms: {name: gin files and bindings}.
        schedules: {name: bindings}, such as {"2x": ["SCHEDULE=2"]}.
        subsets: {name: bindings}, such as {"10k": ["Pipeline.num_images=10000"]}; {} for all data.
        subset_schedules: {subset: schedules of its own}, in place of `schedules`.
        seeds: of the runs.
        common: gin files and bindings of all runs, before those of the arms.
        overlays: the same, after all others.
        data_dir: DATA_DIR of all runs, or None for what their files say.
        init_checkpoints: {arm: INIT_CHECKPOINT}, for arms that start from weights.
        references: {name: {schedule: box AP in percent}}, as published for all of the data;
            the report draws it dotted.
        pretraining: {arm: {"images", "objects", "pixels": number, "seconds": number or left out}},
            what the weights of `init_checkpoints` have seen, each time counted, where no
            pretraining.json beside them says it.
        branching: whether the shorter schedules of an arm go on from the checkpoints of the
            longest one, at their first drop of the rate; else each begins at step 0.

    Raises:
        ValueError: if there is nothing to compare, or a name is no part of a path.
    """

    study_dir: str
    arms: Mapping[str, Sequence[str]]
    schedules: Mapping[str, Sequence[str]]
    subsets: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    subset_schedules: Mapping[str, Mapping[str, Sequence[str]]] = dataclasses.field(
        default_factory=dict
    )
    seeds: Sequence[int] = (1,)
    common: Sequence[str] = ()
    overlays: Sequence[str] = ()
    data_dir: str | None = None
    init_checkpoints: Mapping[str, str] = dataclasses.field(default_factory=dict)
    references: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)
    pretraining: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)
    branching: bool = True

    def __post_init__(self):
        for setting in ("arms", "schedules", "seeds"):
            if not getattr(self, setting):
                raise ValueError(f"Study.{setting} is empty: there is nothing to run.")
        owners = {"subset_schedules": "subsets", "init_checkpoints": "arms", "pretraining": "arms"}
        for setting, of in owners.items():
            unknown = sorted(set(getattr(self, setting)) - set(getattr(self, of)))
            if unknown:
                raise ValueError(
                    f"Study.{setting} names {', '.join(unknown)}, which Study.{of} does not."
                )
        schedules = [self.schedules, *self.subset_schedules.values()]
        for parts in (self.arms, self.subsets, *schedules):
            for name, given in parts.items():
                if not re.fullmatch(r"[\w.+-]+", str(name)) or name in (".", ".."):
                    raise ValueError(
                        f"Study: {name!r} is part of a folder's name: take letters, digits, _, -, "
                        "+ and the full stop."
                    )
                if isinstance(given, str):
                    raise ValueError(
                        f"Study: {name!r} is {given!r}, must be a list of gin files and bindings."
                    )
        for name, values in self.references.items():
            if unknown := sorted(set(values) - set(self.schedules)):
                raise ValueError(
                    f"Study.references: {name!r} names {', '.join(unknown)}, which Study.schedules "
                    "does not."
                )
        for arm, values in self.pretraining.items():
            given = set(values)
            if not {"images", "objects", "pixels"} <= given <= {*_SEEN} or not all(
                isinstance(value, (int, float)) and value >= 0 for value in values.values()
            ):
                raise ValueError(
                    f"Study.pretraining of {arm!r} is {dict(values)}: it must have numbers, 0 or "
                    "more, under images, objects, pixels and, if known, seconds."
                )
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"Study.seeds are {list(self.seeds)}: each counts once.")
