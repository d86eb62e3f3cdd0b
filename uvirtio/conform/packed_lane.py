"""A packed virtqueue in the hands of a test (2.8): what ``SplitLane`` is for a split one.

Slots are counted from the start: modulo the size they are places in the ring, and the laps have the wrap counters
1, 0, 1, ... (2.8.1). What lies between the next used slot and the next one that will be published is the device's;
all other slots are compared at each access with what they held at the last kick.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from uvirtio.conform.lane import Element, Lane, Posted, Used, flat, room
from uvirtio.conform.memory import Buffer, Piece
from uvirtio.diag.raw import Descriptor, RawPacked
from uvirtio.errors import Misuse
from uvirtio.interfaces.memory import Doorbell
from uvirtio.spec import ring
from uvirtio.virtqueue.packed import PackedQueue

_BOTH: Final = ring.PACKED_DESC_F_AVAIL | ring.PACKED_DESC_F_USED

UNKNOWN_SLOT: Final = "D-PKD-18"
"""The row of a used slot whose id is of no list that is out."""

_SLOT: Final = "D-PKD-06: a slot that is not the device's was written"
_STRAYS: Final = (
    "D-DESC-04: the driver event suppression structure was written",
    "D-DESC-04: bytes behind the device event suppression structure were written",
)


class PackedLane(Lane):
    """One enabled packed queue (2.8)."""

    kind = "packed"

    def __init__(self, queue: PackedQueue, doorbell: Doorbell, *, with_data: bool, in_order: bool) -> None:
        """Take over a queue that is enabled and that nothing else uses.

        Args:
            queue: The queue; closed with the lane.
            doorbell: Its doorbell, the transport's.
            with_data: NOTIFICATION_DATA was negotiated (2.9).
            in_order: IN_ORDER was negotiated.
        """
        super().__init__(queue, doorbell, with_data=with_data, in_order=in_order)
        self.laid = 0
        """Slots that were written, since the start."""
        self.shown = 0
        """Slots that were made visible, since the start."""
        self.reaped = 0
        """Slots that came back, since the start: the next used slot is here."""
        self._raw = RawPacked(queue)
        self._ids = list(range(self.size))
        self._heads: dict[Posted, tuple[int, Descriptor]] = {}
        self._lost = False
        self._sealed: tuple[bytearray, bytes, bytes] | None = None

    def wrap(self, slot: int) -> int:
        """The wrap counter of a slot's lap (2.8.1).

        Args:
            slot: Counted from the start.
        """
        return 1 - (slot // self.size & 1)

    def off_wrap(self, slot: int) -> int:
        """A slot as an event suppression structure has it (2.8.10).

        Args:
            slot: Counted from the start.
        """
        return slot % self.size | self.wrap(slot) << 15

    # --- laying ---------------------------------------------------------------------------------------------

    @property
    def raw(self) -> RawPacked:
        """The ring for whoever writes it without a ledger; what the device wrote until now is noted first."""
        self.compare()
        self._sealed = None
        return self._raw

    def chain(self, *elements: Element, ident: int | None = None, others: int | None = None) -> Posted:
        """Lay a list, not yet visible (2.8.6): its first slot still looks like one of the lap before.

        Args:
            *elements: Buffers and pieces, readable ones first.
            ident: The buffer id, 16 bits; None: a free one below the size.
            others: What the slots before the last have for an id; None: the same.
        """
        pieces = flat(elements)
        return self._lay([(piece, 0) for piece in pieces], elements, room(pieces), ident, others)

    def indirect(self, table: Buffer, *elements: Element, ident: int | None = None) -> Posted:
        """Lay one slot that names an indirect table (2.8.7), not yet visible.

        Args:
            table: A readable buffer that ``packed_table_of`` made, for these elements.
            *elements: What is in the table.
            ident: The buffer id, 16 bits; None: a free one below the size.
        """
        laid = [(Piece(table.address, table.size, False), ring.DESC_F_INDIRECT)]
        return self._lay(laid, elements, room(flat(elements)), ident, None)

    def _lay(
        self,
        laid: list[tuple[Piece, int]],
        elements: tuple[Element, ...],
        writable: int,
        ident: int | None,
        others: int | None,
    ) -> Posted:
        raw, first = self.raw, self.laid
        free = self.size - (first - self.reaped)
        if free < len(laid):
            raise Misuse(f"a list of {len(laid)} slots", seen=f"{free} are free", expected="enough")
        if ident is None:
            ident = self._ids.pop(0)
        places = []
        head = Descriptor(0, 0)
        for number, (piece, more) in enumerate(laid):
            slot = first + number
            flags = more | (ring.DESC_F_WRITE if piece.writable else 0)
            flags |= ring.PACKED_DESC_F_AVAIL if self.wrap(slot) else ring.PACKED_DESC_F_USED
            last = number + 1 == len(laid)
            if not last:
                flags |= ring.DESC_F_NEXT
            entry = Descriptor(piece.address, piece.length, flags, ident if last or others is None else others)
            if number == 0:
                head = entry
                hidden = 0 if self.wrap(slot) else _BOTH
                entry = entry._replace(flags=flags & ~_BOTH | hidden)
            raw.set_slot(slot % self.size, entry)
            places.append(slot % self.size)
        self.laid += len(laid)
        posted = Posted(ident, places, writable, elements)
        self._heads[posted] = (first, head)
        return posted

    def publish(self, *chains: Posted) -> None:
        """Store the flags of the first slot of each list (2.8.21), without a kick.

        Args:
            *chains: What ``chain`` or ``indirect`` returned.
        """
        raw = self.raw
        for chain in chains:
            first, head = self._heads.pop(chain)
            self.out[chain.head] = chain
            self.shown = max(self.shown, first + len(chain.descriptors))
            raw.set_slot(first % self.size, head)
        self._seal()

    def _kick_data(self) -> int:
        return self.off_wrap(self.shown)

    # --- what the device wrote ------------------------------------------------------------------------------

    @property
    def device_event(self) -> tuple[int, int]:
        """(off_wrap, flags) of the device event suppression structure (2.8.10)."""
        return self._raw.device_event

    def slot(self, place: int) -> Descriptor:
        """What a place of the ring holds now.

        Args:
            place: 0 to ``size - 1``.
        """
        return self._raw.slot(place)

    def used_behind(self) -> int | None:
        """A slot that is marked as used while an earlier one is not (2.8.12); None: there is none."""
        for slot in range(self.reaped, self.shown):
            if self._is_used(slot):
                return None if slot == self.reaped else slot
        return None

    def _is_used(self, slot: int) -> bool:
        """2.8.1: whether AVAIL and USED both equal the wrap counter of this slot's lap."""
        return self._raw.slot(slot % self.size).flags & _BOTH == (_BOTH if self.wrap(slot) else 0)

    def take(self) -> list[Used]:
        """The used slots that are new since the last call, oldest first; the ledger is kept."""
        found = []
        while not self._lost and self._is_used(self.reaped):
            self._raw.fence()
            found.append(self._take_one())
        return found

    def _take_one(self) -> Used:
        place = self.reaped % self.size
        entry = self._raw.slot(place)
        ident, length = entry.last, entry.length
        posted = self.out.get(ident)
        if posted is None:
            # How many slots to go on by is not known, so this ring cannot be followed any further.
            self._lost = True
            self.faults.append(f"{UNKNOWN_SLOT}: a used slot has the id {ident}, which is of no list that is out")
            return Used(ident, length, None)
        for one in self._done(posted):
            self.reaped += len(one.descriptors)
            if one.head < self.size and one.head not in self._ids:
                self._ids.append(one.head)
        posted.used_slot = place
        # 2.8.4: without WRITE the length means nothing; some devices never set it.
        if not posted.room and not entry.flags & ring.DESC_F_WRITE:
            length = 0
        self._judge(posted, length)
        if self._sealed is not None:
            self._sealed[0][16 * place : 16 * place + 16] = self._desc.view[16 * place : 16 * place + 16]
        return Used(ident, length, posted)

    def compare(self) -> None:
        """Note what changed though it is not the device's, since the last kick (2.8.15)."""
        if self._sealed is None:
            return
        found = []
        now, before = bytes(self._desc.view), self._sealed[0]
        if now != before:
            owned = {slot % self.size for slot in range(self.reaped, self.shown)}
            end = ring.packed_ring_size(self.size)
            others = [place for place in range(self.size) if place not in owned]
            if any(now[16 * one : 16 * one + 16] != before[16 * one : 16 * one + 16] for one in others):
                found.append(_SLOT)
            if now[end:] != before[end:]:
                found.append("D-DESC-04: bytes behind the descriptor ring were written")
        for is_, was, what in zip(self._fixed(), self._sealed[1:], _STRAYS, strict=True):
            if is_ != was:
                found.append(what)
        self.strays += [what for what in found if what not in self.strays]

    def _seal(self) -> None:
        self.compare()
        self._sealed = (bytearray(self._desc.view), *self._fixed())

    def _fixed(self) -> tuple[bytes, bytes]:
        """The driver's event structure, and what lies behind the device's."""
        return bytes(self._driver.view), bytes(self._device.view[ring.PACKED_EVENT_SIZE :])

    def words(self) -> str:
        """Positions and event structures in one line, for the log."""
        event = bytes(self._driver.view[:4])
        off_wrap, flags = self._raw.device_event
        flags_now = self._raw.slot(self.reaped % self.size).flags
        return (
            f"queue {self.index}: next avail {self.off_wrap(self.shown):#x}, next used "
            f"{self.off_wrap(self.reaped):#x} with flags {flags_now:#x}; driver event {event.hex()}, device event "
            f"{off_wrap:#x} flags {flags}; {len(self.out)} out"
        )

    def close(self) -> None:
        """Release the ring and its memory; only after a confirmed reset."""
        self._raw.close()
        self.queue.close()


def packed_table_of(pieces: Sequence[Piece], *, ident: int = 0, last_flags: int = 0) -> bytes:
    """An indirect table for a packed ring: its order counts, and of the flags only WRITE (2.8.7).

    Args:
        pieces: What the list is made of.
        ident: What stands where a slot has the buffer id, which means nothing here.
        last_flags: More flags of the last entry, which mean nothing here.
    """
    content = b""
    for number, piece in enumerate(pieces):
        flags = ring.DESC_F_WRITE if piece.writable else 0
        if number + 1 == len(pieces):
            flags |= last_flags
        content += piece.address.to_bytes(8, "little") + piece.length.to_bytes(4, "little")
        content += ident.to_bytes(2, "little") + flags.to_bytes(2, "little")
    return content
