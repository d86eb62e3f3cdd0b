"""The documents that a report is made of, as it carries them: JSON in script elements that no browser runs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from html.parser import HTMLParser
from typing import Any, Final

from uvirtio.errors import BadDump
from uvirtio.report.markup import Markup

DUMP: Final = "uvirtio-dump"
"""The id of the element with the document of ``uvirtio dump``."""
DIAG: Final = "uvirtio-diag"
"""The id of the element with the document of ``uvirtio diag --json``."""

Document = dict[str, Any]


def finite(text: str) -> float:
    """A number of JSON, for ``json.loads``.

    Args:
        text: The number.

    Raises:
        ValueError: It is beyond what a double holds, so that no document could repeat it.
    """
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text[:20]} is too large")
    return number


def script(ident: str, document: Document) -> Markup:
    """A document as a script element.

    Args:
        ident: The element's id.
        document: The document. Nothing in it ends the element: ``<``, ``>`` and ``&`` are escaped as JSON allows.
    """
    told = json.dumps(document, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for char in "<>&":
        told = told.replace(char, f"\\u{ord(char):04x}")
    return Markup(f'<script type="application/json" id="{ident}">{told}</script>')


@dataclass(slots=True)
class Script:
    """A script element with an id, as it is in an HTML file."""

    ident: str
    kind: str | None
    """Its type."""
    line: int
    """Where its text begins, from 1."""
    column: int
    text: str = ""
    closed: bool = False


class _Finder(HTMLParser):
    """Finds the script elements that have an id."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=False)
        self.found: list[Script] = []
        self._inside: Script | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Enter an element."""
        given = dict(attrs)
        ident = given.get("id")
        if tag == "script" and ident:
            line, column = self.getpos()
            start = self.get_starttag_text() or ""
            last = start.rfind("\n")
            place = line + start.count("\n"), (column if last < 0 else -last - 1) + len(start) + 1
            self._inside = Script(ident, given.get("type"), *place)
            self.found.append(self._inside)

    def handle_endtag(self, tag: str) -> None:
        """Leave it."""
        if tag == "script" and self._inside is not None:
            self._inside.closed = True
            self._inside = None

    def handle_data(self, data: str) -> None:
        """Keep its text."""
        if self._inside is not None:
            self._inside.text += data


def scripts(text: str) -> list[Script]:
    """Return the script elements of an HTML file that have an id, in their order.

    Args:
        text: The file.
    """
    finder = _Finder()
    finder.feed(text)
    finder.close()
    return finder.found


def embedded(text: str, ident: str) -> Document | None:
    """Return a document that a report carries; None: it carries none of that id.

    Args:
        text: The HTML file.
        ident: ``DUMP`` or ``DIAG``.

    Raises:
        BadDump: It is there and is no JSON object.
    """
    return document_in(scripts(text), ident)


def document_in(found: Iterable[Script], ident: str) -> Document | None:
    """The same for a report whose script elements are known.

    Args:
        found: The elements.
        ident: ``DUMP`` or ``DIAG``.

    Raises:
        BadDump: It is there and is no JSON object.
    """
    told = next((one for one in found if one.ident == ident and one.kind == "application/json"), None)
    if told is None:
        return None
    try:
        # NaN, which is no JSON, is no number here either.
        made = json.loads(told.text, parse_constant=str, parse_float=finite)
    except (ValueError, RecursionError) as error:
        raise _bad(f"not JSON: {error}"[:200]) from None
    if not isinstance(made, dict):
        raise _bad("not an object")
    return made


def _bad(why: str) -> BadDump:
    return BadDump(
        f"the diagnosis cannot be used: {why}",
        expected="a document of uvirtio diag --json",
        remedy="make it again: uvirtio diag DEV --html FILE",
    )


_VERDICTS: Final = ("pass", "warn", "fail", "skip")


def checked(diag: Document) -> Document:
    """Return a diagnosis as a report can use it: what it must have, with the types that it must have.

    A report comes from anywhere, and may say anything.

    Args:
        diag: A document of ``uvirtio diag --json``.

    Raises:
        BadDump: A part of it is something else.
    """
    made = {**diag, "steps": [_step(one) for one in _list(diag.get("steps"), "steps")]}
    made["address"], made["type"] = _text(diag.get("address")), _text(diag.get("type")) or "unknown"
    made["verdict"] = "fail" if diag.get("error") else "pass"
    if diag.get("verdict") is not None:
        made["verdict"] = _verdict(diag["verdict"])
    made["cause"] = _cause(diag.get("cause"))
    for name in ("error", "bisection"):
        made[name] = _object(diag.get(name), name)
    return made


def _step(told: Any) -> Document:
    step = _object(told, "a step")
    made = {**step, "name": _text(step.get("name")), "verdict": _verdict(step.get("verdict"))}
    for name in ("spec", "detail", "hint"):
        made[name] = _text(step.get(name))
    took = step.get("took_s", 0.0)
    if isinstance(took, bool) or not isinstance(took, int | float) or not math.isfinite(took) or took < 0:
        raise _bad("took_s is not a time")
    made["took_s"] = float(took)
    made["cause"] = _cause(step.get("cause"))
    data = _object(step.get("data"), "data")
    if "queues" in data:
        data = {**data, "queues": [_queue(one) for one in _list(data["queues"], "queues")]}
    made["data"] = data
    return made


def _queue(told: Any) -> Document:
    queue = _object(told, "a queue")
    index = queue.get("index")
    if isinstance(index, bool) or not isinstance(index, int):
        raise _bad("the index of a queue is not a number")
    words = _object(queue.get("words"), "words")
    return {**queue, "words": words, "addresses": _list(queue.get("addresses"), "addresses")}


def _cause(told: Any) -> Document | None:
    if told is None:
        return None
    cause = _object(told, "a cause")
    lines = {name: [_text(one) for one in _list(cause.get(name), name)] for name in ("evidence", "try")}
    return {**cause, "id": _text(cause.get("id")), "text": _text(cause.get("text")), **lines}


def _object(told: Any, what: str) -> Document:
    if told is None:
        return {}
    if not isinstance(told, dict):
        raise _bad(f"{what} is not an object")
    return told


def _list(told: Any, what: str) -> list[Any]:
    if told is None:
        return []
    if not isinstance(told, list):
        raise _bad(f"{what} is not an array")
    return told


def _text(told: Any) -> str:
    return "" if told is None else str(told)


def _verdict(told: Any) -> str:
    if told not in _VERDICTS:
        raise _bad("a verdict is none of pass, warn, fail, skip")
    return str(told)
