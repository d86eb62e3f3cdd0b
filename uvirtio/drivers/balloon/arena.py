"""Memory that a process keeps free: the ranges that free page hints and reports tell the host about."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import Enum
from types import TracebackType
from typing import Self

from uvirtio.errors import Closed, OperationFailed, Refused
from uvirtio.typed import TYPE_CHECKING
from uvirtio.virtqueue import SgEntry

if TYPE_CHECKING:
    from uvirtio.interfaces.memory import Block, DmaSpace

RANGE = 2 << 20
"""Bytes; a huge page of the host, because 5.5.6.7.1 asks for large ranges. No chain is longer: a device may see as
many pieces as there are pages in it, and QEMU accepts 1024."""

_RUNS = 16
"""Elements of one chain, at most, where memory is scattered."""


class Use(Enum):
    """Owner and state of a range."""

    FREE = "free"
    OUT = "out"
    """In flight: the device has not used the buffer yet, so it must not be touched (5.5.6.7.1)."""
    HINTED = "hinted"
    """The host may leave it out of a migration; its contents are undefined (5.5.6.5.1)."""
    REPORTED = "reported"
    """The host may have taken the memory behind it; touching it brings memory back (5.5.6.7)."""
    TAKEN = "taken"
    """In use by the caller of ``take``."""


class Range:
    """Part of a block that is sent to the device as one chain; ``size`` in bytes."""

    def __init__(self, block: Block, offset: int, runs: list[SgEntry]) -> None:
        """Describe a free range.

        Args:
            block: The memory that it is part of.
            offset: Where it begins in the block, in bytes.
            runs: Its device addresses and lengths, the elements of the chain.
        """
        self.block = block
        self.offset = offset
        self.runs = runs
        self.size = sum(length for _, length in runs)
        self.use = Use.FREE


class Arena:
    """Free memory, divided into ranges. ``Balloon.arena`` makes one.

    Closing it frees the memory, once the device has used every range that was sent.
    """

    def __init__(self, blocks: Iterable[Block], *, pattern: bytes = bytes(4), elements: int = _RUNS) -> None:
        """Divide memory into free ranges.

        Args:
            blocks: Memory of the device (``device.dma``); the arena owns it from now on.
            pattern: What a range holds when it is taken, 4 bytes: the poison value where PAGE_POISON was
                negotiated, else zeros.
            elements: Elements of one chain, at most.
        """
        self._blocks = list(blocks)
        self._pattern = pattern
        self._closed = False
        self.ranges: list[Range] = []
        for block in self._blocks:
            self.ranges += _cut(block, max(1, min(elements, _RUNS)))
        self.size = sum(one.size for one in self.ranges)

    def bytes_in(self, *uses: Use) -> int:
        """Return how many bytes are in one of the states ``uses``."""
        return sum(one.size for one in self.ranges if one.use in uses)

    def take(self) -> Range:
        """Take one range into use, filled with the pattern.

        Ranges that the host does not know to be free are taken first. Hinted or reported ones only when there are
        no others, and they are filled before use (5.5.6.7.1).

        Returns:
            The range, which is the caller's until ``give``.

        Raises:
            OperationFailed: Nothing is left.
            Closed: The arena was closed.
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
        """Return a view of a taken range; release it before ``give``.

        Raises:
            Refused: The range was not taken.
            Closed: The arena was closed.
        """
        self._check_open()
        if one.use is not Use.TAKEN:
            raise Refused(
                "in-use: this range was not taken, so it must not be touched",
                seen=one.use.value,
                expected=Use.TAKEN.value,
                remedy="use what take() returned, until you give it back",
            )
        return one.block.view[one.offset : one.offset + one.size]

    def give(self, one: Range) -> None:
        """Give a taken range back; it is free again.

        Raises:
            Refused: The range was not taken.
            Closed: The arena was closed.
            BufferError: A view of it is still held.
        """
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
        """Free the memory; idempotent.

        Raises:
            Refused: Ranges are still in flight.
        """
        if self._closed:
            return
        out = self.bytes_in(Use.OUT)
        if out:
            raise Refused(
                "in-use: the device has not used all buffers of this memory",
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
    """Allocate DMA memory for an arena.

    Args:
        dma: The memory of the device.
        size: Bytes in all.

    Returns:
        One block where the device sees ``size`` bytes as contiguous, else blocks of ``RANGE`` bytes: where
        addresses are physical, a huge page can serve each.

    Raises:
        MemlockExceeded, HugePagesLack, PagemapHidden, OperationFailed: There is not that much DMA memory.
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
    """Return all ranges of ``arenas`` in one of the states ``uses``, with their arenas."""
    return [(arena, one) for arena in arenas for one in arena.ranges if one.use in uses]
