"""Parses an experiment's gin files and checks them; `config_record` keeps them beside the run.

gin accepts more than it should: a macro that nothing reads, a parameter that the code gives itself,
a configurable that is never called. Here every such binding is an error, so that a misspelt option
stops the run before its first step. The order of calls in a run is:

    parse(gin_files, gin_params)            # unknown names, wrong types, missing values stop here
    config_record.compare(model_dir)        # another experiment's folder stops here
    ... build everything ...
    check_all_used()                        # bindings without effect stop here
    config_record.write(model_dir)          # config.gin to read, config.json to compare

An overlay, a gin file in a folder `overlays`, is written for all experiments, and an experiment
builds only some of the parts that it shrinks: what an overlay binds of a part that is never called
is no error. What another file binds of a part that a later file took away, such as an overlay that
leaves the masks out, is one line of warning; see `config_sources`.

A "binding" is one line of gin: `scope/selector.parameter = value`, or a macro `NAME = value`. What
was used is read from gin's own tables (`gin.config._CONFIG`, `_OPERATIVE_CONFIG`), since its public
functions return them as text only. This module imports no TensorFlow.
"""

import difflib
import pathlib
import re
import tokenize
from collections.abc import Iterator, Sequence
from typing import Any

import gin
from absl import logging
from gin import config as gin_config

from rethink_tf import config_sources
from rethink_tf.config_sources import MACRO, Key

# Where what is bound came from; `parse` fills it, as it fills gin's own tables.
_sources = config_sources.Sources()


class ConfigError(ValueError):
    """An experiment that can't run as it is written; the message says what to change."""


def configs_root() -> pathlib.Path:
    """Returns the folder of the shipped gin files: inside an installed package, else beside it."""
    package = pathlib.Path(__file__).resolve().parent
    inside = package / "gin_configs"
    return inside if inside.is_dir() else package.parent / "gin_configs"


def shipped_experiments() -> list[str]:
    """Returns the names of the shipped experiments, such as 'quickstart.gin', sorted.

    Files `study_*.gin` are for `rethink_tf.study`, and `pretrain_*.gin` for `rethink_tf.pretrain`.
    """
    names = sorted(path.name for path in configs_root().glob("*.gin"))
    return [name for name in names if not name.startswith(("study_", "pretrain_"))]


def find_file(name: str) -> pathlib.Path:
    """Returns the path of a gin file: as given, else among the shipped ones.

    Raises:
        ConfigError: if it is in neither place, with near names.
    """
    root = configs_root()
    # 'gin_configs/quickstart.gin', as the README writes it, works from any working directory.
    candidates = [pathlib.Path(name), root / name, root / name.removeprefix("gin_configs/")]
    for candidate in candidates:
        if candidate.is_file():
            return candidate.resolve()
    known = [*shipped_experiments(), *(f"{p.parent.name}/{p.name}" for p in root.glob("*/*.gin"))]
    near = _nearest(name.removeprefix("gin_configs/"), known)
    raise ConfigError(
        f"The gin file {name!r} is neither in {pathlib.Path.cwd()} nor in {root}{near}. "
        f"{_shipped_text()}"
    )


