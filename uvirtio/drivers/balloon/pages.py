"""The pages of the balloon: pinned memory in chunks, and how many pages of each the host has."""

from __future__ import annotations

from array import array
from contextlib import suppress
from operator import index

from uvirtio.drivers.balloon.free_memory import FreeMemory
from uvirtio.errors import BadSize, NotSupported, PagemapHidden, PageMoved, Refused, UvirtioError
from uvirtio.host import privilege
from uvirtio.host.pagemap import has_zero
from uvirtio.interfaces.memory import Block, DmaSpace, PackedFrames
from uvirtio.spec import balloon as spec
from uvirtio.spec.page import VIRTIO_PAGE

CHUNK = 16 << 20
"""Bytes that are pinned by one map: few maps for a large balloon, and small steps when it shrinks."""

_BATCH = spec.PFNS_PER_BUFFER * VIRTIO_PAGE

PFN_END = 1 << 32  # 5.5.6: a PFN is 32 bits wide


class Chunk:
    """A pinned block whose first ``held`` pages are in the balloon."""

    def __init__(self, block: Block, pfns: array[int]) -> None:
        """Wrap a pinned block, none of whose pages are in the balloon.

        Args:
            block: The memory.
            pfns: The frame number of each page of 4096 bytes, 4 bytes each.
        """
        self.block = block
        self.pfns = pfns
        self.held = 0

    @property
    def room(self) -> int:
        """Pages that are not in the balloon."""
        return len(self.pfns) - self.held

    def fill(self, first: int, end: int, pattern: bytes) -> None:
        """Fill pages with a pattern.

        Args:
            first: The first page.
            end: The page after the last one.
            pattern: 4 bytes.
        """
        page = pattern * (VIRTIO_PAGE // len(pattern))
        self.block.view[first * VIRTIO_PAGE : end * VIRTIO_PAGE] = page * (end - first)

    def recheck(self, first: int) -> None:
        """Check that the frame numbers of the pages from ``first`` on, which the host has, did not change.

        Raises:
            PageMoved: One changed.
        """
        now = _packed(self.block)
        if now[first : self.held] == self.pfns[first : self.held]:
            return
        for at in range(first, self.held):
            if now[at] != self.pfns[at]:
                raise PageMoved(
                    "a page of the balloon moved while the host was told about it",
                    seen=f"page {at}: frame {now[at]:#x}",
                    expected=f"frame {self.pfns[at]:#x}",
                    remedy="the back end did not pin this memory; close the device and report this",
                )


class Pages:
    """All chunks of a balloon, the newest last."""

    def __init__(self, dma: DmaSpace, free: FreeMemory | None) -> None:
        """Start with no chunks.

        Args:
            dma: Pins the memory.
            free: The floor to respect; None: there is none (``qemu:`` machines have no guest that needs memory).
        """
        self._dma = dma
        self._free = free
        self.chunks: list[Chunk] = []
        self.held = 0
        """Pages in the balloon: acknowledged by the host and not deflated since."""

    def note(self, chunk: Chunk, held: int) -> None:
        """Note how many pages of a chunk are in the balloon now."""
        self.held, chunk.held = self.held + held - chunk.held, held  # no exception comes between the two

    def with_room(self, missing: int, *, force: bool) -> Chunk:
        """Return a chunk with pages that are not in the balloon; pin a new one when the last is full.

        Args:
            missing: Pages that are to be put into the balloon, in this chunk and in later ones.
            force: Ignore the floor.

        Raises:
            Refused: The floor would be crossed.
            MemlockExceeded, HugePagesLack, OperationFailed, MemoryError: There is no memory to pin.
            PagemapHidden: The frame numbers are hidden from this process.
            NotSupported: A frame number exceeds 32 bits.
        """
        if self.chunks and self.chunks[-1].room:
            return self.chunks[-1]
        return self._pin(missing, force=force)

    def look_ahead(self, missing: int, *, force: bool) -> None:
        """Pin the next chunk already, while the host works on the last one, which will be full then.

        Where that fails nothing is said: ``with_room`` tries again, and tells why.

        Args:
            missing: Pages that are to be put into the balloon besides; none: nothing is pinned.
            force: Ignore the floor.
        """
        if missing > 0:
            with suppress(MemoryError, UvirtioError):
                self._pin(missing, force=force)

    def _pin(self, missing: int, *, force: bool) -> Chunk:
        size = min(missing * VIRTIO_PAGE, CHUNK)
        if self._free is not None and not force:
            spare = self._free.spare()
            if spare < size:
                self._free.check(min(size, _BATCH))
                size = spare // _BATCH * _BATCH or size
        block = self._dma.pin(size)
        try:
            pfns = _packed(block)
            _check(pfns)
        except BaseException:
            block.close()
            raise
        chunk = Chunk(block, pfns)
        self.chunks.append(chunk)
        return chunk

    def spare(self) -> int | None:
        """Return the bytes of this machine's memory above the floor; None without a floor, or if not known."""
        if self._free is None:
            return None
        try:
            return self._free.spare()
        except Refused:
            return None

    def check(self, pages: int) -> None:
        """Check that ``pages`` more pages can be put into the balloon without crossing the floor.

        Raises:
            Refused: They cannot, or it is not known.
        """
        if self._free is not None:
            room = self.chunks[-1].room if self.chunks else 0
            if pages > room:
                self._free.check((pages - room) * VIRTIO_PAGE)

    def drop_last(self) -> None:
        """Free the newest chunk, none of whose pages are in the balloon."""
        self.chunks.pop().block.close()

    def drop_unused(self) -> None:
        """Free the newest chunk if it was pinned ahead and none of its pages came into the balloon."""
        if self.chunks and not self.chunks[-1].held:
            self.drop_last()


def _packed(block: Block) -> array[int]:
    """The frame numbers of a block now: 4 bytes each, or 8 where one of them does not fit."""
    if isinstance(block, PackedFrames):
        return block.packed_pfns()
    pfns = block.pfns()
    return array("I" if max(pfns, default=0) < PFN_END else "Q", pfns)


def _check(pfns: array[int]) -> None:
    if has_zero(pfns):
        raise PagemapHidden(
            "the frame numbers of its pages are hidden from this process",
            seen="frame 0 in /proc/self/pagemap",
            expected="real frame numbers",
            remedy=privilege.remedy("run as root (CAP_SYS_ADMIN)", also="try qemu:virtio-balloon-pci"),
        )
    if pfns.itemsize > spec.PFN_SIZE and max(pfns) >= PFN_END:
        raise NotSupported(
            "a page lies above what a balloon can address",
            seen=f"frame {max(pfns):#x}",
            expected="below 2^32 (5.5.6)",
            remedy="the balloon takes memory below 16 TiB only",
        )


def counted(pages: int) -> int:
    """Return a number of pages as an integer.

    Raises:
        BadSize: It is out of range.
    """
    pages = index(pages)
    if not 0 <= pages < PFN_END:
        raise BadSize("a number of pages is out of range", seen=pages, expected="0 to 2^32 - 1")
    return pages
