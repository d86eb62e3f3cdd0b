"""An Intel IOMMU (VT-d) of a machine without a guest: this process programs it, as an operating system would.

Functions are passed through until one has a domain of its own; from then on it reaches what was mapped for
it and nothing else. Root table, context table and page tables are guest memory. Only what is needed is here: one
bus, 39 bits of address in three levels, 4 KiB pages, invalidation by register (VT-d 3.0, chapters 3, 6, 9 and 10).
"""

from __future__ import annotations

import mmap
from contextlib import suppress
from typing import NamedTuple

from uvirtio.backends.linear_blocks import GuestBlock, LinearBlock
from uvirtio.backends.qemu.memory import GuestMemory, QemuBlock
from uvirtio.backends.qemu.qtest import MemoryRegisters, Qtest
from uvirtio.errors import Closed, DeviceGone, DeviceTimeout, Misuse, QemuFailed
from uvirtio.memory.access import words64

PAGE = 4096
"""Bytes of a page of the IOMMU (VT-d 3.0, 3.7): not the CPU's, nor virtio's."""
BASE = 0xFED90000
ADDRESS_BITS = 39
FIRST_IOVA = 1 << 38
"""IOVAs begin far above all memory that a machine here can have."""

_LENGTH = 0x1000
_CAP, _ECAP, _GCMD, _GSTS, _RTADDR, _CCMD, _FSTS = 0x08, 0x10, 0x18, 0x1C, 0x20, 0x28, 0x34
_TRANSLATE = 1 << 31  # TE and TES
_ROOT_SET = 1 << 30  # SRTP and RTPS
_FAULTS_PENDING, _FAULT_OVERFLOW = 1 << 1, 1 << 0
_FAULT_LAST = 1 << 31  # F, in the last word of a record

_PRESENT = 1
_PASS_THROUGH = 2 << 2  # translation type of a context entry
_THREE_LEVELS = 1  # its address width
_READ_WRITE = 3
_INVALIDATE_ALL = 1 << 31 | 1 << 29  # CCMD, upper half: ICC, everything
_IOTLB_ALL = 1 << 31 | 1 << 28 | 1 << 17 | 1 << 16  # IOTLB, upper half: IVT, everything, draining both ways
_TRIES = 1000


class Fault(NamedTuple):
    """An access that was refused."""

    devfn: int
    """The function, slot * 8 + function."""

    address: int
    """The page, in bytes."""

    reason: int
    """The number of the reason (5: not writable, 6: not readable)."""


