"""What a function has beside its registers: a window in configuration space, vendor data, shared memory."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from uvirtio import opening
from uvirtio.device import Device
from uvirtio.drivers.balloon import Balloon as BalloonDriver
from uvirtio.errors import CapabilityError, ConfigError, Misuse
from uvirtio.interfaces.memory import Registers
from uvirtio.interfaces.transport import SharesMemory
from uvirtio.scripted.balloon import Balloon
from uvirtio.scripted.pci import BAR, BAR_SIZE, COMMON_AT, DEVICE_AT, ScriptedDevice, virtio_capability
from uvirtio.spec import pci
from uvirtio.transports import pci_caps
from uvirtio.transports.pci import PciModern
from uvirtio.transports.pci_base import config_reader
from uvirtio.transports.pci_cfg import CfgWindow


def identify(scripted: ScriptedDevice) -> Device:
    return opening.identify(scripted.address, scripted, timeout=1)


def walk(scripted: ScriptedDevice) -> list[pci_caps.VirtioCapability]:
    return pci_caps.walk_capabilities(config_reader(scripted), scripted.bar)


def described(scripted: ScriptedDevice, kind: str) -> pci_caps.VirtioCapability:
    return next(cap for cap in walk(scripted) if cap.type == kind)


# --- the window (4.1.4.9) -----------------------------------------------------------------------------------


@pytest.mark.spec("PCI-CFA-01", "PCI-CFA-02", "PCI-CFA-03")
def test_registers_through_the_window_are_the_registers():
    scripted = ScriptedDevice(Balloon())
    window = CfgWindow(scripted.config, walk(scripted))
    common: Registers = window.registers(described(scripted, "common"))
    assert common.length == pci.COMMON_CFG_MIN_SIZE
    common.write8(pci.COMMON_DEVICE_STATUS, 0)
    common.write8(pci.COMMON_DEVICE_STATUS, 1)
    assert common.read8(pci.COMMON_DEVICE_STATUS) == scripted.status_now == 1
    assert common.read16(pci.COMMON_NUM_QUEUES) == 2
    common.write32(pci.COMMON_DEVICE_FEATURE_SELECT, 1)
    assert common.read32(pci.COMMON_DEVICE_FEATURE) == scripted.offered >> 32
    common.write16(pci.COMMON_QUEUE_SELECT, 1)
    assert common.read16(pci.COMMON_QUEUE_SELECT) == 1
    scripted.model.config[:4] = (77).to_bytes(4, "little")
    assert window.registers(described(scripted, "device")).read32(0) == 77
    common.write32(pci.COMMON_QUEUE_DEVICE + 4, 5)
    assert common.read32(pci.COMMON_QUEUE_DEVICE + 4) == 5, "to the last byte of the structure"
    scripted.assert_obedient()


@pytest.mark.spec("PCI-CFA-03")
def test_the_window_is_aimed_before_its_data_is_touched():
    scripted = ScriptedDevice(Balloon())
    window = CfgWindow(scripted.config, walk(scripted))
    at = described(scripted, "pci_cfg").config_offset
    before = len(scripted.log)
    window.read(BAR, COMMON_AT + pci.COMMON_NUM_QUEUES, 2)
    steps = [
        (one.op, one.offset - at, one.width, one.value) for one in scripted.log[before:] if one.region == "config"
    ]
    assert steps == [
        ("write", pci.CAP_BAR, 1, BAR),
        ("write", pci.CAP_LENGTH, 4, 2),
        ("write", pci.CAP_OFFSET, 4, COMMON_AT + pci.COMMON_NUM_QUEUES),
        ("read", pci.PCI_CFG_CAP_DATA, 2, 2),
    ]


@pytest.mark.spec("PCI-CFA-01", "PCI-CFA-03")
@pytest.mark.parametrize(("offset", "width"), [(1, 2), (2, 4), (1, 4), (0, 3), (0, 8), (0, 0)])
def test_a_window_that_is_not_aligned_is_never_set(offset: int, width: int):
    scripted = ScriptedDevice(Balloon())
    window = CfgWindow(scripted.config, walk(scripted))
    with pytest.raises(Misuse, match="aligned"):
        window.read(BAR, offset, width)
    with pytest.raises(Misuse, match="aligned"):
        window.write(BAR, offset, width, 0)
    assert not scripted.writes("config")


@pytest.mark.spec("PCI-CFA-02")
@pytest.mark.parametrize(
    ("bar", "offset"),
    [(BAR, 0x38), (BAR, 0x800), (BAR, DEVICE_AT + 16), (BAR, BAR_SIZE), (0, 0), (5, 0), (BAR, 0x1000 + 4)],
)
def test_what_no_capability_describes_is_never_aimed_at(bar: int, offset: int):
    scripted = ScriptedDevice(Balloon())
    window = CfgWindow(scripted.config, walk(scripted))
    with pytest.raises(CapabilityError):
        window.read(bar, offset, 4)
    assert not scripted.writes("config")
    with pytest.raises(Misuse):
        window.registers(described(scripted, "common")).read32(0x38)


def test_without_the_capability_there_is_no_window():
    plain = ScriptedDevice(Balloon())
    caps = [cap for cap in plain.usual_capabilities() if cap[3] != pci.CfgType.PCI_CFG or cap[0] != 9]
    scripted = ScriptedDevice(Balloon(), capabilities=caps)
    with pytest.raises(CapabilityError):
        CfgWindow(scripted.config, walk(scripted))


# --- vendor data (4.1.4.8) ----------------------------------------------------------------------------------


def vendor_capability(vendor: int, data: bytes) -> bytes:
    return struct.pack("<BBBBH", pci.CapId.VENDOR, 0, 6 + len(data), pci.CfgType.VENDOR, vendor) + data


def with_vendor(*capabilities: bytes) -> ScriptedDevice:
    return ScriptedDevice(Balloon(), capabilities=[*ScriptedDevice(Balloon()).usual_capabilities(), *capabilities])


@pytest.mark.spec("PCI-VND-02")
def test_vendor_data_is_read_for_who_names_the_vendor():
    scripted = with_vendor(vendor_capability(0x1234, b"build 7"), vendor_capability(0x4321, b""))
    first, second = (cap for cap in walk(scripted) if cap.type == "vendor")
    read = config_reader(scripted)
    assert (first.vendor_id, second.vendor_id) == (0x1234, 0x4321)
    assert pci_caps.vendor_data(read, first, 0x1234) == b"build 7"
    assert pci_caps.vendor_data(read, second, 0x4321) == b""
    common = described(scripted, "common")
    before = len(scripted.log)
    bad = first._replace(verdict="bad")
    for cap, vendor in ((first, 0x4321), (second, 0x1234), (common, 0x1234), (bad, 0x1234)):
        with pytest.raises(CapabilityError, match="vendor"):
            pci_caps.vendor_data(read, cap, vendor)
    assert len(scripted.log) == before, "nothing was read for them"


@pytest.mark.spec("PCI-VND-01")
def test_no_driver_looks_at_vendor_data():
    scripted = with_vendor(vendor_capability(0x1234, bytes(range(8))))
    place = next(cap for cap in walk(scripted) if cap.type == "vendor").config_offset
    scripted.log.clear()
    with identify(scripted) as device, BalloonDriver(device) as balloon:
        balloon.inflate(3)
    inside = range(place + pci.VENDOR_CAP_SIZE, place + 14)
    assert not [access for access in scripted.log if access.region == "config" and access.offset in inside]
    scripted.assert_left()


# --- shared memory (2.10, 4.1.4.7) --------------------------------------------------------------------------


def shared(shmid: int, offset: int, length: int, bar: int = BAR) -> bytes:
    high = struct.pack("<II", offset >> 32, length >> 32)
    made = bytearray(
        virtio_capability(pci.CfgType.SHARED_MEMORY, bar, offset & 0xFFFFFFFF, length & 0xFFFFFFFF, high)
    )
    made[pci.CAP_SHMID] = shmid
    return bytes(made)


@pytest.mark.spec("SHM-01")
def test_regions_are_named_by_id_and_reached_by_offset():
    scripted = with_vendor(shared(7, 0x2000, 16), shared(2, 0x0, 0x38), shared(7, 0x3000, 4))
    with identify(scripted) as device:
        transport: Any = device.transport
        assert isinstance(transport, SharesMemory)
        assert [(region.shmid, region.length) for region in transport.shared_memory()] == [(2, 0x38), (7, 16)]
        scripted.model.config[4:8] = (0xABCD).to_bytes(4, "little")
        piece = transport.shared_registers(7, 4, 8)
        assert piece.length == 8 and piece.read32(0) == 0xABCD
        piece.close()
        for shmid, offset, length in ((7, 12, 8), (7, -4, 4), (7, 0, 0), (7, 16, 1), (1, 0, 4)):
            with pytest.raises(ConfigError):
                transport.shared_registers(shmid, offset, length)
    scripted.assert_left()


@pytest.mark.spec("SHM-01")
@pytest.mark.parametrize(
    ("offset", "length"), [(BAR_SIZE, 16), (1 << 33, 16), ((1 << 64) - 8, 16), (0x2000, 0)], ids=hex
)
def test_a_region_that_cannot_be_is_not_one(offset: int, length: int):
    scripted = with_vendor(shared(7, offset, length), shared(8, 0x2000, 1 << 40))
    with identify(scripted) as device:
        transport = device.transport
        assert isinstance(transport, PciModern)
        # What is inside the BAR of the other one is all that there is of it.
        assert [(region.shmid, region.length) for region in transport.shared_memory()] == [(8, BAR_SIZE - 0x2000)]


def test_a_device_without_regions_has_none():
    scripted = ScriptedDevice(Balloon())
    with identify(scripted) as device:
        transport = device.transport
        assert isinstance(transport, SharesMemory) and transport.shared_memory() == []
