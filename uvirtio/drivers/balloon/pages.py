"""The pages of the balloon: pinned memory in chunks, and the books of what the host has of it."""

from __future__ import annotations

from collections.abc import Sequence

from uvirtio.drivers.balloon.free_memory import FreeMemory
from uvirtio.errors import NotSupported, PagemapHidden, PageMoved, Refused
from uvirtio.interfaces.memory import Block, DmaSpace
from uvirtio.spec import balloon as spec
from uvirtio.spec.page import VIRTIO_PAGE

CHUNK = 16 << 20
"""Bytes that are pinned by one map: few maps for a large balloon, small steps back for a shrinking one."""

_BATCH = spec.PFNS_PER_BUFFER * VIRTIO_PAGE

PFN_END = 1 << 32  # 5.5.6: a PFN is 32 bits wide


class Chunk:
    """A pinned block whose first ``held`` pages are in the balloon."""

    def __init__(self, block: Block, pfns: list[int]) -> None:
        self.block = block
        self.pfns = pfns
        self.held = 0

    @property
    def room(self) -> int:
        return len(self.pfns) - self.held

    def fill(self, first: int, end: int, pattern: bytes) -> None:
        """Write ``pattern`` (4 bytes) all over these pages."""
        page = pattern * (VIRTIO_PAGE // len(pattern))
        self.block.view[first * VIRTIO_PAGE : end * VIRTIO_PAGE] = page * (end - first)

    def recheck(self, first: int) -> None:
        """The pages from ``first`` on, which the host has, are where they were. Raises PageMoved."""
        now = self.block.pfns()
        for index in range(first, self.held):
            if now[index] != self.pfns[index]:
                raise PageMoved(
                    "a page of the balloon moved while the host was told about it",
                    seen=f"page {index}: frame {now[index]:#x}",
                    expected=f"frame {self.pfns[index]:#x}",
                    remedy="the back end did not pin this memory; leave the device and report this",
                )


class Pages:
    """All chunks, the newest last. ``free`` None: nothing here can run short (a machine without a guest)."""

    def __init__(self, dma: DmaSpace, free: FreeMemory | None) -> None:
        self._dma = dma
        self._free = free
        self.chunks: list[Chunk] = []

    @property
    def held(self) -> int:
        """Pages that the host has acknowledged and that were not given back."""
        return sum(chunk.held for chunk in self.chunks)

    def with_room(self, missing: int, *, force: bool) -> Chunk:
        """A chunk that can take some of ``missing`` pages; pins a new one when the last is full.

        ``force``: the floor of free memory does not count. Raises Refused (the floor), and what pinning raises.
        """
        if self.chunks and self.chunks[-1].room:
            return self.chunks[-1]
        size = min(missing * VIRTIO_PAGE, CHUNK)
        if self._free is not None and not force:
            spare = self._free.spare()
            if spare < size:
                self._free.check(min(size, _BATCH))
                size = spare // _BATCH * _BATCH or size
        block = self._dma.pin(size)
        try:
            pfns = block.pfns()
            _check(pfns)
        except BaseException:
            block.close()
            raise
        chunk = Chunk(block, pfns)
        self.chunks.append(chunk)
        return chunk

    def spare(self) -> int | None:
        """Bytes of this machine's memory above the floor; None where that is unknown, or nothing to go by."""
        if self._free is None:
            return None
        try:
            return self._free.spare()
        except Refused:
            return None

    def check(self, pages: int) -> None:
        """Raise Refused unless so many pages more can be spared."""
        if self._free is not None:
            room = self.chunks[-1].room if self.chunks else 0
            if pages > room:
                self._free.check((pages - room) * VIRTIO_PAGE)

    def drop_last(self) -> None:
        """Free the newest chunk, which the host has nothing of."""
        self.chunks.pop().block.close()


def _check(pfns: Sequence[int]) -> None:
    if 0 in pfns:
        raise PagemapHidden(
            "this process may not know the frame numbers of its pages",
            seen="frame 0 in /proc/self/pagemap",
            expected="real frame numbers",
            remedy="the balloon needs CAP_SYS_ADMIN: run as root, or try qemu:virtio-balloon-pci",
        )
    if max(pfns) >= PFN_END:
        raise NotSupported(
            "a page lies above what a balloon can name",
            seen=f"frame {max(pfns):#x}",
            expected="below 2^32 (5.5.6)",
            remedy="the balloon takes memory below 16 TiB only",
        )
