"""Keeps a record of a run's gin bindings in its folder, and compares a later start with it.

`config.gin` is every value in force, to read and to run again; `config.json` is what was bound, to
compare. What files bind of parts that an overlay took away, or an overlay of parts that a run does
not build, is in neither. This module imports
no TensorFlow.
"""

import inspect
import json
import os
from collections.abc import Sequence
from typing import Any

import gin
from gin import config as gin_config

from rethink_tf import config, config_sources, files

# A run may be started again in its folder with other values of these: they say where things lie and
# how often they are written, not what is computed. Macros stay unresolved in the record, so that
# they match wherever they are used; parameters match by the end of their full name, in any scope.
OPERATIONAL_MACROS = ("MODEL_DIR", "DATA_DIR")
_OPERATIONAL_BY_OWNER = {
    "run": "mode model_dir data_dir strategy log_every checkpoint_every evaluate_every "
    "evaluation_batch_size keep_newest keep_best accumulate_steps on_change on_non_finite "
    "max_skips branch_steps evaluate_in_background background_gpus follow_timeout",
    "pretrain": "model_dir data_dir strategy log_every checkpoint_every evaluate_every "
    "evaluation_batch_size keep_newest",
    "ImageInput": "parallel_images",
    "make_strategy": "name num_gpus num_cpus tpu_address all_reduce_alg wait_minutes",
    "Pipeline": "parallel_records services service_minutes",
}
OPERATIONAL = tuple(f"{k}.{name}" for k, v in _OPERATIONAL_BY_OWNER.items() for name in v.split())
# An evaluation of the folder's checkpoints may be by test augmentation, which its lines of metrics
# say of themselves.
OF_EVALUATION = (*OPERATIONAL, "run.test_augmentation", "TestTimeAugmentation.*")
# What follows from the images a step, by the linear rule.
_OF_BATCHES = ("run.batch_size", "PaperSchedule.images_per_step", "EpochSchedule.images_per_step")
# What a longer schedule changes; whether its rates begin alike is compared by the rates.
OF_LENGTH = (
    *OPERATIONAL,
    "run.continue_from",
    "PaperSchedule.*",
    "EpochSchedule.*",
    "StepwiseSchedule.*",
    "own_data_settings.epochs",
    "own_data_settings.steps",
)


def operative_config() -> str:
    """Returns the values in force, defaults of everything called included, as gin text."""
    return gin.operative_config_str(max_line_length=100)


def canonical_bindings(parts: Sequence[str] | None = None) -> dict[str, str]:
    """Returns what was parsed as {'scope/full.selector.parameter': value}, to compare runs.

    Macros are replaced by their values (except OPERATIONAL_MACROS), tuples are written as lists and
    whole floats as integers, so that two ways to write one value compare equal.

    Args:
        parts: full names of the parts that a run builds: what may be bound of others without effect
            (`config.idle_bindings`) is left out. None for all bindings.
    """
    bindings = config.bindings()
    idle = set() if parts is None else config.idle_bindings(parts)
    return {
        "/".join(filter(None, [key[0], f"{key[1]}.{key[2]}"])): _canonical(bindings[key], bindings)
        for key in sorted(bindings)
        if key[1] != config.MACRO and key not in idle
    }


def write(
    model_dir: str | os.PathLike,
    plan: dict[str, Any] | None = None,
    schedule: dict[str, Any] | None = None,
) -> None:
    """Writes `config.gin` (to read, and to run again) and `config.json` (for comparison).

    Each is replaced as a whole. To be called by one process, after everything was built.

    Args:
        model_dir: the run's folder; made where it is missing.
        plan: how the run executes (`execution.ExecutionPlan`); a later start may do it otherwise.
        schedule: the learning rate's, as numbers (`branching.describe`).
    """
    parts = config.called_selectors()
    record = {"version": 1, "bindings": canonical_bindings(parts), "parts": parts}
    record |= {"plan": plan, "schedule": schedule}
    header = "# Every value that this run used, defaults included.\n\n"
    files.write_whole(os.path.join(model_dir, "config.gin"), header + operative_config())
    text = json.dumps(record, indent=1, sort_keys=True) + "\n"
    files.write_whole(os.path.join(model_dir, "config.json"), text)


def differences(
    model_dir: str | os.PathLike, ignore: Sequence[str] = OPERATIONAL
) -> list[tuple[str, str, str]]:
    """Returns what the bindings of now change of those that a folder records.

    Args:
        model_dir: the run's folder; for one that is missing or has no `config.json` there are none.
        ignore: parameters that may differ, such as 'run.log_every' or 'StepwiseSchedule.*'.

    Returns:
        List of (full name of the parameter, value there, value now).

    Raises:
        config.ConfigError: if its `config.json` can't be read.
    """
    record = read(model_dir)
    if record is None:
        return []
    there, now = record["bindings"], canonical_bindings(record.get("parts"))
    found = []
    for name in sorted(there.keys() | now.keys()):
        # What one side leaves out has its default there.
        old, new = (side.get(name) or _default(name) for side in (there, now))
        if old != new and not _matches(name, ignore):
            found.append((name, old, new))
    return found


