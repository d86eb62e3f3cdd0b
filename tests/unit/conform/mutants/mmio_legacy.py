"""4.2.4: windows of version 1 whose registers are wrong."""

from __future__ import annotations

from uvirtio.spec import mmio
from uvirtio.spec.ring import legacy_layout

from . import Mutants, around
from .mmio import changes_once_known, reads, writes

MUTANTS = Mutants("scripted:rng,transport=mmio-legacy")
BALLOON = "scripted:balloon,transport=mmio-legacy"

MUTANTS.of("D-MMIO-L1")(changes_once_known(mmio.VERSION_REG))


@MUTANTS.of("D-MMIO-L2")
def frame_reads_0_while_it_runs(device):
    reads(device, mmio.QUEUE_PFN, lambda value: 0 if device.status_now & 4 else value)


@MUTANTS.of("D-MMIO-L3", on=BALLOON)
def frame_0_resets_the_device(device):
    writes(device, mmio.QUEUE_PFN, lambda write, value: write(value) if value else device._finish_reset())


@MUTANTS.of("D-MMIO-L4")
def align_is_always_a_page(device):
    writes(device, mmio.QUEUE_ALIGN, lambda write, value: write(4096))
    assert legacy_layout(16).used != legacy_layout(16, 256).used


@MUTANTS.of("D-MMIO-L5", on=BALLOON)
def last_frame_survives_a_reset(device):
    def finish(before):
        kept = device.queues[-1].addresses
        before()
        device.queues[-1].addresses = kept

    around(device, "_finish_reset", finish)


@MUTANTS.of("D-MMIO-L6")
def has_queue_ready(device):
    def ready(write, value):
        write(value)
        device._queue().ring = None

    writes(device, mmio.QUEUE_READY, ready)
