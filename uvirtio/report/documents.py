"""The documents that a report is made of, as it carries them: JSON in script elements that no browser runs."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from typing import Any, Final

from uvirtio.report.markup import Markup

DUMP: Final = "uvirtio-dump"
"""The id of the element with the document of ``uvirtio dump``."""
DIAG: Final = "uvirtio-diag"
"""The id of the element with the document of ``uvirtio diag --json``."""

Document = dict[str, Any]


def script(ident: str, document: Document) -> Markup:
    """A document as a script element.

    Args:
        ident: The element's id.
        document: The document. Nothing in it can end the element: ``<``, ``>`` and ``&`` are escaped as JSON allows.
    """
    told = json.dumps(document, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for char in "<>&":
        told = told.replace(char, f"\\u{ord(char):04x}")
    return Markup(f'<script type="application/json" id="{ident}">{told}</script>')


class _Finder(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=False)
        self.found: dict[str, str] = {}
        self._inside: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        ident = given.get("id")
        if tag == "script" and given.get("type") == "application/json" and ident and ident not in self.found:
            self._inside = ident
            self.found[ident] = ""

    def handle_endtag(self, tag: str) -> None:
        if tag == "script":
            self._inside = None

    def handle_data(self, data: str) -> None:
        if self._inside is not None:
            self.found[self._inside] += data


def embedded(text: str, ident: str) -> Document | None:
    """Return a document that a report carries; None: it carries none of that id.

    Args:
        text: The HTML file.
        ident: ``DUMP`` or ``DIAG``.

    Raises:
        ValueError: It is there and is no JSON object.
    """
    finder = _Finder()
    finder.feed(text)
    finder.close()
    told = finder.found.get(ident)
    if told is None:
        return None
    made = json.loads(told)
    if not isinstance(made, dict):
        raise ValueError(f"{ident} is not an object")
    return made
