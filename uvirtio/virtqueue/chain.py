"""The rules for a descriptor chain that both ring formats share."""

from __future__ import annotations

from collections.abc import Sequence

from uvirtio.errors import BadChain
from uvirtio.spec.ring import MAX_CHAIN_BYTES
from uvirtio.virtqueue import SgEntry

MAX_LENGTH = 0xFFFF_FFFF  # a descriptor's length has 32 bits
ADDRESS_LIMIT = 1 << 64
SAFE_ADDRESS = ADDRESS_LIMIT - MAX_LENGTH
"""No element that starts here, or below, ends beyond the address space."""


def measure(readable: Sequence[SgEntry], writable: Sequence[SgEntry], limit: int) -> int:
    """Check a chain against 2.7.5.2 and 2.7.5.3.1.

    Args:
        readable: Elements that the device reads.
        writable: Elements that the device writes.
        limit: The queue size: no chain has more elements, indirect ones included.

    Returns:
        The number of bytes that the device may write.

    Raises:
        BadChain: The chain breaks one of the rules.
    """
    count = len(readable) + len(writable)
    if not count:
        raise _bad("a chain needs at least one element", 0, "1 or more elements")
    if count > limit:
        raise _bad("the chain has more elements than the queue", count, f"at most {limit} elements")
    total = room = 0
    for runs in (readable, writable):
        room = 0
        for address, length in runs:
            if not 0 < length <= MAX_LENGTH:
                raise _bad("the length of an element is invalid", length, f"1..{MAX_LENGTH} bytes")
            if address < 0 or address + length > ADDRESS_LIMIT:
                raise _bad("an element is outside the 64-bit address space", (address, length), "0..2^64")
            room += length
        total += room
    if total > MAX_CHAIN_BYTES:
        raise _bad("the chain is too long", total, "at most 2^32 bytes in total (2.7.5.2)")
    return room


def _bad(message: str, seen: object, expected: str) -> BadChain:
    return BadChain(message, seen=seen, expected=expected, remedy="split the request into smaller chains")
