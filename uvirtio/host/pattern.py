"""Regular expressions that are compiled at their first use: a command that needs few of them starts sooner."""

from __future__ import annotations

from functools import cached_property

from uvirtio.typed import TYPE_CHECKING

if TYPE_CHECKING:
    import re
    from typing import Any


class Pattern:
    """A regular expression, as ``re.compile`` makes it, but not before it is used."""

    def __init__(self, text: str, flags: int = 0) -> None:
        """Note the expression.

        Args:
            text: In the syntax of ``re``.
            flags: Of ``re``; those in front of the expression, as in ``(?a)``, do without importing it.
        """
        self._text = text
        self._flags = flags

    @cached_property
    def _compiled(self) -> re.Pattern[str]:
        import re  # here: a start that matches nothing is over before it is imported

        return re.compile(self._text, self._flags)

    def fullmatch(self, text: str) -> re.Match[str] | None:
        """Match the whole of ``text``, as ``re.Pattern.fullmatch`` does."""
        return self._compiled.fullmatch(text)

    def search(self, text: str) -> re.Match[str] | None:
        """Find the first match in ``text``, as ``re.Pattern.search`` does."""
        return self._compiled.search(text)

    def findall(self, text: str) -> list[Any]:
        """Find all matches in ``text``, as ``re.Pattern.findall`` does."""
        return self._compiled.findall(text)

    def match(self, text: str, pos: int = 0) -> re.Match[str] | None:
        """Match at ``pos`` of ``text``, as ``re.Pattern.match`` does."""
        return self._compiled.match(text, pos)
