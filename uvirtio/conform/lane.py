"""A virtqueue in the hands of a test: descriptors as the test wants them, and a ledger of what is out (2.7).

The ring's own memory comes from an ordinary queue, and is written through ``diag.raw``. What the device may not
write is copied at each kick and compared at the next access (2.7.5.1). ``SplitLane`` is here, ``PackedLane`` in
``packed_lane``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from uvirtio.conform.memory import Buffer, Piece
from uvirtio.diag.raw import Descriptor, RawSplit
from uvirtio.errors import Misuse
from uvirtio.interfaces.memory import Doorbell
from uvirtio.spec import ring
from uvirtio.virtqueue.base import VirtqueueBase
from uvirtio.virtqueue.split import SplitQueue

Element = Buffer | Piece
"""What a chain is made of."""

UNKNOWN: Final = "D-USED-05"
"""The row of a used element that names no chain that is out."""

_STRAYS: Final = (
    "D-DESC-03: the descriptor table was written",
    "D-DESC-03: the available ring was written",
    "D-DESC-04: bytes behind the used ring were written",
)


@dataclass(slots=True, eq=False)
class Posted:
    """A chain that was laid into the ring."""

    head: int
    """Of a packed ring: the buffer id."""
    descriptors: list[int]
    room: int
    """The bytes that the device may write to it."""
    elements: tuple[Element, ...] = field(repr=False)
    length: int | None = None
    """What the used element says; None: it did not come back yet."""
    used_slot: int | None = None
    """Of a packed ring: where its used slot is."""


class Used(NamedTuple):
    """One element of the used ring (2.7.8)."""

    id: int
    length: int
    posted: Posted | None
    """The chain; None: no chain with this head is out."""


class Lane(ABC):
    """One enabled queue of either format."""

    kind: str

    def __init__(self, queue: VirtqueueBase, doorbell: Doorbell, *, with_data: bool, in_order: bool) -> None:
        """Take over a queue that is enabled and that nothing else uses.

        Args:
            queue: The queue; closed with the lane.
            doorbell: Its doorbell, the transport's.
            with_data: NOTIFICATION_DATA was negotiated (2.9).
            in_order: IN_ORDER was negotiated.
        """
        self.index = queue.index
        self.size = queue.size
        self.queue = queue
        self.doorbell = doorbell
        self.kicks = 0
        self.out: dict[int, Posted] = {}
        """The chains that were published and did not come back, by head, oldest first."""
        self.faults: list[str] = []
        """What the ring has as used that it should not, each with a row's id."""
        self.strays: list[str] = []
        """What the device wrote though it may not, each with a row's id."""
        self._with_data = with_data
        self._in_order = in_order
        self._desc, self._driver, self._device = queue.areas

    @abstractmethod
    def chain(self, *elements: Element) -> Posted:
        """Lay a chain of direct descriptors, not yet visible (2.7.5, 2.8.6).

        Args:
            *elements: Buffers and pieces, readable ones first.
        """

    @abstractmethod
    def publish(self, *chains: Posted) -> None:
        """Make chains visible to the device (2.7.6, 2.8.21), without a kick.

        Args:
            *chains: What ``chain`` or ``indirect`` returned.
        """

    def kick(self) -> None:
        """Notify the device, whether or not it asks for it (2.7.13)."""
        self._seal()
        self.kicks += 1
        # 2.9: with NOTIFICATION_DATA the upper half says where the driver is.
        self.doorbell.ring(self.index | self._kick_data() << 16 if self._with_data else self.index)

    @abstractmethod
    def _kick_data(self) -> int:
        """Where the next chain will be, as a kick with NOTIFICATION_DATA says it (2.9)."""

    def post(self, *elements: Element) -> Posted:
        """Lay a chain, publish it and kick.

        Args:
            *elements: Buffers and pieces, readable ones first.
        """
        posted = self.chain(*elements)
        self.publish(posted)
        self.kick()
        return posted

    @abstractmethod
    def take(self) -> list[Used]:
        """The used elements that are new since the last call, oldest first; the ledger is kept."""

    def _done(self, posted: Posted) -> list[Posted]:
        """The chains that a used element stands for, which are no longer out."""
        # 2.7.9, 2.8.8: with IN_ORDER an element may stand for all chains up to the one that it names.
        done = [posted]
        if self._in_order:
            heads = list(self.out)
            done = [self.out[head] for head in heads[: heads.index(posted.head) + 1]]
        for one in done:
            del self.out[one.head]
        return done

    def _judge(self, posted: Posted, length: int) -> None:
        """Note the length that a used element says (2.7.8, 2.8.4)."""
        posted.length = length
        if length > posted.room:
            self.faults.append(f"D-USED-04: len {length} for a chain with {posted.room} writable bytes")

    @abstractmethod
    def compare(self) -> None:
        """Note what changed since the last kick though the device may not write it (2.7.5.1, 2.8.15)."""

    @abstractmethod
    def _seal(self) -> None:
        """Compare, and remember what the device may not write."""

    def contents(self) -> tuple[bytes, bytes, bytes]:
        """The three areas as they are now, to be compared with later."""
        return bytes(self._desc.view), bytes(self._driver.view), bytes(self._device.view)

    @abstractmethod
    def words(self) -> str:
        """Positions and flags in one line, for the log."""

    @abstractmethod
    def close(self) -> None:
        """Release the ring and its memory; only after a confirmed reset."""


