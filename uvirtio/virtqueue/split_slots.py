"""Fixed slots of a split ring."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence, Set

from uvirtio.memory.access import copiers
from uvirtio.spec.ring import RING_ENTRIES, RING_IDX, USED_F_NO_NOTIFY
from uvirtio.typed import TYPE_CHECKING
from uvirtio.virtqueue.slot_books import NOBODY, NOTHING, Chain, RingBooks, joined
from uvirtio.virtqueue.split import SplitQueue

if TYPE_CHECKING:
    from typing import NoReturn

_FLAGS, _IDX, _RING = 0, RING_IDX // 2, RING_ENTRIES // 2  # the 16-bit words of an area

_BOOKKEEPING = 8
"""Number of posts in a row that did not need the set of busy slots, after which it is dropped."""


class SplitSlots(RingBooks):
    """Slots of a split ring: slot ``n`` is the chain whose head is descriptor ``n``.

    Posting what was reaped last is one call, without another one inside, and where the ring is steady it writes
    nothing but the index.

    What was reaped last can be posted as it is: it is idle. For callers that submit other slots than those (they
    have more than they keep in flight) there is ``_busy``, the set of slots in flight, from the first time that it
    is needed until it was not needed for a while.
    """

    WIDTH = 8
    ID = 0

    def __init__(self, ring: SplitQueue, chains: Sequence[Chain]) -> None:
        """Set up the slots of a ring whose ``set_fixed_slots`` accepted the chains."""
        super().__init__(ring.size, ring.size, ring.published, chains)
        self._used = [_element(slot, written) for slot, written in enumerate(self.written)]
        """By slot: its used element as it came last."""

        self._ring = ring
        self._mask = ring.size - 1
        self._busy: set[int] | None = None
        self._unneeded = 0
        self._elements = ring.element_bytes()
        self._copies = copiers(self._elements, self.WIDTH)
        self._few = len(self._copies)

    def _number(self) -> int:
        return self._ring.index

    def numbers(self) -> list[int]:
        """Return the numbers of the chains in flight; see ``Slots``."""
        return self._numbers_of(self._ring.published)

    @property
    def laid(self) -> int:
        """Slots that were submitted and not shown."""
        return self._ring._laid - self._ring.published

    # --- posting ------------------------------------------------------------------------------------------------

    def check(self, slots: Sequence[int]) -> None:
        """Check that all of ``slots`` exist, once each, and are idle; see ``Books``."""
        ring, count = self._ring, len(slots)
        at, end = ring._laid & self._mask, ring._laid + count
        # The next ones of a round, as ``_comes_round`` has it, but for those that go over the end of the ring.
        if self._loose is None and end - ring.reaped <= self._round and self._back != slots:
            turn = self._order[at : at + count]
            if turn == slots and count:
                self._back_raw = b""  # first: the bytes of others would not fit these
                self._back = turn
                return
        super().check(slots)

    def submit(self, slots: Sequence[int], *, show: bool = True) -> bool:
        """Post slots; see ``Slots``."""
        ring, count = self._ring, len(slots)
        if not count:
            return False
        if ring.dead:
            ring.refuse()
        if slots != self._back:
            self.check(slots)
        first = ring._laid
        if self._busy is not None or not show or first != ring.published:
            return self._submit(slots, show)
        at = first & self._mask
        if self._loose is not None:
            self._lay(at, self._back, b"")
        elif first < self._steady or (
            self._order[at : at + count] != slots if count > 1 else self._order[at] != slots[0]
        ):
            self._lay(at, self._back, self._back_raw)
        back, self._back = self._back, NOTHING
        avail = ring._avail
        if ring._order is not None:
            ring._order()  # 2.7.13.3.1: descriptors and ring before the index
        ring._laid = ring.published = new = first + count
        avail[_IDX] = new & 0xFFFF
        ring._fence()  # 2.7.13.4.1: the index before the device's event word is read
        if self._loose is not None and self._noted == first:  # else the next look brings it up to date
            if self._came and back is self._came_as:  # out again as they are
                self._came, self._noted = NOBODY, new
            elif not self._came:
                self._loose.update(back)  # which can be done again
                self._noted = new
        if ring._event_idx:
            return (new - ring._used[ring._avail_event] - 1) & 0xFFFF < count  # 2.7.10.1
        return not ring._used[_FLAGS] & USED_F_NO_NOTIFY

    def _submit(self, slots: Sequence[int], show: bool) -> bool:
        """The same for slots that were checked, shown now or later, where a set is kept or others are laid."""
        ring = self._ring
        raw, self._back = self._back_raw, NOTHING
        try:
            if self._busy is not None:
                self._count_in(slots)
            posted = slots if type(slots) is array and slots.typecode == "H" else array("H", slots)
            # With what is expected of them also out of order: when they are shown, all may be in order again.
            self._lay(ring._laid & self._mask, posted, raw)
            ring._laid += len(slots)
        except BaseException:  # of a signal handler: the set is made again, of what is posted
            self._busy = None
            raise
        return self.show(ring._laid - ring.published) if show else False

    def _lay(self, at: int, slots: array[int], raw: bytes) -> None:
        """Write slots into the ring, where the device does not look before the index is stored.

        Args:
            at: The place of the first.
            slots: The slots.
            raw: The used elements that are expected; empty where none is compared by its place, or it is there.
        """
        order, expected, avail = self._order, self._expected, self._ring._avail
        end = at + len(slots)
        if end <= self._size:
            self._before(at, slots)
            order[at:end] = avail[_RING + at : _RING + end] = slots
            if raw:
                expected[8 * at : 8 * end] = raw
        else:
            fits, over = self._size - at, end - self._size
            self._before(at, slots[:fits])
            self._before(0, slots[fits:])
            order[at:] = avail[_RING + at : _RING + self._size] = slots[:fits]
            order[:over] = avail[_RING : _RING + over] = slots[fits:]
            if raw:
                expected[8 * at :], expected[: 8 * over] = raw[: 8 * fits], raw[8 * fits :]

    def show(self, count: int) -> bool:
        """Let the device see slots; see ``Slots``."""
        if not count:
            return False
        return self._ring.show_heads(count)

    def relay(self, looks: int, notify: Callable[[], None], goal: int = 1) -> int:
        """Look for used slots, and let the device see others at once; see ``Slots``."""
        return self._ring.relay(looks, notify, goal)

    def ready(self) -> int:
        """Return the number of slots that are used and not reaped; see ``Slots``."""
        return self._ring.announced()

    def _with_device(self) -> Set[int]:
        if self._busy is not None:
            return self._busy
        return {*self.out(), *self._posted(self._ring.published, self._ring._laid)}

    def _set_length(self, slot: int, length: int) -> None:
        self._ring.set_slot_length(slot, length)

    def _look_up(self, slots: Sequence[int]) -> None:
        if self._busy is None and self._ring._laid > self._ring.reaped:
            self._busy = {*self._with_device()}
        self._unneeded = 0
        super()._look_up(slots)
        self._back_raw = joined(self._used, slots)

    def _count_in(self, slots: Sequence[int]) -> None:
        """Record slots that are posted exactly as reaped; after a number of such posts the set is dropped."""
        assert self._busy is not None
        self._busy.update(slots)
        self._unneeded += 1
        if self._unneeded > _BOOKKEEPING:
            self._busy = None

    # --- reaping ------------------------------------------------------------------------------------------------

    def reap(self) -> array[int]:
        """Return the used slots; see ``Slots``."""
        ring, before, count = self._ring, NOTHING, 0
        if ring.dead:
            ring.refuse()
        try:
            while True:
                reaped = ring.reaped
                if not count:
                    count = (ring._used[_IDX] - reaped) & 0xFFFF
                    if not count:
                        return array("H")
                    if count > ring.published - reaped:
                        ring._bad_index((reaped + count) & 0xFFFF)
                    if ring._order is not None:
                        ring._order()  # the index before the elements that it announces
                # A private copy of the used elements is compared with what was expected.
                at = reaped & self._mask
                end = at + count
                if count < self._few and end <= self._size:
                    (raw,) = self._copies[count](self._elements, 8 * at)
                else:
                    over = max(0, end - self._size)
                    raw = bytes(self._elements[8 * at : 8 * (end - over)]) + bytes(self._elements[: 8 * over])
                if self._loose is not None:
                    found = self._take_loose(raw, at, self._used, ring.published, count)
                elif self._expected.startswith(raw, 8 * at):
                    # As in ``_take_back``, without a call.
                    found, self._back, self._back_raw = self._order[at:end], self._order[at:end], raw
                    ring.reaped = reaped + count
                else:
                    found = self._sort_out(raw, at, self._used)
                if self._busy is not None:
                    self._busy.difference_update(found)
                if not (ring._event_idx and ring._interrupts):
                    return found
                if before:
                    found = before + found
                # Request the next interrupt, and check again: usually nothing was added.
                count = ring.took()
                if not count:
                    return found
                before = found
        except BaseException:  # of a signal handler, maybe: the set is made again, of what is posted
            self._busy = None
            raise

    def _all_out(self) -> array[int]:
        return self._posted(self._ring.reaped, self._ring.published)

    def _posted_ever(self) -> int:
        return self._ring._laid

    def _shown_ever(self) -> int:
        return self._ring.published

    def _reaped_ever(self) -> int:
        return self._ring.reaped

    def _take_back(self, found: array[int], count: int, raw: bytes, came: Set[int]) -> None:
        self._back = self._came_as = found[:]
        self._back_raw, self._came = raw, came
        if not came:
            self._loose = None
        self._ring.reaped += count

    def _named(self, element: int) -> int:
        return element & 0xFFFF_FFFF  # all 32 bits: 0x10003 is not 3

    def _note(self, slot: int, element: int) -> None:
        written, room = element >> 32, self._rooms[slot]
        raw = _element(slot, written)
        if raw != self._used[slot]:
            self.written[slot] = self._ring.too_long(written, room) if written > room else written
            self._used[slot] = raw

    def _no_such_chain(self, slot: int) -> NoReturn:
        self._ring.no_such_chain(slot)


def _element(head: int, written: int) -> bytes:
    """Return a used element (2.7.8)."""
    return (head | written << 32).to_bytes(8, "little")
