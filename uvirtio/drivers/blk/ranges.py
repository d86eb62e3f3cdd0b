"""Ranges of sectors, split to the limits of one segment and one request (5.2.6)."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

from uvirtio.drivers.blk.config import Limits

Range = tuple[int, int]
"""(first sector, number of sectors)."""

_SEGMENT = struct.Struct("<QII")


def segments(ranges: Sequence[Range], limits: Limits) -> Iterator[Range]:
    """Split ranges of sectors to the device's limits.

    Args:
        ranges: The sectors.
        limits: ``max_sectors`` of each piece, and the alignment to split at where possible.

    Yields:
        Pieces of the same sectors, in order.
    """
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
    """Encode ranges as the segments of a request (5.2.6: le64 sector, le32 num_sectors, le32 flags).

    Args:
        pieces: The ranges.
        flags: The flags of each.
    """
    return b"".join(_SEGMENT.pack(first, count, flags) for first, count in pieces)
