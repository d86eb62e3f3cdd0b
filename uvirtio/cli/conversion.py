"""Skips typer's conversion of options and arguments whose values have the right type already.

typer 0.29 converts with pydantic, whose import takes about as long as a whole ``uvirtio list``. Most values need
no conversion: they are strings, or defaults. Only a number or a choice that was typed needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, get_args, get_origin

from typer.core import TyperCommand, TyperGroup


def command(annotations: Mapping[str, Any]) -> type[TyperCommand]:
    """The class of a command whose function has parameters with these annotations."""

    class Command(TyperCommand):
        def __init__(self, *args: Any, **named: Any) -> None:
            super().__init__(*args, **named)
            _skip(self.params, annotations)

        def get_help_option(self, ctx: Any) -> Any:
            return _skip_flag(super().get_help_option(ctx))

    return Command


def group(annotations: Mapping[str, Any]) -> type[TyperGroup]:
    """The class of a group of commands whose callback has parameters with these annotations."""

    class Group(TyperGroup):
        def __init__(self, *args: Any, **named: Any) -> None:
            super().__init__(*args, **named)
            _skip(self.params, annotations)

        def get_help_option(self, ctx: Any) -> Any:
            return _skip_flag(super().get_help_option(ctx))

    return Group


def _skip(params: Iterable[Any], annotations: Mapping[str, Any]) -> None:
    for param in params:
        if param.name in annotations:
            kinds = _kinds(annotations[param.name])
            # click's name for the conversion of a value, typed or default, to what the function gets.
            param.process_value = partial(_process, param, param.process_value, kinds)


def _skip_flag(option: Any) -> Any:
    """Skip the conversion of --help, which is a parameter, too, with the value None."""
    if option is not None and not isinstance(option.process_value, partial):  # it is made once and used often
        _skip([option], {option.name: bool})
    return option


def _kinds(annotation: Any) -> list[Any]:
    """The types that a value may have, None excepted."""
    base = get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
    return [one for one in get_args(base) if one is not NoneType] if isinstance(base, UnionType) else [base]


def _process(param: Any, theirs: Callable[[Any, Any], Any], kinds: list[Any], context: Any, value: Any) -> Any:
    """``value`` itself where its type is right, else as typer converts it."""
    if value is None and not param.required:
        return () if param.multiple or param.nargs == -1 else None
    if param.callback is None and any(_is(value, kind) for kind in kinds):
        return list(value) if isinstance(value, tuple) else value
    return theirs(context, value)


def _is(value: Any, kind: Any) -> bool:
    if kind == list[str]:
        return isinstance(value, (list, tuple)) and bool(value) and all(isinstance(one, str) for one in value)
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    return isinstance(kind, type) and isinstance(value, kind)
