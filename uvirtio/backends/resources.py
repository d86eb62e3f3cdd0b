"""What has to be closed at the end, the last first: the part of ``contextlib.ExitStack`` that a start needs.

``contextlib`` takes a millisecond to import, while the program that is to be started waits.
"""

from __future__ import annotations

from collections.abc import Callable

from uvirtio.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Self


class Resources:
    """Calls that undo what was done, each made once; a context manager, whose end makes them."""

    def __init__(self) -> None:
        self._undo: list[tuple[Callable[..., object], tuple[object, ...]]] = []

    def callback(self, undo: Callable[..., object], *arguments: object) -> None:
        """Add a call, which comes before those that are there."""
        self._undo.append((undo, arguments))

    def keep(self) -> None:
        """Forget the calls: what they would undo has another owner."""
        self._undo.clear()

    def close(self) -> None:
        """Make the calls, all of them, also where one raises; idempotent."""
        if self._undo:
            undo, arguments = self._undo.pop()
            try:
                undo(*arguments)
            finally:
                self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
