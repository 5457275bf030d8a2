"""Parses gin files and bindings, checks each binding where it stands, and notes where it came from.

gin keeps the last value of every parameter alone. Whether a binding without effect is a mistake
depends on more: who bound it, and who took its part away. An overlay such as
`overlays/boxes_only.gin` binds `MaskRCNN.mask_head = None` over a file that has a mask head, and
leaves that file's bindings of `MaskHead` without a part. This module imports no TensorFlow.

`Key` and the tables of gin are those of `config`.
"""

import contextlib
import dataclasses
import graphlib
import inspect
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import gin
from gin import config as gin_config

from rethink_tf import config_values

MACRO = "gin.macro"
# (scope, full selector, parameter): how gin's tables are keyed.
Key = tuple[str, str, str]
DERIVED = "the data"


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a value was bound.

    Attributes:
        path: of the file; None for the command line, DERIVED for what follows from the data.
        number: int, the place of the binding among all that were parsed.
    """

    path: str | None
    number: int

    @property
    def is_overlay(self) -> bool:
        """Whether it is meant for runs that build only some of the parts it binds."""
        return self.path is not None and pathlib.Path(self.path).parent.name == "overlays"


class Sources:
    """Where the values in force came from, and which parts a file took away from others.

    Attributes:
        of: {key: `Source`} of every binding in force.
        taken: {full selector: `Source`} of parts that a file replaced, by the one that did.
    """

    def __init__(self):
        self.of: dict[Key, Source] = {}
        self.taken: dict[str, Source] = {}
        self._displaced: set[str] = set()  # parts that would follow from the data
        self._count, self._files = 0, []

    def parse(self, paths: Sequence[str], params: Sequence[str]) -> None:
        """Parses files, then bindings, into gin's tables.

        Raises:
            What gin raises, and ValueError for a parameter that does not exist or a value of the
            wrong type, with gin's note of file and line.
        """
        with self._watching():
            for path in paths:
                gin_config.parse_config_file(path)
            for param in params:
                gin.parse_config(param)

    def derive(self, values: dict[str, Any], over_files: bool) -> None:
        """Binds values that follow from the data, where nothing else is bound.

        Args:
            values: {binding: value}; a text "@Name" stands for a part.
            over_files: whether they replace what files bind, too.
        """
        for name, value in values.items():
            if isinstance(value, str) and value.startswith("@"):
                value = gin_config.parse_value(value)
            parsed = gin_config.ParsedBindingKey.parse(name)
            key = parsed.scope, parsed.complete_selector, parsed.arg_name
            bound = self.of.get(key)
            if bound and not (over_files and bound.path):
                self._displaced |= references_of(value)
                continue
            check(key, value)
            self._count += 1
            self.of[key] = Source(DERIVED, self._count)
            with gin.unlock_config():
                gin.bind_parameter(name, value)

    @contextlib.contextmanager
    def _watching(self) -> Iterator[None]:
        """Has gin call `_bind` for each binding, and tell which file it reads."""
        bind, parse_file = gin_config.bind_parameter, gin_config.parse_config_file

        def parse_noted(path, *args, **kwargs):
            self._files.append(str(path))
            try:
                return parse_file(path, *args, **kwargs)
            finally:
                self._files.pop()

        def bind_noted(binding_key, value):
            self._note(gin_config.ParsedBindingKey.parse(binding_key), value)
            bind(binding_key, value)

        gin_config.bind_parameter, gin_config.parse_config_file = bind_noted, parse_noted
        try:
            yield
        finally:
            gin_config.bind_parameter, gin_config.parse_config_file = bind, parse_file

    def _note(self, parsed, value):
        """Checks a binding that is about to be made and notes what it changes."""
        key = parsed.scope, parsed.complete_selector, parsed.arg_name
        check(key, value)
        self._count += 1
        source = Source(self._files[-1] if self._files else None, self._count)
        bound = gin_config._CONFIG.get(key[:2], {})
        before = references_of(bound[key[2]] if key[2] in bound else _default(key))
        after = references_of(value)
        for part in after:
            self.taken.pop(part, None)
        # Only a file takes parts away from other files: what the command line binds has an effect.
        if source.path is not None and self.path_of(key) != source.path:
            self.taken |= {part: source for part in before - after}
        self.of[key] = source

    def path_of(self, key: Key) -> str | None:
        """Returns the file that bound a key, None where none did."""
        return self.of[key].path if key in self.of else None

    def idle(self, called: Sequence[str]) -> set[Key]:
        """Returns the bindings that may be without effect in a run that calls these parts alone.

        They are those of overlays of none of these parts; those derived of a part that a file or
        the command line replaced; and those of files whose part a later file took away.

        Args:
            called: full selectors.
        """
        idle = {
            key
            for key, source in self.of.items()
            if key[1] not in called
            and key[1] != MACRO
            and (source.is_overlay or (source.path == DERIVED and key[1] in self._displaced))
        }
        return idle | self.left_without_part(called).keys()

    def left_without_part(self, called: Sequence[str]) -> dict[Key, str]:
        """Returns the bindings of files whose part a later file took away, by that file.

        Args:
            called: full selectors of the parts that the run builds; none of these was taken away.

        Returns:
            {key: path}, macros that only such bindings read included.
        """
        taken = {part: source for part, source in self.taken.items() if part not in called}
        found = {}
        pending = list(taken)
        while pending:
            part = pending.pop()
            for key, value in _values_of(part):
                source = self.of.get(key)
                if source and source.path and source.path != taken[part].path:
                    if source.number < taken[part].number:
                        found[key] = taken[part].path
                # What the part alone would have built goes with it.
                for inner in references_of(value) - taken.keys() - set(called):
                    taken[inner] = taken[part]
                    pending.append(inner)
        return found | self._macros_of(found)

    def _macros_of(self, idle: dict[Key, str]) -> dict[Key, str]:
        """Returns the macros of files that some of these bindings read."""
        macros = {}
        for key, path in idle.items():
            for reference in gin_config.iterate_references(gin_config._CONFIG[key[:2]][key[2]]):
                macro = (reference.config_key[0], MACRO, "value")
                if reference.config_key[1] == MACRO and self.path_of(macro):
                    macros[macro] = path
        return macros


def check(key: Key, value: Any) -> None:
    """Checks that a part has the parameter and that the value fits it.

    Raises:
        ValueError: as of `config_values`.
    """
    scope, selector, parameter = key
    if selector == MACRO:
        return
    part = gin_config._REGISTRY.get_match(selector).wrapped
    minimal = gin_config._REGISTRY.minimal_selector(selector)
    config_values.check_parameter(part, minimal, parameter)
    binding = "/".join(filter(None, [scope, f"{minimal}.{parameter}"]))
    config_values.check_value(part, binding, parameter, value)


def parameters(selector: str) -> dict[str, inspect.Parameter]:
    """Returns the parameters that a part names; empty where there is no such part."""
    found = gin_config._REGISTRY.get_match(selector)
    return config_values.named_parameters(found.wrapped) if found else {}


def references_of(value: Any) -> set[str]:
    """Returns the full selectors of the parts that a value refers to; a default may be a part."""
    found = {
        reference.config_key[1]
        for reference in gin_config.iterate_references(value)
        if reference.config_key[1] != MACRO
    }
    if callable(value) and not isinstance(value, gin_config.ConfigurableReference):
        part = gin_config._inverse_lookup(value)
        found |= {part.selector} if part else set()
    return found


def _values_of(part: str) -> Iterator[tuple[Key, Any]]:
    """Yields (key, value) of a part: what is bound, in any scope, and every default."""
    for (scope, selector), values in list(gin_config._CONFIG.items()):
        if selector == part:
            yield from (((scope, part, name), value) for name, value in values.items())
    for name in parameters(part):
        yield ("", part, name), _default(("", part, name))


def _default(key: Key) -> Any:
    """Returns the default of a parameter, or the mark of `inspect` for none."""
    known = parameters(key[1]).get(key[2])
    return inspect.Parameter.empty if known is None else known.default


def find_circle(uses: dict[str, Sequence[str]]) -> list[str]:
    """Returns names of which each uses the next, the last one being the first; [] for none."""
    try:
        graphlib.TopologicalSorter(uses).prepare()
    except graphlib.CycleError as error:
        return error.args[1][::-1]  # there each is used by the next
    return []
