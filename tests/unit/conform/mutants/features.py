"""2.2 and 6: devices whose offer, or whose choice, is wrong."""

from __future__ import annotations

import struct

from uvirtio.scripted import Disk, ScriptedDevice
from uvirtio.scripted.core import RING_FEATURES
from uvirtio.spec import features as f

from . import Mutants, around

MUTANTS = Mutants("scripted:rng")


def disk() -> ScriptedDevice:
    """With FLUSH and CONFIG_WCE, of which one depends on the other."""
    return ScriptedDevice(Disk(features=f.mask(f.Blk.FLUSH, f.Blk.CONFIG_WCE)), address="scripted:blk")


@MUTANTS.of("D-FEAT-01", on=disk)
def offers_wce_without_flush(device):
    device.offered &= ~f.mask(f.Blk.FLUSH)


@MUTANTS.of("D-FEAT-02", on=disk)
def wants_flush_with_event_idx(device):
    wrong = f.mask(f.EVENT_IDX)
    around(device, "_refuses", lambda before: device.driver_features & (wrong | f.mask(f.Blk.FLUSH)) == wrong)


@MUTANTS.of("D-FEAT-03")
def takes_what_it_did_not_offer(device):
    def write(to, value):
        taken, device.driver_features = device.driver_features, device.driver_features & device.offered
        to(value)
        if value:
            device.driver_features = taken

    around(device, "_write_status", write)


@MUTANTS.of("D-FEAT-04", on=disk)
def takes_wce_alone(device):
    def write(to, value):
        taken = device.driver_features
        if f.has(taken, f.Blk.CONFIG_WCE):
            device.driver_features |= f.mask(f.Blk.FLUSH)
        to(value)
        if value:
            device.driver_features = taken

    around(device, "_write_status", write)


@MUTANTS.of("D-FEAT-05")
def offers_a_reserved_bit(device):
    device.offered |= f.mask(44)


@MUTANTS.of("D-FEAT-06", on="scripted:rng,transport=mmio")
def offers_admin_queues_on_mmio(device):
    device.offered |= f.mask(f.ADMIN_VQ)


@MUTANTS.of("D-FEAT-07")
def offers_a_bit_of_another_type(device):
    device.offered |= f.mask(3)


@MUTANTS.of("D-FEAT-08")
def takes_a_set_three_times(device):
    times = 0

    def refuses(before):
        nonlocal times
        times += 1
        return before() or times > 3

    around(device, "_refuses", refuses)


@MUTANTS.of("D-FEAT-09")
def offers_less_while_it_runs(device):
    offered = device.offered

    def read(before):
        device.offered = offered & ~f.mask(f.EVENT_IDX) if device.status_now & 4 else offered
        return before()

    around(device, "_read_feature", read)


@MUTANTS.of("D-FEAT-10")
def takes_features_late(device):
    device._write_feature = lambda value: _took(device, value)


def _took(device, value):
    word = device._feature_select[1]
    kept = device.driver_features & ~(0xFFFFFFFF << 32 * word)
    device.driver_features = kept | value << 32 * word
    for queue in device.queues:
        if queue.ring is not None:
            queue.ring.event_idx = f.has(device.driver_features, f.EVENT_IDX)


@MUTANTS.of("D-RES-01")
def does_not_offer_version_1(device):
    device.offered &= f.LEGACY_MASK


@MUTANTS.of("D-RES-04", on=lambda: express(offered=True))
def has_the_capability_alone(device):
    device.offered &= ~f.mask(f.SR_IOV)


@MUTANTS.of("D-RES-05")
def offers_sr_iov_alone(device):
    device.offered |= f.mask(f.SR_IOV)


@MUTANTS.of("D-RES-L1", on="scripted:rng,transport=legacy")
def hides_any_layout(device):
    device.legacy_offered &= ~f.mask(f.ANY_LAYOUT)


def express(offered: bool) -> ScriptedDevice:
    """A PCI Express function with SR-IOV."""
    from uvirtio.scripted import Rng

    features = RING_FEATURES | f.mask(f.SR_IOV) * offered
    device = ScriptedDevice(Rng(), address="scripted:rng", features=features)
    device.config_space += bytes(4096 - len(device.config_space))
    struct.pack_into("<I", device.config_space, 0x100, 0x1_0010)
    device.config = device._window("config", 4096, device._config_read, device._config_write)
    return device