class Vtd:
    """The IOMMU of one machine, enabled, with every function passed through."""

    def __init__(self, qtest: Qtest, memory: GuestMemory) -> None:
        """Set up and enable the IOMMU.

        Args:
            qtest: The qtest connection.
            memory: Guest memory, for the tables.

        Raises:
            QemuFailed: The machine has no Intel IOMMU, or it does not respond as it should.
        """
        self._memory = memory
        self._registers = MemoryRegisters(qtest, BASE, _LENGTH)
        read = self._registers.read32
        capability, extended = read(_CAP) | read(_CAP + 4) << 32, read(_ECAP) | read(_ECAP + 4) << 32
        if not capability:
            raise QemuFailed(
                "this machine has no Intel IOMMU", seen="capabilities 0", expected=f"registers at {BASE:#x}"
            )
        self._iotlb = (extended >> 8 & 0x3FF) * 16 + 8
        self._records = (capability >> 24 & 0x3FF) * 16
        self._record_count = (capability >> 40 & 0xFF) + 1
        self._root = memory.alloc(PAGE)
        self._contexts = memory.alloc(PAGE)
        with words64(self._root.view, 0, 512) as root:
            root[0] = self._contexts.address | _PRESENT
        for devfn in range(256):
            self.set_context(devfn, 0, domain=1, flush=False)
        self.enable()

    def enable(self) -> None:
        """Enable it with its tables: at the start, and after a reset of the machine.

        Raises:
            QemuFailed: It does not respond as it should.
        """
        self._registers.write32(_RTADDR, self._root.address & 0xFFFFFFFF)
        self._registers.write32(_RTADDR + 4, self._root.address >> 32)
        for bit in (_ROOT_SET, _TRANSLATE):
            self._registers.write32(_GCMD, bit)
            self._await(_GSTS, bit, bit)
        self.flush()

    def _await(self, offset: int, mask: int, value: int) -> None:
        for _ in range(_TRIES):
            if self._registers.read32(offset) & mask == value:
                return
        raise QemuFailed(
            "the IOMMU does not respond as it should",
            seen=f"register {offset:#x} reads {self._registers.read32(offset):#x}",
            expected=f"{value:#x} in {mask:#x}",
        )

    def set_context(self, devfn: int, table: int, *, domain: int, flush: bool = True) -> None:
        """Set the page tables of a function.

        Args:
            devfn: The function, slot * 8 + function.
            table: Physical address of its page tables; 0: pass it through.
            domain: The domain's id.
            flush: Invalidate the caches.
        """
        with words64(self._contexts.view, 16 * devfn, 2) as entry:
            entry[1] = domain << 8 | _THREE_LEVELS
            entry[0] = (table or _PASS_THROUGH) | _PRESENT
        if flush:
            self.flush()

    def flush(self) -> None:
        """Invalidate the context cache and the IOTLB. Without it an unmapped page could still be reached.

        Raises:
            QemuFailed: The IOMMU does not respond as it should.
        """
        self._registers.write32(_CCMD, 0)
        self._registers.write32(_CCMD + 4, _INVALIDATE_ALL)
        self._await(_CCMD + 4, 1 << 31, 0)
        self._registers.write32(self._iotlb, 0)
        self._registers.write32(self._iotlb + 4, _IOTLB_ALL)
        self._await(self._iotlb + 4, 1 << 31, 0)

    def faults(self) -> list[Fault]:
        """Return the accesses that were refused since the last call, as far as they were recorded."""
        read, found = self._registers.read32, []
        for number in range(self._record_count):
            at = self._records + 16 * number
            last = read(at + 12)
            if last & _FAULT_LAST:
                page = read(at) | read(at + 4) << 32
                found.append(Fault(read(at + 8) & 0xFFFF, page & -PAGE, last & 0xFF))
                self._registers.write32(at + 12, _FAULT_LAST)  # written as 1, it becomes 0
        self._registers.write32(_FSTS, _FAULTS_PENDING | _FAULT_OVERFLOW)
        return found

    def domain(self, devfn: int) -> Domain:
        """Return empty page tables for a function alone."""
        return Domain(self, self._memory, devfn)


