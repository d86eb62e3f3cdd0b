"""4.2.2: windows whose registers are wrong."""

from __future__ import annotations

from uvirtio.scripted import Rng, ScriptedMmio
from uvirtio.scripted.core import RING_FEATURES
from uvirtio.spec import features as f
from uvirtio.spec import mmio

from . import Mutants, around

V2 = "scripted:rng,transport=mmio"
BALLOON = "scripted:balloon,transport=mmio"
MUTANTS = Mutants(V2)


def resets_queues() -> ScriptedMmio:
    """An rng that can reset single queues."""
    return ScriptedMmio(Rng(), address="scripted:rng", features=RING_FEATURES | f.mask(f.RING_RESET))


def reads(device, register, instead):
    """Let a register read something else: ``instead`` is given the true value."""

    def read(before, offset, width):
        value = before(offset, width)
        return instead(value) if offset == register else value

    around(device, "_register_read", read)


def writes(device, register, instead):
    """Let a write of a register do something else: ``instead`` is given the write, and the value."""

    def write(before, offset, width, value):
        if offset == register:
            instead(lambda other: before(offset, width, other), value)
        else:
            before(offset, width, value)

    around(device, "_register_write", write)


# --- identity ---------------------------------------------------------------------------------------------------


def changes_once_known(register):
    """A mutant on which a register changes with ACKNOWLEDGE."""
    return lambda device: reads(device, register, lambda value: value ^ 0x100 if device.status_now else value)


MUTANTS.of("D-MMIO-01")(changes_once_known(mmio.MAGIC_VALUE_REG))
MUTANTS.of("D-MMIO-02")(changes_once_known(mmio.VERSION_REG))


# --- interrupts -------------------------------------------------------------------------------------------------


@MUTANTS.of("D-MMIO-03")
def reading_clears_the_causes(device):
    def read(value):
        device.isr = 0
        return value

    reads(device, mmio.INTERRUPT_STATUS, read)


@MUTANTS.of("D-MMIO-04", on=BALLOON)
def causes_are_always_3(device):
    reads(device, mmio.INTERRUPT_STATUS, lambda value: 3 if value else 0)


@MUTANTS.of("D-MMIO-05")
def causes_survive_a_reset(device):
    def finish(before):
        kept = device.isr
        before()
        device.isr = kept

    around(device, "_finish_reset", finish)


@MUTANTS.of("D-MMIO-22", on=BALLOON)
def all_is_acknowledged(device):
    writes(device, mmio.INTERRUPT_ACK, lambda write, value: write(device.isr))


@MUTANTS.of("D-MMIO-25")
def line_stays_up(device):
    def enable(before):
        line = before()
        line._asserted = lambda: True
        return line

    around(device, "enable_intx", enable)


# --- reset, generation ------------------------------------------------------------------------------------------


@MUTANTS.of("D-MMIO-06", on=BALLOON)
def last_queue_stays_ready(device):
    was = []
    around(device, "_serve", lambda before, queue: (was.append(device._queue_select), before(queue)))
    around(device, "_finish_reset", lambda before: (before(), left()))

    def left():
        if was and max(was) > 0:
            device.queues[max(was)].enable = 1
        was.clear()


@MUTANTS.of("D-MMIO-07", on=BALLOON)
def generation_stands_before_driver_ok(device):
    def change(before, *what, **how):
        kept = device._generation
        before(*what, **how)
        if not device.status_now & 4:
            device._generation = kept

    around(device, "change_config", change)


# --- queues -----------------------------------------------------------------------------------------------------


@MUTANTS.of("D-MMIO-08")
def ready_is_only_shown(device):
    writes(device, mmio.QUEUE_READY, lambda write, value: write(1) if value else hide())

    def hide():
        device._queue().enable = 0


@MUTANTS.of("D-MMIO-16")
def far_select_is_not_taken(device):
    writes(device, mmio.QUEUE_SEL, lambda write, value: write(value) if value < 1024 else None)


@MUTANTS.of("D-MMIO-17")
def serves_half_its_size(device):
    def serve(before, queue):
        before(queue)
        queue.ring.size = min(queue.ring.size, 32)

    for state in device.queues:
        state.size = state.size_max = 128
    device.model.queue_sizes = (128,)
    around(device, "_serve", serve)


@MUTANTS.of("D-MMIO-18")
def stays_ready(device):
    device.ready_stuck = True


def works(device):
    """Whether the device was told DRIVER_OK once."""
    told = []
    around(device, "_go", lambda before: (told.append(1), before()))
    return told


@MUTANTS.of("D-MMIO-09", on=resets_queues)
def queue_reset_reads_1_after_reset(device):
    told = works(device)
    reads(device, mmio.QUEUE_RESET, lambda value: 1 if told and not device.status_now else value)


@MUTANTS.of("D-MMIO-10", on=resets_queues)
def queue_reset_reads_1_once_enabled(device):
    reads(device, mmio.QUEUE_RESET, lambda value: int(bool(device._queue().enable)))


@MUTANTS.of("D-MMIO-11", on=resets_queues)
def queue_goes_on_where_it_was(device):
    old = []

    def serve(before, queue):
        before(queue)
        if old:
            queue.ring.used_idx, queue.ring.last_avail = old[-1].used_idx, old[-1].last_avail

    writes(device, mmio.QUEUE_RESET, lambda write, value: (old.append(device._queue().ring), write(value)))
    around(device, "_serve", serve)
    around(device, "_finish_reset", lambda before: (old.clear(), before()))


@MUTANTS.of("D-MMIO-12", on=resets_queues)
def queue_reset_reads_2(device):
    device.faults.queue_reset_reads = 1
    reads(device, mmio.QUEUE_RESET, lambda value: 2 * value)


@MUTANTS.of("D-MMIO-13", on=resets_queues)
def has_no_queue_reset(device):
    device.resets_queues = False


# --- features ---------------------------------------------------------------------------------------------------


@MUTANTS.of("D-MMIO-14")
def far_select_shows_word_1(device):
    writes(device, mmio.DEVICE_FEATURES_SEL, lambda write, value: write(value if value < 4 else 1))


@MUTANTS.of("D-MMIO-15")
def far_select_writes_word_1(device):
    writes(device, mmio.DRIVER_FEATURES_SEL, lambda write, value: write(min(value, 1)))


# --- shared memory ----------------------------------------------------------------------------------------------


@MUTANTS.of("D-MMIO-19")
def length_of_no_region_is_0(device):
    reads(device, mmio.SHM_LEN_LOW, lambda value: 0)


@MUTANTS.of("D-MMIO-20")
def base_of_no_region_is_0(device):
    reads(device, mmio.SHM_BASE_HIGH, lambda value: 0)


# --- accesses that the table does not allow ---------------------------------------------------------------------


@MUTANTS.of("D-MMIO-23")
def narrow_reads_end_it(device):
    def read(before, offset, width):
        if width != 4:
            device.faults.silent = True
        return before(offset, width)

    around(device, "_register_read", read)


@MUTANTS.of("D-MMIO-24")
def vendor_is_writable(device):
    writes(device, mmio.VENDOR_ID, lambda write, value: device.identity.update(VendorID=value))
