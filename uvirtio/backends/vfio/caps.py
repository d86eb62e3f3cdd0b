"""The capability chains that VFIO appends to its info structures.

A chain is a list linked by offsets inside one buffer. It comes from the kernel, and still every offset is checked
and the walk is bounded: a chain that loops must not hang a driver.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import TypeVar

from uvirtio.backends.vfio.uapi import vfio_info_cap_header
from uvirtio.errors import OperationFailed

CHAIN_LIMIT = 64
"""Capabilities in one chain; the kernel's longest has four."""

_HEADER = ctypes.sizeof(vfio_info_cap_header)

Item = TypeVar("Item", bound=ctypes.Structure)


@dataclass(frozen=True, slots=True)
class InfoCap:
    """One capability: its id and version, and its bytes from the header to the end of the buffer."""

    id: int
    version: int
    data: bytes

    def fields(self, layout: type[Item]) -> Item:
        """Return the fixed part of the capability.

        Args:
            layout: The structure, beginning with its ``vfio_info_cap_header``.

        Raises:
            OperationFailed: The buffer ends before the structure does.
        """
        if ctypes.sizeof(layout) > len(self.data):
            raise _nonsense(f"capability {self.id} has {len(self.data)} bytes", f"{ctypes.sizeof(layout)}")
        return layout.from_buffer_copy(self.data)

    def items(self, layout: type[Item], start: int, count: int) -> list[Item]:
        """Return ``count`` structures from byte ``start`` of the capability.

        Args:
            layout: The structure of one item.
            start: Offset of the first item from the capability's header, in bytes.
            count: Number of items.

        Raises:
            OperationFailed: The buffer ends before the items do.
        """
        size = ctypes.sizeof(layout)
        if start + count * size > len(self.data):
            raise _nonsense(
                f"capability {self.id} counts {count} items of {size} bytes", f"{len(self.data)} bytes"
            )
        return [layout.from_buffer_copy(self.data, start + i * size) for i in range(count)]


def _nonsense(seen: str, expected: str) -> OperationFailed:
    return OperationFailed("the kernel's VFIO information makes no sense", seen=seen, expected=expected)


def info_caps(data: bytes, first: int, head: int) -> list[InfoCap]:
    """Return the chain of capabilities in an info structure.

    Args:
        data: The structure with what follows it.
        first: Offset of the first capability in ``data``; 0: none.
        head: Length of the structure, in bytes: no capability begins before it.

    Raises:
        OperationFailed: An offset is outside the buffer, the chain loops or is too long.
    """
    found: list[InfoCap] = []
    seen: set[int] = set()
    offset = first
    while offset:
        if offset < head or offset + _HEADER > len(data):
            raise _nonsense(f"a capability at {offset}", f"an offset from {head} to {len(data) - _HEADER}")
        if offset in seen or len(found) == CHAIN_LIMIT:
            raise _nonsense(f"capability {len(found) + 1} at {offset}, again", f"at most {CHAIN_LIMIT}, no loop")
        seen.add(offset)
        header = vfio_info_cap_header.from_buffer_copy(data, offset)
        found.append(InfoCap(header.id, header.version, data[offset:]))
        offset = header.next
    return found
