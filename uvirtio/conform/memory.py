"""Memory for a test: buffers with a known content, and guard bytes around all that the device may write.

A block is filled with a pattern, and buffers are cut out of it. Whatever was not given to the device as writable
has to be as the driver left it when the test ends: the guard bytes, and the buffers that the device only reads.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from uvirtio.errors import Misuse
from uvirtio.interfaces.memory import Block, DmaSpace

_PAGE: Final = 4096
_BLOCK: Final = 16 * _PAGE
_GUARD: Final = 64
_GUARDS: Final = bytes((151 * place + 77) & 0xFF for place in range(256)) * (_BLOCK // 256)
_PATTERN: Final = bytes((7 * place + 0xA3) & 0xFF for place in range(256))
_INVERTED: Final = bytes(value ^ 0xFF for value in _PATTERN)


class Piece(NamedTuple):
    """One element of a descriptor chain."""

    address: int
    length: int
    writable: bool


def pattern(size: int, *, inverted: bool = False) -> bytes:
    """What a writable buffer holds before the device has it.

    Args:
        size: Bytes.
        inverted: The complement, byte by byte.
    """
    once = _INVERTED if inverted else _PATTERN
    return (once * (size // 256 + 1))[:size]


class Buffer:
    """A piece of a block that is given to the device, to be read or to be written."""

    def __init__(self, block: Block, offset: int, content: bytes, *, writable: bool) -> None:
        """Cut it out; ``Arena.readable`` and ``Arena.writable`` make buffers.

        Args:
            block: Where it lies.
            offset: Its start there, in bytes.
            content: What it holds.
            writable: Whether the device may write it.
        """
        self.offset = offset
        self.size = len(content)
        self.writable = writable
        self.given = content
        """What it held when it was made."""
        self.segments = block.segments(offset, self.size) if self.size else []
        """(address, length) of each run of device addresses."""
        self._view = block.view[offset : offset + self.size]
        self._view[:] = content

    @property
    def data(self) -> bytes:
        """What it holds now."""
        return bytes(self._view)

    @property
    def address(self) -> int:
        """Its first device address."""
        return self.segments[0][0]

    def pieces(self) -> list[Piece]:
        """The elements of a chain that has all of it."""
        return [Piece(address, length, self.writable) for address, length in self.segments]

    def part(self, start: int, length: int) -> Piece:
        """An element for some of it; it has to lie in one run of device addresses.

        Args:
            start: In bytes.
            length: In bytes.
        """
        for address, run in self.segments:
            if start < run:
                return Piece(address + start, length, self.writable)
            start -= run
        raise Misuse("a piece behind the end of a buffer", seen=start, expected=f"inside {self.size} bytes")

    def untouched(self) -> list[tuple[int, int]]:
        """The runs of bytes that hold what they held at first, as (start, end)."""
        runs: list[tuple[int, int]] = []
        now = self.data
        for place, (before, after) in enumerate(zip(self.given, now, strict=True)):
            if before == after:
                if runs and runs[-1][1] == place:
                    runs[-1] = (runs[-1][0], place + 1)
                else:
                    runs.append((place, place + 1))
        return runs

    @property
    def written(self) -> int:
        """The bytes up to the last one that changed: at least so many were written, if from the start."""
        now = self.data
        for place in range(self.size - 1, -1, -1):
            if now[place] != self.given[place]:
                return place + 1
        return 0

    def close(self) -> None:
        """Release the view."""
        self._view.release()


class _Sheet:
    """One block, its buffers, and what it should hold."""

    def __init__(self, block: Block) -> None:
        self.block = block
        self.size = len(block.view)
        whole = _GUARDS * (self.size // _BLOCK + 1)
        self.shadow = bytearray(whole[: self.size])
        block.view[:] = self.shadow
        self.place = _GUARD
        self.buffers: list[Buffer] = []

    def room(self, size: int) -> int | None:
        """Where a buffer of ``size`` bytes fits, in one page if it is small; None: nowhere."""
        place = self.place
        if size <= _PAGE - 2 * _GUARD and place // _PAGE != (place + size + _GUARD) // _PAGE:
            place = (place // _PAGE + 1) * _PAGE + _GUARD
        return place if place + size + _GUARD <= self.size else None

    def strays(self) -> list[str]:
        """What changed though the device was not to write it."""
        now = bytearray(self.block.view)
        if now == self.shadow:
            return []
        for buffer in self.buffers:
            if buffer.writable:
                now[buffer.offset : buffer.offset + buffer.size] = buffer.given
        if now == self.shadow:
            return []
        found = []
        for place, (is_, was) in enumerate(zip(now, self.shadow, strict=True)):
            if is_ != was:
                found.append(self._says(place))
        return list(dict.fromkeys(found))

    def _says(self, place: int) -> str:
        for buffer in self.buffers:
            if buffer.offset <= place < buffer.offset + buffer.size:
                return "D-DESC-01: a buffer that the device only reads was written"
            if buffer.offset + buffer.size <= place < buffer.offset + buffer.size + _GUARD:
                return f"D-DESC-04: bytes behind a buffer of {buffer.size} bytes were written"
        return "D-DESC-04: bytes that belong to no buffer were written"


class Arena:
    """The memory of one test."""

    def __init__(self, dma: DmaSpace) -> None:
        """Make it; memory is allocated with the first buffer.

        Args:
            dma: Where its memory comes from; closing that space frees it.
        """
        self._dma = dma
        self._sheets: list[_Sheet] = []

    def readable(self, content: bytes) -> Buffer:
        """A buffer that the device reads.

        Args:
            content: What it holds.
        """
        return self._cut(content, writable=False)

    def writable(self, size: int, *, inverted: bool = False) -> Buffer:
        """A buffer that the device writes, full of a pattern.

        Args:
            size: Bytes.
            inverted: With the complement of the pattern.
        """
        return self._cut(pattern(size, inverted=inverted), writable=True)

    def _cut(self, content: bytes, *, writable: bool) -> Buffer:
        size = len(content)
        sheet = next((one for one in self._sheets if one.room(size) is not None), None)
        if sheet is None:
            sheet = _Sheet(self._dma.alloc(max(_BLOCK, -(-(size + 4 * _GUARD) // _PAGE) * _PAGE)))
            self._sheets.append(sheet)
        place = sheet.room(size)
        assert place is not None
        buffer = Buffer(sheet.block, place, content, writable=writable)
        sheet.shadow[place : place + size] = content
        sheet.buffers.append(buffer)
        sheet.place = (place + size + 2 * _GUARD - 1) // _GUARD * _GUARD
        return buffer

    def strays(self) -> list[str]:
        """What changed though the device was not to write it, in words that begin with a row's id."""
        return [one for sheet in self._sheets for one in sheet.strays()]

    def contents(self) -> list[bytes]:
        """All of it as it is now, to be compared with later."""
        return [bytes(sheet.block.view) for sheet in self._sheets]

    def close(self) -> None:
        """Release the views; the memory goes with its space."""
        for sheet in self._sheets:
            for buffer in sheet.buffers:
                buffer.close()
