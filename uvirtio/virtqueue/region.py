"""The one region of a legacy queue (2.7.2): descriptor table, available ring and used ring in one block.

The device is told a single page frame and works the rest out, so the region has to be one run of device
addresses, and each part has to lie where the formula says.
"""

from __future__ import annotations

from uvirtio.errors import MemoryScattered, Misuse
from uvirtio.interfaces.memory import Block, DmaSpace
from uvirtio.spec.ring import legacy_layout


class Part:
    """A piece of a block that looks like a block; ``last`` closes the whole with itself.

    Satisfies the ``Block`` protocol but for ``pfns()``, for which parts that share a page have no answer.
    """

    def __init__(self, whole: Block, offset: int, size: int, *, last: bool = False) -> None:
        self._whole = whole
        self._offset = offset
        self._last = last
        self.view = whole.view[offset : offset + size]
        self.size = size
        self.contiguous = True

    def segments(self, offset: int, length: int) -> list[tuple[int, int]]:
        if offset < 0 or length < 0 or offset + length > self.size:
            raise Misuse(f"{length} bytes at {offset} of a part of {self.size}")
        return self._whole.segments(self._offset + offset, length)

    def pfns(self) -> list[int]:
        raise Misuse("a part of a block has no page frames of its own")

    def close(self) -> None:
        """Release the view; idempotent."""
        self.view.release()
        if self._last:
            self._whole.close()


def legacy_areas(index: int, size: int, dma: DmaSpace) -> list[Block]:
    """The three areas of a queue of ``size`` entries, in one run of device addresses, page-aligned.

    Closing them in their order closes the memory behind them. Raises MemoryScattered where there is no such
    memory, and what ``dma.alloc`` raises; then nothing stays allocated.
    """
    layout = legacy_layout(size)
    if layout.total > dma.contiguous_limit:
        # Neighbours may come by luck, and then not the next time: that would be no way to bring a device up.
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
    return MemoryScattered(
        f"queue {index} of a legacy interface needs {total} bytes in one piece for its {size} entries, "
        "and there is no such memory here",
        seen=seen,
        expected="one run of device addresses (2.7.2)",
        remedy="give this machine huge pages: echo 16 > /proc/sys/vm/nr_hugepages; "
        "or use the modern interface, or a device behind an IOMMU",
    )
