"""The one region of a legacy queue (2.7.2): descriptor table, available ring and used ring in one block.

The driver writes a single page frame number and the device computes the rest, so the region has to be one run of
device addresses, and each part has to be where the formula says.
"""

from __future__ import annotations

from uvirtio.errors import MemoryScattered, Misuse
from uvirtio.interfaces.runtime import WatchesWords
from uvirtio.spec.ring import legacy_layout
from uvirtio.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from uvirtio.interfaces.memory import Block, DmaSpace


class Part:
    """A piece of a block, with the interface of a block.

    Satisfies ``Block`` but for ``pfns()``, which is undefined for parts that share a page.
    """

    def __init__(self, whole: Block, offset: int, size: int, *, last: bool = False) -> None:
        """Set the piece.

        Args:
            whole: The block.
            offset: Start of the piece in it, in bytes.
            size: Length of the piece, in bytes.
            last: Closing the piece closes the block too.
        """
        self._whole = whole
        self._offset = offset
        self._last = last
        self.view = whole.view[offset : offset + size]
        self.size = size
        self.contiguous = True

    def segments(self, offset: int, length: int) -> list[tuple[int, int]]:
        """Return the device addresses of these bytes, as (address, length) runs.

        Raises:
            Misuse: The bytes are not all in the piece.
        """
        if offset < 0 or length < 0 or offset + length > self.size:
            raise Misuse(f"{length} bytes at {offset} of a part of {self.size}")
        return self._whole.segments(self._offset + offset, length)

    def watched(self, offset: int, words: memoryview) -> memoryview:
        """Return what stands for ``words`` in the whole block; see ``WatchesWords``."""
        whole = self._whole
        return whole.watched(self._offset + offset, words) if isinstance(whole, WatchesWords) else words

    def pfns(self) -> list[int]:
        """Not available for a part.

        Raises:
            Misuse: Always.
        """
        raise Misuse("a part of a block has no page frames of its own")

    def close(self) -> None:
        """Release the view, and the block if this is its last part; idempotent."""
        self.view.release()
        if self._last:
            self._whole.close()


def legacy_areas(index: int, size: int, dma: DmaSpace) -> list[Block]:
    """Allocate the three areas of a legacy queue, page-aligned, in one run of device addresses.

    Args:
        index: The queue, for errors.
        size: Number of entries.
        dma: Where the memory comes from.

    Returns:
        Descriptor table, available ring and used ring. Closing them in this order frees the memory.

    Raises:
        MemoryScattered: No such run is available.
        MemlockExceeded: RLIMIT_MEMLOCK does not allow the memory.
        HugePagesLack: The pool has no huge page for the memory.
        PagemapHidden: This process may not read physical addresses.
        OperationFailed: The memory cannot be allocated or mapped. Nothing stays allocated in any case.
    """
    layout = legacy_layout(size)
    if layout.total > dma.contiguous_limit:
        # Adjacent pages are possible by chance, but not every time: the device would come up only sometimes.
        raise _scattered(index, size, layout.total, f"runs of {dma.contiguous_limit} bytes")
    whole = dma.alloc(layout.total)
    runs = len(whole.segments(0, layout.total))
    if runs != 1:
        whole.close()
        raise _scattered(index, size, layout.total, f"{runs} runs of device addresses")
    return [
        Part(whole, layout.desc, layout.avail - layout.desc),
        Part(whole, layout.avail, layout.used - layout.avail),
        Part(whole, layout.used, layout.total - layout.used, last=True),
    ]


def _scattered(index: int, size: int, total: int, seen: str) -> MemoryScattered:
    from uvirtio.host import remedies  # here: only this error wants them
    from uvirtio.host.memory import huge_pages
    from uvirtio.host.roots import Roots

    pool = huge_pages(Roots())
    return MemoryScattered(
        f"queue {index} of a legacy interface needs {total} bytes in one piece for its {size} entries, "
        "and no such memory is available",
        seen=seen,
        expected="one run of device addresses (2.7.2)",
        remedy=f"give this machine huge pages: {remedies.huge_pages(pool, (pool.total or 0) + 16)}; "
        "or use the modern interface, or a device behind an IOMMU",
    )
