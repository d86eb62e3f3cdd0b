"""Memory of a device on a tape: blocks, and the words that a ring reads of them.

A ring reads its indices, flags and elements word by word, at any time, while the device may be writing them. So
each of these reads goes through ``WatchedWords``. What the rest of a driver reads (the bytes of a request that the
device has returned) stands still by then: it is compared when a word of a ring was found to have changed.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from typing import Any

from uvirtio.errors import BadTrace, Misuse
from uvirtio.interfaces.memory import AdoptsMemory, Block, DmaSpace, KeepsRights
from uvirtio.trace.tape import Tape, flag, number, numbers, obtain, of

MOST = 1 << 36
"""Bytes. A record that wants a larger block than this is not believed."""


_RUN = of(number, number)
_BLOCK = of(number, flag)


def _runs(value: Any) -> bool:
    return isinstance(value, list) and all(map(_RUN, value))


class WatchedWords:
    """Stands for a memoryview of words in a block, with those operations that rings use."""

    def __init__(self, tape: Tape, block: WatchedBlock, offset: int, words: memoryview) -> None:
        """Watch ``words``, which begin at byte ``offset`` of the block."""
        self._tape, self._block, self._offset, self._words = tape, block, offset, words
        self._width = words.itemsize

    def __getitem__(self, key: Any) -> Any:
        words, width = self._words, self._width
        if isinstance(key, slice):
            start, stop, _ = key.indices(len(words))
            count = max(0, stop - start)
            return self._look(start, count * width, lambda: bytes(words[key]))
        value = self._look(key, width, lambda: int(words[key]).to_bytes(width, "little"))
        return int.from_bytes(value, "little")

    def _look(self, index: int, length: int, read: Any) -> bytes:
        return self._tape.look(self._block, self._offset + index * self._width, length, read)

    def __setitem__(self, key: Any, value: Any) -> None:
        if self._tape.replays:
            self._words[key] = value
            return
        self._tape.mark()
        self._words[key] = value
        if isinstance(key, slice):
            first, data = key.indices(len(self._words))[0], bytes(memoryview(value).cast("B"))
        else:
            first, data = key, int(value).to_bytes(self._width, "little")
        at = self._offset + first * self._width
        self._block.image[at : at + len(data)] = data

    def __len__(self) -> int:
        return len(self._words)

    def cast(self, code: str) -> WatchedWords:
        """Return the same words as items of another width."""
        return WatchedWords(self._tape, self._block, self._offset, self._words.cast(code))  # type: ignore[call-overload]

    def release(self) -> None:
        """Release the view."""
        self._words.release()


class WatchedBlock:
    """A block of DMA memory on a tape. Satisfies ``Block`` and ``WatchesWords``."""

    def __init__(self, tape: Tape, number: int, facts: list[Any], inner: Block | None, *, shared: bool) -> None:
        """Put a block on a tape.

        Args:
            tape: The tape.
            number: Its number there.
            facts: Its size in bytes, and whether it is contiguous, as the tape has them.
            inner: The real block; None in a replay.
            shared: Whether the device may write to it.

        Raises:
            BadTrace: The record has an impossible size.
        """
        self.number, self.ring = number, False
        self.fresh: set[int] = set()
        self._tape, self._inner, self._shared = tape, inner, shared
        self._mapping: mmap.mmap | None = None
        size, contiguous = facts
        if not isinstance(size, int) or not 0 < size <= MOST:
            raise BadTrace("the record has a block of an impossible size", seen=size, expected=f"1 to {MOST}")
        self.size, self.contiguous = size, bool(contiguous)
        if inner is None:
            self._mapping = mmap.mmap(-1, size)
            self.view = memoryview(self._mapping)
        else:
            self.view = inner.view
        self.image = bytearray(self.view) if shared and inner is not None else bytearray()
        self._closed = False
        self._runs: list[tuple[int, int]] = []
        if shared:
            tape.keep(self)

    def segments(self, offset: int, length: int) -> list[tuple[int, int]]:
        """Return the device addresses of these bytes; see ``Block``."""
        inner = self._inner
        if offset < 0 or length < 0 or offset + length > self.size:
            raise Misuse(f"{length} bytes at {offset} of a block of {self.size}")
        found = self._tape.ask(
            "call",
            f"block {self.number}.segments",
            [offset, length],
            lambda: _real(inner).segments(offset, length),
            _runs,
        )
        return [(int(address), int(count)) for address, count in found]

    def bytes_at(self, address: int, length: int) -> bytes:
        """Return the bytes at a device address, while recording; nothing where they are not all in the block."""
        if self._closed or self._inner is None or not self._shared:
            return b""
        if not self._runs:
            self._runs = self._inner.segments(0, self.size)
        at = 0
        for first, count in self._runs:
            if first <= address and address + length <= first + count:
                return bytes(self.view[at + address - first : at + address - first + length])
            at += count
        return b""

    def pfns(self) -> list[int]:
        """Return the guest-physical frame numbers; see ``Block``."""
        inner = self._inner
        found = self._tape.ask("call", f"block {self.number}.pfns", [], lambda: _real(inner).pfns(), numbers)
        return [int(frame) for frame in found]

    def watched(self, offset: int, words: memoryview) -> memoryview:
        """Return what stands for words that the device may write; see ``WatchesWords``."""
        self.ring = True
        return WatchedWords(self._tape, self, offset, words)  # type: ignore[return-value]

    def close(self) -> None:
        """Free the memory; idempotent."""
        if self._closed:
            return
        self._closed = True
        if self._shared:
            self._tape.drop(self)
        if self._inner is not None:
            self._inner.close()
        elif self._mapping is not None:
            self.view.release()
            self._mapping.close()


def _facts_of(block: Block) -> list[Any]:
    return [block.size, block.contiguous]


def _real(inner: Block | None) -> Block:
    assert inner is not None  # a replay does not get here
    return inner


class WatchedDma:
    """A space of DMA memory on a tape. Satisfies ``DmaSpace``."""

    def __init__(self, tape: Tape, number: int, facts: list[Any], inner: DmaSpace | None) -> None:
        """Put a space on a tape.

        Args:
            tape: The tape.
            number: Its number there.
            facts: Whether it is translated, and its contiguous limit, as the tape has them.
            inner: The real space; None in a replay.
        """
        self._tape, self._number, self._inner = tape, number, inner
        translated, limit = facts[:2]
        self.translated, self.contiguous_limit = bool(translated), int(limit)
        self._blocks: list[WatchedBlock] = []

    def _made(self, name: str, args: list[int], make: Callable[[], Block], *, shared: bool) -> WatchedBlock:
        facts, inner = obtain(self._tape, f"memory {self._number}.{name}", args, make, _facts_of, _BLOCK)
        ident = (self._number << 16) + len(self._blocks)
        block = WatchedBlock(self._tape, ident, facts, inner, shared=shared)
        self._blocks.append(block)
        return block

    def _real(self) -> DmaSpace:
        assert self._inner is not None  # a replay does not get here
        return self._inner

    def alloc(self, size: int) -> WatchedBlock:
        """Allocate memory that the device may read and write; see ``DmaSpace``."""
        return self._made("alloc", [size], lambda: self._real().alloc(size), shared=True)

    def pin(self, size: int) -> WatchedBlock:
        """Allocate memory with a fixed place, which the device does not address; see ``DmaSpace``."""
        return self._made("pin", [size], lambda: self._real().pin(size), shared=False)

    def rights(self) -> dict[str, str]:
        """Return what the real space needs, which is not on the tape; see ``KeepsRights``."""
        return self._inner.rights() if isinstance(self._inner, KeepsRights) else {}

    def bytes_at(self, address: int, length: int) -> bytes:
        """Return memory of this space by its device address; nothing where it is in no block."""
        for block in self._blocks:
            found = block.bytes_at(address, length)
            if found:
                return found
        return b""

    def close(self) -> None:
        """Free all memory of the space; idempotent."""
        for block in self._blocks:
            block.close()
        if self._inner is not None:
            self._inner.close()


class AdoptingDma(WatchedDma):
    """A space that also maps memory which it did not allocate (``AdoptsMemory``)."""

    def adopt(self, mapping: mmap.mmap, physical: int) -> WatchedBlock:
        """Return a mapping as a block of this space; see ``AdoptsMemory``."""

        def make() -> Block:
            assert isinstance(self._inner, AdoptsMemory)
            return self._inner.adopt(mapping, physical)

        return self._made("adopt", [len(mapping), physical], make, shared=False)


def dma_on(tape: Tape, number: int, facts: list[Any], inner: DmaSpace | None) -> WatchedDma:
    """Return a space on a tape, with the abilities that the real one has.

    Args:
        tape: The tape.
        number: The number of the space on the tape.
        facts: Translated, contiguous limit, and whether it adopts memory, as the tape has them.
        inner: The real space; None in a replay.
    """
    kind = AdoptingDma if len(facts) > 2 and facts[2] else WatchedDma
    return kind(tape, number, facts, inner)
