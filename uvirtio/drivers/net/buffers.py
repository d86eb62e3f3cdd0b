"""The memory of one queue's frames: slots of one size, each with a header in front, and views of all of them."""

from __future__ import annotations

from collections.abc import Sequence

from uvirtio.device import Device
from uvirtio.drivers.base import runs
from uvirtio.memory.access import words32, words64
from uvirtio.virtqueue import SgEntry

SLOT_MIN = 2048
"""Bytes. It divides a page, so that a slot of it is one run of device addresses."""

_LENGTHS = 4
"""Lengths of frames for which views of all slots are kept."""


def slot_size(length: int) -> int:
    """Bytes of a slot for header and frame of this length: it never begins in the middle of a page's half.

    Args:
        length: In bytes.
    """
    return SLOT_MIN if length <= SLOT_MIN else -(-length // (2 * SLOT_MIN)) * 2 * SLOT_MIN


class Buffers:
    """Slots of DMA memory, and views that are released before it is freed."""

    def __init__(self, device: Device, count: int, size: int, header: int) -> None:
        """Allocate them.

        Args:
            device: A device whose features are negotiated.
            count: Number of slots.
            size: Bytes of each, header included, as ``slot_size`` has it.
            header: Bytes of the header in front of each frame.

        Raises:
            MemlockExceeded, HugePagesLack, OperationFailed: There is not that much DMA memory.
        """
        self.count, self.size, self.header = count, size, header
        self._block = device.dma.alloc(count * size)
        self.view = self._block.view
        self._kept: dict[int, list[memoryview]] = {}
        self._heads: tuple[memoryview, ...] = ()
        device.before_free(self._release)

    def runs(self, slot: int, length: int, *, apart: bool) -> list[SgEntry]:
        """The elements of a chain for the first bytes of a slot.

        Args:
            slot: Which one.
            length: Bytes of header and frame.
            apart: The header has an element of its own (5.1.6.8, legacy framing).
        """
        at = slot * self.size
        if not apart:
            return runs(self._block, at, length)
        rest = length - self.header
        return [*runs(self._block, at, self.header), *runs(self._block, at + self.header, rest)]

    def frames(self, length: int) -> list[memoryview]:
        """Views of the first ``length`` bytes of frame in every slot, behind the header."""
        found = self._kept.get(length)
        if found is None:
            if len(self._kept) >= _LENGTHS:
                self._release_frames()
            at, step = self.header, self.size
            ends = range(at, at + self.count * step, step)
            found = self._kept[length] = [self.view[start : start + length] for start in ends]
        return found

    def heads(self, first: int, end: int) -> tuple[list[int], list[int]]:
        """A copy of the headers of neighbouring slots: their first 8 bytes, and the 4 behind these, as numbers."""
        if not self._heads:
            wide = words64(self.view, 0, self.count * self.size // 8)
            words = words32(self.view, 0, self.count * self.size // 4)
            self._heads = wide[:: self.size // 8], words[2 :: self.size // 4], wide, words
        early, late = self._heads[:2]
        return early[first:end].tolist(), late[first:end].tolist()

    def copy(self, slot: int, length: int) -> bytes:
        """A copy of the first bytes of a slot, header included."""
        at = slot * self.size
        return self.view[at : at + length].tobytes()

    def write(self, slot: int, offset: int, data: bytes | bytearray | memoryview | Sequence[int]) -> None:
        """Write bytes into a slot."""
        at = slot * self.size + offset
        self.view[at : at + len(data)] = bytes(data)

    def _release_frames(self) -> None:
        for views in self._kept.values():
            for view in views:
                view.release()
        self._kept.clear()

    def _release(self) -> None:
        self._release_frames()
        for view in self._heads:
            view.release()
        self._heads = ()
