"""Memory for a vDPA device: the addresses are always IOVAs, and the kind of memory matters.

A parent that translates by itself with the help of a process (VDUSE, vdpa_sim) accepts files: it skips anything
but a shared mapping of one, reports success, and the device never sees the memory. A parent behind an IOMMU of the
platform (vp_vdpa) pins any pages. So rings and buffers are shared mappings of a memfd, which both accept.

Balloon pages have to keep their place. Whether a map pinned them is visible in VmPin of ``/proc/self/status``, and
nowhere else. Where it did, they are anonymous: the kernel never unmaps a pinned anonymous page from its process.
Where it did not, only huge pages of the kernel's pool keep their place.
"""

from __future__ import annotations

import mmap
import os
import resource
from collections.abc import Callable, Iterator
from typing import Protocol

from uvirtio.backends.linear_blocks import LinearBlock
from uvirtio.backends.owned_blocks import OwnedBlocks
from uvirtio.backends.pages import (
    MADV_DONTDUMP,
    Memory,
    PagedBlock,
    advise,
    in_huge_pages,
)
from uvirtio.backends.physical import PhysicalBlock, PhysicalDmaSpace
from uvirtio.errors import HugePagesLack, MemlockExceeded, OperationFailed
from uvirtio.host import limits
from uvirtio.host.pagemap import Pagemap
from uvirtio.host.pages import CPU_PAGE
from uvirtio.host.process import status_bytes
from uvirtio.host.roots import Roots
from uvirtio.memory.iova import IovaAllocator


class Iotlb(Protocol):
    """What the space needs of its node: the device's maps."""

    def iotlb_update(self, iova: int, size: int, vaddr: int) -> None:
        """Pin memory of this process and map it for the device.

        Args:
            iova: Device address, in bytes.
            size: Length, in bytes.
            vaddr: Virtual address in this process, in bytes.

        Raises:
            OperationFailed: The kernel refused.
        """
        ...

    def iotlb_invalidate(self, iova: int, size: int) -> None:
        """Remove every map in a range.

        Raises:
            OperationFailed: The kernel refused.
        """
        ...


def pinned_bytes(roots: Roots) -> int:
    """Return what the kernel has pinned of this process for users other than VFIO, in bytes (VmPin)."""
    return status_bytes(("VmPin",), roots)


def _shared(size: int) -> Memory:
    """Return a shared mapping of a file without a name, allocated, not inherited by a fork."""
    try:
        fd = os.memfd_create("uvirtio-vdpa", os.MFD_CLOEXEC)
        try:
            # Taken here, where a failure is an error. On the first touch it would be SIGBUS.
            os.posix_fallocate(fd, 0, size)
            mapping = mmap.mmap(fd, size)
        finally:
            os.close(fd)
    except OSError as error:
        raise limits.reached(error, f"no {size} bytes of shared memory") or OperationFailed(
            f"no {size} bytes of shared memory",
            seen=os.strerror(error.errno or 0),
            expected="a memfd of this size",
        ) from error
    advise(mapping, mmap.MADV_DONTFORK, MADV_DONTDUMP)
    return Memory(mapping, 0, size)


class VdpaBlock(PagedBlock, LinearBlock):
    """Memory that is one run of IOVAs for the device until ``close()``; ``VdpaDmaSpace`` allocates it.

    Satisfies ``Block``.
    """

    def __init__(self, memory: Memory, iova: int, pagemap: Pagemap, undo: Callable[[VdpaBlock], None]) -> None:
        """Take over memory that is mapped at ``iova``; other parameters as for ``PagedBlock``."""
        super().__init__(memory, pagemap, undo)
        self.address = iova

    def segments(self, offset: int, length: int) -> list[tuple[int, int]]:
        """Return the device addresses of these bytes: one run.

        Raises:
            Misuse: The bytes are not all in the block.
            Closed: After ``close()``.
        """
        self._check_open()
        return super().segments(offset, length)


