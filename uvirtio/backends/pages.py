"""Pages of this process, as a device addresses them: the memory of every back end of this kernel.

Whether a page keeps its place is up to the code that allocates it: a VFIO map pins it, a huge page of the
kernel's pool is not moved.
"""

from __future__ import annotations

import mmap
import os
from array import array
from bisect import bisect_right
from collections.abc import Callable, Sequence
from contextlib import suppress

from uvirtio.errors import Closed, Misuse, OperationFailed
from uvirtio.host.pagemap import Pagemap
from uvirtio.host.pages import CPU_PAGE, HUGE_PAGE
from uvirtio.spec.page import PFN_SHIFT
from uvirtio.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any, Self

MADV_POPULATE_WRITE = 23
MADV_DONTDUMP = getattr(mmap, "MADV_DONTDUMP", 16)


class Memory:
    """Mapped memory of this process: whole pages, their virtual address, one view."""

    def __init__(self, mapping: mmap.mmap, start: int, size: int) -> None:
        """Take over a part of a mapping.

        Args:
            mapping: The mapping; closed by ``close()``.
            start: Start of the part in it, in bytes.
            size: Length of the part, in bytes.
        """
        # ctypes only to learn the address; the reference to the buffer ends with this statement.
        import ctypes

        self.vaddr = ctypes.addressof(ctypes.c_char.from_buffer(mapping)) + start
        self.size = size
        self._mapping = mapping
        with memoryview(mapping) as whole:
            self.view = whole[start : start + size]

    def close(self) -> None:
        """Release the view and unmap.

        Raises:
            BufferError: A view of it is still held; call again when it is not.
        """
        self.view.release()
        self._mapping.close()


class PagedBlock:
    """A block of this process's pages, which its space removes from the device when it is closed.

    The common part of what satisfies ``Block``: ``view``, ``size`` (bytes, whole pages), and frame numbers that
    are read at every call.
    """

    def __init__(self, memory: Memory, pagemap: Pagemap, undo: Callable[[Any], None]) -> None:
        """Take over memory.

        Args:
            memory: The memory; freed by ``close()``.
            pagemap: Where frame numbers are read.
            undo: Removes the block from the device and from the record of its space.
        """
        self._memory = memory
        self._pagemap = pagemap
        self._undo = undo
        self._closed = False
        self.view = memory.view
        self.size = memory.size

    @property
    def vaddr(self) -> int:
        """The virtual address of the block in this process."""
        return self._memory.vaddr

    def pfns(self) -> list[int]:
        """Return the frame number of each 4096-byte piece, read again at every call.

        Raises:
            PagemapHidden: This process may not read them.
            Closed: After ``close()``.
        """
        self._check_open()
        return self._pagemap.pfns(self._memory.vaddr, self.size)

    def packed_pfns(self) -> array[int]:
        """Return the same packed, 4 bytes each where all have 32 bits; see ``PackedFrames``.

        Raises:
            PagemapHidden: This process may not read them.
            Closed: After ``close()``.
        """
        self._check_open()
        return self._pagemap.frames(self._memory.vaddr, self.size)

    def _check_open(self) -> None:
        if self._closed:
            raise Closed("this block of memory is closed")

    def close(self) -> None:
        """Remove the block from the device, then free it; idempotent.

        Raises:
            BufferError: A view of it is still held; call again when it is not.
        """
        if not self._closed:
            self._closed = True
            self._undo(self)
        self._memory.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def advise(mapping: mmap.mmap, *advice: int) -> None:
    """Apply pieces of advice (MADV_...) to a mapping; those that the kernel does not implement are ignored."""
    for item in advice:
        try:
            mapping.madvise(item)
        except OSError:
            pass  # a kernel without KSM or THP does not know the advice, and does not need it


def ordinary(size: int, *, small_pages: bool) -> Memory:
    """Allocate private anonymous memory, whole pages, zeroed; not merged (KSM), not inherited by a fork.

    Args:
        size: Length in bytes.
        small_pages: Prevent transparent huge pages.

    Raises:
        OperationFailed: The kernel refused.
    """
    mapping = anonymous(size)
    if small_pages:
        advise(mapping, mmap.MADV_NOHUGEPAGE)
    return Memory(mapping, 0, size)


def in_huge_pages(size: int) -> Memory:
    """Allocate as ``ordinary``, in transparent huge pages as far as the kernel has them at hand.

    It begins where a huge page does; what is left at its end is in small pages. Where and when the kernel gives
    huge pages stays its policy (/sys/kernel/mm/transparent_hugepage): nothing is reclaimed or compacted for them.

    Args:
        size: Length in bytes.

    Raises:
        OperationFailed: The kernel refused.
    """
    whole = size // HUGE_PAGE * HUGE_PAGE
    if not whole:
        return ordinary(size, small_pages=True)
    mapping = anonymous(size + HUGE_PAGE - CPU_PAGE)
    start = huge_start(mapping)
    if start + whole < len(mapping):
        with suppress(OSError):  # as in advise()
            mapping.madvise(mmap.MADV_NOHUGEPAGE, start + whole, len(mapping) - start - whole)
    return Memory(mapping, start, size)


def huge_start(mapping: mmap.mmap) -> int:
    """Return how many bytes into a mapping the first huge page can begin."""
    probe = Memory(mapping, 0, len(mapping))
    start = -probe.vaddr % HUGE_PAGE
    probe.view.release()
    return start


def anonymous(size: int) -> mmap.mmap:
    """Map private anonymous memory; not merged (KSM), not inherited by a fork, not in core dumps.

    Args:
        size: Length in bytes.

    Raises:
        OperationFailed: The kernel refused.
    """
    try:
        mapping = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise OperationFailed(f"no {size} bytes of memory", seen=os.strerror(error.errno or 0)) from error
    advise(mapping, mmap.MADV_DONTFORK, mmap.MADV_UNMERGEABLE, MADV_DONTDUMP)
    return mapping


def merged(pfns: Sequence[int]) -> list[tuple[int, int, int]]:
    """Return frame numbers as runs of (offset in the block, physical address, length), in bytes."""
    runs: list[tuple[int, int, int]] = []
    start = 0
    for index in range(1, len(pfns) + 1):
        if index == len(pfns) or pfns[index] != pfns[index - 1] + 1:
            runs.append((start << PFN_SHIFT, pfns[start] << PFN_SHIFT, (index - start) << PFN_SHIFT))
            start = index
    return runs


def pieces(runs: Sequence[tuple[int, int, int]], offset: int, length: int) -> list[tuple[int, int]]:
    """Return the device addresses of a part of a block, as (address, length) in bytes.

    Args:
        runs: The merged runs of the block.
        offset: Start of the part in the block, in bytes.
        length: Length of the part, in bytes.

    Raises:
        Misuse: The part is not all in the block.
    """
    end = offset + length
    if offset < 0 or length < 0 or end > (runs[-1][0] + runs[-1][2] if runs else 0):
        raise Misuse(f"{length} bytes at {offset} are not inside this block")
    found: list[tuple[int, int]] = []
    index = bisect_right(runs, offset, key=lambda run: run[0]) - 1
    while offset < end:
        start, address, size = runs[index]
        inside = offset - start
        piece = min(size - inside, end - offset)
        found.append((address + inside, piece))
        offset += piece
        index += 1
    return found