def parse(gin_files: Sequence[str], gin_params: Sequence[str] = ()) -> None:
    """Parses gin files, then single bindings over them, in place of whatever was bound before.

    Later files win over earlier ones, and bindings over files. `include` paths are looked for in
    the working directory, then among the shipped files.

    Args:
        gin_files: paths; each as given, else among the shipped files ('quickstart.gin').
        gin_params: bindings 'name=value' in gin's syntax: texts need their own quotes.

    Raises:
        ConfigError: no file, a file not found, bad syntax, an unknown configurable, parameter or
            macro, a value of the wrong type, or one that must be given and was not.
    """
    global _sources
    if not gin_files:
        raise ConfigError(f"No gin file was given. {_shipped_text()}")
    for param in gin_params:
        if not re.match(r"[\w./]+\s*=[^=]", param):
            raise ConfigError(
                f"--gin_param={param!r} is not a binding: write it as name=value, "
                "for example --gin_param='BATCH_SIZE=8'."
            )
    paths = [str(find_file(name)) for name in gin_files]
    if str(configs_root()) not in gin_config._LOCATION_PREFIXES:
        gin.add_config_file_search_path(str(configs_root()))
    gin.clear_config()
    # gin logs an error for every place where it looks for an include in vain.
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.FATAL)
    try:
        _sources = config_sources.Sources()
        _sources.parse(paths, gin_params)
    except tokenize.TokenError as error:  # gin does not catch it: the message would name no file
        message = f"A bracket or quote is not closed in {paths} or --gin_param={list(gin_params)}."
        raise ConfigError(message) from error
    except RecursionError as error:
        circle = " includes ".join(_circle_of_includes(paths))
        raise ConfigError(f"The gin files include each other in a circle: {circle}.") from error
    except (ValueError, SyntaxError, LookupError, ImportError, AttributeError, OSError) as error:
        raise ConfigError(_explain(error, gin_params)) from error
    finally:
        logging.set_verbosity(verbosity)
    _check_macros_exist()
    _check_macros_end()
    _check_macros_fit()
    check_required()
    gin.finalize()
    logging.debug("Parsed %s and %d bindings of the command line.", paths, len(gin_params))


def check_required() -> None:
    """Checks that everything marked `%gin.REQUIRED` was given; `parse` calls it.

    Raises:
        ConfigError: naming all that is missing, and how to give it.
    """
    missing = sorted(_name(key) for key, value in bindings().items() if _is_required(value))
    if missing:
        values = ['"/a/folder"' if name.endswith("_DIR") else "..." for name in missing]
        flags = "\n".join(
            f"  --gin_param='{name}={value}'" for name, value in zip(missing, values, strict=True)
        )
        raise ConfigError(f"The experiment needs values that were not given. Add:\n{flags}")


def derive(values: dict[str, Any], over_files: bool = False) -> None:
    """Binds values that follow from a run's data, where files and command line bind nothing.

    Args:
        values: {binding: value}, such as {"RPN.anchor_scale": 0.5}; "@Name" stands for a part.
        over_files: whether they replace what files bind, though not what the command line binds.
    """
    _sources.derive(values, over_files)


def value_of(binding: str) -> Any:
    """Returns what is bound, a macro's value in its place, a part as a callable; None for nothing.

    Args:
        binding: such as "run.data_dir".
    """
    try:
        value = gin.query_parameter(binding)
    except ValueError:
        return None
    if not isinstance(value, gin_config.ConfigurableReference):
        return value
    function = value.scoped_configurable_fn
    return function() if value.config_key[1] == MACRO else function


def bindings_of(selector: str) -> str:
    """Returns what is bound of a part, on one line for a message.

    Args:
        selector: the part's name, as short as it is unique.
    """
    found = gin_config._REGISTRY.get_match(selector)
    bound = {key: value for key, value in bindings().items() if key[1] == found.selector}
    return ", ".join(f"{_name(key)} = {value!r}" for key, value in bound.items()) or "none"


def check_all_used() -> None:
    """Checks that every binding had an effect; to be called once everything is built.

    A binding counts as used if a configurable was called with its value. One that every call
    overrides in an inner scope has no effect, and neither has one whose value the caller gives.
    Macros are held to the same rule, those of shipped base files too: a macro that some
    experiments don't read belongs in the files of those that do. Overlays may bind parts that
    nothing calls. Other files' bindings of a part that a later file took away are warned of.

    Raises:
        ConfigError: naming the bindings without effect, each with the nearest valid names.
    """
    used, valid = _used_bindings()
    called = called_selectors()
    idle, taken = idle_bindings(called), _sources.left_without_part(called)
    unused = {key: value for key, value in bindings().items() if key not in used}
    _warn_of_taken({key: path for key, path in taken.items() if key in unused})
    valid_names = {_name(key) for key in used | valid}
    lines = [
        f"  {_name(key)} = {value!r}{_nearest(_name(key), valid_names)}"
        for key, value in sorted(unused.items(), key=lambda item: _name(item[0]))
        if key not in idle
    ]
    if lines:
        raise ConfigError(
            "These bindings have no effect: they are misspelt, belong to a part that this "
            "experiment does not build, or set a value that the code gives itself:\n"
            + "\n".join(lines)
        )


