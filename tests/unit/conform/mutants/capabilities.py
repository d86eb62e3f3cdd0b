"""4.1.1 to 4.1.4: functions whose identity or capabilities are wrong."""

from __future__ import annotations

import struct

from uvirtio.scripted import Disk, Rng, ScriptedDevice
from uvirtio.scripted.core import RING_FEATURES
from uvirtio.scripted.pci import BAR, virtio_capability
from uvirtio.spec import features as f
from uvirtio.spec import pci
from uvirtio.spec.pci import CfgType

from . import Mutants, around

MUTANTS = Mutants("scripted:blk")
LEGACY = "scripted:rng,transport=legacy"


def place(device, cfg_type, number=0):
    """Where a capability is in configuration space."""
    space, at, found = device.config_space, device.config_space[pci.CFG_CAPABILITIES_POINTER], []
    while at:
        if space[at] == pci.CapId.VENDOR and space[at + pci.CAP_CFG_TYPE] == cfg_type:
            found.append(at)
        at = space[at + pci.CAP_NEXT]
    return found[number]


def put(device, at, form, value):
    struct.pack_into(form, device.config_space, at, value)


def more() -> ScriptedDevice:
    """A disk with two shared memory regions and vendor data."""
    device = ScriptedDevice(Disk(), address="scripted:blk")
    capabilities = device.usual_capabilities()
    for ident in (1, 2):
        region = virtio_capability(CfgType.SHARED_MEMORY, BAR, 0x3800 + 0x100 * ident, 0x100, bytes(8))
        capabilities.append(region[:5] + bytes([ident]) + region[6:])
    vendor = struct.pack("<BBBBHH", pci.CapId.VENDOR, 0, 8, CfgType.VENDOR, 0x1234, 0)
    return ScriptedDevice(Disk(), address="scripted:blk", capabilities=[*capabilities, vendor])


def two_of(cfg_type) -> ScriptedDevice:
    """A disk with another structure of a type behind the first."""
    device = ScriptedDevice(Disk(), address="scripted:blk")
    capabilities = device.usual_capabilities()
    again = next(one for one in capabilities if one[0] == pci.CapId.VENDOR and one[3] == cfg_type)
    return ScriptedDevice(Disk(), address="scripted:blk", capabilities=[*capabilities, again])


def with_data() -> ScriptedDevice:
    """An rng that offers NOTIFICATION_DATA."""
    return ScriptedDevice(Rng(), address="scripted:rng", features=RING_FEATURES | f.mask(f.NOTIFICATION_DATA))


def changes_type(row, cfg_type):
    """The mutants on which a structure is not there, as far as the list goes: its type is a reserved one."""

    @MUTANTS.of(row)
    def hides(device):
        at = place(device, cfg_type)
        # Opening needs it: the row alone sees the list without.
        device.hidden = at + pci.CAP_CFG_TYPE
        seen = []

        def read(before, offset, width):
            value = before(offset, width)
            if offset == device.hidden:
                seen.append(1)
                return 0x70 if len(seen) > 1 else value
            return value

        around(device, "_config_read", read)
        device.config = device._window("config", 256, device._config_read, device._config_write)

    return hides


for ident, of in (
    ("D-COM-02", CfgType.COMMON),
    ("D-NCF-01", CfgType.NOTIFY),
    ("D-ISR-01", CfgType.ISR),
    ("D-PCF-01", CfgType.PCI_CFG),
    ("D-DCF-01", CfgType.DEVICE),
):
    changes_type(ident, of)


def sets(row, at, form, value, on=None):
    """A mutant with another value in configuration space."""
    MUTANTS.of(row, on=on)(lambda device: put(device, at(device) if callable(at) else at, form, value))


def of_cap(cfg_type, offset):
    return lambda device: place(device, cfg_type) + offset


