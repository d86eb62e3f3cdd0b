"""Memory, registers and events, as the code that uses them sees them: Protocols.

Back ends implement these, transports, virtqueues and drivers use them. All offsets and lengths are in bytes;
device addresses are IOVAs or guest-physical addresses, according to the policy of the memory (``DmaSpace``).
"""

from __future__ import annotations

import mmap
from array import array

from uvirtio.interfaces.events import Event as Event
from uvirtio.interfaces.runtime import Exchanges as Exchanges
from uvirtio.interfaces.runtime import LimitedSpace as LimitedSpace
from uvirtio.interfaces.runtime import Step as Step
from uvirtio.typed import Protocol, runtime_checkable


class Registers(Protocol):
    """A window of registers: one access of exactly the width per call, at an aligned byte offset.

    Values are unsigned and little-endian.

    Raises:
        Misuse: In any access: outside the window, not aligned, or a value that is too wide (a caller's mistake).
        DeviceGone: In any access: the device was removed.
        Closed: In any access: after ``close()``.
    """

    length: int
    """Length of the window, in bytes."""

    def read8(self, offset: int) -> int:
        """Read 8 bits at ``offset``."""
        ...

    def read16(self, offset: int) -> int:
        """Read 16 bits at ``offset``."""
        ...

    def read32(self, offset: int) -> int:
        """Read 32 bits at ``offset``."""
        ...

    def write8(self, offset: int, value: int) -> None:
        """Write 8 bits at ``offset``."""
        ...

    def write16(self, offset: int, value: int) -> None:
        """Write 16 bits at ``offset``."""
        ...

    def write32(self, offset: int, value: int) -> None:
        """Write 32 bits at ``offset``."""
        ...

    def close(self) -> None:
        """Release the window; idempotent."""
        ...


class Doorbell(Protocol):
    """The available buffer notification of a queue (2.3)."""

    def ring(self, value: int) -> None:
        """Kick the device; ``value`` is what the standard writes to the notification register (4.1.5.2)."""
        ...

    def close(self) -> None:
        """Release the doorbell; idempotent."""
        ...


class Block(Protocol):
    """A piece of memory that keeps its device addresses while a device may access it."""

    view: memoryview
    """Its bytes. Code that casts or slices it releases the new view before ``close()``."""

    size: int
    """Length in bytes."""

    contiguous: bool
    """True where the block is one run of device addresses from start to end."""

    def segments(self, offset: int, length: int) -> list[tuple[int, int]]:
        """Return the device addresses of these bytes, as (address, length) runs, merged where they touch.

        Args:
            offset: Start in the block, in bytes.
            length: Number of bytes.

        Raises:
            Misuse: The bytes are not all in the block.
        """
        ...

    def pfns(self) -> list[int]:
        """Return the guest-physical frame number (PFN) of each 4096-byte piece, read again at every call.

        Raises:
            PagemapHidden: This process may not read them.
        """
        ...

    def close(self) -> None:
        """Free the memory; idempotent. The device must not use it any more."""
        ...


@runtime_checkable
class PackedFrames(Protocol):
    """Optional ability of a ``Block``: its frame numbers as they are kept and sent, without an object for each."""

    def packed_pfns(self) -> array[int]:
        """Return ``pfns()`` packed: 4 bytes each ("I") where all of them have 32 bits, else 8 ("Q").

        Raises:
            PagemapHidden: This process may not read them.
        """
        ...


class DmaSpace(Protocol):
    """Memory for one device, under one address policy."""

    translated: bool
    """True: addresses are IOVAs (ACCESS_PLATFORM negotiated). False: guest-physical addresses (6.1)."""

    contiguous_limit: int
    """No run of device addresses is longer than this many bytes, except by chance; ring areas must fit in it."""

    def alloc(self, size: int) -> Block:
        """Allocate zeroed, page-aligned memory that the device may read and write.

        Args:
            size: Length in bytes; rounded up.

        Raises:
            MemlockExceeded: RLIMIT_MEMLOCK does not allow it.
            PagemapHidden: The physical addresses are needed, and this process may not read them.
            OperationFailed: The kernel refused the map.
        """
        ...

    def pin(self, size: int) -> Block:
        """Allocate zeroed memory with a fixed place and known ``pfns()``, which the device does not address.

        For balloon pages: pinned by one map, whatever their number. ``segments()`` is undefined on it.

        Args:
            size: Length in bytes; rounded up.

        Raises:
            MemlockExceeded: RLIMIT_MEMLOCK does not allow it.
            PagemapHidden: This process may not read the PFNs.
            OperationFailed: The kernel refused the map.
        """
        ...

    def close(self) -> None:
        """Free all memory of the space that is left; idempotent. The device must not use it any more."""
        ...


@runtime_checkable
class KeepsRights(Protocol):
    """Optional ability of a ``DmaSpace``: it pins memory with rights, and tells which it will still need."""

    def rights(self) -> dict[str, str]:
        """Open now what is opened with rights, and return the capabilities that pinning more memory needs later.

        Returns:
            Names of capabilities (``CAP_IPC_LOCK``), each with why; empty: none.

        Raises:
            PagemapHidden: This process may not read frame numbers.
        """
        ...


class MemoryWindow(Protocol):
    """The CPU's access to memory that a device provides (virtio-mem), in pieces that are mapped one by one."""

    size: int
    """Length in bytes."""

    def map(self, offset: int, length: int) -> mmap.mmap:
        """Map whole pages of it, for reading and writing; the caller closes the mapping.

        Args:
            offset: Start in the window, in bytes.
            length: Number of bytes.

        Raises:
            PermissionLack: The kernel does not allow it.
            OperationFailed: The map failed otherwise.
            Misuse: Outside the window, or not in whole pages.
            Closed: After ``close()``.
        """
        ...

    def close(self) -> None:
        """Release the window; idempotent. Mappings stay."""
        ...


@runtime_checkable
class AdoptsMemory(Protocol):
    """Optional ability of a ``DmaSpace``: it maps memory for a device that it did not allocate itself."""

    def adopt(self, mapping: mmap.mmap, physical: int) -> Block:
        """Return a mapping whose guest-physical address is known as a block of this space.

        Closing the block removes it from the device; the mapping stays the caller's.

        Args:
            mapping: Memory of this process; the whole of it.
            physical: Its guest-physical address, in bytes.
        """
        ...
