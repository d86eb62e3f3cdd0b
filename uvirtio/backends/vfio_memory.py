"""Memory that a VFIO device may access, under either meaning of an address.

*Translated*: the device honours the IOMMU, addresses are IOVAs that this module chooses. *Physical*: the device
did not offer ACCESS_PLATFORM, so it uses guest-physical addresses and bypasses the IOMMU even though VFIO maps
succeed; an IOVA would make it write to a page of another owner. There the memory is pinned first (at a scratch
IOVA: only a pinned page keeps its physical address), its frame numbers are read, and maps with iova = physical
address are added, so that both meanings of an address reach the same byte.

Memory is private and anonymous, not shared: the kernel never unmaps a pinned anonymous page from its process,
while a page of a shared mapping may vanish from pagemap although it is pinned. MADV_DONTFORK keeps a fork from
making copies.
"""

from __future__ import annotations

import mmap
import resource
from collections.abc import Callable, Iterator

from uvirtio.backends.owned_blocks import OwnedBlocks
from uvirtio.backends.pages import (
    MADV_DONTDUMP,
    MADV_POPULATE_WRITE,
    Memory,
    PagedBlock,
    advise,
    anonymous,
    huge_start,
    in_huge_pages,
    merged,
    ordinary,
    pieces,
)
from uvirtio.backends.vfio.container import memlock_lack
from uvirtio.backends.vfio.ways import AddressSpace
from uvirtio.errors import Closed, MemlockExceeded, Misuse, OperationFailed, PageMoved
from uvirtio.host.pagemap import Pagemap
from uvirtio.host.pages import CPU_PAGE, HUGE_PAGE
from uvirtio.host.roots import Roots
from uvirtio.memory.iova import IovaAllocator

_MAP_HUGETLB = 0x40000
_MAP_HUGE_2MB = 21 << 26

MAP_PIECE = 256 << 20
"""Length of the pieces, in bytes, in which a block is mapped when one map for all of it is refused."""


class _Borrowed(Memory):
    """A mapping of another owner, which closes it later."""

    def close(self) -> None:
        """Release the view."""
        self.view.release()


def _huge(pagemap: Pagemap) -> Memory | None:
    """Return HUGE_PAGE bytes of adjacent frames, if available: a transparent huge page, or one of the pool."""
    for make in (_transparent, _pooled):
        memory = make()
        if memory is not None:
            if len(merged(pagemap.pfns(memory.vaddr, HUGE_PAGE))) == 1:
                return memory
            memory.close()
    return None


def _transparent() -> Memory | None:
    """Return HUGE_PAGE bytes that should be one transparent huge page; the caller checks."""
    try:
        mapping = anonymous(2 * HUGE_PAGE)
    except OperationFailed:
        return None
    start = huge_start(mapping)
    try:
        mapping.madvise(mmap.MADV_HUGEPAGE, start, HUGE_PAGE)
        mapping.madvise(MADV_POPULATE_WRITE, start, HUGE_PAGE)
    except OSError:
        mapping.close()
        return None
    return Memory(mapping, start, HUGE_PAGE)


