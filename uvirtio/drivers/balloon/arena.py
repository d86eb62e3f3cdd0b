"""Memory that a process holds free, and tells the host about: the ranges that hints and reports are made of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import Enum
from types import TracebackType
from typing import Self

from uvirtio.errors import Closed, OperationFailed, Refused
from uvirtio.interfaces.memory import Block, DmaSpace
from uvirtio.virtqueue import SgEntry

RANGE = 2 << 20
"""Bytes. Large, as 5.5.6.7.1 wants it: a huge page of the host. No chain is longer, because a device may see
as many pieces as there are pages in it, and QEMU takes 1024 of them."""

_RUNS = 16
"""Elements of one chain at most, where memory is scattered."""


class Use(Enum):
    """Whose a range is."""

    FREE = "free"
    OUT = "out"
    """With the device, which has not answered: out of bounds (5.5.6.7.1)."""
    HINTED = "hinted"
    """The host may leave it out of a migration; its contents are undefined (5.5.6.5.1)."""
    REPORTED = "reported"
    """The host may have taken the memory behind it; it comes back when it is touched (5.5.6.7)."""
    TAKEN = "taken"
    """In use by whoever called ``take``."""


class Range:
    """Some bytes of a block: what the device is told as one chain."""

    def __init__(self, block: Block, offset: int, runs: list[SgEntry]) -> None:
        self.block = block
        self.offset = offset
        self.runs = runs
        self.size = sum(length for _, length in runs)
        self.use = Use.FREE


class Arena:
    """Free memory in ranges. ``blocks`` are the device's (``device.dma``) and belong to the arena from now on.

    ``pattern`` (4 bytes): what a range holds when it is taken; the poison value where that was negotiated, else
    zeros. Closing frees the blocks; not before the device has answered for every range.
    """

    def __init__(self, blocks: Iterable[Block], *, pattern: bytes = bytes(4), elements: int = _RUNS) -> None:
        self._blocks = list(blocks)
        self._pattern = pattern
        self._closed = False
        self.ranges: list[Range] = []
        for block in self._blocks:
            self.ranges += _cut(block, max(1, min(elements, _RUNS)))
        self.size = sum(one.size for one in self.ranges)

    def bytes_in(self, *uses: Use) -> int:
        """How much of it is in one of these uses."""
        return sum(one.size for one in self.ranges if one.use in uses)

    def take(self) -> Range:
        """One range for use, filled with the pattern; those that the host does not know as free come first.

        5.5.6.7.1: what was reported or hinted is left alone while there is something else, and is filled
        before it is used. Raises OperationFailed when nothing is left, Closed.
        """
        self._check_open()
        for use in (Use.FREE, Use.HINTED, Use.REPORTED):
            for one in self.ranges:
                if one.use is use:
                    self._fill(one)
                    one.use = Use.TAKEN
                    return one
        out = self.bytes_in(Use.OUT)
        raise OperationFailed(
            "the arena has nothing left to take",
            seen=f"{self.bytes_in(Use.TAKEN)} of {self.size} bytes taken, {out} with the device",
            expected="a range that is free",
            remedy="give a range back, or wait until the device has answered" if out else "give a range back",
        )

    def view(self, one: Range) -> memoryview:
        """The bytes of a taken range; release the view before ``give``. Raises Refused for any other range."""
        self._check_open()
        if one.use is not Use.TAKEN:
            raise Refused(
                "in-use: this range was not taken, so it is not yours to touch",
                seen=one.use.value,
                expected=Use.TAKEN.value,
                remedy="use what take() returned, until you give it back",
            )
        return one.block.view[one.offset : one.offset + one.size]

    def give(self, one: Range) -> None:
        """Give a taken range back; it is free again. Raises Refused for one that was not taken."""
        self.view(one).release()
        one.use = Use.FREE

    def fill_free(self, one: Range) -> None:
        """Fill a range that is about to be reported (5.5.6.7.1, with PAGE_POISON)."""
        self._fill(one)

    def _fill(self, one: Range) -> None:
        times = one.size // len(self._pattern)
        one.block.view[one.offset : one.offset + one.size] = self._pattern * times

    def _check_open(self) -> None:
        if self._closed:
            raise Closed("this arena is closed")

    def close(self) -> None:
        """Free all of it; idempotent. Raises Refused while the device has some of it."""
        if self._closed:
            return
        out = self.bytes_in(Use.OUT)
        if out:
            raise Refused(
                "in-use: the device has not answered for all of this memory",
                seen=f"{out} bytes are with the device",
                expected="none",
                remedy="wait for the device, or close the driver: that resets it and frees the memory",
            )
        self._closed = True
        for block in self._blocks:
            block.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()


def allocate(dma: DmaSpace, size: int) -> list[Block]:
    """Blocks of ``size`` bytes in all: one where that is one run for the device, else pieces of ``RANGE`` each.

    Where addresses are physical, a huge page can serve such a piece.
    """
    if dma.contiguous_limit >= size:
        return [dma.alloc(size)]
    blocks: list[Block] = []
    try:
        for at in range(0, size, RANGE):
            blocks.append(dma.alloc(min(RANGE, size - at)))
    except BaseException:
        for block in blocks:
            block.close()
        raise
    return blocks


def _cut(block: Block, elements: int) -> list[Range]:
    """The block as ranges that end at multiples of ``RANGE`` in the device's addresses."""
    made: list[Range] = []
    begun: list[SgEntry] = []
    start = offset = 0

    def end() -> None:
        nonlocal start
        if begun:
            made.append(Range(block, start, list(begun)))
            begun.clear()
        start = offset

    for address, length in block.segments(0, block.size):
        left = length
        while left:
            at = address + length - left
            piece = min(left, RANGE - at % RANGE)
            begun.append((at, piece))
            offset += piece
            left -= piece
            if (at + piece) % RANGE == 0 or len(begun) == elements:
                end()
    end()
    return made


def of_use(arenas: Sequence[Arena], *uses: Use) -> list[tuple[Arena, Range]]:
    """All ranges of these arenas in one of these uses."""
    return [(arena, one) for arena in arenas for one in arena.ranges if one.use in uses]
