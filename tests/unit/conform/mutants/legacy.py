"""2.7.2, 3.1.2, 4.1.4.10 and 6.3: legacy interfaces that are wrong."""

from __future__ import annotations

from uvirtio.scripted import Disk, ScriptedLegacy
from uvirtio.scripted.blk import FEATURES
from uvirtio.scripted.ring import DeviceRing
from uvirtio.spec import features as f
from uvirtio.spec import ring

from . import Mutants, around, ring_of

MUTANTS = Mutants("scripted:rng,transport=legacy")
BALLOON = "scripted:balloon,transport=legacy"
BLK = "scripted:blk,transport=legacy"


def with_writeback():
    """A disk whose cache mode can be chosen."""
    return ScriptedLegacy(Disk(features=FEATURES | f.mask(f.Blk.CONFIG_WCE)), address=BLK, bar_size=128)


@MUTANTS.of("D-FEAT-L1", on="scripted:rng")
def takes_no_version_1_and_is_silent(device):
    def write(before, value):
        before(value)
        device._status |= value & 8

    around(device, "_write_status", write)
    around(
        device, "_may_run", lambda may, index: may(index) if f.has(device.driver_features, f.VERSION_1) else None
    )


@MUTANTS.of("D-INI-L1", on=BALLOON)
def takes_no_early_write(device):
    around(device.model, "write_config", lambda write, *args: write(*args) if device.status_now & 2 else None)


@MUTANTS.of("D-INI-L2")
def waits_for_driver_ok(device):
    around(device, "_may_run", lambda may, index: may(index) if device.status_now & 4 else None)


@MUTANTS.of("D-RES-L2")
def suppressed_is_suppressed(device):
    def serve(before, queue):
        before(queue)
        queue.ring.notify_on_empty = False

    around(device, "_serve", serve)


@MUTANTS.of("D-LAY-L1", on="scripted:rng,transport=mmio-legacy")
def clears_the_gap(device):
    def push(self, chain, written=0):
        DeviceRing.push(self, chain, written)
        self.memory.write(self.avail + ring.avail_size(self.size), bytes(8))

    ring_of(device, push=push)


@MUTANTS.of("D-LAY-L3")
def serves_only_any_layout(device):
    around(
        device, "_may_run", lambda may, index: may(index) if f.has(device.driver_features, f.ANY_LAYOUT) else None
    )


@MUTANTS.of("D-PCI-L4")
def is_in_memory(device):
    device.bar_is_io = False


@MUTANTS.of("D-PCI-L5", on=BLK)
def odd_bytes_are_0(device):
    around(device, "_device_read", lambda read, at, width: 0 if width == 1 and at % 2 else read(at, width))


@MUTANTS.of("D-PCI-L6", on=BLK)
def stays_at_20(device):
    around(device, "_device_read", lambda read, at, width: read(at + 4 if device.msix else at, width))


@MUTANTS.of("D-BLK-L1", on=with_writeback)
def acknowledge_turns_the_cache_off(device):
    def write(before, value):
        before(value)
        if value & 1:
            device.model.put("writeback", 0)

    around(device, "_write_status", write)
    around(device.model, "reset", lambda reset: (reset(), device.model.put("writeback", 1)))
