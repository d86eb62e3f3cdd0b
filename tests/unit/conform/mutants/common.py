"""4.1.4.3: devices whose common configuration is wrong."""

from __future__ import annotations

from uvirtio.scripted import AdminModel, Rng, ScriptedDevice
from uvirtio.scripted.core import RING_FEATURES
from uvirtio.spec import features as f
from uvirtio.spec import pci

from . import Mutants, around

COMMON = {field.name: field.offset for field in pci.COMMON_CFG}


def resets_queues() -> ScriptedDevice:
    """An rng that can reset single queues."""
    return ScriptedDevice(
        Rng(),
        address="scripted:rng",
        features=RING_FEATURES | f.mask(f.RING_RESET),
        common_length=pci.COMMON_CFG_SIZE,
    )


def administers() -> ScriptedDevice:
    """An rng with an administration queue."""
    return ScriptedDevice(
        Rng(),
        address="scripted:rng",
        features=RING_FEATURES | f.mask(f.ADMIN_VQ),
        common_length=pci.COMMON_CFG_SIZE,
        admin=AdminModel(),
    )


MUTANTS = Mutants("scripted:rng")
BALLOON = "scripted:balloon"


def reads(device, name, instead):
    """Let a register read something else: ``instead`` is given the true value."""

    def read(before, offset, width):
        value = before(offset, width)
        return instead(value) if offset == COMMON[name] else value

    around(device, "_common_read", read)


def writes(device, name, instead):
    """Let a write of a register do something else: ``instead`` is given the write, and the value."""

    def write(before, offset, width, value):
        if offset == COMMON[name]:
            instead(lambda other: before(offset, width, other), value)
        else:
            before(offset, width, value)

    around(device, "_common_write", write)


@MUTANTS.of("D-COM-03")
def select_is_cut_to_two_bits(device):
    writes(device, "device_feature_select", lambda write, value: write(value & 3))


@MUTANTS.of("D-COM-04")
def driver_feature_reads_word_0_alone(device):
    reads(device, "driver_feature", lambda value: device.driver_features & 0xFFFFFFFF)


@MUTANTS.of("D-COM-05", on=BALLOON)
def generation_stands_before_driver_ok(device):
    def change(before, *what, **how):
        kept = device._generation
        before(*what, **how)
        if not device.status_now & 4:
            device._generation = kept

    around(device, "change_config", change)


@MUTANTS.of("D-COM-07", on=BALLOON)
def generation_is_a_plain_counter(device):
    def change(before, *what, **how):
        kept = device._generation
        before(*what, **how)
        device._generation = kept + 1

    around(device, "change_config", change)


def survives(name, value):
    """A mutant on which a queue's field stands after a reset."""

    def spoil(device):
        def finish(before):
            kept = [getattr(queue, name) for queue in device.queues]
            before()
            for queue, old in zip(device.queues, kept, strict=True):
                setattr(queue, name, old if value is None else value)

        around(device, "_finish_reset", finish)

    return spoil


@MUTANTS.of("D-COM-08", "D-COM-19")
def size_survives_a_reset(device):
    survives("size", None)(device)


@MUTANTS.of("D-COM-09")
def stays_enabled(device):
    worked = []
    around(device, "_serve", lambda before, queue: (worked.append(1), before(queue))[1])
    reads(device, "queue_enable", lambda value: 1 if worked and not device.status_now else value)


@MUTANTS.of("D-COM-10", on=resets_queues)
def queue_reset_reads_1_after_reset(device):
    started = []
    around(device, "_go", lambda before: (started.append(1), before())[1])
    reads(device, "queue_reset", lambda value: 1 if started and not device.status_now & 4 else value)


@MUTANTS.of("D-COM-11", on=resets_queues)
def queue_reset_reads_1_once_enabled(device):
    reads(device, "queue_reset", lambda value: int(bool(device._queue().enable)))


@MUTANTS.of("D-COM-12", on=resets_queues)
def queue_goes_on_where_it_was(device):
    def serve(before, queue):
        old = getattr(device, "kept", None)
        before(queue)
        if old is not None:
            queue.ring.used_idx, queue.ring.last_avail = old.used_idx, old.last_avail

    def write(before, value):
        device.kept = device._queue().ring
        before(value)

    around(device, "_serve", serve)
    writes(device, "queue_reset", write)


@MUTANTS.of("D-COM-13", on=resets_queues)
def queue_reset_reads_ones(device):
    device.faults.queue_reset_reads = 1
    reads(device, "queue_reset", lambda value: 0xFF if value else 0)


@MUTANTS.of("D-COM-14", on=resets_queues)
def stays_enabled_in_a_queue_reset(device):
    begun = []
    writes(device, "queue_reset", lambda write, value: (begun.append(1), write(value)))
    around(device, "_finish_reset", lambda before: (begun.clear(), before()))
    reads(device, "queue_enable", lambda value: 1 if begun else value)


@MUTANTS.of("D-COM-15")
def select_is_dropped(device):
    writes(device, "queue_select", lambda write, value: write(value) if value < 1024 else None)


@MUTANTS.of("D-COM-16")
def takes_3(device):
    writes(device, "queue_size", lambda write, value: setattr(device._queue(), "size", value))


@MUTANTS.of("D-COM-21")
def takes_any_power_of_two(device):
    writes(device, "queue_size", lambda write, value: setattr(device._queue(), "size", value))


@MUTANTS.of("D-COM-23")
def counts_one_too_many(device):
    device.faults.num_queues = 2


@MUTANTS.of("D-COM-17", on=administers)
def admin_queue_among_the_others(device):
    reads(device, "admin_queue_index", lambda value: 0)


@MUTANTS.of("D-COM-18", on=administers)
def admin_queues_beyond_the_last(device):
    reads(device, "admin_queue_num", lambda value: 0xFFFF)
    reads(device, "admin_queue_index", lambda value: 0x100)


@MUTANTS.of("D-COM-20")
def num_queues_is_written(device):
    written = []
    writes(device, "num_queues", lambda write, value: written.append(value))
    reads(device, "num_queues", lambda value: written[-1] if written else value)


@MUTANTS.of("D-COM-22")
def moves_a_live_queue(device):
    def write(before, value):
        before(value)
        queue = device._queue()
        if queue.ring is not None:
            queue.ring.avail = queue.addresses["queue_driver"]

    writes(device, "queue_driver", write)


@MUTANTS.of("D-PCI-07")
def high_half_is_latched_by_the_low_one(device):
    last = []

    def read(before, offset, width):
        value = before(offset, width)
        if offset == COMMON["queue_desc"] + 4 and last[-1:] != [COMMON["queue_desc"]]:
            value ^= 1
        last.append(offset)
        return value

    around(device, "_common_read", read)


@MUTANTS.of("D-FLR-01")
def outlives_the_functions_reset(device):
    device.reset = lambda: True