def _warn_of_taken(taken: dict[Key, str]) -> None:
    """Warns of bindings whose part a later file took away, in one line a file."""
    for path in sorted(set(taken.values())):
        names = sorted(_name(key) for key, by in taken.items() if by == path)
        logging.warning(
            "%s leaves out what these bindings of other files are for: %s.",
            _shown(path),
            ", ".join(names),
        )


def _shown(path: str) -> str:
    """Returns the path of a file, of a shipped one below the folder of all."""
    path = pathlib.Path(path)
    root = configs_root()
    return str(path.relative_to(root) if path.is_relative_to(root) else path)


def _shipped_text() -> str:
    names = ", ".join(shipped_experiments()) or "none"
    return f"The shipped experiments are: {names}; give one by --gin_file."


# What is bound for one command alone.
_COMMAND_OF = {
    "run": "rethink_tf.train",
    "pretrain": "rethink_tf.pretrain",
    "Study": "rethink_tf.study",
}


def _explain(error: Exception, gin_params: Sequence[str]) -> str:
    """Adds the nearest valid names to gin's message, which ends with file and line."""
    text = str(error).strip("'\"") if isinstance(error, KeyError) else str(error)
    head, _, where = text.partition("\n")
    where = re.sub(r"In bindings string line \d+\n\s*(.*)", r"In --gin_param=\1", where)
    near = ""
    if match := re.match(r"Configurable '(.+)' doesn't have a parameter named '(.+)'", head):
        near = _nearest_parameters(match[1], match[2])
    elif match := re.match(r"No configurable matching (?:reference )?'@?([^'()]+)(?:\(\))?'", head):
        name = match[1].rpartition("/")[2]
        command = _COMMAND_OF.get(name)
        near = f": it is of python -m {command}" if command else _nearest(name, _selectors())
    elif isinstance(error, SyntaxError):
        near = f"\n  {(error.text or '').strip()}"
        if error.filename is None:
            head = f"Bad syntax ({error.msg}) in one of --gin_param={list(gin_params)}"
            near += "\n  A text needs quotes of its own: --gin_param='DATA_DIR=\"/data/coco\"'."
    lines = "; ".join(line.strip() for line in where.splitlines())
    return f"{head.rstrip('.')}{near}" + (f". {lines}" if lines else "")


def _check_macros_exist() -> None:
    found = bindings()
    macros = {scope for scope, selector, _ in found if selector == MACRO}
    for key, value in found.items():
        for reference in _references(value):
            if reference.config_key[1] == MACRO and reference.config_key[0] not in macros:
                name = reference.config_key[0]
                raise ConfigError(
                    f"{_name(key)} = {value!r} reads the macro {name}, which no file defines"
                    f"{_nearest(name, macros)}. Define it: --gin_param='{name}=...'"
                )


def _check_macros_end() -> None:
    """Checks that no macro is defined by itself."""
    found = bindings()
    uses = {
        scope: [ref.config_key[0] for ref in _references(value) if ref.config_key[1] == MACRO]
        for (scope, selector, _), value in found.items()
        if selector == MACRO
    }
    if circle := config_sources.find_circle(uses):
        raise ConfigError(f"The macros are defined in a circle: {' = %'.join(circle)}.")


def _circle_of_includes(paths: Sequence[str]) -> list[str]:
    includes: dict[str, list[str]] = {}
    left = list(paths)
    while left:
        path = left.pop()
        if path not in includes:
            text = pathlib.Path(path).read_text(errors="replace")
            names = re.findall(r"^\s*include\s+['\"](.*?)['\"]", text, re.MULTILINE)
            includes[path] = [str(find_file(name)) for name in names]
            left += includes[path]
    return config_sources.find_circle(includes)


