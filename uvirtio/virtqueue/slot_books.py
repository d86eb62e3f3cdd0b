"""What the slots of all rings have in common: the record of which are idle, and what may be asked of them."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence, Set
from operator import itemgetter
from struct import Struct

from uvirtio.errors import UsageError
from uvirtio.memory.access import FEW
from uvirtio.typed import TYPE_CHECKING
from uvirtio.virtqueue import SgEntry

if TYPE_CHECKING:
    from typing import ClassVar, NoReturn

Chain = tuple[Sequence[SgEntry], Sequence[SgEntry]]
"""(readable, writable) elements of one slot."""

NOTHING = array("H")
NOBODY: Set[int] = frozenset()

_Formats = tuple[Callable[[bytes], tuple[int, ...]], Callable[..., bytes]]


def room_of(chain: Chain) -> int:
    """Return the number of bytes that the device may write into a chain."""
    return sum(length for _, length in chain[1])


class Books:
    """The record of idle slots, as far as it is known without reading the ring."""

    # Beyond 29 attributes an instance finds each of them by a look into its dictionary.

    def __init__(self, chains: Sequence[Chain]) -> None:
        self.count = len(chains)
        self.written = array("I", (min(room_of(chain), 0xFFFF_FFFF) for chain in chains))
        self._rooms = [room_of(chain) for chain in chains]
        # The most that the device may read of a slot of one readable element; 0: it is none.
        most = [0 if writable or len(readable) != 1 else readable[0][1] for readable, writable in chains]
        self._lengths = list(most), most
        self._back = NOTHING  # slots that are idle: what was reaped last, if that is remembered, or checked
        self._back_raw = b""  # the used elements of these
        self._next = array("H")

    @property
    def laid(self) -> int:
        """Slots that were submitted and not shown."""
        return len(self._next)

    def submit(self, slots: Sequence[int], *, show: bool = True) -> bool:
        """Post slots; see ``Slots``."""
        self.check(slots)
        self._back = NOTHING
        self._next.extend(slots)
        return self.show(len(self._next)) if show and slots else False

    def show(self, count: int) -> bool:
        """Let the device see slots; see ``Slots``."""
        return self._post(self._next[:count], self._next[count:])

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

    def _post(self, slots: array[int], rest: array[int]) -> bool:
        """Post idle slots, for formats that can only write and show at once; whether a kick is requested.

        Args:
            slots: The slots.
            rest: What is laid from then on.
        """
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
        if slots and slots != self._back:
            self._look_up(slots)
            self._back = array("H", slots)

    def _look_up(self, slots: Sequence[int]) -> None:
        """Do what ``check`` does, for slots that are not known to be idle."""
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
        now, most = self._lengths
        for slot, length in zip(slots, lengths, strict=True):
            if now[slot] != length:
                if not 0 < length <= most[slot]:
                    raise UsageError(
                        f"queue {self._number()} cannot give slot {slot} this length",
                        seen=length,
                        expected=f"1..{most[slot]} bytes" if most[slot] else "a slot of one readable element",
                    )
                now[slot] = 0  # until it has that one, none is known
                self._set_length(slot, length)
                now[slot] = length

    def _set_length(self, slot: int, length: int) -> None:
        """Change the one element of an idle slot."""
        raise NotImplementedError

    def _number(self) -> int:
        """The index of the queue, for errors."""
        raise NotImplementedError

    def _bad(self, seen: object, expected: str) -> UsageError:
        return UsageError(f"queue {self._number()} cannot post these slots", seen=seen, expected=expected)


class RingBooks(Books):
    """The record of slots that have a fixed place in the ring.

    What the device reports is compared as bytes. A used element names its slot and says how much was written, and
    is expected as it came for this slot the last time.

    While the device uses buffers in order, the slots in flight are those posted and not reaped, and no other
    record of them is kept: ``_order`` has the slots by their place in the ring, ``_expected`` their used elements.
    Such a ring goes round: once it is *steady*, each place gets the slot that it had a lap ago, and everything
    that the slot needs there is in the ring and in the record already. ``_steady`` is the number of the first slot
    to be posted of which that can be true: a lap after the last change of a length.

    A caller who has more slots than are out, and takes them in turn, posts others than came last. That these are
    idle is seen without a set of those in flight, once the whole record repeats one round of slots: then none is
    posted twice within a round.

    At the first slot out of order those in flight become the set ``_loose``, until all of them have come, the last
    ones in order. What was posted since the last look is in ``_order`` alone: ``_in_flight`` puts it into the set.

    What a signal handler raises may come at any call. So what goes out, or comes back, changes this record and the
    ring's counters with no call between.
    """

    WIDTH: ClassVar[int]
    """Bytes of a used element in the ring."""

    ID: ClassVar[int]
    """Which 16-bit word has its slot, of the 8 bytes that have that and the length."""

    def __init__(self, size: int, places: int, first: int, chains: Sequence[Chain]) -> None:
        """Set up the record.

        Args:
            size: Number of entries of the ring.
            places: Number of places until everything repeats.
            first: Number of the first slot that will be posted.
            chains: The chains, in the order of their slots.
        """
        super().__init__(chains)
        self._size = size
        self._places = places
        self._order = array("H", bytes(2 * places))
        self._expected = bytearray(self.WIDTH * places)
        self._steady = first + places
        self._round = 0
        """Number of slots in the round that the order repeats; 0: it is not known to repeat any."""
        self._changed = first
        """Number of the last slot that was posted in a place of another's, or when that was last looked at."""
        self._loose: set[int] | None = None
        self._noted = first
        """Number of the first slot that was posted since ``_loose`` was brought up to date."""
        # Slots in ``_loose`` that have come: those of ``_came_as``. If they go out again as they are, nothing has
        # to be taken out and put back.
        self._came = NOBODY
        self._came_as = NOTHING
        self._formats: dict[int, _Formats] = {}

    def _posted(self, first: int, end: int) -> array[int]:
        """Return the slots that were posted as number ``first`` to ``end`` - 1 since the start."""
        if first == end:
            return NOTHING
        order, at, over = self._order, first % self._places, (end - 1) % self._places + 1
        return order[at:over] if at < over else order[at:] + order[:over]

    def check(self, slots: Sequence[int]) -> None:
        """Check that all of ``slots`` exist, once each, and are idle; see ``Books``."""
        if slots and slots != self._back:
            self._back = NOTHING  # first: the bytes of these would not fit what came last
            if self._comes_round(slots):
                self._back_raw = b""  # what is expected of them is in the record: from a lap ago
            else:
                self._look_up(slots)
            self._back = array("H", slots)

    def _comes_round(self, slots: Sequence[int]) -> bool:
        """Return whether these slots are the next ones of a round, of which as many have come back."""
        if self._loose is not None:
            return False
        laid, first, count = self._next, self._posted_ever(), len(slots)
        if not self._round:
            if first - self._changed < self._places:
                return False
            order, self._changed = self._order, first
            size = len({*order})
            if self._places % size or order != order[:size] * (self._places // size):
                return False
            self._round = size
        if laid:  # submitted before these, and not in the record yet: they have to be of the round, too
            here, first = first, first + len(laid)
            if self._posted(here, first) != laid:
                return False
        # Those that were posted here a lap ago, and since then once in each round.
        return first + count - self._reaped_ever() <= self._round and self._posted(first, first + count) == slots

    def _before(self, at: int, slots: array[int]) -> None:
        """Look whether slots that will be recorded from a place on, none behind the last one, leave the round.

        Before anything is written: the record and what it is of are written together then, without a call
        between, so that no exception of a signal handler's leaves them different.
        """
        if self._loose is None and self._order[at : at + len(slots)] != slots:  # else a round is looked for later
            self._round, self._changed = 0, self._posted_ever()

    def _in_flight(self) -> set[int]:
        """Return the slots in flight, of a ring that is used out of order."""
        loose, end = self._loose, self._shown_ever()
        assert loose is not None
        # Until the last statement all of this can be done again.
        loose -= self._came
        if self._noted != end:
            loose.update(self._posted(self._noted, end))
        self._came, self._noted = NOBODY, end
        return loose

    def _numbers_of(self, published: int) -> list[int]:
        """Return the numbers of the slots in flight, where ``published`` chains were posted since the start."""
        if self._loose is None:
            return list(range(self._reaped_ever(), published))
        out, found = set(self.out()), []
        oldest = max(0, published - self._size)
        for number in range(published - 1, oldest - 1, -1):
            slot = self._order[number % self._places]
            if slot in out:
                out.discard(slot)
                found.append(number)
        return sorted(found + [max(0, oldest - 1)] * len(out))

    def out(self) -> list[int]:
        """Return the slots that are in flight, lowest first."""
        return sorted(self._all_out() if self._loose is None else self._in_flight())

    def _sort_out(self, elements: bytes, here: int, used: Sequence[bytes]) -> array[int]:
        """Take used elements that are not simply those that were expected; see ``_take_loose``."""
        elements = self._whole(elements, here)
        count = len(elements) // 8
        found = self._posted(here, here + count)
        if joined(used, found) == elements:
            self._take_back(found, count, elements, NOBODY)
            return found
        loose, end = {*self._all_out()}, self._shown_ever()
        self._loose, self._noted, self._came = loose, end, NOBODY
        return self._take_loose(elements, here, used, end, count)

    def _take_loose(self, elements: bytes, here: int, used: Sequence[bytes], shown: int, count: int) -> array[int]:
        """Take used elements in any order.

        A comparison of sets and one of bytes are the whole check: each slot is in flight, none came twice, and
        each element is what its slot's should be.

        Args:
            elements: A private copy: of each the 8 bytes that have its slot and the length.
            here: The place of the first.
            used: By slot: what is expected of its element.
            shown: How many slots were shown to the device since the start.
            count: How many elements.
        """
        try:
            apart, pack = self._formats[count]
        except KeyError:
            apart, pack = self._format(count)
        slots = apart(elements)
        came = set(slots)
        loose = self._loose
        if loose is None or self._came or self._noted != shown:
            loose = self._in_flight()
        if (
            len(came) == count
            and came <= loose
            and (b"".join(itemgetter(*slots)(used)) if count > 1 else used[slots[0]]) == elements
        ):
            found = array("H", pack(*slots))
        else:
            elements = self._whole(elements, here)
            if not elements:
                return NOTHING
            found, came = self._one_by_one(elements, here)
            count = len(found)
        if found[0] == self._order[here] and len(came) == len(loose) and found == self._posted(here, here + count):
            # All have come, these in order. What the record has by place is old, from the next one on.
            self._changed = changed = self._posted_ever()
            self._steady, self._round = changed + self._places, 0
            self._take_back(found, count, elements, NOBODY)
        else:
            self._take_back(found, count, elements, came)
        return found

    def _format(self, count: int) -> _Formats:
        """Return what takes the slots out of so many elements, and what packs them; kept for few."""
        made = Struct("<" + f"{2 * self.ID}xH{6 - 2 * self.ID}x" * count).unpack, Struct(f"<{count}H").pack
        if count <= FEW:
            self._formats[count] = made
        return made

    def _one_by_one(self, elements: bytes, here: int) -> tuple[array[int], set[int]]:
        """Take used elements of which one has another length than the last time, or is invalid; the set, too."""
        loose, came = self._in_flight(), set[int]()
        found = array("H")
        for element in array("Q", elements):
            slot = self._named(element)
            if slot not in loose or slot in came:
                self._no_such_chain(slot)
            self._note(slot, element)
            came.add(slot)
            found.append(slot)
        return found, came

    # --- what differs between the ring formats ------------------------------------------------------------------

    def _all_out(self) -> array[int]:
        """Return the slots in flight while the device uses them in order."""
        raise NotImplementedError

    def _posted_ever(self) -> int:
        """Return how many slots were posted since the start, shown or not."""
        raise NotImplementedError

    def _shown_ever(self) -> int:
        """Return how many slots were shown to the device since the start."""
        raise NotImplementedError

    def _reaped_ever(self) -> int:
        """Return how many slots were reaped since the start."""
        raise NotImplementedError

    def _take_back(self, found: array[int], count: int, raw: bytes, came: Set[int]) -> None:
        """Record slots as reaped, here and in the ring, without a call.

        Args:
            found: The slots.
            count: Their number.
            raw: Their used elements.
            came: The slots, of a ring that is used out of order; none: it is used in order, from now on.
        """
        raise NotImplementedError

    def _whole(self, elements: bytes, here: int) -> bytes:
        """Return those of the elements that are used for certain."""
        return elements

    def _named(self, element: int) -> int:
        """Return what an element names; it need not be a slot."""
        raise NotImplementedError

    def _note(self, slot: int, element: int) -> None:
        """Check the length in a used element.

        A device tends to report the same length again, also one that is too long: it is expected from now on.
        """
        raise NotImplementedError

    def _no_such_chain(self, slot: int) -> NoReturn:
        """Break the queue because a used element names a slot that is not in flight."""
        raise NotImplementedError


def joined(pieces: Sequence[bytes], slots: Sequence[int]) -> bytes:
    """Return the pieces of these slots, one after the other."""
    return b"".join(itemgetter(*slots)(pieces)) if len(slots) > 1 else pieces[slots[0]] if slots else b""