sets("D-PCI-01", pci.CFG_BAR0, "<I", pci.BAR_TYPE_MASK)
sets("D-PCI-04", pci.CFG_DEVICE_ID, "<H", 0x1001)
sets("D-PCI-05", pci.CFG_REVISION_ID, "<B", 0)
sets("D-PCI-06", pci.CFG_SUBSYSTEM_ID, "<H", 2)
sets("D-PCI-L1", pci.CFG_REVISION_ID, "<B", 1, on=LEGACY)
sets("D-PCI-L2", pci.CFG_SUBSYSTEM_ID, "<H", 9, on=LEGACY)
sets("D-CAP-01", of_cap(CfgType.PCI_CFG, pci.CAP_LEN), "<B", 12)
sets("D-CAP-03", of_cap(CfgType.DEVICE, pci.CAP_LENGTH), "<I", 0x10000)
sets("D-CAP-04", of_cap(CfgType.DEVICE, pci.CAP_LENGTH), "<I", 0x1800)
sets(
    "D-COM-01",
    lambda device: place(device, CfgType.COMMON, 1) + pci.CAP_OFFSET,
    "<I",
    2,
    on=lambda: two_of(CfgType.COMMON),
)
sets("D-NCF-03", of_cap(CfgType.NOTIFY, pci.NOTIFY_CAP_MULTIPLIER), "<I", 6)
sets(
    "D-NCF-02",
    lambda device: place(device, CfgType.NOTIFY, 1) + pci.CAP_OFFSET,
    "<I",
    0x3001,
    on=lambda: two_of(CfgType.NOTIFY),
)
sets("D-NCF-04", of_cap(CfgType.NOTIFY, pci.NOTIFY_CAP_MULTIPLIER), "<I", 2, on=with_data)
sets("D-NCF-05", of_cap(CfgType.NOTIFY, pci.CAP_LENGTH), "<I", 2, on=with_data)
sets("D-DCF-02", of_cap(CfgType.DEVICE, pci.CAP_OFFSET), "<I", 0x2002)
sets("D-DCF-03", of_cap(CfgType.DEVICE, pci.CAP_LENGTH), "<I", 16)
sets("D-SHC-01", of_cap(CfgType.SHARED_MEMORY, pci.CAP_OFFSET), "<I", 0x3FF0, on=more)
sets("D-SHC-02", of_cap(CfgType.SHARED_MEMORY, pci.CAP_SHMID), "<B", 2, on=more)
sets("D-VND-01", of_cap(CfgType.VENDOR, pci.VENDOR_CAP_VENDOR_ID), "<H", pci.VIRTIO_VENDOR, on=more)
sets("D-VND-02", of_cap(CfgType.VENDOR, pci.CAP_LEN), "<B", 7, on=more)


@MUTANTS.of("D-CAP-05")
def one_more_type(device):
    put(device, place(device, CfgType.PCI_CFG) + pci.CAP_CFG_TYPE, "<B", 0x70)


@MUTANTS.of("D-CAP-06")
def list_without_end(device):
    last = place(device, CfgType.PCI_CFG)
    put(device, last + pci.CAP_NEXT, "<B", device.config_space[pci.CFG_CAPABILITIES_POINTER])


@MUTANTS.of("D-NCF-06")
def notify_ends_before_the_queue(device):
    device.notify_offs = {0: 0x3FF}
    put(device, place(device, CfgType.NOTIFY) + pci.CAP_LENGTH, "<I", 0x20)


@MUTANTS.of("D-PCI-02")
def vendor_changes(device):
    """Opening asks for the id, so it is another one afterwards."""
    config_reads(device, pci.CFG_VENDOR_ID, lambda value, times: value if times < 3 else 0x1AF5)


@MUTANTS.of("D-PCI-03")
def device_id_changes(device):
    config_reads(device, pci.CFG_DEVICE_ID, lambda value, times: value if times < 3 else 0x107F)


@MUTANTS.of("D-PCI-L3", on=LEGACY)
def legacy_device_id_changes(device):
    config_reads(device, pci.CFG_DEVICE_ID, lambda value, times: value if times < 3 else 0x1044)


@MUTANTS.of("D-PCI-L9", on=LEGACY)
def legacy_in_memory(device):
    around(device, "bar", lambda before, index: before(index) and before(index).__class__(index, 128, False))


@MUTANTS.of("D-VND-03", on=more)
def vendor_data_counts(device):
    at = place(device, CfgType.VENDOR) + 6
    config_reads(device, at, lambda value, times: times & 0xFF)


@MUTANTS.of("D-PCF-02")
def window_does_not_write(device):
    around(device, "_through_window", lambda before, at, width, value: before(at, width, None))


@MUTANTS.of("D-PCF-03")
def window_reads_bytes(device):
    around(device, "_through_window", lambda before, at, width, value: before(at, width, value) & 0xFF)


@MUTANTS.of("D-PCF-04")
def window_ignores_the_bar(device):
    def through(before, at, width, value):
        bar = device.config_space[at + pci.CAP_BAR]
        device.config_space[at + pci.CAP_BAR] = BAR
        seen = before(at, width, value)
        device.config_space[at + pci.CAP_BAR] = bar
        return seen

    around(device, "_through_window", through)


def config_reads(device, offset, instead):
    """Let a place of configuration space read something else, by how often it was read."""
    times = 0

    def read(before, at, width):
        nonlocal times
        value = before(at, width)
        if at != offset:
            return value
        times += 1
        return instead(value, times)

    around(device, "_config_read", read)
    device.config = device._window("config", 256, device._config_read, device._config_write)
