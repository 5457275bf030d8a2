"""What gin files bind, as plain values: without the modules that the bindings are for.

gin's own parser reads the files; names are not looked up, so that a plan needs no TensorFlow. The
run itself checks them.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from gin import config_parser

from rethink_tf import config


@dataclasses.dataclass(frozen=True)
class Reference:
    """A part, such as `@PaperSchedule()`, by its name."""

    name: str


@dataclasses.dataclass(frozen=True)
class Macro:
    """A macro, such as `%SCHEDULE`, by its name."""

    name: str


class _Delegate(config_parser.ParserDelegate):
    def configurable_reference(self, scoped_name, evaluate):
        return Reference(scoped_name.rpartition("/")[2])

    def macro(self, scoped_name):
        return Macro(scoped_name)


class Values:
    """The bindings of an experiment, later ones over earlier ones.

    A binding is known by its part's short name and parameter, such as "run.batch_size".
    """

    def __init__(self, gin_files: Sequence[str], gin_params: Sequence[str]):
        """Reads files, then single bindings.

        Raises:
            ConfigError: if a file is not found or has bad syntax.
        """
        self._bound: dict[str, Any] = {}
        for name in gin_files:
            self._read_file(name, [])
        for param in gin_params:
            self._read(param, f"{param!r}", [])

    def get(self, binding: str, default: Any = None) -> Any:
        """Returns the value of a binding or macro, macros in it replaced; `default` for none."""
        return self._resolve(self._bound.get(binding, default), {binding})

    def names(self) -> list[str]:
        """Returns the names of all bindings and macros."""
        return list(self._bound)

    def of(self, part: str) -> dict[str, Any]:
        """Returns {parameter: value} of a part."""
        prefix = f"{part}."
        names = [name for name in self._bound if name.startswith(prefix)]
        return {name.removeprefix(prefix): self.get(name) for name in names}

    def _resolve(self, value, seen):
        if isinstance(value, Macro):
            if value.name in seen:
                raise config.ConfigError(f"The macro {value.name} is defined by itself.")
            return self._resolve(self._bound.get(value.name), seen | {value.name})
        if isinstance(value, (list, tuple)):
            return [self._resolve(each, seen) for each in value]
        return value

    def _read_file(self, name, including):
        path = str(config.find_file(name))
        if path in including:
            circle = " includes ".join([*including, path])
            raise config.ConfigError(f"The gin files include each other in a circle: {circle}.")
        with open(path) as file:
            self._read(file.read(), path, [*including, path])

    def _read(self, text, where, including):
        try:
            for statement in config_parser.ConfigParser(text, _Delegate()):
                if isinstance(statement, config_parser.IncludeStatement):
                    self._read_file(statement.filename, including)
                elif isinstance(statement, config_parser.BindingStatement):
                    part = statement.selector.rpartition(".")[2]
                    # A macro has no parameter.
                    names = [part, statement.arg_name] if statement.arg_name else [part]
                    self._bound[".".join(names)] = statement.value
        except (SyntaxError, ValueError) as error:
            if isinstance(error, config.ConfigError):
                raise
            raise config.ConfigError(f"{where}: {error}") from error