class VdpaDmaSpace(OwnedBlocks[VdpaBlock]):
    """Memory for one vDPA device. Close it after the device was reset. Satisfies ``DmaSpace``."""

    translated = True
    contiguous_limit = 1 << 63

    def __init__(self, node: Iotlb, iova: IovaAllocator, roots: Roots | None = None) -> None:
        """Make an empty space.

        Args:
            node: The device's maps.
            iova: The free device addresses of the device.
            roots: Where /proc is.
        """
        self._roots = roots or Roots()
        super().__init__(Pagemap(self._roots))
        self._node = node
        self._iova = iova
        self._unit = max(CPU_PAGE, iova.page)
        self._huge: PhysicalDmaSpace | None = None
        self._abandoned = False

    def alloc(self, size: int) -> VdpaBlock:
        """Allocate zeroed, page-aligned memory that the device may read and write.

        Args:
            size: Length in bytes; rounded up to pages.

        Raises:
            BadSize: ``size`` is not positive.
            MemlockExceeded: RLIMIT_MEMLOCK does not allow it.
            OperationFailed: The kernel refused the map, or no device addresses are left.
            Closed: After ``close()``.
        """
        return self._shown(_shared(self._rounded(size, self._unit)))

    def pin(self, size: int) -> VdpaBlock | PhysicalBlock:
        """Allocate zeroed memory with a fixed place: pinned by a map, or from the pool of huge pages.

        From the pool where the device's maps do not pin, and where the kernel refuses the map: for each run of
        page frames it keeps an entry, and Linux 6.12 refused small pages that lay scattered after some 2,000 of
        them. Transparent huge pages, as far as the kernel has them at hand, make few runs.

        Args:
            size: Length in bytes; rounded up to pages.

        Raises:
            BadSize: ``size`` is not positive.
            MemlockExceeded: RLIMIT_MEMLOCK does not allow it.
            HugePagesLack: The pool is needed and has not enough pages.
            PagemapHidden: This process may not read physical addresses.
            NotSupported: Huge pages are needed, and the kernel has none of 2 MiB.
            OperationFailed: The kernel refused the map, or no device addresses are left.
            Closed: After ``close()``.
        """
        size = self._rounded(size, self._unit)
        before = pinned_bytes(self._roots)
        refused: OperationFailed | None = None
        try:
            block = self._shown(in_huge_pages(size))
            if pinned_bytes(self._roots) - before >= size:
                return block
            block.close()
        except OperationFailed as error:
            refused = error
        if self._huge is None:
            self._huge = PhysicalDmaSpace(self._roots, translated=True, pagemap=self._pagemap)
        try:
            return self._huge.pin(size)
        except HugePagesLack as error:
            raise error from refused

    def _shown(self, memory: Memory) -> VdpaBlock:
        try:
            iova = self._iova.alloc(memory.size)
            try:
                self._map(memory, iova)
            except BaseException:
                self._iova.free(iova)
                raise
        except BaseException:
            memory.close()
            raise
        return self._keep(VdpaBlock(memory, iova, self._pagemap, self._hide))

    def _map(self, memory: Memory, iova: int) -> None:
        try:
            self._node.iotlb_update(iova, memory.size, memory.vaddr)
        except OperationFailed as error:
            if (lack := self._lack(memory.size)) is None:
                raise
            raise lack from error

    def lack(self, size: int) -> MemlockExceeded | None:
        """Return the error if RLIMIT_MEMLOCK does not allow this much in all; see ``LimitedSpace``."""
        return self._lack(size, sum(block.size for block in self._blocks.values()))

    def _lack(self, size: int, held: int = 0) -> MemlockExceeded | None:
        limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
        used = pinned_bytes(self._roots) - held
        need = used + size
        if limit == resource.RLIM_INFINITY or need <= limit:
            return None
        # vhost-vdpa checks the limit alone: unlike VFIO it makes no exception for CAP_IPC_LOCK.
        return MemlockExceeded(
            f"pinning another {size} bytes exceeds RLIMIT_MEMLOCK, which applies to root too here",
            seen=f"limit {limit} bytes, {used} in use",
            expected=f"at least {need} bytes",
            remedy=f"'ulimit -l {-(-need // 1024)}', or as root 'prlimit --memlock={need} COMMAND'",
        )

    def _hide(self, block: VdpaBlock) -> None:
        self._forget(block)
        if self._abandoned:
            return
        # On a failure the address stays taken, and the pages stay pinned until the node is closed.
        self._node.iotlb_invalidate(block.address, block.size)
        self._iova.free(block.address)

    def abandon(self) -> None:
        """Free what is left after the node was closed, when the kernel has removed every map. Idempotent."""
        self._abandoned = True
        try:
            self.close()
        except BufferError:
            pass  # a view is still held; the memory is freed with the last one

    def _closers(self) -> Iterator[Callable[[], None]]:
        if self._huge is not None:
            yield self._huge.close
        yield from super()._closers()
