"""Memory that is filled with a pattern and looked at again: who wrote to it that should not have?

A device that was not reset writes to pages that its dead driver had, and QEMU's balloon empties those that it had
just been told of. Both belong to others by then: to these.
"""

from __future__ import annotations

import mmap
import os
import random
from pathlib import Path

MIB = 1 << 20
_PAGE = 4096
_PAGES = range(0, MIB, _PAGE)
_HUGE = 2 * MIB
_MAP_HUGETLB = 0x40000  # include/uapi/asm-generic/hugetlb_encode.h; the mmap module has no name for it
_POOL = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages")
MOST = int(os.environ.get("UVIRTIO_KILLS_FILLED", "64")) * MIB
"""That is filled after a death, of each kind of memory."""
_MORE = 8 * MIB
"""That is filled beside what a command had at most, and half of that again."""
_LEFT = 80 * MIB
"""What is left of free memory, for those who work."""


class Pattern:
    """Filled memory, until ``close``. ``what`` is its name in complaints."""

    def __init__(self, what: str, size: int, seed: int, flags: int = 0) -> None:
        self.size = size
        self._what = what
        self._piece = random.Random(seed).randbytes(MIB)
        self._map: mmap.mmap | None = None
        if size:
            self._map = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | flags)
            if not flags:  # by pages of 4 KiB: those that were freed last are taken first
                self._map.madvise(mmap.MADV_NOHUGEPAGE)
            for at in range(0, size, MIB):
                self._map[at : at + MIB] = self._piece

    @classmethod
    def of_free_memory(cls, seed: int, had: int, left: int) -> Pattern:
        """Of what is free, some more than a command ``had``, but for a rest and ``left`` bytes.

        What was freed last is taken first.
        """
        size = min(MOST, _some_more(had), max(0, free() - _LEFT - left))
        return cls("memory that was free", size // MIB * MIB, seed)

    @classmethod
    def of_free_huge_pages(cls, seed: int, had: int, left: int) -> Pattern:
        """Of the pool's free pages, some more than a command ``had``, but for as many as ``left``."""
        count = min(_some_more(had * _HUGE) // _HUGE, max(0, free_huge_pages() - left))
        return cls("huge pages that were free", count * _HUGE, seed, _MAP_HUGETLB)

    def close(self) -> None:
        """Free it; twice is once."""
        if self._map is not None:
            self._map.close()
            self._map = None

    def wrong(self) -> list[str]:
        """What is not as it was filled, in words."""
        if self._map is None:
            return []
        found, zeroes = 0, 0
        for at in range(0, self.size, MIB):
            if (seen := self._map[at : at + MIB]) != self._piece:
                pages = [(seen[page : page + _PAGE], self._piece[page : page + _PAGE]) for page in _PAGES]
                found += sum(page != filled for page, filled in pages)
                zeroes += sum(page == bytes(_PAGE) for page, _ in pages)
        if not found:
            return []
        return [f"{self._what}: {found} of {self.size // _PAGE} pages are not as filled, {zeroes} are zeroes"]


def _some_more(size: int) -> int:
    return size + size // 2 + _MORE


def free() -> int:
    """Bytes of memory that hold nothing at all."""
    return _meminfo("MemFree")


def total() -> int:
    """Bytes of memory that Linux has."""
    return _meminfo("MemTotal")


def _meminfo(name: str) -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) << 10
    raise AssertionError(f"no {name} in /proc/meminfo")


def free_huge_pages() -> int:
    """How many pages of 2 MiB the pool has to give."""
    return int(_POOL.read_text()) if _POOL.exists() else 0
