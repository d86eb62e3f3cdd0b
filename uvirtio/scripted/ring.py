"""The device's side of a split ring (2.7): strict about the driver, and able to lie to it.

``DeviceRing.pop`` follows the standard to the letter and raises ``DriverViolation``, naming the
requirement, wherever the driver broke one. What it gives back can be bent by ``Lies``.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from uvirtio.scripted.memory import Memory
from uvirtio.spec import ring

_MASK = 0xFFFF


def need_event(event: int, new: int, old: int) -> bool:
    """Whether the index ``event`` was passed on the way from ``old`` to ``new``, all modulo 65536 (2.7.7.1).

    ``old`` is the index at the last such question, ``new`` the one published since. A batch of 65536 or more looks
    like none at all; a ring never holds that many.
    """
    return (new - event - 1) & 0xFFFF < (new - old) & 0xFFFF


class DriverViolation(AssertionError):
    """The driver broke a rule of the standard."""


def obey(requirement: str, holds: bool, message: str) -> None:
    """Raise ``DriverViolation`` unless a rule holds."""
    if not holds:
        raise DriverViolation(f"{requirement}: {message}")


@dataclass
class Lies:
    """How the device bends what it writes; each is applied to the true value, modulo the field's width."""

    used_id: Callable[[int], int] = lambda head: head
    used_len: Callable[[int], int] = lambda written: written
    used_idx: Callable[[int], int] = lambda index: index
    avail_event: Callable[[int], int] = lambda index: index
    used_flags: int = 0
    slot_flags: Callable[[int], int] = lambda flags: flags
    """Flags of a used slot of a packed ring."""
    duplicate: bool = False
    """Every completion comes twice."""


@dataclass
class Element:
    """One element of a chain: device address, length in bytes, and whether the device writes it."""

    address: int
    length: int
    writable: bool


@dataclass
class Chain:
    """One chain that the device took from the available ring."""

    head: int
    elements: list[Element]
    memory: Memory
    descriptors: list[int] = field(default_factory=list)
    indirect: bool = False
    tables: list[tuple[int, int]] = field(default_factory=list)

    @property
    def readable(self) -> list[Element]:
        """The elements that the device reads."""
        return [element for element in self.elements if not element.writable]

    @property
    def writable(self) -> list[Element]:
        """The elements that the device writes."""
        return [element for element in self.elements if element.writable]

    @property
    def room(self) -> int:
        """The bytes of all writable elements."""
        return sum(element.length for element in self.writable)

    def data(self) -> bytes:
        """The bytes of all readable elements."""
        return b"".join(self.memory.read(element.address, element.length) for element in self.readable)

    def fill(self, data: bytes) -> int:
        """Write ``data`` into the writable elements; the number of bytes that fitted."""
        done = 0
        for element in self.writable:
            piece = data[done : done + element.length]
            if not piece:
                break
            self.memory.write(element.address, piece)
            done += len(piece)
        return done


class DeviceQueue:
    """The device's end of one queue, whatever its format: what was negotiated, and what it has."""

    kind: str

    def __init__(
        self,
        memory: Memory,
        size: int,
        areas: tuple[int, int, int],
        *,
        indirect: bool = False,
        event_idx: bool = False,
        in_order: bool = False,
        notify_on_empty: bool = False,
        lies: Lies | None = None,
        check_buffers: bool = True,
        index: int = 0,
    ) -> None:
        """Take over a queue that the driver has enabled.

        Args:
            memory: What the device reaches.
            size: Number of entries.
            areas: Device addresses of the descriptor, driver and device areas.
            indirect: INDIRECT_DESC was negotiated.
            event_idx: EVENT_IDX was negotiated.
            in_order: IN_ORDER was negotiated.
            notify_on_empty: NOTIFY_ON_EMPTY was negotiated, which is a legacy driver's.
            lies: How the device bends what it writes; None: it does not.
            check_buffers: Every element of a chain must lie in mapped memory.
            index: The queue's number.
        """
        self.memory = memory
        self.size = size
        self.index = index
        self.areas = areas
        self.indirect, self.event_idx, self.in_order = indirect, event_idx, in_order
        self.notify_on_empty = notify_on_empty
        self.check_buffers = check_buffers
        self.lies = lies or Lies()
        self.out: dict[int, Chain] = {}
        """Chains that were popped and not pushed, by head or buffer id."""
        self.noted: list[str] = []
        """Rules that the driver broke without an effect on the device, each with its requirement's id."""
        self.popped = 0
        self.batching = False
        self._signalled = 0

    def area_sizes(self) -> tuple[int, int, int]:
        """The lengths of the three areas, in bytes."""
        raise NotImplementedError

    def pop(self) -> Chain | None:
        """The next chain that the driver made available; None if there is none."""
        raise NotImplementedError

    def pop_all(self) -> list[Chain]:
        """All chains that the driver made available."""
        return list(iter(self.pop, None))

    def addresses_in_use(self) -> list[int]:
        """One address at least in every page that the device may touch now."""
        spans = list(zip(self.areas, self.area_sizes(), strict=True))
        spans += [(part.address, part.length) for chain in self.out.values() for part in chain.elements]
        return [at for start, length in spans for at in (*range(start, start + length, 4096), start + length - 1)]


