"""Guest memory: one shared file, which QEMU's device models have mapped too.

Device addresses are guest-physical. They begin 16 MiB into memory (PC hardware is below, or a device tree)
and leave out the hole that a machine may have. Without a vIOMMU an IOVA is a guest-physical address too, so both
address policies give the same addresses.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Callable

from uvirtio.backends.linear_blocks import GuestBlock
from uvirtio.backends.qemu.models import Q35, Ram
from uvirtio.backends.qemu.process import ram_file
from uvirtio.errors import BadSize, Closed, OperationFailed, QemuFailed
from uvirtio.host import limits
from uvirtio.host.pages import CPU_PAGE
from uvirtio.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Final

FIRST = 16 << 20
_MARK: Final = b"\xa5\x5a\x3c\xc3"


class GuestMemory:
    """The memory of one machine: a memfd (``fd``) that QEMU maps too."""

    def __init__(self, size: int, ram: Ram = Q35.ram, *, fd: int | None = None) -> None:
        """Take over the file.

        Args:
            size: Length in bytes.
            ram: Where the machine has its memory.
            fd: What ``ram_file`` made; None: it is made here.
        """
        self.size = size
        self.ram = ram
        self.fd = ram_file(size) if fd is None else fd
        self._lock = threading.Lock()
        self._blocks: set[QemuBlock] = set()
        self._closed = False
        # Free areas as (start, end), sorted, never adjacent; one for each side of the hole.
        self._free = [(FIRST, min(size, ram.split))]
        if size > ram.split:
            self._free.append((ram.split, size))

    def locate(self, read: Callable[[int, int], int]) -> None:
        """Find out where this QEMU has the memory beyond the split, if its versions differ in that.

        Args:
            read: Returns the value of a width in bytes at a guest-physical address, as a CPU would see it.

        Raises:
            QemuFailed: It is at none of the known addresses.
        """
        places = [place for place in (self.ram.high, *self.ram.others) if place is not None]
        if len(places) < 2 or self.size <= self.ram.split:
            return
        os.pwrite(self.fd, _MARK, self.ram.split)
        found = [place for place in places if read(4, place) == int.from_bytes(_MARK, "little")]
        os.pwrite(self.fd, bytes(len(_MARK)), self.ram.split)
        if len(found) != 1:
            raise QemuFailed(
                "this QEMU has the machine's memory at an address that is not known here",
                seen="none of them" if not found else "more than one of them",
                expected=" or ".join(f"{place:#x}" for place in places),
                remedy="use another version of QEMU: binary=PATH",
            )
        self.ram = self.ram._replace(high=found[0], others=())

    def alloc(self, size: int) -> QemuBlock:
        """Allocate zeroed, page-aligned, contiguous memory.

        Args:
            size: Length in bytes.

        Raises:
            BadSize: ``size`` is not positive.
            OperationFailed: No free run is large enough, or it cannot be mapped.
            Closed: The machine is closed.
        """
        if size <= 0:
            raise BadSize(f"a block of {size} bytes", seen=size, expected="1 or more")
        length = _pages(size) * CPU_PAGE
        with self._lock:
            if self._closed:
                raise Closed("the machine of this memory is closed")
            index = next((i for i, (start, end) in enumerate(self._free) if end - start >= length), None)
            if index is None:
                raise OperationFailed(
                    "the machine has no memory left",
                    seen=f"no free run of {length} bytes",
                    expected=f"within {self.size} bytes of guest memory",
                    remedy="give the machine more memory: qemu:q35,ram=2G/DEVICE",
                )
            start, end = self._free[index]
            try:
                block = QemuBlock(self, start, size)
            except OSError as error:
                raise limits.reached(error, f"{length} bytes of guest memory cannot be mapped") or OperationFailed(
                    "guest memory cannot be mapped",
                    seen=os.strerror(error.errno or 0),
                    expected=f"{length} bytes of address space",
                    remedy="use smaller blocks",
                ) from error
            self._free[index : index + 1] = [(start + length, end)] if end - start > length else []
            self._blocks.add(block)
            return block

    def free(self, block: QemuBlock) -> None:
        """Take back the memory of a block; called by the block."""
        with self._lock:
            self._blocks.discard(block)
            merged: list[tuple[int, int]] = []
            for area in sorted([*self._free, (block.offset, block.offset + _pages(block.size) * CPU_PAGE)]):
                if merged and merged[-1][1] == area[0] != self.ram.split:
                    merged[-1] = (merged[-1][0], area[1])
                else:
                    merged.append(area)
            self._free = merged

    def close(self) -> None:
        """Close the file and all blocks; idempotent."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            blocks = list(self._blocks)
        for block in blocks:
            try:
                block.close()
            except BufferError:
                # A view is still held. The mapping ends with the last one; QEMU, which shared it, has ended.
                pass
        os.close(self.fd)


