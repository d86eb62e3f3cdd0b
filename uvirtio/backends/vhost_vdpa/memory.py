"""Memory that a vDPA device sees: IOVAs always, and which kind of memory it has to be.

A parent that translates by itself with the help of a process (VDUSE, vdpa_sim) takes files: what is no shared
mapping of one it passes over, says that all is well, and the device never sees it. One with an IOMMU of the
platform (vp_vdpa) pins pages, whatever they are. So rings and buffers are shared mappings of a memfd, which both
take.

Balloon pages have to stay where they are. Whether a map pinned them shows in VmPin of ``/proc/self/status``, and
nowhere else. Where it does, they are anonymous: the kernel never unmaps a pinned anonymous page from its process.
Where it does not, only huge pages of the kernel's pool stay.
"""

from __future__ import annotations

import mmap
import os
import resource
from collections.abc import Callable, Iterator
from typing import Protocol

from uvirtio.backends.pages import (
    MADV_DONTDUMP,
    LinearBlock,
    Memory,
    OwnedBlocks,
    PagedBlock,
    advise,
    ordinary,
)
from uvirtio.backends.physical import PhysicalBlock, PhysicalDmaSpace
from uvirtio.errors import MemlockExceeded, OperationFailed
from uvirtio.host.pagemap import Pagemap
from uvirtio.host.pages import CPU_PAGE
from uvirtio.host.process import status_bytes
from uvirtio.host.roots import Roots
from uvirtio.memory.iova import IovaAllocator


class Iotlb(Protocol):
    """What the space needs of its node: the device's maps."""

    def iotlb_update(self, iova: int, size: int, vaddr: int) -> None:
        """Let the device see ``size`` bytes of this process at ``iova``. Raises OperationFailed."""
        ...

    def iotlb_invalidate(self, iova: int, size: int) -> None:
        """Take every map in this range away."""
        ...


def pinned_bytes(roots: Roots) -> int:
    """What the kernel has pinned of this process for others than VFIO, in bytes (VmPin of its status)."""
    return status_bytes(("VmPin",), roots)


def _shared(size: int) -> Memory:
    """A shared mapping of a file without a name, there to be touched, not inherited by a fork."""
    try:
        fd = os.memfd_create("uvirtio-vdpa", os.MFD_CLOEXEC)
        try:
            # Taken here, where a failure is an error. On the first touch it would be SIGBUS.
            os.posix_fallocate(fd, 0, size)
            mapping = mmap.mmap(fd, size)
        finally:
            os.close(fd)
    except OSError as error:
        raise OperationFailed(
            f"no {size} bytes of shared memory",
            seen=os.strerror(error.errno or 0),
            expected="a memfd of this size",
        ) from error
    advise(mapping, mmap.MADV_DONTFORK, MADV_DONTDUMP)
    return Memory(mapping, 0, size)


class VdpaBlock(PagedBlock, LinearBlock):
    """Memory that the device sees as one run of IOVAs until ``close()``; made by :class:`VdpaDmaSpace`.

    Satisfies the ``Block`` protocol.
    """

    def __init__(self, memory: Memory, iova: int, pagemap: Pagemap, undo: Callable[[VdpaBlock], None]) -> None:
        super().__init__(memory, pagemap, undo)
        self.address = iova

    def segments(self, offset: int, length: int) -> list[tuple[int, int]]:
        """The device addresses of these bytes: one run. Raises Misuse outside the block, Closed."""
        self._check_open()
        return super().segments(offset, length)


class VdpaDmaSpace(OwnedBlocks[VdpaBlock]):
    """Memory for one vDPA device. Close it after the device was reset. Satisfies ``DmaSpace``."""

    translated = True
    contiguous_limit = 1 << 63

    def __init__(self, node: Iotlb, iova: IovaAllocator, roots: Roots | None = None) -> None:
        self._roots = roots or Roots()
        super().__init__(Pagemap(self._roots))
        self._node = node
        self._iova = iova
        self._unit = max(CPU_PAGE, iova.page)
        self._huge: PhysicalDmaSpace | None = None
        self._abandoned = False

    def alloc(self, size: int) -> VdpaBlock:
        """Zeroed, page-aligned memory of at least ``size`` bytes that the device may read and write.

        Raises MemlockExceeded, or OperationFailed when the map is refused or no device addresses are left.
        """
        return self._shown(_shared(self._rounded(size, self._unit)))

    def pin(self, size: int) -> VdpaBlock | PhysicalBlock:
        """Zeroed memory in small pages that stays where it is; huge ones where the device's maps do not pin.

        Raises MemlockExceeded, HugePagesLack, PagemapHidden, OperationFailed.
        """
        size = self._rounded(size, self._unit)
        before = pinned_bytes(self._roots)
        block = self._shown(ordinary(size, small_pages=True))
        if pinned_bytes(self._roots) - before >= size:
            return block
        block.close()
        if self._huge is None:
            self._huge = PhysicalDmaSpace(self._roots, translated=True)
        return self._huge.pin(size)

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
            limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
            need = pinned_bytes(self._roots) + memory.size
            if limit == resource.RLIM_INFINITY or need <= limit:
                raise
            # vhost-vdpa asks the limit alone: unlike VFIO it lets no CAP_IPC_LOCK pass.
            raise MemlockExceeded(
                f"pinning {memory.size} bytes more goes beyond RLIMIT_MEMLOCK, which holds for root too here",
                seen=f"limit {limit} bytes, {need - memory.size} in use",
                expected=f"at least {need} bytes",
                remedy=f"'ulimit -l {-(-need // 1024)}', or as root 'prlimit --memlock={need} COMMAND'",
            ) from error

    def _hide(self, block: VdpaBlock) -> None:
        self._forget(block)
        if self._abandoned:
            return
        # On a failure the address stays taken, and the pages stay pinned until the node is closed.
        self._node.iotlb_invalidate(block.address, block.size)
        self._iova.free(block.address)

    def abandon(self) -> None:
        """Free what is left when the node has been closed: the kernel has taken every map away. Idempotent."""
        self._abandoned = True
        try:
            self.close()
        except BufferError:
            pass  # somebody still looks at it; it goes with the last view

    def _closers(self) -> Iterator[Callable[[], None]]:
        if self._huge is not None:
            yield self._huge.close
        yield from super()._closers()
