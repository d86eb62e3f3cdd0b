"""Fixed slots of a packed ring."""

from __future__ import annotations

from array import array
from collections.abc import Sequence, Set
from struct import pack

from uvirtio.memory.access import copiers
from uvirtio.spec.ring import (
    DESC_F_WRITE,
    DESC_SIZE,
    PACKED_DESC_F_AVAIL,
    PACKED_DESC_F_USED,
    PACKED_EVENT_DESC,
    PACKED_EVENT_DISABLE,
    PACKED_EVENT_FLAGS_MASK,
)
from uvirtio.typed import TYPE_CHECKING
from uvirtio.virtqueue.packed import PackedQueue
from uvirtio.virtqueue.slot_books import NOBODY, NOTHING, Chain, RingBooks, joined

if TYPE_CHECKING:
    from typing import NoReturn

# In the second half of a descriptor, 64 bits, the length has bits 0..31, the id 32..47, the flags 48..63.
_AVAIL, _USED = PACKED_DESC_F_AVAIL << 48, PACKED_DESC_F_USED << 48

_LAP = PACKED_DESC_F_AVAIL | PACKED_DESC_F_USED
"""The flags that tell the laps apart: both set in what was used with wrap counter 1, both clear with 0 (2.8.1)."""


class PackedSlots(RingBooks):
    """Slots of a packed ring, each one slot of it: slot ``n`` has the buffer id ``n``.

    The wrap counter turns at the end of the ring, so everything repeats after two laps: the record has two places
    for each slot of the ring, the second ones with the counter at 0.

    The device overwrites what it was given (2.8.6), so a post copies whole descriptors, sixteen bytes each, where
    a split ring takes two; ``_shown`` has them by place as they are published. All but the first are copied with
    their flags: no device reads a slot before the one in front of it is its own (2.8.1), and the flags of the
    first are stored last, alone. The number of used slots is found by exact loads of their flags, one at a time,
    in few steps, because the device uses slots in their order; only then are the slots copied out. A batch that is
    being marked backwards shows more than there are: see ``_whole``.
    """

    WIDTH = DESC_SIZE
    ID = 2

    def __init__(self, ring: PackedQueue, chains: Sequence[Chain]) -> None:
        """Set up the slots of a ring whose ``set_fixed_slots`` accepted the chains."""
        super().__init__(ring.size, 2 * ring.size, ring.slots_published, chains)
        self._ring = ring
        self._shown = bytearray(DESC_SIZE * self._places)
        self._addresses = [address for address, _ in ring.fixed]
        # By wrap counter, and then by slot.
        self._words = [[word | lap for _, word in ring.fixed] for lap in (_USED, _AVAIL)]
        self._given = [list(map(_descriptor, self._addresses, words)) for words in self._words]
        self._used: list[list[bytes]] = [[b""] * self.count, [b""] * self.count]
        self._last = [0] * self.count
        """By slot: the second half of its used descriptor as it came last, without the flags of the lap."""

        for slot, written in enumerate(self.written):
            self._expect(slot, written | slot << 32 | (DESC_F_WRITE << 48 if written else 0))
        self._copies = copiers(ring.bytes, DESC_SIZE)
        self._few = len(self._copies)
        self._hint = 1

    def _number(self) -> int:
        return self._ring.index

    def numbers(self) -> list[int]:
        """Return the numbers of the chains in flight; see ``Slots``."""
        return self._numbers_of(self._ring.slots_published)

    def ready(self) -> int:
        """Return whether a slot is used and not reaped; see ``Slots``."""
        return self._ring.pending()

    # --- posting ------------------------------------------------------------------------------------------------

    def submit(self, slots: Sequence[int], *, show: bool = True) -> bool:
        """Post slots; see ``Slots``."""
        if not show or self._next:
            return super().submit(slots, show=show)
        if slots == self._back:
            return self._post(self._back, self._next)
        self.check(slots)
        posted = slots if type(slots) is array and slots.typecode == "H" else array("H", slots)
        return self._post(posted, self._next)

    def _post(self, slots: array[int], rest: array[int]) -> bool:
        count = len(slots)
        if not count:
            return False
        ring, size = self._ring, self._size
        if ring.dead:
            ring.refuse()
        first = ring._next_slot
        here = first % self._places  # of the two laps
        at = here if here < size else here - size  # in the ring
        more: bytes | bytearray
        if ring._stale:
            ring._cover()
        if self._loose is not None or first < self._steady or self._order[here : here + count] != slots:
            more = self._lay(here, slots)[DESC_SIZE:]
        else:
            more = self._shown[DESC_SIZE * (here + 1) : DESC_SIZE * (here + count)]
        self._back = NOTHING
        if at + count <= size:
            if more:
                ring.bytes[DESC_SIZE * (at + 1) : DESC_SIZE * (at + count)] = more
        else:
            fits = DESC_SIZE * (size - at - 1)
            over = len(more) - fits
            ring.bytes[DESC_SIZE * (at + 1) :], ring.bytes[:over] = more[:fits], more[fits:]
        # The first slot's own flags wait: until they are stored it looks like one of the lap before (2.8.1).
        slot = slots[0]
        word = self._words[here < size][slot]
        ring._desc[2 * at] = self._addresses[slot]
        ring._desc[2 * at + 1] = word ^ _AVAIL
        if ring._order is not None:
            try:
                ring._order()  # 2.8.21.1.1: the slots before the flags that make them visible
            except BaseException:  # of a signal handler: those behind the first look available
                ring._stale = first + count
                raise
        ring._flags[8 * at + 7] = word >> 48
        ring._next_slot = ring.slots_published = new = first + count
        ring._laid = ring.published = ring.published + count
        self._next = rest
        ring._fence()  # 2.8.21.3.1: the flags before the device's event structure is read
        if self._loose is not None and self._noted == first:  # else the next look brings it up to date
            if self._came and slots is self._came_as:  # out again as they are
                self._came, self._noted = NOBODY, new
            elif not self._came:
                self._loose.update(slots)  # which can be done again
                self._noted = new
        wish = ring._theirs[0]
        flags = wish >> 16 & PACKED_EVENT_FLAGS_MASK
        if flags == PACKED_EVENT_DISABLE:
            return False
        return flags != PACKED_EVENT_DESC or not ring._event_idx or ring._passed(wish & 0xFFFF, first, new)

    def _lay(self, here: int, slots: array[int]) -> bytes:
        """Record slots from a place on.

        Returns:
            Their descriptors as they are published.
        """
        size = self._size
        fits = size - here % size
        if len(slots) > fits:
            over = (here + fits) % self._places
            return self._lay(here, slots[:fits]) + self._lay(over, slots[fits:])
        given = joined(self._given[here < size], slots)
        end = here + len(slots)
        if self._loose is not None:
            self._order[here:end] = slots
            return given
        # In order a used descriptor has the address that was given, if the device leaves that as it is.
        used = array("Q", given)
        used[1::2] = array("Q", joined(self._used[here < size], slots))
        raw = used.tobytes()
        self._before(here, slots)
        self._order[here:end] = slots
        self._shown[DESC_SIZE * here : DESC_SIZE * end] = given
        self._expected[DESC_SIZE * here : DESC_SIZE * end] = raw
        return given

    def _set_length(self, slot: int, length: int) -> None:
        for words, given in zip(self._words, self._given, strict=True):
            words[slot] = words[slot] & ~0xFFFF_FFFF | length
            given[slot] = _descriptor(self._addresses[slot], words[slot])
        self._steady = self._posted_ever() + self._places

    # --- reaping ------------------------------------------------------------------------------------------------

    def reap(self) -> array[int]:
        """Return the used slots; see ``Slots``."""
        ring, size, before, count = self._ring, self._size, NOTHING, 0
        if ring.dead:
            ring.refuse()
        while True:
            here = ring.slots_reaped % self._places
            at = here if here < size else here - size
            if not count:
                # As many as the last time? The flags of two slots tell; otherwise more of them are asked.
                count, most, flags = self._hint, ring.slots_published - ring.slots_reaped, ring._flags
                last, lap = at + count, _LAP if here < size else 0
                if (
                    count > most
                    or last > size
                    or flags[8 * last - 1] & _LAP != lap
                    or (count < most and (last == size or flags[8 * last + 7] & _LAP == lap))
                ):
                    count = ring.used_slots(count)
                    if not count:
                        return array("H")
                    self._hint = count
                elif ring._order is not None:
                    ring._order()  # 2.8.22: the flags before what they announce
            # A private copy of the used slots, up to the end of the ring, is compared with what was expected.
            fits = count if at + count <= size else size - at
            if fits < self._few:
                (raw,) = self._copies[fits](ring.bytes, DESC_SIZE * at)
            else:
                raw = bytes(ring.bytes[DESC_SIZE * at : DESC_SIZE * (at + fits)])
            if self._loose is not None:
                found = self._take_loose(_words(raw), here, self._used[here < size], ring.slots_published, fits)
            elif self._expected.startswith(raw, DESC_SIZE * here):
                # As in ``_take_back``, without a call.
                found = self._order[here : here + fits]
                self._back = found[:]
                ring.slots_reaped += fits
                ring.reaped += fits
            else:
                found = self._sort_out(_words(raw), here, self._used[here < size])
            came = len(found)
            if before:
                found = before + found
                self._back = found[:]
            if ring._event_idx and ring._interrupts and came:
                # Request the next interrupt, and check again: usually nothing was added. At the end of the ring,
                # too: what seemed used behind it may be a batch that is being marked backwards.
                count = ring.took(self._hint)
            else:
                count = count - came if at + came == size else 0
            if not count:
                return found or array("H")
            before = found

    def _all_out(self) -> array[int]:
        return self._posted(self._ring.slots_reaped, self._ring.slots_published)

    def _posted_ever(self) -> int:
        return self._ring._next_slot

    def _shown_ever(self) -> int:
        return self._ring.slots_published

    def _reaped_ever(self) -> int:
        return self._ring.slots_reaped

    def _take_back(self, found: array[int], count: int, raw: bytes, came: Set[int]) -> None:
        ring = self._ring
        self._back = self._came_as = found[:]
        self._back_raw, self._came = raw, came
        if not came:
            self._loose = None
        ring.slots_reaped += count
        ring.reaped += count

    def _whole(self, elements: bytes, here: int) -> bytes:
        """Return those of the slots that are used for certain.

        A device may mark a batch backwards, its first slot last (DPDK does): what follows a slot that is not
        marked is not used yet, whatever its own flags say. The others are read again now that they are.
        """
        lap, at = _LAP if here < self._size else 0, here % self._size
        for count, flags in enumerate(array("H", elements)[3::4]):
            if flags & _LAP != lap:
                return _words(bytes(self._ring.bytes[DESC_SIZE * at : DESC_SIZE * (at + count)]))
        return elements

    def _one_by_one(self, elements: bytes, here: int) -> tuple[array[int], set[int]]:
        """Take used slots that are not as expected; their flags may have changed since they were found."""
        lap = _LAP if here < self._size else 0
        for element in array("Q", elements):
            if element >> 48 & _LAP != lap:
                self._ring.out_of_turn(self._named(element))
        return super()._one_by_one(elements, here)

    def _named(self, element: int) -> int:
        return element >> 32 & 0xFFFF

    def _note(self, slot: int, element: int) -> None:
        plain = element & ~(_LAP << 48)
        if plain != self._last[slot]:
            self.written[slot] = self._ring.length_of(plain, self._rooms[slot])
            self._expect(slot, plain)

    def _expect(self, slot: int, element: int) -> None:
        for used, lap in zip(self._used, (0, _LAP << 48), strict=True):
            used[slot] = (element | lap).to_bytes(8, "little")
        self._last[slot] = element  # last: until then it is done again

    def _no_such_chain(self, slot: int) -> NoReturn:
        self._ring.no_such_chain(slot)


def _descriptor(address: int, word: int) -> bytes:
    """Return a descriptor (2.8.13)."""
    return pack("<QQ", address, word)


def _words(raw: bytes) -> bytes:
    """Return the second halves of descriptors."""
    return array("Q", raw)[1::2].tobytes()
