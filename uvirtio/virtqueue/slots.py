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
from collections.abc import Callable, Iterable, Sequence, Set
from typing import NoReturn

from uvirtio.errors import QueueFull, UsageError
from uvirtio.spec.ring import DESC_F_WRITE, PACKED_DESC_F_AVAIL, PACKED_DESC_F_USED
from uvirtio.virtqueue import SgEntry, Virtqueue
from uvirtio.virtqueue.chain import measure
from uvirtio.virtqueue.packed import PackedQueue
from uvirtio.virtqueue.slot_interface import Slots as Slots
from uvirtio.virtqueue.split import SplitQueue

Chain = tuple[Sequence[SgEntry], Sequence[SgEntry]]
"""(readable, writable) elements of one slot."""


_NOTHING = array("H")

_BOOKKEEPING = 8
"""Number of posts in a row that did not need the set of busy slots, after which it is dropped."""


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


def room_of(chain: Chain) -> int:
    """Return the number of bytes that the device may write into a chain."""
    return sum(length for _, length in chain[1])


class _Books:
    """The record of idle slots, as far as it is known without reading the ring."""

    def __init__(self, index: int, chains: Sequence[Chain]) -> None:
        self.count = len(chains)
        self.written = array("I", (min(room_of(chain), 0xFFFF_FFFF) for chain in chains))
        self._index = index
        self._rooms = [room_of(chain) for chain in chains]
        # The most that the device may read of a slot of one readable element; 0: it is none.
        self._readable = [0 if writable or len(readable) != 1 else readable[0][1] for readable, writable in chains]
        self._lengths = list(self._readable)
        self._back = _NOTHING  # what the last reap returned, where that is remembered: it is idle
        self._next = array("H")

    @property
    def laid(self) -> int:
        """Slots that were submitted and not shown."""
        return len(self._next)

    def submit(self, slots: Sequence[int], *, show: bool = True) -> bool:
        """Post slots; see ``Slots``."""
        self.check(slots)
        self._next.extend(slots)
        return self.show(len(self._next)) if show and slots else False

    def show(self, count: int) -> bool:
        """Let the device see slots; see ``Slots``."""
        now, self._next = self._next[:count], self._next[count:]
        return self._post(now)

    def ready(self) -> int:
        """Return a number of slots that are used; see ``Slots``."""
        raise NotImplementedError

    def relay(self, looks: int, notify: Callable[[], None], goal: int = 1) -> int:
        """Look for used slots, and let the device see others; see ``Slots``. It returns at the first ones."""
        for _ in range(looks):
            count = self.ready()
            if count:
                if self.show(count):
                    notify()
                return count
        return 0

    def _post(self, slots: array[int]) -> bool:
        """Post idle slots, for formats that can only write and show at once; whether a kick is requested."""
        raise NotImplementedError

    def out(self) -> list[int]:
        """Return the slots that are in flight, lowest first."""
        raise NotImplementedError

    def _with_device(self) -> Set[int]:
        return {*self.out(), *self._next}

    def check(self, slots: Sequence[int]) -> None:
        """Check that all of ``slots`` exist, once each, and are idle.

        Raises:
            UsageError: They do not.
        """
        if not slots or slots == self._back:
            return
        wanted = set(slots)
        if len(wanted) != len(slots):
            raise self._bad(sorted(slot for slot in wanted if list(slots).count(slot) > 1), "each slot once")
        if min(wanted) < 0 or max(wanted) >= self.count:
            raise self._bad(sorted(wanted), f"slots 0..{self.count - 1}")
        both = wanted & self._with_device()
        if both:
            raise self._bad(sorted(both), "slots that are not with the device")

    def resize(self, slots: Sequence[int], lengths: Sequence[int]) -> None:
        """Set how many bytes of idle slots the device may read; see ``Slots``."""
        now, most = self._lengths, self._readable
        for slot, length in zip(slots, lengths, strict=True):
            if now[slot] != length:
                if not 0 < length <= most[slot]:
                    raise UsageError(
                        f"queue {self._index} cannot give slot {slot} this length",
                        seen=length,
                        expected=f"1..{most[slot]} bytes" if most[slot] else "a slot of one readable element",
                    )
                self._set_length(slot, length)
                now[slot] = length

    def _set_length(self, slot: int, length: int) -> None:
        """Change the one element of an idle slot."""
        raise NotImplementedError

    def _bad(self, seen: object, expected: str) -> UsageError:
        return UsageError(f"queue {self._index} cannot post these slots", seen=seen, expected=expected)


