"""Checks of single gin bindings: whether a part has the parameter, and whether the value fits it.

gin takes any parameter of a part that passes `**kwargs` on to Keras, and any value. What a
parameter takes is read from its annotation, else from its default: a default of 20 takes whole
numbers, one of None takes anything. This module imports no TensorFlow.
"""

import inspect
import types
import typing
from collections.abc import Sequence
from typing import Any

from gin import config as gin_config

# An annotation: a whole number of at least 1.
Count = typing.Annotated[int, "at least 1"]

_NAMES = {
    bool: "True or False",
    int: "a whole number",
    Count: "a whole number of at least 1",
    float: "a number",
    str: "a text in quotes",
    tuple: "a list of values",
    type(None): "None",
}
_OF_ANNOTATIONS = {list: tuple, Sequence: tuple}


def named_parameters(part: Any) -> dict[str, inspect.Parameter]:
    """Returns the parameters that a part names itself, without what it passes on.

    Args:
        part: the function or class.
    """
    signature = inspect.signature(_function(part))
    # Bound to a class, __init__ still has self.
    found = list(signature.parameters.items())[inspect.isclass(part) :]
    return {
        name: parameter
        for name, parameter in found
        if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    }


def check_parameter(part: Any, part_name: str, name: str) -> None:
    """Checks that a part names a parameter.

    Raises:
        ValueError: if it does not, in gin's own words.
    """
    if name not in named_parameters(part):
        raise ValueError(f"Configurable '{part_name}' doesn't have a parameter named '{name}'.")


def check_value(part: Any, binding: str, name: str, value: Any) -> None:
    """Checks that a value is of a type that a parameter takes.

    References to macros and parts pass: their values are not known here. A whole number passes for
    a float, and a float such as 20.0 for a whole number; True and False pass for neither.

    Args:
        part: the function or class.
        binding: name of the binding, for the message.
        name: of the parameter.
        value: what gin parsed.

    Raises:
        ValueError: if it is not; the message says what is taken.
    """
    if any(True for _ in gin_config.iterate_references(value)):
        return
    parameter = named_parameters(part)[name]
    accepted = _accepted(part, parameter)
    if accepted and not any(_fits(value, kind) for kind in accepted):
        kinds = [_NAMES[kind] for kind in accepted if kind is not int or float not in accepted]
        raise ValueError(f"{binding} = {value!r}: the value must be {' or '.join(kinds)}")
    if callable(parameter.default) and parameter.default is not parameter.empty:
        if value is not None:
            raise ValueError(f"{binding} = {value!r}: the value must be a part, such as @Name")


def _function(part: Any) -> Any:
    # The signature of a Keras class would be that of its __new__, which takes anything.
    return part.__init__ if inspect.isclass(part) else part


def _fits(value: Any, kind: type) -> bool:
    if kind is bool or isinstance(value, bool):
        return isinstance(value, bool) and kind is bool
    if kind is Count:
        return _fits(value, int) and value >= 1
    if kind is int:
        return isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if kind is float:
        return isinstance(value, (int, float))
    if kind is tuple:
        return isinstance(value, (list, tuple))
    return isinstance(value, kind)


def _accepted(part: Any, parameter: inspect.Parameter) -> tuple[type, ...]:
    """Returns the types that a parameter takes, keys of _NAMES; empty for any."""
    if parameter.annotation is not parameter.empty:
        return _annotated(part, parameter.name)
    kind = tuple if isinstance(parameter.default, list) else type(parameter.default)
    # A default of None says that there may be none, and not what else may be.
    return (kind,) if kind in _NAMES and parameter.default is not None else ()


def _annotated(part: Any, name: str) -> tuple[type, ...]:
    annotation = typing.get_type_hints(_function(part), include_extras=True)[name]
    is_union = typing.get_origin(annotation) in (types.UnionType, typing.Union)
    members = typing.get_args(annotation) if is_union else (annotation,)
    kinds = [m if m is Count else typing.get_origin(m) or m for m in members]
    kinds = [_OF_ANNOTATIONS.get(kind, kind) for kind in kinds]
    return tuple(kinds) if all(kind in _NAMES for kind in kinds) else ()