def _check_macros_fit() -> None:
    """Checks the values that come through macros; others were checked where they are bound."""
    found = bindings()
    for key, value in found.items():
        if isinstance(value, gin_config.ConfigurableReference) and key[1] != MACRO:
            scope, selector = value.config_key
            if selector == MACRO:
                try:
                    config_sources.check(key, found[scope, MACRO, "value"])
                except ValueError as error:
                    raise ConfigError(f"{error}; it comes from the macro {scope}") from error


def idle_bindings(selectors: Sequence[str]) -> set[Key]:
    """Returns the bindings that may be without effect in a run that calls these parts alone."""
    return _sources.idle(selectors)


def called_selectors() -> list[str]:
    """Returns the full names of the parts that were called, in alphabetical order."""
    return sorted({selector for _, selector in gin_config._OPERATIVE_CONFIG})


def bindings() -> dict[Key, Any]:
    """Returns all that is bound, macros included."""
    return {
        (scope, selector, parameter): value
        for (scope, selector), values in gin_config._CONFIG.items()
        for parameter, value in values.items()
    }


def _used_bindings() -> tuple[set[Key], set[Key]]:
    """Returns the bindings whose values calls took, and all that the calls could have taken."""
    found = bindings()
    used, valid = set(), set()
    for (scope, selector), parameters in list(gin_config._OPERATIVE_CONFIG.items()):
        # gin looks from the innermost scope outwards.
        scopes = [*_prefixes(scope)][::-1]
        for parameter in parameters:
            valid.add((scope, selector, parameter))
            keys = [(outer, selector, parameter) for outer in scopes]
            used.update([key for key in keys if key in found][:1])
    return used, valid


def _prefixes(scope: str) -> Iterator[str]:
    """Yields '', 'a', 'a/b' for 'a/b'."""
    parts = scope.split("/") if scope else []
    for count in range(len(parts) + 1):
        yield "/".join(parts[:count])


def _references(value: Any) -> Iterator[gin_config.ConfigurableReference]:
    return gin_config.iterate_references(value)


def _is_required(value: Any) -> bool:
    """Whether a value is `%gin.REQUIRED`."""
    if not isinstance(value, gin_config.ConfigurableReference):
        return value is gin.REQUIRED
    return value.config_key == ("gin.REQUIRED", "gin.constant")


def _name(key: Key) -> str:
    """Returns a binding's name as one writes it in a gin file."""
    scope, selector, parameter = key
    if selector == MACRO:
        return scope
    minimal = gin_config._REGISTRY.minimal_selector(selector)
    return "/".join(filter(None, [scope, f"{minimal}.{parameter}"]))


def _selectors() -> list[str]:
    """Returns the short names of everything registered, without gin's own."""
    full = [selector for selector, _ in gin_config._REGISTRY.items()]
    return [
        gin_config._REGISTRY.minimal_selector(each) for each in full if not each.startswith("gin.")
    ]


def _nearest_parameters(selector: str, name: str) -> str:
    """Returns the parameters near a misspelt one: of its part, else of other parts, else all."""
    own = list(config_sources.parameters(selector))
    if near := _nearest(name, own):
        return near
    elsewhere = [each for each in _selectors() if name in config_sources.parameters(each)]
    if elsewhere:
        return f" (did you mean {' or '.join(f'{each}.{name}' for each in elsewhere[:3])}?)"
    return f" (it has {', '.join(own)})"


def _nearest(name: str, valid: Sequence[str] | set[str]) -> str:
    """Returns ' (did you mean ...?)' with up to three near names, or ''."""
    near = difflib.get_close_matches(name, sorted(set(valid)), n=3, cutoff=0.6)
    return f" (did you mean {' or '.join(near)}?)" if near else ""