class PlainSlots(_Books):
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
        super().__init__(ring.index, chains)
        self._ring = ring
        self._chains = [(tuple(readable), tuple(writable)) for readable, writable in chains]
        self._out: set[int] = set()
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
        return sorted(self._out)

    def _set_length(self, slot: int, length: int) -> None:
        ((address, _),), _ = self._chains[slot]
        self._chains[slot] = (((address, length),), ())

    def numbers(self) -> list[int]:
        """Return the numbers of the chains in flight; see ``Slots``."""
        return self._ring.numbers()

    def ready(self) -> int:
        """Return whether a slot is used and not reaped; see ``Slots``."""
        return self._ring.pending()

    def _post(self, slots: array[int]) -> bool:
        for slot in slots:
            readable, writable = self._chains[slot]
            self._ring.add(readable, writable, slot)
            self._out.add(slot)
        return self._ring.publish()

    def reap(self) -> array[int]:
        """Return the used slots; see ``Slots``."""
        found = array("H")
        for slot, written in self._ring.reap():
            self.written[slot] = written
            self._out.discard(slot)
            found.append(slot)
        return found


class _RingBooks(_Books):
    """The record of slots that have a fixed place in the ring.

    While the device uses buffers in order, the slots in flight are those posted and not reaped, and no other
    record of them is kept: ``_order`` has the slots by their place in the ring. At the first one out of order they
    become the set ``_loose``, until nothing is in flight any more.
    """

    def __init__(self, index: int, size: int, chains: Sequence[Chain]) -> None:
        super().__init__(index, chains)
        self._size = size
        self._numbers = array("H", range(self.count))
        self._order = array("H", bytes(2 * size))
        self._loose: set[int] | None = None

    def _numbers_of(self, published: int) -> list[int]:
        """Return the numbers of the slots in flight, where ``published`` chains were posted since the start."""
        out, found = set(self.out()), []
        oldest = max(0, published - self._size)
        for number in range(published - 1, oldest - 1, -1):
            slot = self._order[number % self._size]
            if slot in out:
                out.discard(slot)
                found.append(number)
        return sorted(found + [max(0, oldest - 1)] * len(out))

    def _in_order(self, first: int, end: int) -> list[int]:
        """Return the slots that were posted as number ``first`` to ``end`` - 1 since the start, lowest first."""
        return sorted(self._order[number % self._size] for number in range(first, end))