def _pooled() -> Memory | None:
    """Return a page of the kernel's pool (``vm.nr_hugepages``), which others may need; None where none is free."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_HUGETLB | _MAP_HUGE_2MB
    try:
        mapping = mmap.mmap(-1, HUGE_PAGE, flags=flags)
    except OSError:
        return None  # none is free, or the kernel has no pool
    advise(mapping, mmap.MADV_DONTFORK, MADV_DONTDUMP)
    memory = Memory(mapping, 0, HUGE_PAGE)
    memory.view[0] = 0  # it was reserved by mmap, so this cannot fail
    return memory


class VfioBlock(PagedBlock):
    """Memory that is pinned by VFIO maps until ``close()``; ``VfioDmaSpace`` allocates it. Satisfies ``Block``."""

    def __init__(self, memory: Memory, pagemap: Pagemap, undo: Callable[[VfioBlock], None]) -> None:
        """Take over memory, not mapped yet; parameters as for ``PagedBlock``."""
        super().__init__(memory, pagemap, undo)
        self.maps: list[tuple[int, int]] = []
        """The VFIO maps that pin this block and make it accessible: (device address, size) in bytes."""

        self.runs: list[tuple[int, int, int]] = []
        """(offset, device address, length) in bytes, in the order of offsets."""

        self.contiguous = False

    def segments(self, offset: int, length: int) -> list[tuple[int, int]]:
        """Return the device addresses of these bytes, as (address, length) runs.

        Raises:
            Misuse: The bytes are not all in the block.
            Closed: After ``close()``.
        """
        self._check_open()
        return pieces(self.runs, offset, length)


class VfioDmaSpace(OwnedBlocks[VfioBlock]):
    """Memory for the devices of one container, under one address policy. Close it after the device was reset.

    Satisfies ``DmaSpace``.
    """

    def __init__(
        self,
        container: AddressSpace,
        iova: IovaAllocator,
        *,
        translated: bool,
        roots: Roots | None = None,
    ) -> None:
        """Make an empty space.

        Args:
            container: Where memory is mapped for the device.
            iova: The free device addresses of the container.
            translated: True for IOVAs (ACCESS_PLATFORM negotiated), False for guest-physical addresses (6.1).
            roots: Where /proc is.

        Raises:
            PagemapHidden: ``translated`` is False, and this process may not read physical addresses.
        """
        self._roots = roots or Roots()
        super().__init__(Pagemap(self._roots))
        self._container = container
        self._iova = iova
        self._unit = max(CPU_PAGE, iova.page)
        self._spare: Memory | None = None
        self.translated = translated
        self.contiguous_limit = 1 << 63
        if not translated:
            try:
                self.contiguous_limit = self._probe()
            except BaseException:
                self.close()
                raise

    def _probe(self) -> int:
        """Return how long a run of physical addresses is available: a huge page is tried once, and kept."""
        test = ordinary(CPU_PAGE, small_pages=True)
        try:
            test.view[0] = 0
            self._pagemap.pfns(test.vaddr, CPU_PAGE)
        finally:
            test.close()
        self._spare = _huge(self._pagemap)
        return CPU_PAGE if self._spare is None else HUGE_PAGE

    def lack(self, size: int) -> MemlockExceeded | None:
        """Return the error if RLIMIT_MEMLOCK does not allow this much in all; see ``LimitedSpace``.

        Under physical addresses each page has two maps, and the kernel counts both.
        """
        maps = 1 if self.translated else 2
        return memlock_lack(self._roots, maps * size, maps * sum(block.size for block in self._blocks.values()))

    def rights(self) -> dict[str, str]:
        """Open what frame numbers are read from; a map counts without CAP_IPC_LOCK. See ``KeepsRights``."""
        super().rights()
        limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
        if limit == resource.RLIM_INFINITY:
            return {}
        return {"CAP_IPC_LOCK": f"memory is pinned beyond RLIMIT_MEMLOCK ({limit} bytes)"}

    def alloc(self, size: int) -> VfioBlock:
        """Allocate zeroed, page-aligned memory that the device may read and write.

        Args:
            size: Length in bytes; rounded up to pages of the IOMMU.

        Raises:
            BadSize: ``size`` is not positive.
            MemlockExceeded: RLIMIT_MEMLOCK does not allow it.
            PagemapHidden: This process may not read physical addresses.
            PageMoved: A pinned page moved.
            OperationFailed: The kernel refused the map.
            Closed: After ``close()``.
        """
        size = self._rounded(size, self._unit)
        if self.translated:
            block = self._pinned(ordinary(size, small_pages=False))
            start = block.maps[0][0]
            block.runs = [(0, start, size)]
            block.contiguous = True
            return block
        block = self._pinned(self._physical_memory(size))
        try:
            pfns = block.pfns()
            block.runs = merged(pfns)
            for offset, address, length in block.runs:
                self._identity(block, offset, address, length)
            if block.pfns() != pfns:
                raise PageMoved(
                    "a page moved although it is pinned",
                    seen="other frame numbers",
                    expected="the same ones twice",
                )
        except BaseException:
            block.close()
            raise
        block.contiguous = len(block.runs) == 1
        return block

    def pin(self, size: int) -> VfioBlock:
        """Allocate zeroed memory with a fixed place, by one map at a scratch address.

        For balloon pages: the device does not address it; ``pfns()`` does not need the map's address. The kernel
        may take huge pages for it.

        Args:
            size: Length in bytes; rounded up to pages of the IOMMU.

        Raises:
            BadSize: ``size`` is not positive.
            MemlockExceeded: RLIMIT_MEMLOCK does not allow it.
            OperationFailed: The kernel refused the map.
            Closed: After ``close()``.
        """
        return self._pinned(in_huge_pages(self._rounded(size, self._unit)))

    def adopt(self, mapping: mmap.mmap, physical: int) -> VfioBlock:
        """Map memory of another owner (plugged by virtio-mem) for the device; see ``AdoptsMemory``.

        Args:
            mapping: The memory; whole pages.
            physical: Its guest-physical address, page-aligned: where addresses are not translated, the device uses
                it.

        Raises:
            Misuse: The mapping or its address is not in whole pages.
            MemlockExceeded: RLIMIT_MEMLOCK does not allow it.
            OperationFailed: The kernel refused the map.
            Closed: After ``close()``.
        """
        size = len(mapping)
        if self._rounded(size, self._unit) != size or physical % self._unit:
            raise Misuse(f"{size} bytes at {physical:#x} are not whole pages")
        memory = _Borrowed(mapping, 0, size)
        block = self._keep(VfioBlock(memory, self._pagemap, self._unmap))
        try:
            if self.translated:
                iova = self._iova.alloc(size)
                try:
                    self._map_in_pieces(memory.vaddr, iova, size)
                except BaseException:
                    self._iova.free(iova)
                    raise
                block.maps.append((iova, size))
            else:
                self._identity(block, 0, physical, size)
        except BaseException:
            block.close()
            raise
        block.runs = [(0, block.maps[0][0], size)]
        block.contiguous = True
        return block

    def _physical_memory(self, size: int) -> Memory:
        if not CPU_PAGE < size <= self.contiguous_limit:
            return ordinary(size, small_pages=True)
        memory, self._spare = self._spare or _huge(self._pagemap), None
        if memory is None:
            return ordinary(size, small_pages=True)
        if size < memory.size:
            # Pin only the requested size; the rest of the huge page is freed with the mapping.
            whole, memory.view = memory.view, memory.view[:size]
            whole.release()
            memory.size = size
        return memory

    def _pinned(self, memory: Memory) -> VfioBlock:
        """Pin memory by a map at a scratch address; physical spaces take high ones, to keep those of RAM free."""
        block = self._keep(VfioBlock(memory, self._pagemap, self._unmap))
        try:
            scratch = self._iova.alloc(memory.size, highest=not self.translated)
            try:
                self._map_in_pieces(memory.vaddr, scratch, memory.size)
            except BaseException:
                self._iova.free(scratch)
                raise
            block.maps.append((scratch, memory.size))
        except BaseException:
            block.close()
            raise
        return block

    def _map_in_pieces(self, vaddr: int, iova: int, size: int) -> None:
        try:
            self._container.map(vaddr, iova, size)
            return
        except OperationFailed:
            if size <= MAP_PIECE:
                raise
        done = 0
        try:
            while done < size:
                piece = min(MAP_PIECE, size - done)
                self._container.map(vaddr + done, iova + done, piece)
                done += piece
        except BaseException:
            if done:
                self._container.unmap(iova, done)
            raise

    def _identity(self, block: VfioBlock, offset: int, address: int, length: int) -> None:
        try:
            self._iova.take(address, length)
        except (OperationFailed, Misuse) as error:
            raise OperationFailed(
                f"the physical address {address:#x} cannot be mapped to itself: a device that honours the IOMMU "
                "would not reach the page",
                seen=str(error),
                expected="physical addresses inside the ranges of the IOMMU, not taken by another map",
                remedy="try again (other pages will be used), or use a device that offers ACCESS_PLATFORM "
                "(QEMU: iommu_platform=on)",
            ) from error
        try:
            self._container.map(block.vaddr + offset, address, length)
        except BaseException:
            self._iova.free(address)
            raise
        block.maps.append((address, length))

    def _unmap(self, block: VfioBlock) -> None:
        """Remove the maps of a block, the newest first. The scratch map, which pins, is the last."""
        self._forget(block)
        first: BaseException | None = None
        while block.maps:
            address, size = block.maps.pop()
            try:
                self._container.unmap(address, size)
                self._iova.free(address)
            except (OperationFailed, Closed) as error:
                # The address stays taken. The pages stay pinned, and are not reused, until the container closes.
                first = first or error
        if first is not None:
            raise first

    def _closers(self) -> Iterator[Callable[[], None]]:
        if self._spare is not None:
            yield self._spare.close
        yield from super()._closers()
