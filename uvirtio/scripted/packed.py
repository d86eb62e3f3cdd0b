"""The device's side of a packed ring (2.8): strict about the driver, and able to lie to it.

The same face as ``DeviceRing``, so that models and tests need not know which it is.
The whole ring is compared at each look with what the driver may have changed since the last: a slot that is
the device's stays as it was (2.8.16).
"""

from __future__ import annotations

import struct
from typing import Any

from uvirtio.scripted.memory import Memory
from uvirtio.scripted.ring import Chain, DeviceQueue, Element, obey
from uvirtio.spec import ring

_BOTH = ring.PACKED_DESC_F_AVAIL | ring.PACKED_DESC_F_USED
_KNOWN = ring.DESC_F_NEXT | ring.DESC_F_WRITE | ring.DESC_F_INDIRECT | _BOTH


class PackedDeviceRing(DeviceQueue):
    """The device's end of one packed queue at these device addresses.

    ``marks``: whether it sets WRITE in used slots, as 2.8.4 has it; QEMU does not. ``batching`` (with IN_ORDER):
    only the last completion before ``flush`` is written out.
    """

    kind = "packed"

    def __init__(self, memory: Memory, size: int, desc: int, driver: int, device: int, **how: Any) -> None:
        """Take over a queue; ``how``: what ``DeviceQueue`` takes."""
        obey("PKD-20", 0 < size <= ring.MAX_SIZE, f"queue size {size}")
        for address, alignment in ((desc, 16), (driver, 4), (device, 4)):
            obey("PKD-01", address % alignment == 0, f"area at {address:#x}, alignment {alignment}")
        super().__init__(memory, size, (desc, driver, device), **how)
        self.desc, self.driver, self.device = desc, driver, device
        self.marks = True
        self.next_slot = 0
        """Slots taken since the start; where the next list begins, modulo the size."""
        self.used_slot = 0
        self.batch: Chain | None = None
        self._batch_slots = self._batch_length = 0
        self._owned: dict[int, bytes] = {}
        """The slots that are ours, by place, as they were when we took them."""
        obey(
            "PKD-20", not any(memory.read(desc, ring.packed_ring_size(size))), "the ring is not zero at the start"
        )
        obey("PKD-20", memory.read_int(device, 4) == 0, "the device's event structure is not zero at the start")

    # --- words ----------------------------------------------------------------------------------------------

    def _raw(self, slot: int) -> bytes:
        return self.memory.read(self.desc + ring.DESC_SIZE * (slot % self.size), ring.DESC_SIZE)

    def wrap(self, slot: int) -> int:
        """The wrap counter of a lap (2.8.1)."""
        return 1 - (slot // self.size & 1)

    def off_wrap(self, slot: int) -> int:
        """A slot and its wrap counter as an event suppression structure has them (2.8.10)."""
        return slot % self.size | self.wrap(slot) << 15

    def write_used_slot(self, slot: int, ident: int, written: int, flags: int) -> None:
        """A used descriptor: length, id, flags; the flags last."""
        at = self.desc + ring.DESC_SIZE * (slot % self.size)
        self.memory.write_int(at + 8, 4, written)
        self.memory.write_int(at + 12, 2, ident)
        self.memory.write_int(at + 14, 2, flags)

    def used_flags(self, slot: int, *, write: bool = False) -> int:
        """The AVAIL and USED flags of a slot that was used in the lap of ``slot``."""
        return (_BOTH if self.wrap(slot) else 0) | (ring.DESC_F_WRITE if write else 0)

    def driver_event(self) -> tuple[int, int]:
        """The driver's event suppression structure (2.8.10)."""
        return self.memory.read_int(self.driver, 2), self.memory.read_int(self.driver + 2, 2)

    def write_event(self, off_wrap: int, flags: int) -> None:
        """Write the device's event suppression structure."""
        self.memory.write_int(self.device, 2, off_wrap)
        self.memory.write_int(self.device + 2, 2, flags)

    def write_avail_event(self, off_wrap: int) -> None:
        """Ask for a kick at ``slot``."""
        self.write_event(off_wrap & 0xFFFF, ring.PACKED_EVENT_DESC)

    def scribble(self) -> None:
        """Overwrite every slot that is ours but for its flags, and every indirect table."""
        for place in self._owned:
            at = self.desc + ring.DESC_SIZE * place
            self.memory.write(at, b"\xff" * 14)
            self._owned[place] = self.memory.read(at, ring.DESC_SIZE)
        for chain in self.out.values():
            for address, length in chain.tables:
                if self.memory.is_mapped(address, length):
                    self.memory.write(address, b"\xff" * length)

    def area_sizes(self) -> tuple[int, int, int]:
        """The lengths of the ring and of the two event structures, in bytes (2.8)."""
        return ring.packed_ring_size(self.size), ring.PACKED_EVENT_SIZE, ring.PACKED_EVENT_SIZE

    def end_of_list(self) -> int:
        """Offset and wrap counter of the first slot that the driver has not shown."""
        slot = self.next_slot
        while slot - self.next_slot < self.size and self._is_available(slot):
            slot += 1
        return self.off_wrap(slot)

    # --- taking ---------------------------------------------------------------------------------------------

    def available(self) -> int:
        """Whether there is a list more; 1 or 0. Looks also whether the driver kept its hands off our slots."""
        off_wrap, flags = self.driver_event()
        modes = (0, 1, 2) if self.event_idx else (0, 1)
        obey("PKD-21", flags in modes, f"driver event flags {flags:#x}")
        obey("PKD-21", off_wrap & 0x7FFF < self.size, f"driver event offset {off_wrap & 0x7FFF} of {self.size}")
        for place, taken in self._owned.items():
            obey("PKD-03", self._raw(place) == taken, f"slot {place} was written while it was the device's")
        return int(self._is_available(self.next_slot))

    def _is_available(self, slot: int) -> bool:
        bits = int.from_bytes(self._raw(slot)[14:], "little") & _BOTH
        return bits == (ring.PACKED_DESC_F_AVAIL if self.wrap(slot) else ring.PACKED_DESC_F_USED)

    def pop(self) -> Chain | None:
        """The next list that the driver made available; None if there is none."""
        if not self.available():
            return None
        chain = Chain(-1, [], self.memory)
        slot, kinds = self.next_slot, set()
        while True:
            obey("PKD-06", slot - self.used_slot < self.size, "more slots than the ring has")
            obey("PKD-10", self._is_available(slot), f"slot {slot % self.size} of a list is not available")
            address, length, ident, flags = struct.unpack("<QIHH", self._raw(slot))
            obey("PKD-12", not flags & ~_KNOWN, f"reserved flags {flags:#x}")
            chain.descriptors.append(slot % self.size)
            chain.head = ident  # 2.8.6: the last one counts
            kinds.add(bool(flags & ring.DESC_F_INDIRECT))
            obey("PKD-14", len(kinds) == 1, "a list that is chained and indirect")
            if flags & ring.DESC_F_INDIRECT:
                obey("PKD-14", not flags & ring.DESC_F_NEXT, "INDIRECT together with NEXT")
                self._walk_table(chain, address, length)
            else:
                self._element(chain, address, length, flags)
            slot += 1
            if not flags & ring.DESC_F_NEXT:
                break
        # 2.8.6: the id is the driver's own, all 16 bits of it.
        obey("PKD-19", chain.head not in self.out, f"buffer id {chain.head} is out already")
        total = sum(element.length for element in chain.elements)
        obey("SPL-04", total <= ring.MAX_CHAIN_BYTES, f"a list of {total} bytes")
        for place in chain.descriptors:
            self._owned[place] = self._raw(place)
        self.next_slot = slot
        self.popped += 1
        self.out[chain.head] = chain
        return chain

    def _walk_table(self, chain: Chain, address: int, length: int) -> None:
        obey("PKD-11", self.indirect, "INDIRECT was not negotiated")
        obey("PKD-13", 0 < length <= ring.DESC_SIZE * self.size, f"a table of {length} bytes")
        obey("PKD-13", length % ring.DESC_SIZE == 0, f"a table of {length} bytes")
        chain.indirect = True
        chain.tables.append((address, length))
        for entry in struct.iter_unpack("<QIHH", self.memory.read(address, length)):
            if entry[3] & ~ring.DESC_F_WRITE:  # wrong of the driver, and of no effect (2.8.7)
                self.noted.append(f"PKD-12: flags {entry[3]:#x} in an indirect table")
            self._element(chain, entry[0], entry[1], entry[3])

    def _element(self, chain: Chain, address: int, length: int, flags: int) -> None:
        writable = bool(flags & ring.DESC_F_WRITE)
        obey("PKD-07", writable or not chain.writable, "a readable element after a writable one")
        obey("PKD-06", length > 0, "an element of no bytes")
        if self.check_buffers:
            obey("PKD-06", self.memory.is_mapped(address, length), f"{address:#x}+{length:#x} is not mapped")
        chain.elements.append(Element(address, length, writable))
        obey("PKD-06", len(chain.elements) <= self.size, "the list is longer than the queue")

    # --- giving back ----------------------------------------------------------------------------------------

    def push(self, chain: Chain | int, written: int = 0) -> None:
        """Complete a list, with the lies on top."""
        known = chain if isinstance(chain, Chain) else self.out.get(chain)
        ident = chain if isinstance(chain, int) else chain.head
        self.out.pop(ident, None)
        slots = len(known.descriptors) if known is not None else 1
        for _ in range(2 if self.lies.duplicate else 1):
            length = self.lies.used_len(written)
            flags = self.used_flags(self.used_slot, write=self.marks and bool(length))
            if not self.batching:
                self.write_used_slot(self.used_slot, self.lies.used_id(ident), length, self.lies.slot_flags(flags))
                self._advance(slots)
            else:  # 2.8.8: only the last of a batch is written out, where the batch began
                self.batch, self._batch_length = known, length
                self._batch_slots += slots

    def _advance(self, slots: int) -> None:
        """These slots are the driver's again; the lists that were told of in them may have lain elsewhere."""
        for slot in range(self.used_slot, self.used_slot + slots):
            self._owned.pop(slot % self.size, None)
        self.used_slot += slots

    def flush(self) -> None:
        """Write the used slot of a batch: the id of its last list, where its first list began (2.8.8)."""
        if self.batch is not None:
            flags = self.used_flags(self.used_slot, write=self.marks and bool(self._batch_length))
            self.write_used_slot(self.used_slot, self.lies.used_id(self.batch.head), self._batch_length, flags)
            self._advance(self._batch_slots)
            self.batch, self._batch_slots = None, 0

    def wants_interrupt(self) -> bool:
        """Whether the driver asked for an interrupt for what was pushed since this was asked last (2.8.10)."""
        old, self._signalled = self._signalled, self.used_slot
        if old == self.used_slot:
            return False
        off_wrap, flags = self.driver_event()
        if flags != ring.PACKED_EVENT_DESC:
            return flags != ring.PACKED_EVENT_DISABLE
        return any(self.off_wrap(slot) == off_wrap for slot in range(old, self.used_slot))

    def ask_for_kicks(self, on: bool = True) -> None:
        """Say whether the next list should be announced (2.8.10)."""
        if not on:
            self.write_event(0, ring.PACKED_EVENT_DISABLE)
        elif self.event_idx:
            self.write_event(self.lies.avail_event(self.off_wrap(self.next_slot)), ring.PACKED_EVENT_DESC)
        else:
            self.write_event(0, ring.PACKED_EVENT_ENABLE)
