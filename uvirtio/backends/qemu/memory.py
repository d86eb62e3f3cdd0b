"""Guest memory: one shared file, of which QEMU's device models see the same bytes.

Device addresses are guest-physical. They begin 16 MiB into memory (PC hardware lies below, or a device tree)
and leave out the hole that a machine may have. Without a vIOMMU an IOVA is a guest-physical address too, so both
address policies look alike.
"""

from __future__ import annotations

import mmap
import os
import threading

from uvirtio.backends.pages import GuestBlock
from uvirtio.backends.qemu.models import Q35, Ram
from uvirtio.errors import BadSize, Closed, OperationFailed
from uvirtio.host.pages import CPU_PAGE

FIRST = 16 << 20


class GuestMemory:
    """The memory of one machine: a memfd (``fd``) that QEMU maps too; ``size`` in bytes."""

    def __init__(self, size: int, ram: Ram = Q35.ram) -> None:
        self.size = size
        self.ram = ram
        self.fd = os.memfd_create("uvirtio-ram", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, size)
        self._lock = threading.Lock()
        self._blocks: set[QemuBlock] = set()
        self._closed = False
        # Free areas as (start, end), sorted, never adjacent; one for each side of the hole.
        self._free = [(FIRST, min(size, ram.split))]
        if size > ram.split:
            self._free.append((ram.split, size))

    def alloc(self, size: int) -> QemuBlock:
        """Zeroed, page-aligned, contiguous memory. Raises OperationFailed when there is none left."""
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
                raise OperationFailed(
                    "guest memory cannot be mapped",
                    seen=os.strerror(error.errno or 0),
                    expected=f"{length} bytes of address space",
                    remedy="use smaller blocks, or raise the limit: ulimit -v",
                ) from error
            self._free[index : index + 1] = [(start + length, end)] if end - start > length else []
            self._blocks.add(block)
            return block

    def free(self, block: QemuBlock) -> None:
        """Take a block back; the block calls this."""
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
        """Close the file; idempotent. Blocks that are still open end here too."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            blocks = list(self._blocks)
        for block in blocks:
            try:
                block.close()
            except BufferError:
                # Somebody holds a view. The mapping goes with the last one; QEMU, which shared it, is gone.
                pass
        os.close(self.fd)


class QemuBlock(GuestBlock):
    """A run of guest memory, mapped by itself; see the Block seam."""

    def __init__(self, memory: GuestMemory, start: int, size: int) -> None:
        self._memory = memory
        self.closed = False
        self._mapping = mmap.mmap(memory.fd, size, offset=start)
        # Punch a hole: zeroes here and in QEMU, whatever a device wrote since the last user left.
        self._mapping.madvise(mmap.MADV_REMOVE)
        self._mapping.madvise(mmap.MADV_DONTFORK)
        super().__init__(self._mapping, memory.ram.address_of(start))
        self.offset = start
        """Where the block lies in the memory's file."""

    def close(self) -> None:
        """Give the memory back, to the host too; idempotent.

        Raises BufferError while somebody holds a view made from ``view``; the memory is not reused then.
        """
        if not self.closed:
            self.view.release()
            self._mapping.madvise(mmap.MADV_REMOVE)
            self._mapping.close()
            self.closed = True
            self._memory.free(self)


class QemuDma:
    """The DMA space of one function: its blocks end with it. See the DmaSpace seam."""

    def __init__(self, memory: GuestMemory, translated: bool) -> None:
        self._memory = memory
        self._blocks: list[QemuBlock] = []
        self._closed = False
        self.translated = translated
        self.contiguous_limit = memory.size - FIRST

    def alloc(self, size: int) -> QemuBlock:
        """Zeroed, page-aligned, contiguous memory. Raises OperationFailed when there is none left."""
        if self._closed:
            raise Closed("this DMA space is closed")
        block = self._memory.alloc(size)
        self._blocks = [old for old in self._blocks if not old.closed]
        self._blocks.append(block)
        return block

    def pin(self, size: int) -> QemuBlock:
        """The same: guest memory never moves."""
        return self.alloc(size)

    def adopt(self, mapping: mmap.mmap, physical: int) -> GuestBlock:
        """Memory of the same machine that is not ours to give (virtio-mem). See the AdoptsMemory seam."""
        if self._closed:
            raise Closed("this DMA space is closed")
        return GuestBlock(mapping, physical)

    def close(self) -> None:
        """Give all blocks back; idempotent."""
        self._closed = True
        while self._blocks:
            self._blocks.pop().close()


def _pages(size: int) -> int:
    return -(-size // CPU_PAGE)
