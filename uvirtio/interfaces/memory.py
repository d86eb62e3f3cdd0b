"""What memory, registers and events look like to the code that uses them: Protocols.

Back ends implement these, transports, virtqueues and drivers use them. All offsets and lengths are in bytes;
device addresses are IOVAs or guest-physical addresses, as the policy of the memory (:class:`DmaSpace`) says.
"""

from __future__ import annotations

import mmap
from typing import Protocol, runtime_checkable


class Registers(Protocol):
    """A window of registers: one access of exactly the width per call, at an aligned byte offset.

    Raises Misuse for an access outside the window or not aligned (a mistake of the caller), Closed after
    ``close()``, DeviceGone when the device has been removed.
    """

    length: int

    def read8(self, offset: int) -> int: ...
    def read16(self, offset: int) -> int: ...
    def read32(self, offset: int) -> int: ...
    def write8(self, offset: int, value: int) -> None: ...
    def write16(self, offset: int, value: int) -> None: ...
    def write32(self, offset: int, value: int) -> None: ...
    def close(self) -> None: ...


class Doorbell(Protocol):
    """Where a queue is kicked. ``ring`` takes the value that the standard wants written (4.1.5.2)."""

    def ring(self, value: int) -> None: ...
    def close(self) -> None: ...


class Event(Protocol):
    """One interrupt vector as a file descriptor that polls readable.

    ``take()`` consumes what is pending, without waiting, and says whether there was anything. A line that is
    level-triggered (INTx) stays masked from then on until ``rearm()``, which is called after the cause was
    read from the device; for edge-triggered vectors ``rearm()`` does nothing. ``take()`` must be called before
    one waits on ``fileno()``: an implementation may hold events that it read beside something else.
    """

    def fileno(self) -> int: ...
    def take(self) -> bool: ...
    def rearm(self) -> None: ...
    def close(self) -> None: ...


class Block(Protocol):
    """A piece of memory that stays where it is while a device may touch it.

    ``view`` is its bytes; whoever casts or slices it releases that view before ``close()``.
    """

    view: memoryview
    size: int
    contiguous: bool
    """One run of device addresses from start to end."""

    def segments(self, offset: int, length: int) -> list[tuple[int, int]]:
        """The device addresses of these bytes, as (address, length) runs, merged where they touch."""
        ...

    def pfns(self) -> list[int]:
        """The guest-physical frame number of each 4096-byte piece, read anew at every call.

        Raises PagemapHidden where this process may not know them.
        """
        ...

    def close(self) -> None: ...


class DmaSpace(Protocol):
    """Memory for one device, under one address policy."""

    translated: bool
    """True: addresses are IOVAs (ACCESS_PLATFORM negotiated). False: guest-physical addresses (6.1)."""

    contiguous_limit: int
    """No run of device addresses is longer than this many bytes, unless by luck; ring areas must fit in it."""

    def alloc(self, size: int) -> Block:
        """Zeroed, page-aligned memory of at least ``size`` bytes that the device may read and write.

        Raises MemlockExceeded, PagemapHidden, or OperationFailed when the map is refused.
        """
        ...

    def pin(self, size: int) -> Block:
        """Zeroed memory that stays put and whose ``pfns()`` are known, but that the device does not address.

        For balloon pages: pinned by one map, whatever their number. ``segments()`` is undefined on it.
        """
        ...

    def close(self) -> None: ...


class MemoryWindow(Protocol):
    """The CPU's way to memory that a device provides (virtio-mem), in pieces that are mapped one by one."""

    size: int

    def map(self, offset: int, length: int) -> mmap.mmap:
        """Map whole pages of it, for reading and writing; whoever asked closes the mapping.

        Raises PermissionLack, OperationFailed, Closed; Misuse outside the window.
        """
        ...

    def close(self) -> None: ...


@runtime_checkable
class AdoptsMemory(Protocol):
    """What a DmaSpace may have beside the rest: it shows a device memory that it did not make."""

    def adopt(self, mapping: mmap.mmap, physical: int) -> Block:
        """The whole mapping, whose guest-physical address is known, as a block of this space.

        Closing the block takes it away from the device; the mapping stays the caller's.
        """
        ...
