"""Values of options and arguments skip typer's conversion where they have their type already.

typer 0.29 converts with pydantic, whose import takes about as long as a whole ``uvirtio list``. Most values need
none: they are strings as they were typed, or defaults. Only a number or a choice that was typed pays for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from inspect import unwrap
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from typer.core import TyperCommand, TyperGroup


class Command(TyperCommand):
    """A command of typer's. What follows is only done when it is parsed, and not for the help of all of them."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the words of the command line, as typer does."""
        _skip(self.params, self.callback)
        return super().parse_args(ctx, args)

    def get_help_option(self, ctx: Any) -> Any:
        """Return typer's ``--help``."""
        return _skip_flag(super().get_help_option(ctx))


class Group(TyperGroup):
    """The same for a group of commands."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the words of the command line, as typer does."""
        _skip(self.params, self.callback)
        return super().parse_args(ctx, args)

    def get_help_option(self, ctx: Any) -> Any:
        """Return typer's ``--help``."""
        return _skip_flag(super().get_help_option(ctx))


def _skip(params: Iterable[Any], callback: Callable[..., Any] | None) -> None:
    """Let the parameters of ``callback`` skip the conversion."""
    if callback is not None and params:
        # The function below typer's wrapper, which since Python 3.14 does not copy annotations that were assigned.
        skip(params, get_type_hints(unwrap(callback)))


def skip(params: Iterable[Any], annotations: Mapping[str, Any]) -> None:
    """Let those of ``params`` skip the conversion whose names have an annotation."""
    for param in params:
        if param.name in annotations and not isinstance(param.process_value, partial):
            kinds = _kinds(annotations[param.name])
            # What click calls so: from a value as it was typed, or a default, to what the function gets.
            param.process_value = partial(_process, param, param.process_value, kinds)


def _skip_flag(option: Any) -> Any:
    """--help is a parameter too, and its value None."""
    if option is not None:
        skip([option], {option.name: bool})
    return option


def _kinds(annotation: Any) -> list[Any]:
    """What a value may be, None apart."""
    base = get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
    return [one for one in get_args(base) if one is not NoneType] if isinstance(base, UnionType) else [base]


def _process(param: Any, theirs: Callable[[Any, Any], Any], kinds: list[Any], context: Any, value: Any) -> Any:
    """``value`` itself where nothing has to be done, or what typer makes of it."""
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