class DeviceRing(DeviceQueue):
    """The device's end of one split queue at these device addresses.

    With ``in_order`` the driver's descriptors must lie in their order, and ``batching`` writes one used element
    for all up to ``flush``.
    """

    kind = "split"

    def __init__(self, memory: Memory, size: int, desc: int, avail: int, used: int, **how: Any) -> None:
        """Take over a queue; ``how``: what ``DeviceQueue`` takes."""
        obey("SPL-29", ring.is_power_of_two(size), f"queue size {size}")
        for address, alignment in ((desc, ring.DESC_ALIGN), (avail, ring.AVAIL_ALIGN), (used, ring.USED_ALIGN)):
            obey("SPL-01", address % alignment == 0, f"area at {address:#x}, alignment {alignment}")
        super().__init__(memory, size, (desc, avail, used), **how)
        self.desc, self.avail, self.used = desc, avail, used
        self.last_avail = 0
        self.used_idx = 0
        self._busy: set[int] = set()
        self._seen_idx = 0
        self._batch: tuple[int, int] | None = None
        self._batched = 0
        self._next_descriptor = 0
        obey("SPL-18", self._used_word(ring.RING_FLAGS) == 0, "used.flags is not zero at the start")

    # --- words ----------------------------------------------------------------------------------------------

    def _avail_word(self, offset: int) -> int:
        return self.memory.read_int(self.avail + offset, 2)

    def _used_word(self, offset: int) -> int:
        return self.memory.read_int(self.used + offset, 2)

    def write_used_element(self, slot: int, head: int, written: int) -> None:
        """Write an entry of the used ring (2.7.8)."""
        place = self.used + ring.RING_ENTRIES + ring.USED_ENTRY_SIZE * (slot % self.size)
        self.memory.write_int(place, 4, head)
        self.memory.write_int(place + 4, 4, written)

    def write_used_idx(self, value: int) -> None:
        """Write the used index."""
        self.memory.write_int(self.used + ring.RING_IDX, 2, value)

    def write_used_flags(self, value: int) -> None:
        """Write the flags of the used ring."""
        self.memory.write_int(self.used + ring.RING_FLAGS, 2, value)

    def write_avail_event(self, value: int) -> None:
        """Write avail_event (2.7.10)."""
        self.memory.write_int(self.used + ring.avail_event_offset(self.size), 2, value)

    def scribble(self) -> None:
        """Overwrite the descriptor table and the available ring, which the device has no business to write."""
        self.memory.write(self.desc, b"\xff" * ring.desc_size(self.size))
        for chain in self.out.values():
            if chain.indirect:
                address, length = self._raw(chain.head)[:2]
                if self.memory.is_mapped(address, length):
                    self.memory.write(address, b"\xff" * length)

    def area_sizes(self) -> tuple[int, int, int]:
        """The lengths of descriptor table, available ring and used ring, in bytes (2.7)."""
        return ring.desc_size(self.size), ring.avail_size(self.size), ring.used_size(self.size)

    def published(self) -> int:
        """avail.idx as the driver left it."""
        return self._avail_word(ring.RING_IDX)

    # --- taking ---------------------------------------------------------------------------------------------

    def available(self) -> int:
        """Chains that the driver has published and that were not popped."""
        flags = self._avail_word(ring.RING_FLAGS)
        if self.event_idx:
            if flags:  # wrong of the driver, and of no effect (2.7.7.2)
                self.noted.append(f"SPL-14: avail.flags is {flags:#x} though EVENT_IDX was negotiated")
        else:
            obey("SPL-13", flags in (0, ring.AVAIL_F_NO_INTERRUPT), f"avail.flags is {flags:#x}")
        index = self._avail_word(ring.RING_IDX)
        moved = (index - self._seen_idx) & _MASK
        obey("SPL-12", moved <= self.size, f"avail.idx went from {self._seen_idx} to {index}")
        self._seen_idx = index
        waiting = (index - self.last_avail) & _MASK
        obey("SPL-12", waiting + len(self.out) <= self.size, f"{waiting} chains more, {len(self.out)} out")
        return waiting

    def pop(self) -> Chain | None:
        """The next chain that the driver made available; None if there is none."""
        if not self.available():
            return None
        head = self._avail_word(ring.RING_ENTRIES + ring.AVAIL_ENTRY_SIZE * (self.last_avail % self.size))
        obey("SPL-04", head < self.size, f"head {head} of a queue of {self.size}")
        obey("SPL-12", head not in self.out, f"head {head} is out already")
        chain = self._walk(head)
        obey("SPL-12", self._busy.isdisjoint(chain.descriptors), f"chain {head} uses descriptors of another chain")
        self._busy.update(chain.descriptors)
        self.last_avail = (self.last_avail + 1) & _MASK
        self.popped += 1
        self.out[head] = chain
        return chain

    def _raw(self, index: int, table: int | None = None) -> tuple[int, int, int, int]:
        address = (self.desc if table is None else table) + ring.DESC_SIZE * index
        return struct.unpack("<QIHH", self.memory.read(address, ring.DESC_SIZE))

    def _walk(self, head: int) -> Chain:
        chain = Chain(head, [], self.memory)
        table: int | None = None
        entries = self.size
        index = head
        visited: set[int] = set()
        while True:
            obey("SPL-04", index < entries, f"next {index} of {entries} descriptors")
            obey("SPL-04", index not in visited, f"chain {head} loops at {index}")
            visited.add(index)
            address, length, flags, following = self._raw(index, table)
            if self.in_order:
                self._check_order(index, flags, following, table)
            obey("SPL-10", not flags & ~7, f"reserved flags {flags:#x}")
            if table is None:
                chain.descriptors.append(index)
            if flags & ring.DESC_F_INDIRECT:
                obey("SPL-07", self.indirect, "INDIRECT was not negotiated")
                obey("SPL-08", table is None, "INDIRECT inside an indirect table")
                obey("SPL-10", not flags & ring.DESC_F_NEXT, "INDIRECT together with NEXT")
                obey("SPL-08", length > 0 and length % ring.DESC_SIZE == 0, f"a table of {length} bytes")
                table, entries, index = address, length // ring.DESC_SIZE, 0
                obey("SPL-09", entries <= self.size, f"a table of {entries} entries, queue of {self.size}")
                visited = set()
                chain.indirect = True
                continue
            writable = bool(flags & ring.DESC_F_WRITE)
            obey("SPL-02", writable or not chain.writable, "a readable element after a writable one")
            obey("SPL-04", length > 0, "an element of no bytes")
            if self.check_buffers:
                obey("SPL-04", self.memory.is_mapped(address, length), f"{address:#x}+{length:#x} is not mapped")
            chain.elements.append(Element(address, length, writable))
            obey("SPL-09", len(chain.elements) <= self.size, "the chain is longer than the queue")
            if not flags & ring.DESC_F_NEXT:
                break
            index = following
        total = sum(element.length for element in chain.elements)
        obey("SPL-04", total <= ring.MAX_CHAIN_BYTES, f"a chain of {total} bytes")
        return chain

    def _check_order(self, index: int, flags: int, following: int, table: int | None) -> None:
        if table is None:
            obey("SPL-06", index == self._next_descriptor, f"descriptor {index}, not {self._next_descriptor}")
            self._next_descriptor = (index + 1) % self.size
            if flags & ring.DESC_F_NEXT:
                obey("SPL-05", following == self._next_descriptor, f"descriptor {index} links to {following}")
        elif flags & ring.DESC_F_NEXT:
            obey("SPL-11", following == index + 1, f"table entry {index} links to {following}")

    # --- giving back ----------------------------------------------------------------------------------------

    def push(self, chain: Chain | int, written: int = 0) -> None:
        """Complete a chain, with the lies on top."""
        head = chain if isinstance(chain, int) else chain.head
        taken = self.out.pop(head, None)
        if taken is not None:
            self._busy.difference_update(taken.descriptors)
        if self.batching:
            self._batch = (head, written)
            self._batched += 1
            return
        for _ in range(2 if self.lies.duplicate else 1):
            self.write_used_element(self.used_idx, self.lies.used_id(head), self.lies.used_len(written))
            self.used_idx = (self.used_idx + 1) & _MASK
        self.write_used_idx(self.lies.used_idx(self.used_idx))

    def flush(self) -> None:
        """Write the used element of a batch, for its last chain, and move the index over all of it (2.7.9)."""
        if self._batch is not None:
            head, written = self._batch
            self.write_used_element(self.used_idx, self.lies.used_id(head), self.lies.used_len(written))
            self.used_idx = (self.used_idx + self._batched) & _MASK
            self._batch, self._batched = None, 0
            self.write_used_idx(self.lies.used_idx(self.used_idx))

    def wants_interrupt(self) -> bool:
        """Whether the driver asked for an interrupt for what was pushed since this was asked last (2.7.7)."""
        old, self._signalled = self._signalled, self.used_idx
        if old == self.used_idx:
            return False
        if self.notify_on_empty and not self.available():  # 6.3: even though it is suppressed
            return True
        if self.event_idx:
            event = self._avail_word(ring.used_event_offset(self.size))
            return need_event(event, self.used_idx, old)
        return not self._avail_word(ring.RING_FLAGS) & ring.AVAIL_F_NO_INTERRUPT

    def ask_for_kicks(self, on: bool = True) -> None:
        """Say whether the next chain should be announced (2.7.10)."""
        if self.event_idx:
            event = self.last_avail if on else self.last_avail - 1
            self.write_avail_event(self.lies.avail_event(event))
            self.write_used_flags(self.lies.used_flags)
        else:
            self.write_used_flags(self.lies.used_flags | (0 if on else ring.USED_F_NO_NOTIFY))
