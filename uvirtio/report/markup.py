"""HTML and SVG as text: what is not markup already is escaped, so that a string of a device stays a string."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import Any, Final, TypeAlias

Children: TypeAlias = "str | int | float | Iterable[Children] | None"

_VOID: Final = frozenset({"meta", "link", "br", "hr", "input", "col"})


class Markup(str):
    """Text that is HTML. Made by the functions here alone."""

    __slots__ = ()


def printable(value: object) -> str:
    """The text of a value; control characters and those that turn its direction around are written as escapes."""
    text = str(value)
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "backslashreplace").decode() for char in text
    )


def text(value: object) -> Markup:
    """A value as HTML text, which is safe in attributes in double quotes, too."""
    return value if isinstance(value, Markup) else Markup(escape(printable(value), quote=True))


def join(*children: Children) -> Markup:
    """Children one after the other: markup as it is, everything else escaped, None left out."""
    return Markup("".join(_each(children)))


def _each(children: Iterable[Children]) -> Iterable[str]:
    for child in children:
        if child is None:
            continue
        if isinstance(child, str | int | float):
            yield text(child)
        else:
            yield from _each(child)


def element(name: str, /, *children: Children, **attributes: Any) -> Markup:
    """An element.

    Args:
        name: Its name, which is ours.
        *children: What is in it; see ``join``.
        **attributes: Its attributes: ``class_`` is ``class``, ``aria_label`` is ``aria-label``. None and False are
            left out, True has no value.
    """
    written = [name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        plain = key.rstrip("_").replace("_", "-")
        written.append(plain if value is True else f'{plain}="{text(value)}"')
    start = " ".join(written)
    if name in _VOID:
        return Markup(f"<{start}>")
    return Markup(f"<{start}>{join(*children)}</{name}>")


def code(value: object) -> Markup:
    """A number, a name or a register, as code."""
    return element("code", printable(value))


def table(
    head: Iterable[Children], rows: Iterable[Iterable[Children]], *, caption: str, **attributes: Any
) -> Markup:
    """A table whose first column heads its rows; it scrolls where the page is too narrow for it.

    Args:
        head: The heads of the columns.
        rows: The cells.
        caption: What the table is, for readers who do not see where it stands.
        **attributes: Attributes of the table.
    """
    return element(
        "div",
        element(
            "table",
            element("caption", caption),
            element("thead", element("tr", [element("th", cell, scope="col") for cell in head])),
            element("tbody", [_row(cells) for cells in rows]),
            **attributes,
        ),
        class_="scroll",
        role="region",
        tabindex="0",
        aria_label=caption,
    )


def _row(cells: Iterable[Children]) -> Markup:
    first, *rest = cells
    return element("tr", element("th", first, scope="row"), [element("td", cell) for cell in rest])


def pairs(items: Iterable[tuple[str, Children]]) -> Markup:
    """Names with their values."""
    return element(
        "dl", [element("div", element("dt", name), element("dd", value)) for name, value in items], class_="pairs"
    )


_GLYPHS: Final = {"pass": "✓", "warn": "!", "fail": "✗", "skip": "–", "bad": "✗", "note": "i"}
_WORDS: Final = {"pass": "ok", "bad": "fail"}


def mark(verdict: str, word: str | None = None) -> Markup:
    """A verdict as a sign, a word and a colour: any one of the three is enough to read it."""
    known = verdict if verdict in _GLYPHS else "note"
    return element(
        "span",
        element("span", _GLYPHS[known], aria_hidden="true"),
        f" {word or _WORDS.get(verdict, verdict)}",
        class_=f"mark {known}",
    )


def section(ident: str, title: str, *children: Children) -> Markup:
    """A part of the page with its heading."""
    return element(
        "section", element("h2", title, id=f"{ident}-title"), *children, id=ident, aria_labelledby=f"{ident}-title"
    )


def seconds(value: float) -> str:
    """A time as people write it."""
    if value >= 1:
        return f"{value:.2f} s"
    if value >= 0.001:
        return f"{value * 1e3:.1f} ms"
    return f"{value * 1e6:.0f} µs"