class QemuBlock(GuestBlock):
    """A run of guest memory, with a mapping of its own. Satisfies ``Block``."""

    def __init__(self, memory: GuestMemory, start: int, size: int) -> None:
        """Map and zero the memory.

        Args:
            memory: The memory of the machine.
            start: Start of the block in its file, in bytes.
            size: Length of the block, in bytes.
        """
        self._memory = memory
        self.closed = False
        self._mapping = mmap.mmap(memory.fd, size, offset=start)
        # Punch a hole: zeros here and in QEMU, whatever a device wrote since the last use.
        self._mapping.madvise(mmap.MADV_REMOVE)
        self._mapping.madvise(mmap.MADV_DONTFORK)
        super().__init__(self._mapping, memory.ram.address_of(start))
        self.offset = start
        """Start of the block in the memory's file, in bytes."""

    def close(self) -> None:
        """Free the memory, for the host too; idempotent.

        Raises:
            BufferError: A view made from ``view`` is still held; the memory is not reused then.
        """
        if not self.closed:
            self.view.release()
            self._mapping.madvise(mmap.MADV_REMOVE)
            self._mapping.close()
            self.closed = True
            self._memory.free(self)


class QemuDma:
    """The memory of one function: its blocks end with it. Satisfies ``DmaSpace``."""

    def __init__(self, memory: GuestMemory, translated: bool) -> None:
        """Make an empty space.

        Args:
            memory: The memory of the machine.
            translated: Whether ACCESS_PLATFORM was negotiated; the addresses are the same either way.
        """
        self._memory = memory
        self._blocks: list[QemuBlock] = []
        self._closed = False
        self.translated = translated
        self.contiguous_limit = memory.size - FIRST

    def alloc(self, size: int) -> QemuBlock:
        """Allocate zeroed, page-aligned, contiguous memory.

        Args:
            size: Length in bytes.

        Raises:
            BadSize: ``size`` is not positive.
            OperationFailed: No free run is large enough, or it cannot be mapped.
            Closed: The space or the machine is closed.
        """
        if self._closed:
            raise Closed("this DMA space is closed")
        block = self._memory.alloc(size)
        self._blocks = [old for old in self._blocks if not old.closed]
        self._blocks.append(block)
        return block

    def pin(self, size: int) -> QemuBlock:
        """Allocate memory as ``alloc``: guest memory never moves."""
        return self.alloc(size)

    def adopt(self, mapping: mmap.mmap, physical: int) -> GuestBlock:
        """Return memory of the same machine with another owner (virtio-mem) as a block; see ``AdoptsMemory``.

        Raises:
            Closed: After ``close()``.
        """
        if self._closed:
            raise Closed("this DMA space is closed")
        return GuestBlock(mapping, physical)

    def close(self) -> None:
        """Free all blocks; idempotent."""
        self._closed = True
        while self._blocks:
            self._blocks.pop().close()


def _pages(size: int) -> int:
    return -(-size // CPU_PAGE)
