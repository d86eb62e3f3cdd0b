"""Unchecked ring access for diagnostics and tests: any descriptor, any index, any flag, at any time.

They show what a device does with invalid input. Nothing here checks or keeps state, and no driver uses it. It
writes into the memory of an ordinary queue, which must not be used meanwhile and which still resets and frees that
memory: a device may do anything with a bad descriptor, but only within the memory that it was given, as long as
the addresses are its own.
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
    """One descriptor of 16 bytes (2.7.5, 2.8)."""

    address: int
    """The buffer's address for the device, 64 bits."""
    length: int
    """Bytes, 32 bits."""
    flags: int = 0
    """16 bits."""
    last: int = 0
    """16 bits: ``next`` in a split ring, the buffer id in a packed one."""


class _Raw:
    """What both formats share: the three areas of a queue, and a fence."""

    def __init__(self, queue: VirtqueueBase) -> None:
        """Open views of a queue's memory; ``close`` releases them.

        Args:
            queue: An enabled queue, which must not be used meanwhile.
        """
        desc, driver, device = queue.areas
        self.size = queue.size
        self.fence: Fence = full_fence()
        """The memory barrier between writing a ring and a kick."""
        self._desc = words64(desc.view, 0, 2 * queue.size)
        self._views = [self._desc]
        self._open(driver, device)

    def _open(self, driver: Block, device: Block) -> None:
        raise NotImplementedError

    def close(self) -> None:
        """Release the views; idempotent. Call it before the queue is closed, which frees the memory."""
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
        """Write one entry of the descriptor table (2.7.5).

        Args:
            index: Its number, 0 to ``size - 1``.
            entry: The descriptor, written as it is.
        """
        self._desc[2 * index] = entry.address
        self._desc[2 * index + 1] = entry.length | entry.flags << 32 | entry.last << 48

    def entry(self, place: int, head: int) -> None:
        """Write one entry of the available ring (2.7.6).

        Args:
            place: Where; taken modulo ``size``.
            head: The number of the chain's first descriptor, 16 bits.
        """
        self._avail[2 + place % self.size] = head

    @property
    def idx(self) -> int:
        """avail.idx, 16 bits."""
        return self._avail[1]

    @idx.setter
    def idx(self, value: int) -> None:
        self._avail[1] = value & 0xFFFF

    @property
    def flags(self) -> int:
        """avail.flags, 16 bits."""
        return self._avail[0]

    @flags.setter
    def flags(self, value: int) -> None:
        self._avail[0] = value

    @property
    def used_event(self) -> int:
        """used_event, which the driver writes (2.7.7.1), 16 bits."""
        return self._avail[2 + self.size]

    @used_event.setter
    def used_event(self, value: int) -> None:
        self._avail[2 + self.size] = value & 0xFFFF

    def show(self, *heads: int) -> None:
        """Put chains into the available ring and advance avail.idx.

        Args:
            *heads: The numbers of the chains' first descriptors.
        """
        start = self.idx
        for number, head in enumerate(heads):
            self.entry(start + number, head)
        self.fence()
        self.idx = start + len(heads)
        self.fence()

    @property
    def used_idx(self) -> int:
        """used.idx, which the device writes, 16 bits."""
        return self._used[1]

    @property
    def used_flags(self) -> int:
        """used.flags, which the device writes, 16 bits."""
        return self._used[0]

    @property
    def avail_event(self) -> int:
        """avail_event, which the device writes (2.7.10), 16 bits."""
        return self._used[2 + 4 * self.size]

    def used(self, place: int) -> tuple[int, int]:
        """(id, length in bytes) of one entry of the used ring (2.7.8).

        Args:
            place: Which; taken modulo ``size``.
        """
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
        """The present contents of a slot of the descriptor ring.

        Args:
            place: Its number, 0 to ``size - 1``.
        """
        word = self._desc[2 * place + 1]
        return Descriptor(self._desc[2 * place], word & 0xFFFF_FFFF, word >> 48, word >> 32 & 0xFFFF)

    def set_slot(self, place: int, entry: Descriptor) -> None:
        """Write a slot of the descriptor ring, its flags last.

        Args:
            place: Its number, 0 to ``size - 1``.
            entry: The descriptor; its flags are written as they are, AVAIL and USED included.
        """
        self._desc[2 * place] = entry.address
        kept = self._flags[8 * place + 7]
        self._desc[2 * place + 1] = entry.length | entry.last << 32 | kept << 48
        self.fence()
        self._flags[8 * place + 7] = entry.flags
        self.fence()

    def event(self, off_wrap: int, flags: int) -> None:
        """Write the driver event suppression structure (2.8.10).

        Args:
            off_wrap: desc_event_off and desc_event_wrap, 16 bits.
            flags: desc_event_flags, 16 bits.
        """
        self._mine[0] = off_wrap
        self._mine[1] = flags

    @property
    def device_event(self) -> tuple[int, int]:
        """(off_wrap, flags) of the device event suppression structure (2.8.10)."""
        return self._theirs[0], self._theirs[1]


def table(block: Block, entries: Sequence[Descriptor]) -> tuple[int, int]:
    """Write an indirect descriptor table for a split ring (2.7.5.3).

    Args:
        block: The memory; the table starts at its beginning.
        entries: The descriptors.

    Returns:
        The table's address for the device, and its length in bytes.
    """
    length = ring.DESC_SIZE * len(entries)
    words = words64(block.view, 0, 2 * len(entries))
    with words:
        for number, entry in enumerate(entries):
            words[2 * number] = entry.address
            words[2 * number + 1] = entry.length | entry.flags << 32 | entry.last << 48
    return block.segments(0, length)[0][0], length


def packed_table(block: Block, entries: Sequence[Descriptor]) -> tuple[int, int]:
    """Write an indirect descriptor table for a packed ring, whose descriptors end with their flags (2.8.7).

    Args:
        block: The memory; the table starts at its beginning.
        entries: The descriptors.

    Returns:
        The table's address for the device, and its length in bytes.
    """
    return table(block, [Descriptor(entry.address, entry.length, entry.last, entry.flags) for entry in entries])
