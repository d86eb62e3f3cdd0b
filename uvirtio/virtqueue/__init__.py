"""Virtqueues: the split ring of 2.7 and the packed ring of 2.8, behind one interface."""

from __future__ import annotations

from uvirtio.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing import Any

SgEntry = tuple[int, int]
"""(device address, length in bytes) of one element of a descriptor chain."""


class Completion(NamedTuple):
    """A used descriptor chain: the caller's cookie, and the number of bytes that the device reports as written."""

    cookie: Any
    written: int
