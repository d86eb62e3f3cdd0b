"""Where the parts of a split virtqueue are in its memory (2.7), and how descriptors are written there."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from uvirtio.errors import UsageError
from uvirtio.memory.access import columns, words16, words32
from uvirtio.spec import ring
from uvirtio.typed import TYPE_CHECKING
from uvirtio.virtqueue import SgEntry
from uvirtio.virtqueue.base import INDIRECT_ENTRIES, VirtqueueBase, watched

if TYPE_CHECKING:
    from typing import Literal

    from uvirtio.interfaces.memory import Block

# Descriptor flags (2.7.5), as placed in the second 64-bit word of a descriptor: length in bits 0..31,
# flags in 32..47, next in 48..63.
NEXT = ring.DESC_F_NEXT << 32
WRITE = ring.DESC_F_WRITE << 32
INDIRECT = ring.DESC_F_INDIRECT << 32
NEXT_SHIFT = 48

# The 16-bit words of an area: flags, idx, then the ring.
FLAGS = ring.RING_FLAGS // 2
IDX = ring.RING_IDX // 2


Held = tuple[Sequence[SgEntry], Sequence[SgEntry], int, tuple[int, ...] | None]
"""A chain, how many bytes the device may write of it, and its descriptors as they go back to the free ones, the
head last; None: the head alone."""


class SplitLayout(VirtqueueBase):
    """The memory of one split virtqueue; ``SplitQueue`` works on it."""

    kind: Literal["split", "packed"] = "split"
    AREAS = (
        ("descriptor table", ring.DESC_ALIGN),
        ("available ring", ring.AVAIL_ALIGN),
        ("used ring", ring.USED_ALIGN),
    )

    __slots__ = (
        "_avail",
        "_avail_event",
        "_elements",
        "_free",
        "_heads",
        "_held",
        "_ids",
        "_lengths",
        "_mask",
        "_reaping",
        "_rests",
        "_ring",
        "_starts",
        "_unheld",
        "_used",
        "_used_event",
    )

    def _begin(self, desc: Block, driver: Block, device: Block) -> None:
        size = self.size
        self._mask = size - 1
        self._used_event = ring.used_event_offset(size) // 2
        self._avail_event = ring.avail_event_offset(size) // 2

        # Free descriptors, the next one last: a stack, or with IN_ORDER a queue, in ring order for ever.
        # The ring's indices are the chains since the start (VirtqueueBase), modulo 65,536.
        self._free: list[int] | deque[int] = list(range(size - 1, -1, -1))
        if self._in_order:
            self._free = deque(self._free)
        self._heads = [0] * size if self._in_order else []
        """With IN_ORDER: the head of each chain, by its number modulo the size."""

        self._held: list[Held | None] = [None] * size
        """By head: the chain that its descriptors, or its table, have been written for and still hold."""

        self._unheld = 7 * size
        """A chain of one element is noted there if its number has no bit of this: in every eighth lap. A caller
        with buffers that stay in place has all of them there soon; new tuples each time cost little.
        """

        self._avail = watched(driver, 0, words16(driver.view, 0, 3 + size))
        self._ring = watched(driver, ring.RING_ENTRIES, words16(driver.view, ring.RING_ENTRIES, size))
        self._used = watched(device, 0, words16(device.view, 0, 3 + 4 * size))
        entries = words32(device.view, ring.RING_ENTRIES, 2 * size)
        self._elements = watched(device, ring.RING_ENTRIES, entries)
        self._split_views()
        self._views += [self._starts, self._rests, self._ids, self._lengths]
        self._views += [self._avail, self._ring, self._used, self._elements]
        # 2.7.10.1: used.flags starts at 0; so does everything else, whatever the block held before.
        for word in (FLAGS, IDX, self._used_event):
            self._avail[word] = 0
        for word in (FLAGS, IDX, self._avail_event):
            self._used[word] = 0

    def _split_views(self) -> None:
        """View the halves of descriptors and of used elements each by itself: then one index is for both."""
        self._starts, self._rests = columns(self._desc)
        self._ids, self._lengths = columns(self._elements)
        self._gather()

    def _gather(self) -> None:
        self._reaping = (self._ids, self._lengths, self._out, self._free, self._mask)
        """What ``reap`` needs of these, in one look."""

    @staticmethod
    def area_sizes(size: int) -> tuple[int, int, int]:
        """Return the lengths of descriptor table, available ring and used ring, in bytes (2.7.1).

        Raises:
            UsageError: ``size`` is not a power of two up to 32,768.
        """
        if not ring.is_power_of_two(size):
            raise UsageError(
                "this is not a size of a split queue (2.7)",
                seen=size,
                expected="a power of two, 1..32768",
            )
        return ring.desc_size(size), ring.avail_size(size), ring.used_size(size)

    @property
    def free(self) -> int:
        """Number of free descriptors."""
        return len(self._free)

    @property
    def kick_data(self) -> int:
        """avail.idx as published last, with its top bit as the wrap (2.9)."""
        return self.published & 0xFFFF

    def words(self) -> dict[str, int]:
        """Return the indices and event words of the ring, by their names in 2.7; see ``Virtqueue``."""
        found = {
            "avail.idx": self._avail[IDX],
            "used.idx": self._used[IDX],
            "avail.flags": self._avail[FLAGS],
            "used.flags": self._used[FLAGS],
        }
        if self._event_idx:
            found["used_event"] = self._avail[self._used_event]
            found["avail_event"] = self._used[self._avail_event]
        return found

    def taken(self) -> bool | None:
        """Whether the device has taken all that was published, by its avail_event (2.7.10); see ``Virtqueue``."""
        if not self._event_idx:
            return None
        return self._used[self._avail_event] == self.published & 0xFFFF

    def _fill_chain(
        self, chain: tuple[int, ...], readable: Sequence[SgEntry], writable: Sequence[SgEntry]
    ) -> None:
        desc = self._desc
        # Each descriptor's link to the one after it, last link cut below (2.7.5).
        links = [NEXT | follower << NEXT_SHIFT for follower in chain[1:]]
        links.append(0)
        place = 0
        for flags, runs in ((0, readable), (WRITE, writable)):
            for address, length in runs:
                slot = 2 * chain[place]
                desc[slot] = address
                desc[slot + 1] = length | flags | links[place]
                place += 1

    def _fill_table(self, head: int, readable: Sequence[SgEntry], writable: Sequence[SgEntry], count: int) -> None:
        words = self._table_words
        assert words is not None
        slot = 2 * INDIRECT_ENTRIES * head
        follower = 1
        for flags, runs in ((0, readable), (WRITE, writable)):
            for address, length in runs:
                words[slot] = address
                if follower < count:
                    words[slot + 1] = length | flags | NEXT | follower << NEXT_SHIFT
                else:
                    words[slot + 1] = length | flags
                slot += 2
                follower += 1
