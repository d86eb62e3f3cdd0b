"""Guest-physical memory for devices without an IOMMU and without pinning maps: huge pages of the kernel's pool.

Without a map, nothing keeps an ordinary page at its address: ``mlock`` keeps it in memory, but compaction, KSM,
transparent huge pages or a copy after fork may move it, and the device would still write to the old place.
A page of the hugetlb pool is neither swapped, merged, split nor compacted. It also is 2 MiB of contiguous
addresses, which legacy rings need (2.7.2 of the legacy interface). The frames are still read again at every
``pfns()``.

The memory is one file without a name, so that another process with the descriptor (the guardian) keeps the pages
from being reused when this process dies.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import suppress

from uvirtio.backends.linear_blocks import GuestBlock
from uvirtio.backends.owned_blocks import OwnedBlocks
from uvirtio.backends.pages import (
    MADV_DONTDUMP,
    Memory,
    PagedBlock,
    advise,
    merged,
    pieces,
)
from uvirtio.errors import Closed, HugePagesLack, NotSupported, OperationFailed
from uvirtio.host import remedies
from uvirtio.host.memory import huge_pages
from uvirtio.host.pagemap import Pagemap
from uvirtio.host.pages import CPU_PAGE, HUGE_PAGE
from uvirtio.host.roots import Roots

_UNITS = HUGE_PAGE // CPU_PAGE
_MFD_HUGETLB = getattr(os, "MFD_HUGETLB", 4)
_MFD_HUGE_2MB = 21 << 26


def huge_file() -> int:
    """Return the descriptor of an empty file of huge pages (2 MiB), close-on-exec.

    Raises:
        OSError: The kernel has no such pages.
    """
    return os.memfd_create("uvirtio-dma", os.MFD_CLOEXEC | _MFD_HUGETLB | _MFD_HUGE_2MB)


class HugeFile:
    """A file of huge pages: grows by pages, and frees single pages.

    While it is empty it uses nothing of the pool.
    """

    def __init__(self, roots: Roots | None = None, *, create: Callable[[], int] = huge_file) -> None:
        """Make the file.

        Args:
            roots: Where /proc and /sys are.
            create: Makes the descriptor (in tests: a file of ordinary pages).

        Raises:
            NotSupported: The kernel has no huge pages of 2 MiB.
        """
        self._roots = roots or Roots()
        try:
            self._fd = create()
        except OSError as error:
            raise NotSupported(
                "this kernel has no huge pages of 2 MiB",
                seen=os.strerror(error.errno or 0),
                expected="hugetlb memory (CONFIG_HUGETLBFS, a CPU with 2 MiB pages)",
                remedy="without an IOMMU, DMA memory can only be such pages: give the machine an IOMMU",
            ) from error

    def fileno(self) -> int:
        """Return the descriptor.

        Raises:
            Closed: After ``close()``.
        """
        if self._fd < 0:
            raise Closed("this file of huge pages is closed")
        return self._fd

    def map(self, first: int, count: int) -> mmap.mmap:
        """Allocate and map pages of the file, not inherited by a fork.

        Args:
            first: Number of the first page.
            count: Number of pages.

        Raises:
            HugePagesLack: The pool has not enough. Some pages may be allocated; ``free`` frees them.
            OperationFailed: They cannot be mapped. They are allocated; ``free`` frees them.
            Closed: After ``close()``.
        """
        try:
            # Taken here, where a failure is an error. On the first touch it would be SIGBUS.
            os.posix_fallocate(self.fileno(), first * HUGE_PAGE, count * HUGE_PAGE)
        except OSError as error:
            raise self._lack(count, error) from error
        try:
            mapping = mmap.mmap(self.fileno(), count * HUGE_PAGE, offset=first * HUGE_PAGE)
        except OSError as error:
            raise OperationFailed(
                "huge pages cannot be mapped",
                seen=os.strerror(error.errno or 0),
                expected=f"{count * HUGE_PAGE} bytes of address space",
                remedy="use smaller blocks, or raise the limit: ulimit -v",
            ) from error
        advise(mapping, mmap.MADV_DONTFORK, MADV_DONTDUMP)
        return mapping

    def free(self, first: int, count: int) -> None:
        """Return pages to the pool; they read as zeros when they are mapped again.

        Args:
            first: Number of the first page.
            count: Number of pages.
        """
        size, offset = count * HUGE_PAGE, first * HUGE_PAGE
        # ValueError: beyond the end of the file, so nothing was taken.
        with suppress(OSError, ValueError, Closed), mmap.mmap(self.fileno(), size, offset=offset) as hole:
            hole.madvise(mmap.MADV_REMOVE)

    def _lack(self, count: int, error: OSError) -> HugePagesLack:
        pool = huge_pages(self._roots)
        total, left = pool.total or 0, max(0, (pool.free or 0) - (pool.reserved or 0))
        return HugePagesLack(
            f"there are no {count} huge pages of 2 MiB, and without an IOMMU only these keep their address",
            seen=f"{left} free of {total} ({os.strerror(error.errno or 0)})",
            expected=f"{count} free",
            remedy=remedies.huge_pages(pool, total + count - left),
        )

    def close(self) -> None:
        """Close the descriptor; idempotent. The pages are freed with the last mapping and the last descriptor."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class PhysicalBlock(PagedBlock):
    """Memory within huge pages, with a mapping of its own. Satisfies ``Block``."""

    def __init__(self, space: PhysicalDmaSpace, memory: Memory, first: int, pagemap: Pagemap) -> None:
        """Read the physical addresses of new memory.

        Args:
            space: The space that the memory returns to.
            memory: The memory.
            first: Where it begins in the file, in bytes.
            pagemap: Where frame numbers are read.

        Raises:
            PagemapHidden: This process may not read them.
        """
        super().__init__(memory, pagemap, space.take_back)
        self.first = first
        self.runs = merged(pagemap.pfns(memory.vaddr, self.size))
        """(offset, physical address, length) in bytes, in the order of offsets."""

        self.contiguous = len(self.runs) == 1

    def segments(self, offset: int, length: int) -> list[tuple[int, int]]:
        """Return the physical addresses of these bytes, as (address, length) runs.

        Raises:
            Misuse: The bytes are not all in the block.
            Closed: After ``close()``.
        """
        self._check_open()
        return pieces(self.runs, offset, length)

    def close(self) -> None:
        """Free it; idempotent.

        Raises:
            BufferError: A view of it is still held; it is not reused then.
        """
        if not self._closed:
            self._memory.close()  # first, because the next block of the space reuses the pages
            self._closed = True
            self._undo(self)