def compare(model_dir: str | os.PathLike, is_training: bool = True, rescales: bool = False) -> None:
    """Refuses a folder in which another experiment was run.

    Args:
        model_dir: the run's folder; one that is missing or has no `config.json` passes.
        is_training: whether it is to be trained in; else its checkpoints are to be evaluated.
        rescales: whether the run may go on with other images a step, by the linear rule.

    Raises:
        config.ConfigError: naming every binding that differs, with both values; or the
            `config.json` that can't be read.
    """
    found = differences(model_dir, OPERATIONAL if is_training else OF_EVALUATION)
    is_rescaled = any(_matches(name, ["run.batch_size"]) for name, _, _ in found)
    others = [each for each in found if not _matches(each[0], _OF_BATCHES)]
    if not found or (is_training and rescales and is_rescaled and not others):
        return
    weights = "" if is_training else f" and run.init_checkpoint={model_dir}/checkpoints"
    raise config.ConfigError(
        f"{model_dir} holds a run of another experiment; {len(found)} of its bindings differ:\n"
        + "\n".join(f"  {name}: {old} there, {new} now" for name, old, new in found)
        + (_explain_linear_rule(found) if is_training and is_rescaled and not others else "")
        + f"\nChoose another folder (--gin_param='MODEL_DIR=\"/another/folder\"'){weights}, "
        "or run with the values there."
    )


def _explain_linear_rule(found):
    """Returns the lines on what other images a step mean for the rest of the run."""
    (old, new), *_ = (pair for name, *pair in found if _matches(name, ["run.batch_size"]))
    ratio = float(new) / float(old)
    return (
        f"\nWith {new} images a step in place of {old}, the linear rule asks for {ratio:g} times "
        f"the learning rate and {1 / ratio:g} times the steps that are left. "
        "--gin_param=\"run.on_change='rescale'\" goes on so from the newest checkpoint, and "
        "records it. With other devices or less memory the images a step can stay: they are shared "
        "by the devices and by run.accumulate_steps micro-batches."
    )


def recorded(model_dir: str | os.PathLike, name: str) -> str | None:
    """Returns the canonical value that an earlier start in a folder bound, None where none did.

    Args:
        model_dir: the run's folder.
        name: 'part.parameter'.

    Raises:
        config.ConfigError: if its `config.json` can't be read.
    """
    record = read(model_dir)
    found = record["bindings"] if record else {}
    return next((value for key, value in found.items() if _matches(key, [name])), None)


def read(model_dir: str | os.PathLike) -> dict[str, Any] | None:
    """Returns what `write` recorded in a folder, None without a `config.json`.

    Args:
        model_dir: the run's folder.

    Returns:
        dict: bindings, a dict, and parts, plan and schedule, each None where it is not recorded.

    Raises:
        config.ConfigError: if the file can't be read.
    """
    path = os.path.join(model_dir, "config.json")
    text = files.read_text(path)
    if text is None:
        return None
    try:
        record = json.loads(text)
        return record | {"bindings": dict(record["bindings"])}
    except (ValueError, KeyError, TypeError) as error:
        raise config.ConfigError(
            f"{path} is damaged ({error}): remove it, or choose another MODEL_DIR."
        ) from error


def _canonical(value: Any, bindings: dict[config.Key, Any]) -> str:
    if isinstance(value, gin_config.ConfigurableReference):
        scope, selector = value.config_key
        if selector == config.MACRO:
            if scope in OPERATIONAL_MACROS:
                return f"%{scope}"
            return _canonical(bindings[scope, config.MACRO, "value"], bindings)
        call = "()" if value.evaluate else ""
        return "@" + "/".join(filter(None, [scope, selector])) + call
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_canonical(item, bindings) for item in value) + "]"
    if isinstance(value, dict):
        items = sorted((_canonical(k, bindings), _canonical(v, bindings)) for k, v in value.items())
        return "{" + ", ".join(f"{key}: {item}" for key, item in items) + "}"
    if isinstance(value, float) and value.is_integer():
        return repr(int(value))
    return repr(value)


def _matches(name: str, parameters: Sequence[str]) -> bool:
    """Whether a full name without its scope is, or ends in, one of the parameters' names.

    'part.*' stands for all parameters of a part.
    """
    unscoped = name.rpartition("/")[2]
    names = unscoped, unscoped.rpartition(".")[0] + ".*"
    return any(f".{name}".endswith("." + each) for name in names for each in parameters)


def _default(name: str) -> str:
    """Returns the canonical default of a parameter by its full name."""
    selector, _, parameter = name.rpartition("/")[2].rpartition(".")
    known = config_sources.parameters(selector).get(parameter)
    has_default = known is not None and known.default is not inspect.Parameter.empty
    return _canonical(known.default, {}) if has_default else "not given"
