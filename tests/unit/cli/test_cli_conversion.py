"""Values that need no conversion do not go through typer's, which since 0.29 imports pydantic."""

from __future__ import annotations

from enum import StrEnum
from types import SimpleNamespace
from typing import Annotated, Any, Literal

import pytest

from uvirtio.cli import conversion


class Colour(StrEnum):
    RED = "red"


def convert(annotation: Any, value: Any, **param: Any) -> Any:
    """What becomes of ``value``; what typer would have been asked to convert comes back as ("theirs", value)."""
    made = SimpleNamespace(
        name="x",
        required=False,
        multiple=False,
        nargs=1,
        callback=None,
        process_value=lambda context, value: ("theirs", value),
    )
    vars(made).update(param)
    conversion.skip([made], {"x": annotation})
    return made.process_value(None, value)


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (str, "as typed"),
        (str, ""),
        (Annotated[str, "an option"], "as typed"),
        (float, 5.0),
        (float | None, None),
        (bool, True),
        (Literal["a", "b"], "b"),
        (Colour, Colour.RED),
        (list[str] | None, ["one", "two"]),
    ],
)
def test_what_has_its_type_is_taken_as_it_is(annotation: Any, value: Any) -> None:
    assert convert(annotation, value) == value


@pytest.mark.parametrize(
    ("annotation", "value"),
    [(float, "5"), (float, 5), (int | None, "5"), (Literal["a"], "b"), (Colour, "red"), (list[str], [])],
)
def test_everything_else_is_typers(annotation: Any, value: Any) -> None:
    assert convert(annotation, value) == ("theirs", value)


def test_lists_are_lists_and_nothing_is_as_a_parser_has_it() -> None:
    assert convert(list[str], ("one",), nargs=-1) == ["one"]
    assert convert(list[str] | None, None, multiple=True) == ()
    assert convert(list[str] | None, None, nargs=-1) == ()


def test_what_is_missing_and_what_has_a_callback_is_typers() -> None:
    assert convert(str, None, required=True) == ("theirs", None)
    assert convert(str, "x", callback=print) == ("theirs", "x")
    assert convert(str, None, callback=print) is None
