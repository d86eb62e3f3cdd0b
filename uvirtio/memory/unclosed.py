"""What is dropped without ``close()``: a ResourceWarning says so, as for Python's own files and sockets."""

from __future__ import annotations

import sys
from _warnings import warn  # of CPython: a start does without the module warnings
from collections.abc import Callable

from uvirtio.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Protocol

    class Closable(Protocol):
        """What is open until it is closed."""

        def close(self) -> None:
            """Close it; idempotent."""


def warn_unclosed(
    owner: object, about: str = "", *, then: Callable[[], object] | None = None, level: int = 3
) -> None:
    """Warn that ``owner`` was not closed; called by its ``__del__``.

    Python shows such warnings where they are asked for (``-X dev``, ``-W default``), and with tracemalloc
    where the owner was made.

    Args:
        owner: What still has descriptors, memory or a process.
        about: Which one it is; empty: its ``repr`` says so.
        then: Releases what may be released; called even where warnings are errors, and not when the process ends:
            then no thread runs any more that could be waited for, and the kernel closes it.
        level: How many calls above this one it was dropped: 3 from ``__del__`` itself.
    """
    try:
        text = f"{type(owner).__name__} {about}" if about else repr(owner)
        warn(f"unclosed {text}", ResourceWarning, stacklevel=level, source=owner)
    finally:
        if then is not None and not sys.is_finalizing():
            then()