class Domain:
    """The address space of one function. Addresses and lengths in bytes, whole pages."""

    def __init__(self, iommu: Vtd, memory: GuestMemory, devfn: int) -> None:
        """Make empty page tables for a function.

        Args:
            iommu: The IOMMU.
            memory: Guest memory, for the tables.
            devfn: The function, slot * 8 + function.
        """
        self._iommu = iommu
        self._memory = memory
        self._devfn = devfn
        self._tables: dict[int, QemuBlock] = {}
        self._next = FIRST_IOVA
        self._closed = False
        self._top = self._new_table()
        # 256 functions, and number 1 is the domain of those that are passed through.
        iommu.set_context(devfn, self._top.address, domain=2 + devfn)

    def _new_table(self) -> QemuBlock:
        block = self._memory.alloc(PAGE)
        self._tables[block.address] = block
        return block

    def map(self, iova: int, physical: int, length: int) -> None:
        """Make memory readable and writable for the function.

        Args:
            iova: Its IOVA.
            physical: Its guest-physical address.
            length: Its length.

        Raises:
            Misuse: The IOVA is not a page of 39 bits of address.
        """
        for offset in range(0, length, PAGE):
            self._set(iova + offset, physical + offset | _READ_WRITE)

    def unmap(self, iova: int, length: int) -> None:
        """Remove a map; the function cannot reach the memory any more when this returns.

        Args:
            iova: Its IOVA.
            length: Its length.

        Raises:
            Misuse: The IOVA is not a page of 39 bits of address.
            QemuFailed: The IOMMU does not respond as it should.
        """
        for offset in range(0, length, PAGE):
            self._set(iova + offset, 0)
        self._iommu.flush()

    def _set(self, iova: int, entry: int) -> None:
        if not 0 <= iova < 1 << ADDRESS_BITS or iova % PAGE:
            raise Misuse(f"{iova:#x} is not a page of {ADDRESS_BITS} bits of address")
        table = self._top
        for shift in (30, 21):
            with words64(table.view, iova >> shift << 3 & 0xFF8, 1) as place:
                if not place[0]:
                    place[0] = self._new_table().address | _READ_WRITE
                table = self._tables[place[0] & -PAGE]
        with words64(table.view, iova >> 12 << 3 & 0xFF8, 1) as place:
            place[0] = entry

    def take(self, length: int) -> int:
        """Return unused IOVAs for ``length`` bytes, followed by a page that stays unmapped."""
        start = self._next
        self._next += -(-length // PAGE) * PAGE + PAGE
        return start

    def close(self) -> None:
        """Pass the function through again, and free the tables; idempotent."""
        if self._closed:
            return
        self._closed = True
        with suppress(DeviceGone, DeviceTimeout, Closed):  # QEMU has ended, and its IOMMU with it
            self._iommu.set_context(self._devfn, 0, domain=1)
        for block in self._tables.values():
            block.close()


class TranslatedBlock(LinearBlock):
    """Guest memory at an IOVA of one function. Satisfies ``Block``."""

    def __init__(self, domain: Domain, inner: GuestBlock, physical: int) -> None:
        """Map a block for the function.

        Args:
            domain: The address space of the function.
            inner: The block; closed together with this one.
            physical: Its guest-physical address, in bytes.
        """
        self._domain = domain
        self._inner = inner
        self.view = inner.view
        self.size = inner.size
        self.address = domain.take(self.size)
        """The IOVA of the first byte."""

        domain.map(self.address, physical, self.size)

    def pfns(self) -> list[int]:
        """Return the guest-physical frame numbers, which no IOMMU changes."""
        return self._inner.pfns()

    def close(self) -> None:
        """Unmap it for the function, then free it; idempotent.

        Raises:
            BufferError: A view of it is still held.
        """
        with suppress(DeviceGone, DeviceTimeout, Closed):
            self._domain.unmap(self.address, self.size)
        self._inner.close()


class TranslatedDma:
    """The memory of one function behind the IOMMU: it is mapped, and nothing else is. Satisfies ``DmaSpace``."""

    translated = True

    def __init__(self, memory: GuestMemory, domain: Domain) -> None:
        """Make an empty space.

        Args:
            memory: The memory of the machine.
            domain: The address space of the function.
        """
        self.domain = domain
        self.contiguous_limit = memory.size
        self._memory = memory
        self._blocks: list[TranslatedBlock | QemuBlock] = []
        self._closed = False

    def alloc(self, size: int) -> TranslatedBlock:
        """Allocate zeroed, page-aligned memory in one run of IOVAs.

        Args:
            size: Length in bytes.

        Raises:
            BadSize: ``size`` is not positive.
            OperationFailed: No free run is large enough, or it cannot be mapped.
            Closed: The space or the machine is closed.
        """
        self._check()
        inner = self._memory.alloc(size)
        block = TranslatedBlock(self.domain, inner, inner.address)
        self._blocks.append(block)
        return block

    def pin(self, size: int) -> QemuBlock:
        """Allocate memory that the function does not address: not mapped. Guest memory never moves.

        Raises:
            BadSize: ``size`` is not positive.
            OperationFailed: No free run is large enough, or it cannot be mapped.
            Closed: The space or the machine is closed.
        """
        self._check()
        block = self._memory.alloc(size)
        self._blocks.append(block)
        return block

    def adopt(self, mapping: mmap.mmap, physical: int) -> TranslatedBlock:
        """Map memory of the same machine with another owner (virtio-mem); see ``AdoptsMemory``.

        Raises:
            Closed: After ``close()``.
        """
        self._check()
        block = TranslatedBlock(self.domain, GuestBlock(mapping, physical), physical)
        self._blocks.append(block)
        return block

    def _check(self) -> None:
        if self._closed:
            raise Closed("this DMA space is closed")

    def close(self) -> None:
        """Free all blocks, and pass the function through again; idempotent."""
        self._closed = True
        while self._blocks:
            self._blocks.pop().close()
        self.domain.close()
