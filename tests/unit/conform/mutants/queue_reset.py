"""2.6.1: devices that reset a queue wrongly."""

from __future__ import annotations

from uvirtio.scripted import Balloon, ScriptedDevice
from uvirtio.scripted.core import RING_FEATURES
from uvirtio.spec import features as f
from uvirtio.spec import pci

from . import Mutants, around
from .common import resets_queues, writes

MUTANTS = Mutants(resets_queues)


def two_queues() -> ScriptedDevice:
    """A balloon that can reset single queues."""
    return ScriptedDevice(
        Balloon(),
        address="scripted:balloon",
        features=RING_FEATURES | f.mask(f.RING_RESET),
        common_length=pci.COMMON_CFG_SIZE,
    )


def kept_ring(device):
    """The ring that the last queue reset ended."""
    writes(
        device, "queue_reset", lambda write, value: (setattr(device, "old", device._queue().ring), write(value))
    )
    device.old = None


@MUTANTS.of("D-QRST-01")
def works_on_after_a_queue_reset(device):
    kept_ring(device)
    reads_of_status = []

    def status(read):
        old = device.old
        if old is not None and device.status_now & 4 and device.memory.is_mapped(old.used, 4):
            reads_of_status.append(1)
            if len(reads_of_status) == 2:
                old.write_used_idx(0x77)
        return read()

    around(device, "_read_status", status)


@MUTANTS.of("D-QRST-02")
def notifies_after_a_queue_reset(device):
    writes(device, "queue_reset", lambda write, value: (write(value), device.storm()))


@MUTANTS.of("D-QRST-03")
def addresses_survive_a_queue_reset(device):
    def write(before, value):
        queue = device._queue()
        addresses = dict(queue.addresses)
        before(value)
        queue.addresses = addresses

    writes(device, "queue_reset", write)


@MUTANTS.of("D-QRST-04")
def size_is_latched(device):
    sizes = {}

    def serve(before, queue):
        before(queue)
        first = sizes.setdefault("size", queue.ring.size)
        queue.ring.size = first

    around(device, "_serve", serve)
    around(device, "_finish_reset", lambda before: (sizes.clear(), before()))


@MUTANTS.of("D-QRST-05", on=two_queues)
def resets_all_queues(device):
    def write(before, value):
        before(value)
        for queue in device.queues:
            queue.ring = None

    writes(device, "queue_reset", write)
