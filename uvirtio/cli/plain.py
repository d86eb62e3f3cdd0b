"""Command lines that are read alike by any parser, and so without typer.

Each option is a name in full, with its value in the next word; each value is taken as it was typed. All else is
typer's: ``--name=value``, clustered letters, ``--``, numbers and choices, help, and every mistake.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import NoneType
from typing import Any, get_args

from uvirtio.cli.deferred import REQUIRED, Parameter, Verb

_TEXTS = frozenset({"metavar", "help", "hidden", "rich_help_panel"})
"""What typer is told of an option for its help alone."""


def read(verb: Verb, words: Iterable[str]) -> dict[str, Any] | None:
    """Read the words behind a verb.

    Args:
        verb: The verb.
        words: The words.

    Returns:
        A value for each parameter; None: the line is not plain, or has a mistake.
    """
    parameters = {**verb.own(), **verb.common}
    options = {name: key for key, one in parameters.items() for name in one.told.names}
    places = [key for key, one in parameters.items() if one.told.kind == "Argument"]
    given: dict[str, Any] = {}
    rest = iter(words)
    for word in rest:
        if word in options:
            key = options[word]
            value = _is(parameters[key], bool) or next(rest, "")
        elif places:
            key, value = places[0], word
        else:
            return None
        one = parameters[key]
        if one.told.more.keys() - _TEXTS or (value is not True and (not value or value.startswith("-"))):
            return None
        if _is(one, list[str]):
            given.setdefault(key, []).append(value)
            continue
        if value is not True and not _is(one, str):
            return None
        given[key] = value
        places = [place for place in places if place != key]
    for key, one in parameters.items():
        if key not in given:
            if one.default is REQUIRED:
                return None
            given[key] = one.default
    return given


def _is(one: Parameter, kind: Any) -> bool:
    """Whether a parameter takes values of a kind, or None."""
    return one.kind == kind or {*get_args(one.kind)} == {kind, NoneType}
