"""Waiting for one file: by poll, for select takes no descriptor above 1023."""

from __future__ import annotations

import select
from typing import Protocol


class HasFileno(Protocol):
    """A file, a socket, or an event of a back end."""

    def fileno(self) -> int: ...


def readable(file: int | HasFileno, seconds: float) -> bool:
    """Whether a file can be read, or has ended, within so many seconds."""
    return _ready(file, select.POLLIN, seconds)


def writable(file: int | HasFileno, seconds: float) -> bool:
    """Whether a file can be written to, or has ended, within so many seconds."""
    return _ready(file, select.POLLOUT, seconds)


def _ready(file: int | HasFileno, events: int, seconds: float) -> bool:
    poller = select.poll()
    poller.register(file, events)
    return bool(poller.poll(seconds * 1000))
