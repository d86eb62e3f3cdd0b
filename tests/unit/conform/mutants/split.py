"""2.6.1 and 2.7: devices whose split rings are wrong."""

from __future__ import annotations

from uvirtio.scripted import Rng, ScriptedDevice
from uvirtio.scripted.core import RING_FEATURES
from uvirtio.scripted.ring import DeviceRing
from uvirtio.spec import features as f
from uvirtio.spec import ring

from . import Mutants, around, ring_of

MUTANTS = Mutants("scripted:rng")
BLK = "scripted:blk"


def orders() -> ScriptedDevice:
    """An rng with IN_ORDER."""
    return ScriptedDevice(Rng(), address="scripted:rng", features=RING_FEATURES | f.mask(f.IN_ORDER))


def handles(device, instead):
    """Let the model do something else with a chain: ``instead`` is given its method, the queue and the chain."""
    around(device.model, "handle", instead)


# --- what it writes ---------------------------------------------------------------------------------------------


@MUTANTS.of("D-DESC-01", on=BLK)
def writes_the_header(device):
    def handle(before, queue, chain):
        done = before(queue, chain)
        device.memory.write(chain.elements[0].address + 4, b"\x77")
        return done

    handles(device, handle)


@MUTANTS.of("D-DESC-03")
def marks_descriptors(device):
    def push(self, chain, written=0):
        DeviceRing.push(self, chain, written)
        self.memory.write_int(self.desc + ring.DESC_SIZE * chain.head + 8, 4, written + 1)

    ring_of(device, push=push)


@MUTANTS.of("D-DESC-04")
def writes_one_byte_more(device):
    def handle(before, queue, chain):
        done = before(queue, chain)
        last = chain.elements[-1]
        device.memory.write(last.address + last.length, b"\x77")
        return done

    handles(device, handle)


@MUTANTS.of("D-USED-02")
def claims_more_than_it_wrote(device):
    device.model.at_most = 0
    handles(device, lambda before, queue, chain: (before(queue, chain), chain.room)[1])


@MUTANTS.of("D-USED-03", on="scripted:input")
def claims_what_it_read(device):
    handles(device, lambda before, queue, chain: (before(queue, chain), 8)[1])


@MUTANTS.of("D-USED-04")
def claims_too_much(device):
    device.lies.used_len = lambda written: written + 1


@MUTANTS.of("D-USED-05")
def names_another_chain(device):
    count = []

    def used_id(head):
        count.append(head)
        return head if len(count) % 5 else head ^ 0x20

    device.lies.used_id = used_id


@MUTANTS.of("D-USED-06")
def gives_back_twice(device):
    device.lies.duplicate = False
    count = []

    def push(self, chain, written=0):
        DeviceRing.push(self, chain, written)
        count.append(1)
        if len(count) > 4:
            DeviceRing.push(self, chain, written)

    ring_of(device, push=push)


@MUTANTS.of("D-RES-03", on=orders)
def overtakes(device):
    """The first chain of a batch is kept, and the others are given back."""

    def fetch(before, queue):
        ring_ = device._may_run(queue)
        if ring_ is None:
            return 0
        chains = ring_.pop_all()
        for chain in chains[1:] or chains:
            ring_.push(chain, device.model.handle(queue, chain) or 0)
        ring_.ask_for_kicks()
        return len(chains)

    around(device, "fetch", fetch)


# --- framing and tables -----------------------------------------------------------------------------------------


@MUTANTS.of("D-FRM-01", on=BLK)
def wants_its_header_alone(device):
    def handle(before, queue, chain):
        if chain.elements[0].length != 16:
            device.needs_reset()
            return None
        return before(queue, chain)

    handles(device, handle)


@MUTANTS.of("D-FRM-02")
def takes_short_chains_alone(device):
    handles(device, lambda before, queue, chain: before(queue, chain) if len(chain.elements) < 9 else None)


@MUTANTS.of("D-IND-01")
def wants_tables_without_write(device):
    def walk(self, head):
        assert not self._raw(head)[2] & ring.DESC_F_WRITE or not self._raw(head)[2] & ring.DESC_F_INDIRECT
        return DeviceRing._walk(self, head)

    ring_of(device, _walk=walk)


