"""Pages of this process, as a device knows them: what memory is made of under every back end of this kernel.

Whether a page stays where it is, is the business of whoever made it: a VFIO map pins it, a huge page of the
kernel's pool is not moved.
"""

from __future__ import annotations

import mmap
import os
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, Self, TypeVar

from uvirtio.errors import BadSize, Closed, Misuse, OperationFailed
from uvirtio.host.pagemap import Pagemap
from uvirtio.spec.page import PFN_SHIFT

MADV_POPULATE_WRITE = 23
MADV_DONTDUMP = getattr(mmap, "MADV_DONTDUMP", 16)


class Memory:
    """Mapped memory of this process: whole pages, its address, one view."""

    def __init__(self, mapping: mmap.mmap, start: int, size: int) -> None:
        # ctypes only to learn the address; the reference to the buffer ends with this statement.
        import ctypes

        self.vaddr = ctypes.addressof(ctypes.c_char.from_buffer(mapping)) + start
        self.size = size
        self._mapping = mapping
        with memoryview(mapping) as whole:
            self.view = whole[start : start + size]

    def close(self) -> None:
        """Raises BufferError while somebody still holds a view; may be called again then."""
        self.view.release()
        self._mapping.close()


class PagedBlock:
    """A block of this process's pages, which its space takes from the device when it is closed.

    The common part of what satisfies the ``Block`` protocol: ``view``, ``size`` (bytes, whole pages), and frame
    numbers that are read at every call.
    """

    def __init__(self, memory: Memory, pagemap: Pagemap, undo: Callable[[Any], None]) -> None:
        """``undo`` takes the block from the device, and out of the books of its space."""
        self._memory = memory
        self._pagemap = pagemap
        self._undo = undo
        self._closed = False
        self.view = memory.view
        self.size = memory.size

    @property
    def vaddr(self) -> int:
        """Where this process sees the block."""
        return self._memory.vaddr

    def pfns(self) -> list[int]:
        """The frame number of each 4096-byte piece, read anew. Raises PagemapHidden, Closed."""
        self._check_open()
        return self._pagemap.pfns(self._memory.vaddr, self.size)

    def _check_open(self) -> None:
        if self._closed:
            raise Closed("this block of memory is closed")

    def close(self) -> None:
        """Take the block from the device, then free it; idempotent.

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


AnyBlock = TypeVar("AnyBlock", bound=PagedBlock)


class OwnedBlocks(Generic[AnyBlock]):
    """The blocks that a DMA space has given out and that are still open; they end with the space."""

    def __init__(self, pagemap: Pagemap) -> None:
        self._pagemap = pagemap
        self._blocks: dict[int, AnyBlock] = {}
        self._closed = False

    def _check_open(self) -> None:
        if self._closed:
            raise Closed("this DMA space is closed")

    def _rounded(self, size: int, unit: int) -> int:
        """``size`` bytes as whole units. Raises Closed, and BadSize unless size is positive."""
        self._check_open()
        if size <= 0:
            raise BadSize(f"{size} bytes of memory", seen=size, expected="1 or more")
        return -(-size // unit) * unit

    def _keep(self, block: AnyBlock) -> AnyBlock:
        self._blocks[id(block)] = block
        return block

    def _forget(self, block: AnyBlock) -> None:
        self._blocks.pop(id(block), None)

    def _closers(self) -> Iterator[Callable[[], None]]:
        """What else ends with the space, after its blocks; each idempotent."""
        yield self._pagemap.close

    def close(self) -> None:
        """Unmap and free all blocks; idempotent.

        Raises:
            OperationFailed, BufferError: The first error, after all was tried.
        """
        self._closed = True
        first: BaseException | None = None
        for close in [*(block.close for block in self._blocks.values()), *self._closers()]:
            try:
                close()
            except (OperationFailed, Closed, BufferError) as error:
                first = first or error
        if first is not None:
            raise first

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def advise(mapping: mmap.mmap, *advice: int) -> None:
    for item in advice:
        try:
            mapping.madvise(item)
        except OSError:
            pass  # a kernel without KSM or THP does not know the word, and then there is nothing to fear


def ordinary(size: int, *, small_pages: bool) -> Memory:
    """Private anonymous memory, whole pages, zeroed; not merged, not inherited. Raises OperationFailed."""
    try:
        mapping = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise OperationFailed(f"no {size} bytes of memory", seen=os.strerror(error.errno or 0)) from error
    advise(mapping, mmap.MADV_DONTFORK, mmap.MADV_UNMERGEABLE, MADV_DONTDUMP)
    if small_pages:
        advise(mapping, mmap.MADV_NOHUGEPAGE)
    return Memory(mapping, 0, size)


def merged(pfns: Sequence[int]) -> list[tuple[int, int, int]]:
    """Frame numbers as runs of (offset in the block, physical address, length), neighbours merged."""
    runs: list[tuple[int, int, int]] = []
    start = 0
    for index in range(1, len(pfns) + 1):
        if index == len(pfns) or pfns[index] != pfns[index - 1] + 1:
            runs.append((start << PFN_SHIFT, pfns[start] << PFN_SHIFT, (index - start) << PFN_SHIFT))
            start = index
    return runs


def pieces(runs: Sequence[tuple[int, int, int]], offset: int, length: int) -> list[tuple[int, int]]:
    """The device addresses of ``length`` bytes from ``offset``, as (address, length), out of merged runs.

    Raises Misuse outside of what the runs cover.
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


class LinearBlock:
    """A block that is one run of device addresses from ``address`` on."""

    contiguous = True
    address: int
    """The device address of the first byte."""
    size: int

    def segments(self, offset: int, length: int) -> list[tuple[int, int]]:
        """The device addresses of these bytes: always one run. Raises Misuse outside the block."""
        if offset < 0 or length < 0 or offset + length > self.size:
            raise Misuse(f"{length} bytes at {offset} of a block of {self.size}")
        return [(self.address + offset, length)] if length else []


class GuestBlock(LinearBlock):
    """Memory at a known guest-physical address, which is what every device of the machine calls it.

    Satisfies the ``Block`` protocol. The mapping stays the caller's.
    """

    def __init__(self, mapping: mmap.mmap, physical: int) -> None:
        self.view = memoryview(mapping)
        self.size = len(self.view)
        self.address = physical

    def pfns(self) -> list[int]:
        """The guest-physical frame numbers; they never change."""
        first = self.address >> PFN_SHIFT
        return list(range(first, first + (-(-self.size >> PFN_SHIFT))))

    def close(self) -> None:
        """Let go of the mapping; idempotent."""
        self.view.release()