class SplitSlots(_RingBooks):
    """Slots of a split ring: slot ``n`` is the chain whose head is descriptor ``n``.

    ``_expected`` has the used elements that should come, by their place in the ring, while they come in order;
    ``_loose`` those that are still to come.

    What was reaped last can be posted as it is: it is idle. For callers that submit other slots than those (they
    have more than they keep in flight) there is ``_busy``, the set of slots in flight, from the first time that it
    is needed until it was not needed for a while.
    """

    def __init__(self, ring: SplitQueue, chains: Sequence[Chain]) -> None:
        """Set up the slots of a ring whose ``set_fixed_slots`` accepted the chains."""
        super().__init__(ring.index, ring.size, chains)
        self._ring = ring
        # A used element as a number: head in bits 0..31, length above. One for each slot, as it came last.
        self._patterns = array("Q", (slot | length << 32 for slot, length in enumerate(self.written)))
        self._expected = bytearray(8 * ring.size)
        self._busy: set[int] | None = None
        self._unneeded = 0
        self._end = ring.published
        """Number of slots that were submitted since the start, shown or not."""
        self._elements = ring.element_bytes()
        self._back_raw = b""  # the used elements that _back came from: both can be posted as they are

    def out(self) -> list[int]:
        """Return the slots that are in flight, lowest first."""
        if self._loose is not None:
            return sorted(value & 0xFFFF_FFFF for value in self._loose)
        return self._in_order(self._ring.reaped, self._ring.published)

    def numbers(self) -> list[int]:
        """Return the numbers of the chains in flight; see ``Slots``."""
        return self._numbers_of(self._ring.published)

    @property
    def laid(self) -> int:
        """Slots that were submitted and not shown."""
        return self._end - self._ring.published

    def submit(self, slots: Sequence[int], *, show: bool = True) -> bool:
        """Post slots; see ``Slots``."""
        count = len(slots)
        if not count:
            return False
        ring = self._ring
        if ring.dead:
            ring.refuse()
        if slots == self._back:
            raw = self._back_raw
            if self._busy is not None:
                self._count_in(slots)
        else:
            self._enter(slots)
            lowest, end = slots[0], slots[0] + count
            if slots == self._numbers[lowest:end]:
                raw = self._patterns[lowest:end].tobytes()
            else:
                raw = array("Q", map(self._patterns.__getitem__, slots)).tobytes()
        posted = slots if type(slots) is array and slots.typecode == "H" else array("H", slots)
        self._back = _NOTHING
        order, expected, size = self._order, self._expected, self._size
        first = self._end
        self._end = first + count
        at = first & (size - 1)
        end = at + count
        if end <= size:
            order[at:end] = posted
            expected[8 * at : 8 * end] = raw
        else:
            fits = size - at
            order[at:] = posted[:fits]
            order[: count - fits] = posted[fits:]
            expected[8 * at :] = raw[: 8 * fits]
            expected[: 8 * (count - fits)] = raw[8 * fits :]
        if show and first == ring.published:
            if self._loose is not None:
                self._loose.update(array("Q", raw))
            return ring.publish_heads(posted, count)
        ring.lay_heads(posted, count)
        return self.show(self.laid) if show else False

    def show(self, count: int) -> bool:
        """Let the device see slots; see ``Slots``."""
        if not count:
            return False
        ring = self._ring
        first = ring.published
        kick = ring.show_heads(count)
        if self._loose is not None:
            self._loose.update(self._elements_of(first, first + count))
        return kick

    def relay(self, looks: int, notify: Callable[[], None], goal: int = 1) -> int:
        """Look for used slots, and let the device see others at once; see ``Slots``."""
        ring = self._ring
        first = ring.published
        found = ring.relay(looks, notify, goal)
        if self._loose is not None and ring.published > first:
            self._loose.update(self._elements_of(first, ring.published))
        return found

    def ready(self) -> int:
        """Return the number of slots that are used and not reaped; see ``Slots``."""
        return self._ring.announced()

    def _with_device(self) -> Set[int]:
        if self._busy is not None:
            return self._busy
        return {*self.out(), *self._in_order(self._ring.published, self._end)}

    def _set_length(self, slot: int, length: int) -> None:
        self._ring.set_slot_length(slot, length)

    def _enter(self, slots: Sequence[int]) -> None:
        """Record these slots as in flight. On UsageError nothing changed."""
        self.check(slots)
        self._unneeded = 0
        if self._busy is not None:
            self._busy.update(slots)
        elif self._end > self._ring.reaped:
            self._busy = {*self._with_device(), *slots}

    def _count_in(self, slots: Sequence[int]) -> None:
        """Record slots that are posted exactly as reaped; after a number of such posts the set is dropped."""
        assert self._busy is not None
        self._busy.update(slots)
        self._unneeded += 1
        if self._unneeded > _BOOKKEEPING:
            self._busy = None

    def reap(self) -> array[int]:
        """Return the used slots; see ``Slots``."""
        found = self._reap()
        if self._busy is not None:
            self._busy.difference_update(found)
        return found

    def _reap(self) -> array[int]:
        ring = self._ring
        count = ring.announced()
        if not count:
            return array("H")
        found = self._take(ring.reaped & (self._size - 1), count)
        # With EVENT_IDX the ring requests the next interrupt and checks again; usually nothing was added.
        while count := ring.took(count):
            found = found + self._take(ring.reaped & (self._size - 1), count)
            self._back = _NOTHING
        return found

    def _take(self, at: int, count: int) -> array[int]:
        elements, end, size = self._elements, at + count, self._size
        if end <= size:
            raw = bytes(elements[8 * at : 8 * end])
            if self._loose is None and raw == self._expected[8 * at : 8 * end]:
                self._back_raw = raw
                self._back = self._order[at:end]
                return self._order[at:end]
        else:
            over = end - size
            raw = bytes(elements[8 * at :]) + bytes(elements[: 8 * over])
            if self._loose is None and raw == self._expected[8 * at :] + self._expected[: 8 * over]:
                self._back_raw = raw
                self._back = self._order[at:] + self._order[:over]
                return self._order[at:] + self._order[:over]
        return self._sort_out(raw, count)

    def _sort_out(self, raw: bytes, count: int) -> array[int]:
        """Handle used elements that were not expected: out of order, with another length, or invalid."""
        loose = self._loose
        if loose is None:
            loose = self._loose = self._all_out()
        values = array("Q", raw)
        came = set(values)
        if len(came) == count and came <= loose:
            loose -= came
            found = array("H", raw)[::4]
            self._back, self._back_raw = found[:], raw
        else:
            found = self._one_by_one(values, loose)
            self._back = _NOTHING
        if not loose:
            self._loose = None
        return found

    def _all_out(self) -> set[int]:
        """Return the used elements that are still to come, while the device has used buffers in order."""
        return set(self._elements_of(self._ring.reaped, self._ring.published))

    def _elements_of(self, first: int, end: int) -> array[int]:
        """Return the used elements that were expected for the slots posted as number ``first`` to ``end`` - 1."""
        expected, mask = self._expected, self._size - 1
        at, end = first & mask, (end - 1 & mask) + 1
        return array("Q", expected[8 * at : 8 * end] if at < end else expected[8 * at :] + expected[: 8 * end])

    def _one_by_one(self, values: Iterable[int], loose: set[int]) -> array[int]:
        found = array("H")
        for value in values:
            head, written = value & 0xFFFF_FFFF, value >> 32
            pattern = self._patterns[head] if head < self.count else -1
            if pattern not in loose:
                self._ring.no_such_chain(head)
            room = self._rooms[head]
            if written > room:
                written = self._ring.too_long(written, room)
            loose.discard(pattern)
            # A device tends to report the same length again, also one that is too long: expect it from now on.
            self._patterns[head] = value
            self.written[head] = written
            found.append(head)
        return found


