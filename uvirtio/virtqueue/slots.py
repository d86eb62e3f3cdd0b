"""The batch path: chains that are written once, and posted and reaped many at a time.

For queues whose buffers keep their place (an input device's events, the requests of a disk, a ring of receive
buffers). Slot ``n`` is one chain, named by ``n`` for as long as the queue exists. Posting a batch is one copy
into the ring and one store that makes it visible; reaping a batch is one comparison with what was expected, as
long as the device uses buffers in order and with the lengths of the last time, and one list otherwise. Everything
is checked as for a single chain: ids in full against what is in flight, lengths against the buffers, indices
against what was published; and only private copies are evaluated, each byte of the used ring read once.

The slots own the whole queue: from then on chains are posted and reaped through them alone.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from uvirtio.errors import QueueFull, UsageError
from uvirtio.typed import TYPE_CHECKING
from uvirtio.virtqueue.chain import measure
from uvirtio.virtqueue.packed import PackedQueue
from uvirtio.virtqueue.packed_slots import PackedSlots
from uvirtio.virtqueue.slot_books import Books
from uvirtio.virtqueue.slot_books import Chain as Chain
from uvirtio.virtqueue.slot_interface import Slots as Slots
from uvirtio.virtqueue.split import SplitQueue
from uvirtio.virtqueue.split_slots import SplitSlots

if TYPE_CHECKING:
    from uvirtio.virtqueue.interface import Virtqueue


def fixed_slots(ring: Virtqueue, chains: Sequence[Chain]) -> Slots:
    """Write chains into an unused queue, one slot each.

    Args:
        ring: The queue.
        chains: The chains, in the order of their slots.

    Raises:
        UsageError: The queue is in use already.
        QueueFull: The chains do not fit.
        BadChain: A chain breaks a rule of the standard.
    """
    if ring.in_flight or ring.free != ring.size:
        raise UsageError(
            f"queue {ring.index} is in use already",
            seen=f"{ring.free} of {ring.size} descriptors free",
            expected="an unused queue",
        )
    if isinstance(ring, SplitQueue) and ring.set_fixed_slots(chains):
        return SplitSlots(ring, chains)
    if isinstance(ring, PackedQueue) and ring.set_fixed_slots(chains):
        return PackedSlots(ring, chains)
    return PlainSlots(ring, chains)


class PlainSlots(Books):
    """Slots on any queue, written again for each post: for IN_ORDER, and for chains that have no fixed place."""

    def __init__(self, ring: Virtqueue, chains: Sequence[Chain]) -> None:
        """Check the chains.

        Args:
            ring: An unused queue.
            chains: The chains, in the order of their slots.

        Raises:
            BadChain: A chain breaks a rule of the standard.
            QueueFull: The chains do not fit.
        """
        super().__init__(chains)
        self._ring = ring
        self._chains = [(tuple(readable), tuple(writable)) for readable, writable in chains]
        for readable, writable in self._chains:
            measure(readable, writable, ring.size)
        # All of them have to fit at the same time, so that no post ever ends half-way.
        needed = sum(ring.needs(len(readable) + len(writable)) for readable, writable in self._chains)
        if needed > ring.size:
            raise QueueFull(
                f"queue {ring.index} has too few descriptors for these slots",
                seen=f"{ring.size} descriptors",
                expected=f"{needed} or more",
                remedy="use fewer or shorter chains",
            )

    def out(self) -> list[int]:
        """Return the slots that are in flight, lowest first."""
        return sorted(self._ring.cookies())  # the one record of them, which no exception leaves behind

    @property
    def laid(self) -> int:
        """Slots that were submitted and not shown; those that were to be shown when an exception came, too."""
        return len(self._next) + len(self._ring.cookies()) - self._ring.in_flight

    def _set_length(self, slot: int, length: int) -> None:
        ((address, _),), _ = self._chains[slot]
        self._chains[slot] = (((address, length),), ())

    def _number(self) -> int:
        return self._ring.index

    def numbers(self) -> list[int]:
        """Return the numbers of the chains in flight; see ``Slots``."""
        return self._ring.numbers()

    def ready(self) -> int:
        """Return whether a slot is used and not reaped; see ``Slots``."""
        return self._ring.pending()

    def _post(self, slots: array[int], rest: array[int]) -> bool:
        there = {*self._ring.cookies()}
        for slot in slots:
            if slot not in there:
                readable, writable = self._chains[slot]
                self._ring.add(readable, writable, slot)
            del self._next[0]
        return self._ring.publish()

    def reap(self) -> array[int]:
        """Return the used slots; see ``Slots``."""
        found = array("H")
        for slot, written in self._ring.reap():
            self.written[slot] = written
            found.append(slot)
        return found
