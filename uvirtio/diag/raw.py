"""Unchecked ring access for diagnostics and tests: any descriptor, any index, any flag, at any time.

For diagnostics and tests that ask what a device does with nonsense. Nothing here checks or remembers, and no
driver uses it. It writes into the memory of a safe queue (which knows nothing of it, and is not to be used
meanwhile), so that reset and freeing stay in the same hands: a device may do anything with a bad descriptor, but
only within the memory that it was given, as long as the addresses are its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from uvirtio.interfaces.memory import Block
from uvirtio.memory.access import words16, words32, words64
from uvirtio.memory.fence import Fence, full_fence
from uvirtio.spec import ring
from uvirtio.virtqueue.base import VirtqueueBase


class Descriptor(NamedTuple):
    """One descriptor of 16 bytes. ``last`` is ``next`` in a split ring and the buffer id in a packed one."""

    address: int
    length: int
    flags: int = 0
    last: int = 0


class _Raw:
    """What both formats share: three areas of a queue, and a fence."""

    def __init__(self, queue: VirtqueueBase) -> None:
        desc, driver, device = queue.areas
        self.size = queue.size
        self.fence: Fence = full_fence()
        """Between what was laid down and a kick."""
        self._desc = words64(desc.view, 0, 2 * queue.size)
        self._views = [self._desc]
        self._open(driver, device)

    def _open(self, driver: Block, device: Block) -> None:
        raise NotImplementedError

    def close(self) -> None:
        """Let go of the views; idempotent. Before the queue is closed: its memory is not ours to keep."""
        for view in self._views:
            view.release()

    def __enter__(self) -> _Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class RawSplit(_Raw):
    """The three areas of a split queue (2.7)."""

    def _open(self, driver: Block, device: Block) -> None:
        self._avail = words16(driver.view, 0, 3 + self.size)
        self._used = words16(device.view, 0, 3 + 4 * self.size)
        self._elements = words32(device.view, ring.RING_ENTRIES, 2 * self.size)
        self._views += [self._avail, self._used, self._elements]

    def descriptor(self, index: int, entry: Descriptor) -> None:
        """Write entry ``index`` of the descriptor table."""
        self._desc[2 * index] = entry.address
        self._desc[2 * index + 1] = entry.length | entry.flags << 32 | entry.last << 48

    def entry(self, place: int, head: int) -> None:
        """Write one entry of the available ring."""
        self._avail[2 + place % self.size] = head

    @property
    def idx(self) -> int:
        """avail.idx."""
        return self._avail[1]

    @idx.setter
    def idx(self, value: int) -> None:
        self._avail[1] = value & 0xFFFF

    @property
    def flags(self) -> int:
        """avail.flags."""
        return self._avail[0]

    @flags.setter
    def flags(self, value: int) -> None:
        self._avail[0] = value

    @property
    def used_event(self) -> int:
        return self._avail[2 + self.size]

    @used_event.setter
    def used_event(self, value: int) -> None:
        self._avail[2 + self.size] = value & 0xFFFF

    def show(self, *heads: int) -> None:
        """Put these heads into the available ring and move the index over them."""
        start = self.idx
        for number, head in enumerate(heads):
            self.entry(start + number, head)
        self.fence()
        self.idx = start + len(heads)
        self.fence()

    @property
    def used_idx(self) -> int:
        return self._used[1]

    @property
    def used_flags(self) -> int:
        return self._used[0]

    @property
    def avail_event(self) -> int:
        return self._used[2 + 4 * self.size]

    def used(self, place: int) -> tuple[int, int]:
        """(id, length) of one entry of the used ring."""
        at = 2 * (place % self.size)
        return self._elements[at], self._elements[at + 1]


class RawPacked(_Raw):
    """The ring and the two event structures of a packed queue (2.8)."""

    def _open(self, driver: Block, device: Block) -> None:
        self._flags = words16(self._desc.cast("B"), 0, 8 * self.size)
        self._mine = words16(driver.view, 0, 2)
        self._theirs = words16(device.view, 0, 2)
        # The views of the ring's flags go before the ring's own.
        self._views = [self._flags, self._desc, self._mine, self._theirs]

    def slot(self, place: int) -> Descriptor:
        """What stands in a slot now."""
        word = self._desc[2 * place + 1]
        return Descriptor(self._desc[2 * place], word & 0xFFFF_FFFF, word >> 48, word >> 32 & 0xFFFF)

    def lay(self, place: int, entry: Descriptor) -> None:
        """Write a slot, its flags last, as they are given: AVAIL and USED are the caller's."""
        self._desc[2 * place] = entry.address
        kept = self._flags[8 * place + 7]
        self._desc[2 * place + 1] = entry.length | entry.last << 32 | kept << 48
        self.fence()
        self._flags[8 * place + 7] = entry.flags
        self.fence()

    def event(self, off_wrap: int, flags: int) -> None:
        """Write the driver event structure."""
        self._mine[0] = off_wrap
        self._mine[1] = flags

    @property
    def device_event(self) -> tuple[int, int]:
        """(off_wrap, flags) of the device event structure."""
        return self._theirs[0], self._theirs[1]


def table(block: Block, entries: Sequence[Descriptor]) -> tuple[int, int]:
    """Write an indirect table at the start of ``block``; its device address and its true length in bytes."""
    length = ring.DESC_SIZE * len(entries)
    words = words64(block.view, 0, 2 * len(entries))
    with words:
        for number, entry in enumerate(entries):
            words[2 * number] = entry.address
            words[2 * number + 1] = entry.length | entry.flags << 32 | entry.last << 48
    return block.segments(0, length)[0][0], length


def packed_table(block: Block, entries: Sequence[Descriptor]) -> tuple[int, int]:
    """The same for a packed ring, whose descriptors end with their flags."""
    return table(block, [Descriptor(one.address, one.length, one.last, one.flags) for one in entries])