class PackedSlots(_RingBooks):
    """Slots of a packed ring, each one slot of it: slot ``n`` has the buffer id ``n``.

    The device overwrites what it was given (2.8.6), so a post copies whole descriptors, sixteen bytes each, where
    a split ring takes two. All but the first are copied with their flags: no device reads a slot before the one in
    front of it is its own (2.8.1), and the flags of the first are stored last. The number of used slots is found
    by exact loads of their flags, one at a time, in few steps, because the device uses slots in their order; only
    then are the slots copied out. A batch that is being marked backwards shows more than there are: see ``_take``.
    """

    def __init__(self, ring: PackedQueue, chains: Sequence[Chain]) -> None:
        """Set up the slots of a ring whose ``set_fixed_slots`` accepted the chains."""
        super().__init__(ring.index, ring.size, chains)
        self._ring = ring
        count = self.count
        self._given = [bytearray(ring.slot_descriptors(wrap)) for wrap in (0, 1)]
        """By wrap counter: the descriptors of all slots as they are published, one after the other."""

        self._pieces = [[bytes(all_[16 * at : 16 * at + 16]) for at in range(count)] for all_ in self._given]
        # The second half of a used descriptor as a number, by wrap counter and slot, as it came last.
        self._words = [
            array("Q", (_used_word(slot, length, length > 0, wrap) for slot, length in enumerate(self.written)))
            for wrap in (0, 1)
        ]
        self._expected = array("Q", bytes(8 * ring.size))
        self._hint = 1

    def out(self) -> list[int]:
        """Return the slots that are in flight, lowest first."""
        if self._loose is not None:
            return sorted(self._loose)
        return self._in_order(self._ring.slots_reaped, self._ring.slots_published)

    def numbers(self) -> list[int]:
        """Return the numbers of the chains in flight; see ``Slots``."""
        return self._numbers_of(self._ring.slots_published)

    def ready(self) -> int:
        """Return whether a slot is used and not reaped; see ``Slots``."""
        return self._ring.pending()

    def submit(self, slots: Sequence[int], *, show: bool = True) -> bool:
        """Post slots; see ``Slots``."""
        if not show or self._next:
            return super().submit(slots, show=show)
        self.check(slots)
        return self._post(slots if type(slots) is array and slots.typecode == "H" else array("H", slots))

    def _post(self, posted: array[int]) -> bool:
        count = len(posted)
        if not count:
            return False
        if self._ring.dead:
            self._ring.refuse()
        self._back = _NOTHING
        if self._loose is not None:
            self._loose.update(posted)
        ring = self._ring
        lap, at = divmod(ring.slots_published, ring.size)
        wrap = 1 - (lap & 1)
        end = at + count
        if end <= ring.size:
            data, words = self._laid_out(posted, wrap)
            self._order[at:end] = posted
            self._expected[at:end] = words
            return ring.publish_slots(data, b"", count)
        fits = ring.size - at
        data, words = self._laid_out(posted[:fits], wrap)
        over, more = self._laid_out(posted[fits:], 1 - wrap)
        self._order[at:], self._order[: count - fits] = posted[:fits], posted[fits:]
        self._expected[at:], self._expected[: count - fits] = words, more
        return ring.publish_slots(data, over, count)

    def _set_length(self, slot: int, length: int) -> None:
        at, raw = 16 * slot, length.to_bytes(4, "little")
        for given, pieces in zip(self._given, self._pieces, strict=True):
            given[at + 8 : at + 12] = raw  # behind the address (2.8.13)
            pieces[slot] = bytes(given[at : at + 16])

    def _laid_out(self, slots: array[int], wrap: int) -> tuple[bytes | bytearray, array[int]]:
        """Return the descriptors for these slots, and the words that are expected when they are used."""
        first, count = slots[0], len(slots)
        if slots == self._numbers[first : first + count]:
            given = self._given[wrap]
            return given[16 * first : 16 * (first + count)], self._words[wrap][first : first + count]
        return (
            b"".join(map(self._pieces[wrap].__getitem__, slots)),
            array("Q", map(self._words[wrap].__getitem__, slots)),
        )

    def reap(self) -> array[int]:
        """Return the used slots; see ``Slots``."""
        ring = self._ring
        found = array("H")
        count = ring.used_slots(self._hint)
        while count:
            self._hint = count
            at = ring.slots_reaped % ring.size
            end = min(at + count, ring.size)
            more = self._take(at, end - at)
            if end - at < count and len(more) == end - at:
                more = more + self._take(0, count - end + at, over=True)
                self._back = more[:]
            found = found + more if found else more
            count = ring.took(len(more), self._hint) if more else 0
        return found

    def _take(self, at: int, count: int, *, over: bool = False) -> array[int]:
        ring = self._ring
        words = ring.slot_words(at, count)
        if self._loose is None and words == self._expected[at : at + count]:
            found = self._order[at : at + count]
            self._back = found[:]
            return found
        wrap = 1 - ((ring.slots_reaped // ring.size + over) & 1)
        used = _USED_BITS << 48 if wrap else 0
        marks = [word & _USED_BITS << 48 for word in words]
        if marks.count(used) != count:
            # A device may mark a batch backwards, its first slot last (DPDK does): what follows a slot that is not
            # marked is not used yet, whatever its own flags say. The others are read again now that they are.
            count = next(place for place, mark in enumerate(marks) if mark != used)
            words = ring.slot_words(at, count)
        return self._sort_out(words, wrap, at) if count else array("H")

    def _sort_out(self, words: array[int], wrap: int, at: int) -> array[int]:
        """Handle used slots that were not expected: out of order, with another length, or invalid."""
        loose = self._loose
        if loose is None:
            loose = self._loose = self._all_out(at)
        found = array("H", words.tobytes())[2::4]
        came = set(found)
        if not (len(came) == len(found) and came <= loose):
            self._undo(words, loose)
        expected = self._words[wrap]
        if array("Q", map(expected.__getitem__, found)) != words:
            for slot, word in zip(found, words, strict=True):
                if word != expected[slot]:
                    self._note(slot, word, wrap)
        loose -= came
        self._back = found[:]
        if not loose:
            self._loose = None
        return found

    def _all_out(self, at: int) -> set[int]:
        """Return the slots still to come from place ``at`` on, while the device has used buffers in order."""
        ring, order = self._ring, self._order
        # What lies before ``at`` since the last count was taken just now.
        left = ring.slots_published - ring.slots_reaped - (at - ring.slots_reaped) % ring.size
        end = at + left
        if end <= ring.size:
            return set(order[at:end])
        return set(order[at:] + order[: end - ring.size])

    def _undo(self, words: Iterable[int], loose: set[int]) -> NoReturn:
        for word in words:
            slot = word >> 32 & 0xFFFF
            if slot not in loose:
                self._ring.no_such_chain(slot)
            loose.discard(slot)
        raise AssertionError("every slot was out, once")

    def _note(self, slot: int, word: int, wrap: int) -> None:
        """Check a length or a WRITE flag that is new for this slot, and expect it from now on."""
        if word >> 48 & _USED_BITS != (_USED_BITS if wrap else 0):
            self._ring.out_of_turn(slot)
        written = self._ring.length_of(word, self._rooms[slot])
        self.written[slot] = written
        marked = bool(word >> 48 & DESC_F_WRITE)
        for wrap in (0, 1):
            self._words[wrap][slot] = _used_word(slot, word & 0xFFFF_FFFF, marked, wrap)


_USED_BITS = PACKED_DESC_F_AVAIL | PACKED_DESC_F_USED


def _used_word(slot: int, length: int, marked: bool, wrap: int) -> int:
    """Return length, id and flags of a used slot (2.8.4)."""
    flags = DESC_F_WRITE if marked else 0
    if wrap:
        flags |= PACKED_DESC_F_AVAIL | PACKED_DESC_F_USED
    return length | slot << 32 | flags << 48
