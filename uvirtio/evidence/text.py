"""The text of a dump as people paste it: its lines without quoting, and errors that say where."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from uvirtio.errors import BadDump

_QUOTES: Final = re.compile(r"(?:[ \t]*[>|])*[ \t]*")
"""Mail quoting (``> > ``), the bars of bug trackers, and indentation."""

SHOWN: Final = 60
"""Characters of a bad word that an error repeats."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line: its number from 1, what is left without quoting, and the column (from 1) at which that begins."""

    file: str
    number: int
    column: int
    text: str

    def bad(self, message: str, at: int = 0, *, seen: object = None, expected: str | None = None) -> BadDump:
        """The error for something in this line.

        Args:
            message: What is wrong.
            at: Where in ``text``, from 0.
            seen: What is there; None: the text from ``at``.
            expected: What should be there.
        """
        shown = self.text[at : at + SHOWN] if seen is None else seen
        return bad(self.file, self.number, self.column + at, message, seen=shown, expected=expected)


def bad(file: str, line: int, column: int, message: str, *, seen: Any, expected: str | None) -> BadDump:
    """The error for a place in a dump.

    Args:
        file: Its name.
        line: The line, from 1.
        column: The column, from 1.
        message: What is wrong there.
        seen: What is there.
        expected: What should be there.
    """
    return BadDump(
        f"{file}:{line}:{column}: {message}",
        seen=seen,
        expected=expected,
        remedy="docs/evidence.md has every form of dump that can be read",
        line=line,
        column=column,
    )


def lines(file: str, text: str) -> Iterator[Line]:
    """The lines of a text that are not empty, without quoting and white space at their ends."""
    for number, raw in enumerate(text.split("\n"), 1):
        match = _QUOTES.match(raw)
        start = match.end() if match else 0
        rest = raw[start:].rstrip()
        if rest:
            yield Line(file, number, start + 1, rest)


def place(text: str, offset: int, line: int = 1, column: int = 1) -> tuple[int, int]:
    """The line and column, from 1, of an offset in a text.

    Args:
        text: The text.
        offset: The offset.
        line: The line of the file on which the text begins.
        column: The column at which it begins there.
    """
    before = text[:offset]
    row, col = before.count("\n"), offset - (before.rfind("\n") + 1)
    return line + row, col + 1 if row else column + col
