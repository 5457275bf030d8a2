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
    "evaluation_batch_size keep_newest keep_best",
    "make_strategy": "name num_gpus num_cpus tpu_address all_reduce_alg wait_minutes",
    "Pipeline": "parallel_records",
}
OPERATIONAL = tuple(f"{k}.{name}" for k, v in _OPERATIONAL_BY_OWNER.items() for name in v.split())
# An evaluation of the folder's checkpoints may be by test augmentation, which its lines of metrics
# say of themselves.
OF_EVALUATION = (*OPERATIONAL, "run.test_augmentation", "TestTimeAugmentation.*")


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


def write(model_dir: str | os.PathLike, plan: dict[str, Any] | None = None) -> None:
    """Writes `config.gin` (to read, and to run again) and `config.json` (for comparison).

    Each is replaced as a whole. To be called by one process, after everything was built.

    Args:
        model_dir: the run's folder; made where it is missing.
        plan: how the run executes (`execution.ExecutionPlan`); a later start may do it otherwise.
    """
    parts = config.called_selectors()
    record = {"version": 1, "bindings": canonical_bindings(parts), "parts": parts, "plan": plan}
    header = "# Every value that this run used, defaults included.\n\n"
    files.write_whole(os.path.join(model_dir, "config.gin"), header + operative_config())
    text = json.dumps(record, indent=1, sort_keys=True) + "\n"
    files.write_whole(os.path.join(model_dir, "config.json"), text)


def compare(model_dir: str | os.PathLike, is_training: bool = True) -> None:
    """Refuses a folder in which another experiment was run.

    Args:
        model_dir: the run's folder; one that is missing or has no `config.json` passes.
        is_training: whether it is to be trained in; else its checkpoints are to be evaluated.

    Raises:
        config.ConfigError: naming every binding that differs, with both values; or the
            `config.json` that can't be read.
    """
    record = _read(model_dir)
    if record is None:
        return
    there, parts = record
    now = canonical_bindings(parts)
    lines = []
    for name in sorted(there.keys() | now.keys()):
        # What one side leaves out has its default there.
        old, new = (side.get(name) or _default(name) for side in (there, now))
        if old != new and not _matches(name, OPERATIONAL if is_training else OF_EVALUATION):
            lines.append(f"  {name}: {old} there, {new} now")
    if lines:
        weights = "" if is_training else f" and run.init_checkpoint={model_dir}/checkpoints"
        raise config.ConfigError(
            f"{model_dir} holds a run of another experiment; {len(lines)} of its bindings differ:\n"
            + "\n".join(lines)
            + f"\nChoose another folder (--gin_param='MODEL_DIR=\"/another/folder\"'){weights}, "
            "or run with the values there."
        )


def recorded(model_dir: str | os.PathLike, name: str) -> str | None:
    """Returns the canonical value that an earlier start in a folder bound, None where none did.

    Args:
        model_dir: the run's folder.
        name: 'part.parameter'.

    Raises:
        config.ConfigError: if its `config.json` can't be read.
    """
    record = _read(model_dir)
    found = record[0] if record else {}
    return next((value for key, value in found.items() if _matches(key, [name])), None)


def _read(model_dir):
    """Returns the bindings and parts that a folder's `config.json` records, None without one."""
    path = os.path.join(model_dir, "config.json")
    text = files.read_text(path)
    if text is None:
        return None
    try:
        record = json.loads(text)
        return dict(record["bindings"]), record.get("parts")
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