class SplitLane(Lane):
    """One enabled split queue (2.7)."""

    kind = "split"

    def __init__(self, queue: SplitQueue, doorbell: Doorbell, *, with_data: bool, in_order: bool) -> None:
        """Take over a queue that is enabled and that nothing else uses.

        Args:
            queue: The queue; closed with the lane.
            doorbell: Its doorbell, the transport's.
            with_data: NOTIFICATION_DATA was negotiated (2.9).
            in_order: IN_ORDER was negotiated.
        """
        super().__init__(queue, doorbell, with_data=with_data, in_order=in_order)
        self._raw = RawSplit(queue)
        self._free = list(range(self.size))
        self._seen = 0
        self._behind = min(ring.used_size(self.size), self._device.size)
        self._sealed: tuple[bytes, bytes, bytes] | None = None

    # --- laying ---------------------------------------------------------------------------------------------

    @property
    def raw(self) -> RawSplit:
        """The ring for whoever writes it without a ledger; what the device wrote until now is noted first."""
        self.compare()
        self._sealed = None
        return self._raw

    def chain(self, *elements: Element) -> Posted:
        """Lay a chain of direct descriptors, not yet visible (2.7.5).

        Args:
            *elements: Buffers and pieces, readable ones first.
        """
        pieces = flat(elements)
        return self._lay([(piece, 0) for piece in pieces], elements, room(pieces))

    def indirect(
        self, table: Buffer, *elements: Element, before: Sequence[Element] = (), flags: int = 0
    ) -> Posted:
        """Lay a chain whose last descriptor names an indirect table (2.7.5.3), not yet visible.

        Args:
            table: A readable buffer that ``table_of`` made, for these elements.
            *elements: What is in the table.
            before: Elements in direct descriptors ahead of it.
            flags: More flags of the descriptor that names the table.
        """
        direct = flat(before)
        laid = [(piece, 0) for piece in direct]
        laid.append((Piece(table.address, table.size, False), ring.DESC_F_INDIRECT | flags))
        return self._lay(laid, (*before, *elements), room(direct) + room(flat(elements)))

    def _lay(self, laid: list[tuple[Piece, int]], elements: tuple[Element, ...], writable: int) -> Posted:
        raw = self.raw
        places, self._free = self._free[: len(laid)], self._free[len(laid) :]
        if len(places) < len(laid):
            raise Misuse(f"a chain of {len(laid)} descriptors", seen=f"{len(places)} are free", expected="enough")
        for number, (piece, more) in enumerate(laid):
            flags = more | (ring.DESC_F_WRITE if piece.writable else 0)
            following = 0
            if number + 1 < len(laid):
                flags |= ring.DESC_F_NEXT
                following = places[number + 1]
            raw.descriptor(places[number], Descriptor(piece.address, piece.length, flags, following))
        return Posted(places[0], places, writable, elements)

    def publish(self, *chains: Posted) -> None:
        """Make chains visible to the device (2.7.6), without a kick.

        Args:
            *chains: What ``chain`` or ``indirect`` returned.
        """
        for chain in chains:
            self.out[chain.head] = chain
        self.raw.show(*(chain.head for chain in chains))
        self._seal()

    def _kick_data(self) -> int:
        return self._raw.idx

    # --- what the device wrote ------------------------------------------------------------------------------

    @property
    def used_idx(self) -> int:
        """used.idx (2.7.8)."""
        return self._raw.used_idx

    @property
    def used_flags(self) -> int:
        """used.flags (2.7.10)."""
        return self._raw.used_flags

    @property
    def avail_event(self) -> int:
        """avail_event (2.7.10)."""
        return self._raw.avail_event

    @property
    def idx(self) -> int:
        """avail.idx as published last."""
        return self._raw.idx

    def take(self) -> list[Used]:
        """The used elements that are new since the last call, oldest first; the ledger is kept."""
        now = self._raw.used_idx
        count = (now - self._seen) & 0xFFFF
        if count > self.size:
            self.faults.append(f"{UNKNOWN}: used.idx went from {self._seen} to {now} of {self.size} entries")
            count = 0
        self._raw.fence()
        found = []
        for place in range(self._seen, self._seen + count):
            if self._in_order and not self.out:
                break
            found.append(self._take_one(*self._raw.used(place)))
        self._seen = now
        return found

    def _take_one(self, ident: int, length: int) -> Used:
        posted = self.out.get(ident)
        if posted is None:
            self.faults.append(f"{UNKNOWN}: a used element names {ident}, which is no chain that is out")
            return Used(ident, length, None)
        for one in self._done(posted):
            self._free += one.descriptors
        self._judge(posted, length)
        return Used(ident, length, posted)

    def compare(self) -> None:
        """Note what changed of the descriptor table and the available ring since the last kick (2.7.5.1)."""
        if self._sealed is None:
            return
        for now, before, what in zip(self._fixed(), self._sealed, _STRAYS, strict=True):
            if now != before and what not in self.strays:
                self.strays.append(what)

    def _seal(self) -> None:
        self.compare()
        self._sealed = self._fixed()

    def _fixed(self) -> tuple[bytes, bytes, bytes]:
        """What the device may not write: descriptor table, available ring, and what lies behind the used ring."""
        return bytes(self._desc.view), bytes(self._driver.view), bytes(self._device.view[self._behind :])

    def words(self) -> str:
        """Indices and flags in one line, for the log."""
        raw = self._raw
        return (
            f"queue {self.index}: avail idx {raw.idx} flags {raw.flags} used_event {raw.used_event}; "
            f"used idx {raw.used_idx} flags {raw.used_flags} avail_event {raw.avail_event}; {len(self.out)} out"
        )

    def close(self) -> None:
        """Release the ring and its memory; only after a confirmed reset."""
        self._raw.close()
        self.queue.close()


def flat(elements: Sequence[Element]) -> list[Piece]:
    """The elements as pieces of one run of device addresses each.

    Args:
        elements: Buffers and pieces.
    """
    found: list[Piece] = []
    for element in elements:
        found += element.pieces() if isinstance(element, Buffer) else [element]
    return found


def room(pieces: Sequence[Piece]) -> int:
    """The bytes that the device may write.

    Args:
        pieces: The elements of a chain.
    """
    return sum(piece.length for piece in pieces if piece.writable)


def table_of(pieces: Sequence[Piece], entries: int | None = None) -> bytes:
    """An indirect table with these pieces linked in order, for a split ring (2.7.5.3).

    Args:
        pieces: What the chain is made of.
        entries: Descriptors in the table; None: one for each piece.
    """
    content = b""
    for number, piece in enumerate(pieces):
        flags = ring.DESC_F_WRITE if piece.writable else 0
        following = 0
        if number + 1 < len(pieces):
            flags |= ring.DESC_F_NEXT
            following = number + 1
        content += piece.address.to_bytes(8, "little") + piece.length.to_bytes(4, "little")
        content += flags.to_bytes(2, "little") + following.to_bytes(2, "little")
    return content.ljust(16 * (len(pieces) if entries is None else entries), b"\0")
