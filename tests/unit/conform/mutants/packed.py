"""2.8: devices whose packed rings are wrong."""

from __future__ import annotations

from uvirtio.scripted import Rng, ScriptedDevice
from uvirtio.scripted.core import RING_FEATURES
from uvirtio.scripted.packed import PackedDeviceRing
from uvirtio.spec import features as f
from uvirtio.spec import ring

from . import Mutants, around, ring_of
from .split import handles, wedged_by

RNG, BLK = "scripted:rng,packed", "scripted:blk,packed"

MUTANTS = Mutants(RNG)


def mutant(*rows, on=None):
    return MUTANTS.of(*rows, on=on, ring="packed")


def batches() -> ScriptedDevice:
    """An rng with IN_ORDER, which writes one used slot for a batch."""
    features = RING_FEATURES | f.mask(f.IN_ORDER, f.RING_PACKED)
    device = ScriptedDevice(Rng(), address="scripted:rng", features=features)

    def serve(before, queue):
        before(queue)
        queue.ring.batching = True

    def fetch(before, queue):
        count = before(queue)
        if count:
            device.queues[queue].ring.flush()
        return count

    around(device, "_serve", serve)
    around(device, "fetch", fetch)
    return device


# --- the order of slots -----------------------------------------------------------------------------------------


@mutant("D-PKD-01")
def passes_over_what_is_not_available(device):
    """A list that is not available is passed over when the next one is, and taken afterwards."""

    def available(self):
        now = PackedDeviceRing.available(self)
        if not now and self._is_available(self.next_slot + 1):
            self.next_slot += 1
            now = 1
        return now

    ring_of(device, packed=True, available=available)


@mutant("D-PKD-02")
def uses_slots_where_lists_lie(device):
    """The first list of a batch is kept until the next kick, and the others are used where they lie."""

    def push(self, chain, written=0):
        own = self.next_slot - 1
        if written and self.popped % 4 == 2:
            self.write_used_slot(own, chain.head, written, self.used_flags(own, write=True))
            return
        if self.popped % 4 == 1 and self.popped > 1:
            return
        PackedDeviceRing.push(self, chain, written)

    ring_of(device, packed=True, push=push)


# --- what it may write ------------------------------------------------------------------------------------------


@mutant("D-PKD-03", on=BLK)
def writes_the_header(device):
    def handle(before, queue, chain):
        done = before(queue, chain)
        device.memory.write(chain.elements[0].address + 4, b"\x77")
        return done

    handles(device, handle)


@mutant("D-PKD-05")
def looks_at_lengths_instead_of_flags(device):
    def is_available(self, slot):
        return PackedDeviceRing._is_available(self, slot) or (
            slot < self.size and any(self._raw(slot)[:12]) and not self._raw(slot)[15] & 0x80
        )

    ring_of(device, packed=True, _is_available=is_available)


@mutant("D-PKD-06")
def corrects_what_it_used(device):
    def push(self, chain, written=0):
        if self.used_slot:
            self.memory.write_int(self.desc + ring.DESC_SIZE * ((self.used_slot - 1) % self.size) + 8, 4, 0)
        PackedDeviceRing.push(self, chain, written)

    ring_of(device, packed=True, push=push)


# --- lists ------------------------------------------------------------------------------------------------------


@mutant("D-PKD-07", on=BLK)
def turns_long_lists_round(device):
    def handle(before, queue, chain):
        count = len(chain.readable)
        if count > 2:
            chain.elements[:count] = reversed(chain.readable)
        return before(queue, chain)

    handles(device, handle)


@mutant("D-PKD-08")
def takes_short_lists_alone(device):
    handles(device, lambda before, queue, chain: before(queue, chain) if len(chain.elements) < 9 else None)


@mutant("D-PKD-09")
def skips_one_slot_for_each_list(device):
    def advance(self, slots):
        PackedDeviceRing._advance(self, slots)
        self.used_slot += 1 - slots

    ring_of(device, packed=True, _advance=advance)


@mutant("D-PKD-10")
def never_turns(device):
    ring_of(device, packed=True, wrap=lambda self, slot: 1)


@mutant("D-PKD-11")
def wants_powers_of_two(device):
    def init(self, memory, size, *areas, **how):
        assert ring.is_power_of_two(size), size
        PackedDeviceRing.__init__(self, memory, size, *areas, **how)

    ring_of(device, packed=True, __init__=init)


# --- notifications ----------------------------------------------------------------------------------------------


@mutant("D-PKD-12")
def heeds_no_flags(device):
    ring_of(device, packed=True, wants_interrupt=lambda self: True)


@mutant("D-PKD-13")
def forgets_the_lap(device):
    def wants(self):
        old, self._signalled = self._signalled, self.used_slot
        off_wrap, _ = self.driver_event()
        return any(slot % self.size == off_wrap & 0x7FFF for slot in range(old, self.used_slot))

    ring_of(device, packed=True, wants_interrupt=wants)


@mutant("D-PKD-14")
def reserved_flags(device):
    ring_of(device, packed=True, ask_for_kicks=lambda self, on=True: self.write_event(0, 3))


mutant("D-PKD-15")(wedged_by("driver event flags"))


# --- tables and used slots --------------------------------------------------------------------------------------


@mutant("D-PKD-16")
def follows_next_in_tables(device):
    def walk(self, chain, address, length):
        for place in range(address, address + length, ring.DESC_SIZE):
            if self.memory.read_int(place + 14, 2) & ring.DESC_F_NEXT:
                raise AssertionError("a table whose last entry goes on")
        PackedDeviceRing._walk_table(self, chain, address, length)

    ring_of(device, packed=True, _walk_table=walk)


@mutant("D-PKD-17")
def never_sets_write(device):
    device.lies.slot_flags = lambda flags: flags & ~ring.DESC_F_WRITE


@mutant("D-PKD-18")
def has_ids_of_eight_bits(device):
    device.lies.used_id = lambda ident: ident & 0xFF


@mutant("D-PKD-19", on=batches)
def loses_the_first_of_a_batch(device):
    """The first list of a batch is not served, and counts as used all the same."""
    handled = []

    def handle(before, queue, chain):
        handled.append(1)
        return 0 if len(handled) % 3 == 2 else before(queue, chain)

    handles(device, handle)
