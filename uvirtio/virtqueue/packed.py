"""The packed virtqueue of 2.8.

One ring of descriptors that driver and device both write, and two event structures. A slot belongs to the device
once its flags are stored, and comes back with two bits that distinguish the laps (2.8.1). The driver's record is
private: nothing in a slot is trusted before it was compared with it.

A list becomes visible by the flags of its first slot, one 16-bit store that comes last (2.8.17): ``add`` writes
everything else, ``publish`` stores those flags, one for each list, after one ordering fence for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence

from uvirtio.errors import UsageError
from uvirtio.memory.access import descriptor_writer, words16, words32
from uvirtio.spec import ring
from uvirtio.spec.ring import (
    DESC_F_WRITE,
    DESC_SIZE,
    PACKED_DESC_F_AVAIL,
    PACKED_DESC_F_USED,
    PACKED_EVENT_DESC,
    PACKED_EVENT_DISABLE,
    PACKED_EVENT_ENABLE,
)
from uvirtio.typed import TYPE_CHECKING
from uvirtio.virtqueue import Completion, SgEntry
from uvirtio.virtqueue.base import (
    INDIRECT_ENTRIES,
    NOT_OUT,
    RingOptions,
    VirtqueueBase,
    allocate_queue,
    make_tuple,
    watched,
)
from uvirtio.virtqueue.chain import MAX_LENGTH, SAFE_ADDRESS, measure

if TYPE_CHECKING:
    from typing import Any, Literal, NoReturn

    from uvirtio.interfaces.memory import Block, DmaSpace

# Places in the second 64-bit word of a descriptor: length in bits 0..31, id in 32..47, flags in 48..63.
_ID_SHIFT = 32
_FLAGS_SHIFT = 48

# The 16-bit words of an event structure (2.8.10).
_OFF_WRAP, _FLAGS = 0, 1

_AVAIL_OR_USED = PACKED_DESC_F_AVAIL | PACKED_DESC_F_USED

# Turned over in a slot that is available, this bit makes it look like a slot of the lap before (2.8.1).
_AVAIL = PACKED_DESC_F_AVAIL << _FLAGS_SHIFT

# In the second half of that word, 32 bits: id and flags.
_LAPS = _AVAIL_OR_USED << 16
_WRITTEN = DESC_F_WRITE << 16


class PackedQueue(VirtqueueBase):
    """One packed virtqueue. Satisfies ``Virtqueue``.

    Its descriptor area is the ring; its driver and device areas are the event structures. The fence ``order`` is
    executed between slots and the flags that make them visible, and between flags and what they announce.

    With IN_ORDER one used slot may stand for all lists up to the one that it names (2.8.8).
    """

    kind: Literal["split", "packed"] = "packed"
    AREAS = (
        ("descriptor ring", ring.PACKED_RING_ALIGN),
        ("driver event structure", ring.PACKED_EVENT_ALIGN),
        ("device event structure", ring.PACKED_EVENT_ALIGN),
    )

    __slots__ = (
        "_by_number",
        "_flags",
        "_halves",
        "_hidden",
        "_ids",
        "_marks",
        "_mine",
        "_next_slot",
        "_put",
        "_stale",
        "_theirs",
        "_two_laps",
        "bytes",
        "fixed",
        "slots_published",
        "slots_reaped",
    )

    def _begin(self, desc: Block, driver: Block, device: Block) -> None:
        size = self.size
        # Slots since the start: added, made visible, reaped. Modulo the size
        # they are places in the ring; an even lap has the wrap counter 1, an odd one 0 (2.8.1).
        self._next_slot = 0
        self._two_laps = 2 * size
        self.slots_published = 0
        self.slots_reaped = 0
        self._ids = list(range(size - 1, -1, -1))
        """Free buffer ids, a stack: an id names a list while it is in flight, and says nothing of its place."""

        self._hidden: tuple[int, int] | None = None
        """The first of the lists that were added and not published: its place, and the flags that show it."""

        self._stale = 0
        """Behind the last slot of a list that was written and not added; 0: none was."""

        self._by_number = [0] * size if self._in_order else []
        """With IN_ORDER: the id of each list, by its number modulo the size."""
        self.bytes = self._desc
        """With fixed chains: the ring as bytes."""

        self.fixed: list[tuple[int, int]] = []
        """Of each fixed chain: the two halves of its descriptor, without the flags that tell the laps apart."""

        self._marks = False
        """The device has set WRITE in a used slot: it implements the bit."""

        self._flags = watched(desc, 0, words16(desc.view, 0, 8 * size))
        self._halves = watched(desc, 0, words32(desc.view, 0, 4 * size))
        self._put = descriptor_writer(self._desc)
        self._mine = watched(driver, 0, words16(driver.view, 0, 2))
        self._theirs = watched(device, 0, words32(device.view, 0, 1))
        self._views += [self._flags, self._halves, self._mine, self._theirs]
        # 2.8.13: zero at the start, whatever the blocks held before.
        length = ring.packed_ring_size(size)
        desc.view[:length] = bytes(length)
        self._theirs[0] = 0
        self._mine[_OFF_WRAP] = 0
        self._mine[_FLAGS] = PACKED_EVENT_ENABLE
        if self._event_idx:
            self._ask()
            self._mine[_FLAGS] = PACKED_EVENT_DESC

    @staticmethod
    def area_sizes(size: int) -> tuple[int, int, int]:
        """Return the lengths of descriptor ring, driver and device event structure, in bytes (2.8.10.1, 2.8.11).

        Args:
            size: Number of slots; it need not be a power of two.

        Raises:
            UsageError: ``size`` is not 1 to 32,768.
        """
        if not 0 < size <= ring.MAX_SIZE:
            raise UsageError("this is not a size of a packed queue (2.8)", seen=size, expected="1..32768")
        return ring.packed_ring_size(size), ring.PACKED_EVENT_SIZE, ring.PACKED_EVENT_SIZE

    @property
    def free(self) -> int:
        """Number of free descriptors."""
        return 0 if self.fixed else self.size - (self._next_slot - self.slots_reaped)

    @property
    def kick_data(self) -> int:
        """The next slot that is not published yet, with the wrap counter of that slot (2.9)."""
        return self._off_wrap(self.slots_published)

    def _off_wrap(self, slot: int) -> int:
        """Return ``slot``, counted from the start, as an offset with its wrap counter in bit 15 (2.8.10)."""
        lap, place = divmod(slot, self.size)
        return place if lap & 1 else place | ring.PACKED_EVENT_WRAP

    # --- supplying buffers (2.8.21) ---------------------------------------------------------------------------

    def add(self, readable: Sequence[SgEntry], writable: Sequence[SgEntry], cookie: Any) -> None:
        """Write one descriptor list into the ring; see ``Virtqueue``."""
        if self._shut:
            self.refuse()
        size, first, ids = self.size, self._next_slot, self._ids
        place, flags = first % self._two_laps, PACKED_DESC_F_AVAIL
        if place >= size:  # every second lap has the wrap counter 0
            place, flags = place - size, PACKED_DESC_F_USED
        count, slots = len(readable) + len(writable), 1
        if count == 1:
            # The most frequent list, so without a loop.
            if readable:
                ((address, length),), room = readable, 0
            else:
                ((address, length),) = writable
                room = length
                flags |= DESC_F_WRITE
            if not (0 < length <= MAX_LENGTH and 0 <= address <= SAFE_ADDRESS):
                measure(readable, writable, size)
            if first - self.slots_reaped >= size:
                raise self._full(1, 0)
            ident = ids[-1]
        else:
            room = measure(readable, writable, size)
            indirect = count <= INDIRECT_ENTRIES and bool(self._tables)
            if not indirect:
                slots = count
            if self.free < slots:
                raise self._full(slots, self.free)  # 2.8.17: space for the whole list before any of it
            ident = ids[-1]
            if indirect:
                self._fill_table(ident, readable, writable)
                address, length = self._tables[ident], count * DESC_SIZE
                flags |= ring.DESC_F_INDIRECT
        number, hidden = self._laid, self._hidden
        if slots == 1:
            if hidden is None:
                hidden = place, flags
                flags ^= PACKED_DESC_F_AVAIL  # looks like a slot of the lap before (2.8.1)
            try:
                self._put(self._desc, DESC_SIZE * place, address, length, ident, flags)
            except BaseException:  # of what cannot be written, or of a signal handler: it is not in the books
                if self._hidden is not None:  # and must not be taken when those before it are shown
                    self._flags[8 * place + 7] = flags ^ PACKED_DESC_F_AVAIL
                raise
        else:
            try:
                head = self._fill_list(first, ident, readable, writable)
            except BaseException:  # likewise
                if first + slots > self._stale:
                    self._stale = first + slots
                raise
            if hidden is None:
                hidden = place, head >> _FLAGS_SHIFT
                head ^= _AVAIL
            self._desc[2 * place + 1] = head
        # Since that was written nothing is called but the last: what a signal handler raises finds all of it done.
        self._hidden = hidden
        self._out[ident] = (cookie, room, slots, number)
        if self._in_order:
            self._by_number[number % size] = ident
        self._next_slot = first + slots
        self._laid = number + 1
        ids.pop()

    def _fill_list(self, slot: int, ident: int, readable: Sequence[SgEntry], writable: Sequence[SgEntry]) -> int:
        """Write all slots of a list but half of the first one, which is written last (2.8.17); return that word.

        Until it is there the first slot has the flags of the lap before, and no device looks behind it. The others
        look available then: where this ends in the middle, ``publish`` has to cover them.
        """
        desc, size = self._desc, self.size
        first, last = slot, slot + len(readable) + len(writable) - 1
        head = 0
        for write, runs in ((0, readable), (DESC_F_WRITE, writable)):
            for address, length in runs:
                place = slot % size
                flags = write if slot == last else write | ring.DESC_F_NEXT
                flags |= PACKED_DESC_F_USED if slot // size & 1 else PACKED_DESC_F_AVAIL
                word = length | ident << _ID_SHIFT | flags << _FLAGS_SHIFT  # 2.8.6: the last slot's id counts
                desc[2 * place] = address
                if slot == first:
                    head = word
                else:
                    desc[2 * place + 1] = word
                slot += 1
        return head

    def _cover(self) -> None:
        """Give slots of a list that was not added the flags of the lap before (2.8.1): no device takes them."""
        for slot in range(self._next_slot, self._stale):
            lap, place = divmod(slot, self.size)
            self._flags[8 * place + 7] = _AVAIL_OR_USED if lap & 1 else 0
        self._stale = 0

    def _fill_table(self, ident: int, readable: Sequence[SgEntry], writable: Sequence[SgEntry]) -> None:
        # 2.8.19: no flag but WRITE; the length of the table marks its end.
        words = self._table_words
        assert words is not None
        slot = 2 * INDIRECT_ENTRIES * ident
        for flags, runs in ((0, readable), (DESC_F_WRITE << _FLAGS_SHIFT, writable)):
            for address, length in runs:
                words[slot] = address
                words[slot + 1] = length | flags
                slot += 2

    def publish(self) -> bool:
        """Make all added lists visible; see ``Virtqueue``."""
        if self._shut:
            self.refuse()
        if self._hidden is None:
            return False
        place, flags = self._hidden
        if self._stale:
            self._cover()
        if self._order is not None:
            self._order()  # 2.8.21.1.1: the slots before the flags that make them visible
        self._flags[8 * place + 7] = flags
        self._hidden = None
        old, new = self.slots_published, self._next_slot
        self.published = self._laid
        self.slots_published = new
        self._fence()  # 2.8.21.3.1: the flags before the device's event structure is read
        wish = self._theirs[0]
        asked = wish >> 16 & ring.PACKED_EVENT_FLAGS_MASK
        if asked == PACKED_EVENT_DISABLE:
            return False
        if asked != PACKED_EVENT_DESC or not self._event_idx:
            return True  # 2.8.10: the rest is reserved, and a superfluous kick does no harm
        return self._passed(wish & 0xFFFF, old, new)

    def wants_kick(self) -> bool:
        """Whether a notification that was requested is still of use; see ``Virtqueue``."""
        if self._shut:
            self.refuse()
        return self._theirs[0] >> 16 & ring.PACKED_EVENT_FLAGS_MASK != PACKED_EVENT_DISABLE

    def _passed(self, off_wrap: int, old: int, new: int) -> bool:
        """Whether the slot that the device names is one of ``old`` to ``new`` - 1, counted from the start."""
        place = off_wrap & ring.PACKED_EVENT_OFF_MASK
        if place >= self.size:
            return True
        lap = new // self.size
        if (off_wrap >> 15) ^ 1 != lap & 1:
            lap -= 1
        return old <= lap * self.size + place < new

    # --- receiving used buffers (2.8.22) ----------------------------------------------------------------------

    def words(self) -> dict[str, int]:
        """Return the positions, event structures and next flags of the ring (2.8); see ``Virtqueue``."""
        wish = self._theirs[0]
        return {
            "next avail": self._off_wrap(self.slots_published),
            "next used": self._off_wrap(self.slots_reaped),
            "flags at next used": self._flags[8 * (self.slots_reaped % self.size) + 7],
            "driver event off_wrap": self._mine[_OFF_WRAP],
            "driver event flags": self._mine[_FLAGS],
            "device event off_wrap": wish & 0xFFFF,
            "device event flags": wish >> 16,
        }

    def taken(self) -> bool | None:
        """Whether the device has taken all that was published, by where it wants its next kick (2.8.10)."""
        wish = self._theirs[0]
        if not self._event_idx or wish >> 16 & ring.PACKED_EVENT_FLAGS_MASK != PACKED_EVENT_DESC:
            return None
        return wish & 0xFFFF == self._off_wrap(self.slots_published)

    def pending(self) -> bool:
        """Whether the device has used a list that was not reaped."""
        if self.dead:
            self.refuse()
        return self.reaped <= self._told or self._is_used(self.slots_reaped)

    def _is_used(self, slot: int) -> bool:
        """2.8.1: whether AVAIL and USED both equal the wrap counter of this slot's lap."""
        lap, place = divmod(slot, self.size)
        return self._flags[8 * place + 7] & _AVAIL_OR_USED == (0 if lap & 1 else _AVAIL_OR_USED)

    def reap(self, limit: int | None = None) -> list[Completion]:
        """Return used lists; see ``Virtqueue``. At most those in flight at the call, however fast the device is.

        After a ``limit`` that left some, no interrupt announces the rest: call ``pending``.
        """
        if self._shut:
            self.refuse()
        done: list[Completion] = []
        self._undelivered = done  # in case a later slot is invalid
        while True:
            before = len(done)
            # No further than what is in flight; where that is nothing, a used slot is a lie that has to be seen.
            most = self.published - self.reaped or 1
            if limit is not None and most > limit - before:
                most = limit - before
            if self._in_order:
                while len(done) - before < most and self._take_in_order(done):
                    pass
            else:
                self._take(most, done)
            if not (self._event_idx and self._interrupts) or len(done) == before or len(done) == limit:
                return done
            # Request the next interrupt, and check again: the device may have been faster (2.8.22).
            self._ask()
            self._fence()

    def _take(self, most: int, done: list[Completion]) -> None:
        """Take used lists, each checked in full before it changes anything."""
        halves, out, ids, order = self._halves, self._out, self._ids, self._order
        size, published = self.size, self.published
        number, first = self.reaped, self.slots_reaped
        goal = number + most
        start = place = first % self._two_laps
        usual = _WRITTEN | _LAPS
        if place >= size:
            start = place = place - size
            usual = _WRITTEN
        # A device that is known to set WRITE has these flags in a used slot. Taken off a word that has them they
        # leave the id, and no flag needs to be looked at by itself; of any other word no id of this ring is left.
        known = self._marks and order is None
        try:
            while number < goal:
                at = 4 * place + 3
                told = halves[at]  # id and flags, in one load
                ident = told ^ usual
                plain = known and ident < size
                if not plain:
                    if ident & _LAPS:  # 2.8.1
                        return
                    if order is not None:
                        order()  # 2.8.22: the flags before what they announce
                        told = halves[at]
                    ident = told & 0xFFFF
                cookie, room, slots, laid = (out[ident] if ident < size else None) or NOT_OUT
                if laid >= published:
                    self.reaped = number
                    self.no_such_chain(ident)
                written = halves[at - 1]
                if written > room or not plain:
                    written = self.length_of(told << 32 | written, room)
                    known = self._marks and order is None
                # All of it before a call: what a signal handler raises comes after that.
                out[ident] = None
                number += 1
                place += slots
                if place >= size:
                    place -= size
                    start -= size
                    usual ^= _LAPS
                ids.append(ident)
                done.append(make_tuple(Completion, (cookie, written)))
        finally:
            self.reaped = number
            self.slots_reaped = first + place - start

    def _take_in_order(self, done: list[Completion]) -> bool:
        """Take one list back if the device has used it; checked in full before anything changes.

        2.8.8: the lists before the one that is named were used too, and have no length of their own.
        """
        number = self.reaped
        if number > self._told:
            slot = self.slots_reaped
            if not self._is_used(slot):
                return False
            if self._order is not None:
                self._order()  # 2.8.22: the flags before what they announce
            word = self._desc[2 * (slot % self.size) + 1]
            ident = word >> _ID_SHIFT & 0xFFFF
            named = self._out[ident] if ident < self.size else None
            if named is None or named[3] >= self.published:
                self.no_such_chain(ident)
            written = self.length_of(word, named[1])
            self._told, self._told_written = named[3], written
        ident = self._by_number[number % self.size]
        posted = self._out[ident]
        assert posted is not None
        cookie, room, slots, _ = posted
        # All of it before the call: an exception of a signal handler's comes after that.
        self._out[ident] = None
        self.slots_reaped += slots
        self.reaped = number + 1
        self._ids.append(ident)
        done.append(Completion(cookie, self._told_written if number == self._told else room))
        return True

    def length_of(self, word: int, room: int) -> int:
        """Return the number of bytes that the device reports as written, at most ``room``.

        2.8.4: a length without WRITE has no meaning; but QEMU never sets that bit, and its lengths are valid. So
        the rule is applied once the device has set WRITE at all.

        Args:
            word: The second half of a used slot: length, id and flags.
            room: The bytes that the device was allowed to write.

        Raises:
            RingCorruption: The length exceeds the buffer, and ``clamp_used_len`` is not set.
        """
        written = word & 0xFFFF_FFFF
        if word >> _FLAGS_SHIFT & DESC_F_WRITE:
            self._marks = True
        elif written:
            if self._marks or not room:
                return 0
            self._find("used-length-without-write")
        return self.too_long(written, room) if written > room else written

    # --- fixed slots (slots.py) -----------------------------------------------------------------------------

    def set_fixed_slots(self, chains: Sequence[tuple[Sequence[SgEntry], Sequence[SgEntry]]]) -> bool:
        """Write chains permanently, chain ``n`` with the buffer id ``n``, each in one slot (slots.py).

        Returns:
            False, with nothing changed, where a chain needs more than one slot, and with IN_ORDER, where one used
            slot may stand for many (2.8.8).

        Raises:
            BadChain: A chain breaks a rule of the standard.
            QueueFull: The chains do not fit.
        """
        if self._in_order:
            return False
        laid: list[tuple[int, int]] = []
        for readable, writable in chains:
            measure(readable, writable, self.size)
            if self.needs(len(readable) + len(writable)) > 1:
                return False
        if len(chains) > self.size:
            raise self._full(len(chains), self.size)
        for ident, (readable, writable) in enumerate(chains):
            count = len(readable) + len(writable)
            if count > 1:
                self._fill_table(ident, readable, writable)
                address, length, flags = self._tables[ident], count * DESC_SIZE, ring.DESC_F_INDIRECT
            elif readable:
                (address, length), flags = readable[0], 0
            else:
                (address, length), flags = writable[0], DESC_F_WRITE
            laid.append((address, length | ident << _ID_SHIFT | flags << _FLAGS_SHIFT))
        self.fixed = laid
        self.bytes = self._desc.cast("B")
        self._views.insert(0, self.bytes)
        self._hand_over()
        self.slots_reaped = self._next_slot
        return True

    def used_slots(self, hint: int) -> int:
        """Return how many of the slots in flight are used, followed by an ordering fence.

        Args:
            hint: The number to try first.

        Raises:
            RingCorruption: A slot is marked as used while none is in flight.
            DeviceBroken: The queue is broken or abandoned.
            Closed: The queue is closed.
        """
        if self.dead:
            self.refuse()
        first = self.slots_reaped
        most = self._next_slot - first
        if not most:
            if self._is_used(first):
                self.no_such_chain(self._flags[8 * (first % self.size) + 6])
            return 0
        low, high = 0, most + 1  # used at least, not used at least
        guess = min(hint, most)
        while high - low > 1:
            if self._is_used(first + guess - 1):
                low = guess
            else:
                high = guess
            guess = low + 1 if low == hint else low + (high - low) // 2
        if low and self._order is not None:
            self._order()  # 2.8.22
        return low

    def out_of_turn(self, slot: int) -> NoReturn:
        """Break the queue because a slot is marked as used before its predecessor.

        Raises:
            RingCorruption: Always.
        """
        self._corrupt(
            "a slot is marked as used before its predecessor",
            seen=slot,
            expected="slots used in their order (2.8.1)",
            about="used-idx",
        )

    def took(self, hint: int) -> int:
        """With EVENT_IDX request the next interrupt, after slots that are counted as reaped.

        Returns:
            With EVENT_IDX: the number of slots that were used meanwhile, as ``used_slots``; else 0.

        Raises:
            RingCorruption: A slot is marked as used while none is in flight.
        """
        if not (self._event_idx and self._interrupts):
            return 0
        self._ask()
        self._fence()
        return self.used_slots(hint)

    # --- interrupts (2.8.10) --------------------------------------------------------------------------------

    def _ask(self) -> None:
        """Request an interrupt for the next slot that is used."""
        self._mine[_OFF_WRAP] = self._off_wrap(self.slots_reaped)

    def want_interrupts(self, on: bool) -> bool:
        """Enable or suppress used buffer notifications; see ``Virtqueue``."""
        if self.dead:
            self.refuse()
        self._interrupts = on
        if not on:
            self._mine[_FLAGS] = PACKED_EVENT_DISABLE
            return False
        if self._event_idx:
            self._ask()
            if self._order is not None:
                self._order()  # the place before the flags that give it a meaning
            self._mine[_FLAGS] = PACKED_EVENT_DESC
        else:
            self._mine[_FLAGS] = PACKED_EVENT_ENABLE
        self._fence()  # 2.8.22: the request before the check
        return self.pending()

    def _forget(self) -> None:
        self._ids = []
        self._hidden = None
        self._told = -1
        self.slots_reaped = self._next_slot - self.size


def make_packed(index: int, size: int, dma: DmaSpace, options: RingOptions) -> PackedQueue:
    """Allocate a packed queue in memory of its own, which its ``close()`` frees.

    Args:
        index: The queue's number, for errors.
        size: Number of slots.
        dma: Where its memory comes from.
        options: What was negotiated.

    Raises:
        UsageError: The size is not 1 to 32,768.
        QueueError: An area would not be one run of device addresses.
        MemlockExceeded: RLIMIT_MEMLOCK does not allow the memory.
        HugePagesLack: The pool has no huge page for the memory.
        PagemapHidden: This process may not read physical addresses.
        OperationFailed: The memory cannot be allocated or mapped. Nothing stays allocated in any case.
    """
    return allocate_queue(PackedQueue, index, size, dma, options)
