"""Memory for a ring without a device behind it: pages of this process, at addresses that no device reads."""

from __future__ import annotations

import mmap

PAGE = 4096
_BASE = 0x1_0000_0000


class PlainBlock:
    """See the Block seam."""

    contiguous = True

    def __init__(self, size: int, address: int) -> None:
        self._map = mmap.mmap(-1, size)
        self.view = memoryview(self._map)
        self.size = size
        self.address = address

    def segments(self, offset: int, length: int) -> list[tuple[int, int]]:
        return [(self.address + offset, length)] if length else []

    def pfns(self) -> list[int]:
        return list(range(self.address // PAGE, (self.address + self.size) // PAGE))

    def close(self) -> None:
        self.view.release()
        self._map.close()


class PlainDma:
    """See the DmaSpace seam."""

    translated = True
    contiguous_limit = 1 << 30

    def __init__(self) -> None:
        self.blocks: list[PlainBlock] = []

    def alloc(self, size: int) -> PlainBlock:
        taken = sum(block.size + PAGE for block in self.blocks)
        made = PlainBlock(-(-size // PAGE) * PAGE, _BASE + taken)
        self.blocks.append(made)
        return made

    pin = alloc

    def at(self, address: int) -> PlainBlock:
        """The block that begins there."""
        return next(block for block in self.blocks if block.address == address)

    def close(self) -> None:
        for block in self.blocks:
            block.close()
