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
from collections.abc import Callable
from typing import TYPE_CHECKING

from uvirtio.backends.pages import MADV_DONTDUMP, PAGE, Memory, PagedBlock, advise, ordinary
from uvirtio.backends.physical import PhysicalBlock, PhysicalDmaSpace
from uvirtio.errors import BadSize, Closed, MemlockExceeded, Misuse, OperationFailed
from uvirtio.host.pagemap import Pagemap
from uvirtio.host.process import status_bytes
from uvirtio.host.roots import Roots
from uvirtio.memory.iova import IovaAllocator

if TYPE_CHECKING:
    from uvirtio.backends.vhost_vdpa.node import VhostVdpaNode


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


class VdpaBlock(PagedBlock):
    """Memory that the device sees as one run of IOVAs until ``close()``; made by :class:`VdpaDmaSpace`.

    Satisfies the ``Block`` protocol: ``view``, ``size`` (bytes, whole pages), ``contiguous``.
    """

    contiguous = True

    def __init__(self, memory: Memory, iova: int, pagemap: Pagemap, undo: Callable[[VdpaBlock], None]) -> None:
        super().__init__(memory, pagemap)
        self._undo = undo
        self.iova = iova

    def segments(self, offset: int, length: int) -> list[tuple[int, int]]:
        """The device addresses of these bytes: one run. Raises Misuse outside the block, Closed."""
        self._check_open()
        if offset < 0 or length < 0 or offset + length > self.size:
            raise Misuse(f"{length} bytes at {offset} of a block of {self.size}")
        return [(self.iova + offset, length)] if length else []

    def close(self) -> None:
        """Take it from the device, then free it; idempotent. Raises BufferError while a view of it is held."""
        if not self._closed:
            self._closed = True
            self._undo(self)
        self._memory.close()

    def __enter__(self) -> VdpaBlock:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class VdpaDmaSpace:
    """Memory for one vDPA device. Close it after the device was reset. Satisfies ``DmaSpace``."""

    translated = True
    contiguous_limit = 1 << 63

    def __init__(self, node: VhostVdpaNode, iova: IovaAllocator, roots: Roots | None = None) -> None:
        self._node = node
        self._iova = iova
        self._roots = roots or Roots()
        self._pagemap = Pagemap(self._roots)
        self._blocks: dict[int, VdpaBlock] = {}
        self._huge: PhysicalDmaSpace | None = None
        self._abandoned = False
        self._closed = False

    def alloc(self, size: int) -> VdpaBlock:
        """Zeroed, page-aligned memory of at least ``size`` bytes that the device may read and write.

        Raises MemlockExceeded, or OperationFailed when the map is refused or no device addresses are left.
        """
        return self._shown(_shared(self._rounded(size)))

    def pin(self, size: int) -> VdpaBlock | PhysicalBlock:
        """Zeroed memory in small pages that stays where it is; huge ones where the device's maps do not pin.

        Raises MemlockExceeded, HugePagesLack, PagemapHidden, OperationFailed.
        """
        size = self._rounded(size)
        before = pinned_bytes(self._roots)
        block = self._shown(ordinary(size, small_pages=True))
        if pinned_bytes(self._roots) - before >= size:
            return block
        block.close()
        if self._huge is None:
            self._huge = PhysicalDmaSpace(self._roots, translated=True)
        return self._huge.pin(size)

    def _rounded(self, size: int) -> int:
        if self._closed:
            raise Closed("this DMA space is closed")
        if size <= 0:
            raise BadSize(f"{size} bytes of memory", seen=size, expected="1 or more")
        unit = max(PAGE, self._iova.page)
        return -(-size // unit) * unit

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
        block = VdpaBlock(memory, iova, self._pagemap, self._hide)
        self._blocks[id(block)] = block
        return block

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
        self._blocks.pop(id(block), None)
        if self._abandoned:
            return
        # On a failure the address stays taken, and the pages stay pinned until the node is closed.
        self._node.iotlb_invalidate(block.iova, block.size)
        self._iova.free(block.iova)

    def abandon(self) -> None:
        """Free what is left when the node has been closed: the kernel has taken every map away. Idempotent."""
        self._abandoned = True
        try:
            self.close()
        except BufferError:
            pass  # somebody still looks at it; it goes with the last view

    def close(self) -> None:
        """Unmap and free all blocks; idempotent. Raises the first error after trying them all."""
        self._closed = True
        first: BaseException | None = None
        for block in list(self._blocks.values()):
            try:
                block.close()
            except (OperationFailed, Closed, BufferError) as error:
                first = first or error
        if self._huge is not None:
            try:
                self._huge.close()
                self._huge = None
            except BufferError as error:
                first = first or error
        self._pagemap.close()
        if first is not None:
            raise first

    def __enter__(self) -> VdpaDmaSpace:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
