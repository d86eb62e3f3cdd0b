"""Ranges of sectors, cut to what the device takes in one segment and one request (5.2.6)."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

from uvirtio.drivers.blk.config import Limits

Range = tuple[int, int]
"""(first sector, number of sectors)."""

_SEGMENT = struct.Struct("<QII")


def segments(ranges: Sequence[Range], limits: Limits) -> Iterator[Range]:
    """The same sectors in pieces of at most ``max_sectors``, cut at the device's alignment where that fits."""
    step = limits.max_sectors
    for first, count in ranges:
        while count > step:
            cut = (first + step) // limits.alignment * limits.alignment - first
            piece = cut if cut > 0 else step
            yield first, piece
            first, count = first + piece, count - piece
        if count:
            yield first, count


def packed(pieces: Sequence[Range], flags: int) -> bytes:
    """Segments as the device reads them."""
    return b"".join(_SEGMENT.pack(first, count, flags) for first, count in pieces)
