"""This machine's memory as the kernel reports it: System RAM, memory blocks, huge pages. Reads only."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from uvirtio.host import proc, sysfs
from uvirtio.host.roots import Roots

# --- System RAM ---------------------------------------------------------------------------------------------


def system_ram(roots: Roots) -> list[tuple[int, int, str]]:
    """The kernel's System RAM, from ``/proc/iomem``.

    Where that hides the addresses, as from an ordinary user, the memory blocks in sysfs are taken instead, in any
    state: every user may see them.

    Returns:
        (First physical address, bytes, name) of each range; empty where there is neither source.
    """
    lines = [line for line in proc.iomem(roots) or [] if line.name.startswith(proc.SYSTEM_RAM) and not line.hidden]
    if lines:
        return [(line.start, line.size, line.name) for line in lines]
    return [
        (block.start, block.size, f"{proc.SYSTEM_RAM}, memory{block.number}") for block in memory_blocks(roots)
    ]


# --- memory blocks ------------------------------------------------------------------------------------------


class MemoryBlock(NamedTuple):
    """A memory block, the unit of memory hotplug (Documentation/admin-guide/mm/memory-hotplug.rst)."""

    path: Path
    number: int
    start: int
    """Its first physical address."""
    size: int
    """Bytes."""

    @property
    def state(self) -> str | None:
        """``online``, ``offline`` or ``going-offline``, read now; None where it does not exist."""
        return sysfs.read(self.path / "state", 64)


def memory_directory(roots: Roots) -> Path:
    """The directory of the memory blocks, and of the settings for bringing new ones online."""
    return roots.sys / "devices/system/memory"


def memory_block_size(roots: Roots) -> int | None:
    """Bytes in a memory block, a power of two; None where the kernel has no blocks."""
    try:
        size = int(sysfs.read(memory_directory(roots) / "block_size_bytes", 64) or "", 16)  # without 0x
    except ValueError:
        return None
    return size if size > 0 and size & (size - 1) == 0 else None


def memory_blocks(roots: Roots) -> list[MemoryBlock]:
    """Every memory block that the kernel has, in any state, sorted by address."""
    size = memory_block_size(roots)
    if size is None:
        return []
    top = memory_directory(roots)
    matches = (re.fullmatch(r"memory([0-9]{1,9})", name, re.ASCII) for name in sysfs.names(top))
    numbers = sorted(int(match[1]) for match in matches if match)
    return [MemoryBlock(top / f"memory{number}", number, number * size, size) for number in numbers]


def blocks_of_range(start: int, end: int, roots: Roots) -> list[MemoryBlock]:
    """The memory blocks of the physical addresses ``start`` to ``end - 1``; the state of a missing one is None."""
    size = memory_block_size(roots)
    if size is None:
        return []
    top = memory_directory(roots)
    numbers = range(start // size, -(-end // size))
    return [MemoryBlock(top / f"memory{number}", number, number * size, size) for number in numbers]


# --- huge pages ---------------------------------------------------------------------------------------------


class HugePages(NamedTuple):
    """A pool of huge pages of one size; counts that cannot be read are None."""

    path: Path
    kib: int
    """The size of a page, in KiB."""
    total: int | None
    free: int | None
    reserved: int | None

    @property
    def switch(self) -> Path:
        """The file that sets how many pages are in the pool."""
        return self.path / "nr_hugepages"


def huge_pages(roots: Roots, kib: int = 2048) -> HugePages:
    """The pool of huge pages of ``kib`` KiB."""
    path = roots.sys / "kernel/mm/hugepages" / f"hugepages-{kib}kB"
    counts = (sysfs.number(path / f"{name}_hugepages") for name in ("nr", "free", "resv"))
    return HugePages(path, kib, *counts)


def huge_page_pools(roots: Roots) -> list[HugePages]:
    """Every pool of huge pages."""
    every = sysfs.names(roots.sys / "kernel/mm/hugepages")
    matches = (re.fullmatch(r"hugepages-([0-9]{1,9})kB", name, re.ASCII) for name in every)
    return [huge_pages(roots, int(match[1])) for match in matches if match]