@MUTANTS.of("D-IND-02")
def wants_tables_in_the_head(device):
    def walk(self, head):
        chain = DeviceRing._walk(self, head)
        assert not chain.indirect or len(chain.descriptors) == 1
        return chain

    ring_of(device, _walk=walk)


# --- faults -----------------------------------------------------------------------------------------------------


def wedged_by(*words):
    """A mutant that never resets again after a rule was broken."""

    def spoil(device):
        def stop(before):
            before()
            if any(word in device.violations[-1] for word in words):
                device.faults.reset_reads = -1

        around(device, "needs_reset", stop)

    return spoil


MUTANTS.of("D-FLT-01")(wedged_by("head "))
MUTANTS.of("D-FLT-02")(wedged_by("loops"))
MUTANTS.of("D-FLT-04")(wedged_by("avail.idx"))
MUTANTS.of("D-FLT-05")(wedged_by("readable element after"))
MUTANTS.of("D-IND-03")(wedged_by("entries, queue of"))
MUTANTS.of("D-IND-04")(wedged_by("a table of"))


@MUTANTS.of("D-STAT-03")
def stuck_in_silence(device):
    around(device, "needs_reset", lambda before: setattr(device, "on_kick", lambda: device.kicked.clear()))


@MUTANTS.of("D-STAT-04")
def needs_reset_in_silence(device):
    def stop(before):
        device._status |= 0x40

    around(device, "needs_reset", stop)


# --- notifications ----------------------------------------------------------------------------------------------


@MUTANTS.of("D-SUP-01")
def heeds_used_event_always(device):
    def wants(self):
        old = self._signalled
        wanted = DeviceRing.wants_interrupt(self)
        event = self._avail_word(ring.used_event_offset(self.size))
        return wanted and (not event or old < event < self.used_idx)

    ring_of(device, wants_interrupt=wants)


@MUTANTS.of("D-SUP-02")
def heeds_no_flag(device):
    ring_of(device, wants_interrupt=lambda self: True)


@MUTANTS.of("D-SUP-03")
def loses_interrupts(device):
    device.faults.lose_interrupts = True


@MUTANTS.of("D-SUP-04")
def heeds_the_flag_always(device):
    def wants(self):
        return DeviceRing.wants_interrupt(self) and not self._avail_word(ring.RING_FLAGS) & 1

    ring_of(device, wants_interrupt=wants)


@MUTANTS.of("D-SUP-05")
def one_too_late(device):
    def wants(self):
        self._signalled, old = self.used_idx, self._signalled
        event = self._avail_word(ring.used_event_offset(self.size)) + 1
        return old <= event < self.used_idx

    ring_of(device, wants_interrupt=wants)


@MUTANTS.of("D-SUP-06")
def heeds_no_event(device):
    ring_of(device, wants_interrupt=lambda self: True)


@MUTANTS.of("D-AVS-01")
def flags_of_two_bits(device):
    device.lies.used_flags = 2


@MUTANTS.of("D-AVS-02")
def flags_with_event_idx(device):
    device.lies.used_flags = 1


@MUTANTS.of("D-AVS-03")
def serves_twice_for_a_kick(device):
    kicks = []

    def run(before):
        kicks.append(1)
        before()
        ring_ = device.queues[0].ring
        if len(kicks) % 3 == 0 and ring_ is not None:
            ring_.write_used_idx(ring_.used_idx + 1)

    around(device, "run", run)


@MUTANTS.of("D-NOTE-01")
def gives_up_without_work(device):
    def run(before):
        if device.queues[0].ring is not None and not device.queues[0].ring.available():
            device.needs_reset()
        before()

    around(device, "run", run)


@MUTANTS.of("D-AVS-04")
def asks_for_no_kick(device):
    around(device, "run", lambda before: (before(), _hush(device)))


def _hush(device):
    ring_ = device.queues[0].ring
    if ring_ is not None:
        ring_.write_used_flags(ring.USED_F_NO_NOTIFY)


@MUTANTS.of("D-AVS-05")
def event_far_away(device):
    device.lies.avail_event = lambda index: index - 100
