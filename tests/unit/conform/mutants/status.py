"""2.1 and 2.4: devices whose status or reset is wrong."""

from __future__ import annotations

from uvirtio.spec import features as f
from uvirtio.spec.status import Status

from . import Mutants, around

MUTANTS = Mutants("scripted:rng")


@MUTANTS.of("D-STAT-01", "D-STAT-02")
def serves_before_driver_ok(device):
    device._may_run = lambda index: device.queues[index].ring


@MUTANTS.of("D-STAT-05")
def comes_up_acknowledged(device):
    device._status = int(Status.ACKNOWLEDGE)


@MUTANTS.of("D-STAT-06")
def forgets_acknowledge(device):
    around(device, "_read_status", lambda read: read() & ~1 if read() & 8 else read())


@MUTANTS.of("D-STAT-07")
def mirrors_needs_reset(device):
    around(device, "_write_status", lambda write, value: _mirrored(device, write, value, 0x40))


@MUTANTS.of("D-SUSP-14")
def mirrors_suspend(device):
    around(device, "_write_status", lambda write, value: _mirrored(device, write, value, 0x10))


def _mirrored(device, write, value, bits):
    write(value)
    device._status |= value & bits


@MUTANTS.of("D-RST-01")
def failed_survives(device):
    around(device, "_write_status", lambda write, value: write(value) if not device._status & 0x80 else None)


@MUTANTS.of("D-RST-02")
def notifies_after_reset(device):
    around(device, "_finish_reset", lambda finish: (finish(), device.storm()))


@MUTANTS.of("D-RST-03")
def writes_after_reset(device):
    rings, reads = [], 0

    def reset(finish):
        nonlocal reads
        rings[:], reads = [queue.ring for queue in device.queues if queue.ring is not None], 0
        finish()

    def status(read):
        nonlocal reads
        reads += 1
        if reads == 2 and rings and device.memory.is_mapped(rings[0].used, 4):  # after 0 was read once
            rings[0].write_used_idx(0x77)
        return read()

    around(device, "_finish_reset", reset)
    around(device, "_read_status", status)


@MUTANTS.of("D-RST-04")
def resets_only_when_idle(device):
    def write(to, value):
        if value or not any(queue.enable for queue in device.queues) or device.model.given[64:] == b"":
            to(value)

    around(device, "_write_status", write)


@MUTANTS.of("D-RST-05")
def silent_after_failed(device):
    def write(to, value):
        if value & 0x80:
            device.faults.silent = True
        to(value)

    around(device, "_write_status", write)


@MUTANTS.of("D-RST-06")
def features_outlive_a_reset(device):
    kept = 0

    def finish(before):
        nonlocal kept
        kept |= device.driver_features & f.mask(f.EVENT_IDX)
        before()

    def enable(before, queue, value):
        device.driver_features |= kept
        before(queue, value)

    around(device, "_finish_reset", finish)
    around(device, "_enable_queue", enable)