class PhysicalDmaSpace(OwnedBlocks[PhysicalBlock]):
    """DMA memory in huge pages, for one device. Close it after the device was reset. Satisfies ``DmaSpace``.

    Rings and buffers share huge pages; a block that is not longer than one does not cross its end.
    """

    contiguous_limit = HUGE_PAGE

    def __init__(
        self,
        roots: Roots | None = None,
        *,
        file: HugeFile | None = None,
        translated: bool = False,
        pagemap: Pagemap | None = None,
    ) -> None:
        """Make an empty space, and try one allocation: better a failure here than in the middle of a bring-up.

        Args:
            roots: Where /proc and /sys are.
            file: The memory, which stays the caller's; None: a file of its own.
            translated: Whether ACCESS_PLATFORM was negotiated. No IOMMU translates, so the addresses are physical
                ones either way (6.1).
            pagemap: Where frame numbers are read.

        Raises:
            HugePagesLack: The pool has no huge page.
            PagemapHidden: This process may not read physical addresses.
            NotSupported: The kernel has no huge pages of 2 MiB.
        """
        roots = roots or Roots()
        super().__init__(pagemap or Pagemap(roots))
        self.translated = translated
        self._file = HugeFile(roots) if file is None else file
        self._owns_file = file is None
        # For each allocated huge page of the file: its free runs as (start, end), in units of CPU_PAGE.
        self._free: dict[int, list[tuple[int, int]]] = {}
        try:
            self.alloc(CPU_PAGE).close()
        except BaseException:
            self.close()
            raise

    def alloc(self, size: int) -> PhysicalBlock:
        """Allocate zeroed, page-aligned memory; one run of addresses if it is not longer than a huge page.

        Args:
            size: Length in bytes; rounded up to pages.

        Raises:
            BadSize: ``size`` is not positive.
            HugePagesLack: The pool has not enough pages.
            PagemapHidden: This process may not read physical addresses.
            OperationFailed: The memory cannot be mapped.
            Closed: After ``close()``.
        """
        units = self._rounded(size, CPU_PAGE) // CPU_PAGE
        start, fresh = self._place(units)
        first, last = start // _UNITS, (start + units - 1) // _UNITS
        try:
            mapping = self._file.map(first, last - first + 1)
            memory = Memory(mapping, (start - first * _UNITS) * CPU_PAGE, units * CPU_PAGE)
            try:
                if not fresh:
                    memory.view[:] = bytes(memory.size)
                for offset in range(0, memory.size, HUGE_PAGE):
                    memory.view[offset] = 0  # pagemap shows what was touched
                block = PhysicalBlock(self, memory, start * CPU_PAGE, self._pagemap)
            except BaseException:
                memory.close()
                raise
        except BaseException:
            self._give(start, units)
            raise
        return self._keep(block)

    def pin(self, size: int) -> PhysicalBlock:
        """Allocate memory as ``alloc``: huge pages keep their place."""
        return self.alloc(size)

    def adopt(self, mapping: mmap.mmap, physical: int) -> GuestBlock:
        """Return memory of another owner (plugged by virtio-mem) as a block, at its address; see ``AdoptsMemory``.

        Raises:
            Closed: After ``close()``.
        """
        self._check_open()
        return GuestBlock(mapping, physical)

    def _place(self, units: int) -> tuple[int, bool]:
        """Take a free run of the file: within an allocated huge page, or from new (True), zeroed ones."""
        if units <= _UNITS:
            for page, runs in self._free.items():
                for index, (start, end) in enumerate(runs):
                    if end - start >= units:
                        runs[index : index + 1] = [(start + units, end)] if end - start > units else []
                        return page * _UNITS + start, False
        count = -(-units // _UNITS)
        first = 0
        while taken := [page for page in range(first, first + count) if page in self._free]:
            first = taken[-1] + 1
        for page in range(first, first + count):
            self._free[page] = []
        tail = units - (count - 1) * _UNITS
        if tail < _UNITS:
            self._free[first + count - 1] = [(tail, _UNITS)]
        return first * _UNITS, True

    def take_back(self, block: PhysicalBlock) -> None:
        """Take back the memory of a block that was closed; called by the block."""
        self._forget(block)
        self._give(block.first // CPU_PAGE, block.size // CPU_PAGE)

    def _give(self, start: int, units: int) -> None:
        end = start + units
        while start < end:
            page = start // _UNITS
            stop = min(end, (page + 1) * _UNITS)
            runs = sorted([*self._free[page], (start - page * _UNITS, stop - page * _UNITS)])
            whole = [runs[0]]
            for run in runs[1:]:
                if run[0] == whole[-1][1]:
                    whole[-1] = (whole[-1][0], run[1])
                else:
                    whole.append(run)
            self._free[page] = whole
            if whole == [(0, _UNITS)]:
                del self._free[page]
                self._file.free(page, 1)
            start = stop

    def _closers(self) -> Iterator[Callable[[], None]]:
        yield from super()._closers()
        if self._owns_file:
            yield self._file.close
