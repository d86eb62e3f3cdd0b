"""A function without an IOMMU over a VFIO device made of a file: who stops its DMA, and when."""

from __future__ import annotations

import os
import signal
from contextlib import ExitStack

import pytest

from tests.fakes.fakesys import config_space
from uvirtio.backends import vfio_noiommu
from uvirtio.backends.vfio.device import IrqInfo, RegionInfo
from uvirtio.backends.vfio.uapi import VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_REQ_IRQ_INDEX
from uvirtio.backends.vfio.ways import Way
from uvirtio.backends.vfio_noiommu import VfioNoIommuFunction
from uvirtio.errors import Closed, DeviceGone, GuardianLost
from uvirtio.host.roots import Roots
from uvirtio.interfaces.backend import Guarded, PciFunction, WithoutIommu
from uvirtio.spec import pci

CONFIG_AT = 7 << 20
STATUS = 0x14
MASTER = int(pci.Command.MASTER)


class File:
    """A VFIO device: a file with BAR 4 at its start, and configuration space behind."""

    def __init__(self, log: list[str]) -> None:
        self.log = log
        self.fd = os.memfd_create("vfio", os.MFD_CLOEXEC)
        self.open = True
        config = bytearray(config_space((0x1AF4, 0x1044)))
        config[pci.CFG_BAR0 + 16] = 0x0C
        os.ftruncate(self.fd, CONFIG_AT + 4096)
        os.pwrite(self.fd, bytes(config), CONFIG_AT)

    def region_info(self, index: int) -> RegionInfo:
        size = {4: 0x4000, VFIO_PCI_CONFIG_REGION_INDEX: 256}.get(index, 0)
        return RegionInfo(index, 3, size, CONFIG_AT if index == VFIO_PCI_CONFIG_REGION_INDEX else 0, None, False)

    def irq_info(self, index: int) -> IrqInfo:
        return IrqInfo(index, 1, 1 if index == VFIO_PCI_REQ_IRQ_INDEX else 0)

    def set_irqs(self, index: int, fds: list[int]) -> None:
        self.log.append(f"irqs {index}")

    def command(self) -> int:
        return int.from_bytes(os.pread(self.fd, 2, CONFIG_AT + 4), "little")

    def close(self) -> None:
        if self.open:
            self.open = False
            self.log.append("device closed")
            os.close(self.fd)


@pytest.fixture
def log():
    return []


@pytest.fixture
def device(log):
    it = File(log)
    yield it
    it.close()


@pytest.fixture
def function(device, log, tmp_path):
    rest = ExitStack()
    rest.callback(log.append, "group closed")
    way = Way(device, None, "group 0, no-IOMMU", rest)
    with VfioNoIommuFunction("0000:03:00.0", way, Roots.under(tmp_path)) as it:
        yield it


def test_it_is_what_the_seams_ask_for(function):
    typed: PciFunction = function
    assert isinstance(typed, Guarded) and isinstance(typed, WithoutIommu)
    assert (typed.translates, typed.description) == (False, "vfio-pci, group 0, no-IOMMU")
    assert "no IOMMU holds this device" in function.warning


def test_it_is_shown_under_the_name_of_its_driver(device, log, tmp_path):
    roots = Roots.under(tmp_path)
    at = roots.sys / "bus/pci/devices/0000:03:00.0"
    at.mkdir(parents=True)
    (at / "driver").symlink_to("../../drivers/virtio_vfio_pci")
    with VfioNoIommuFunction("0000:03:00.0", Way(device, None, "group 0", ExitStack()), roots) as it:
        assert it.description == "virtio_vfio_pci, group 0"
        with pytest.raises(DeviceGone, match="does not respond") as caught:
            it.gone("0xffffffff")
        assert "virtio_vfio_pci" in caught.value.expected


@pytest.mark.parametrize("translated", [True, False])
def test_both_readings_of_an_address_are_physical(function, monkeypatch, translated):
    made = []
    monkeypatch.setattr(vfio_noiommu, "PhysicalDmaSpace", lambda roots, **how: made.append(how))
    function.dma(translated)
    assert made == [{"file": function._memory, "translated": translated}]
    function.close()
    with pytest.raises(Closed):
        function.dma(translated)


def test_bus_mastering_waits_for_the_guardian_and_leaving_ends_it(function, device, log):
    function.guard(4, STATUS, 1)
    function.registers(4, 0, 0x38).write8(STATUS, 0x0F)
    function.bus_master(True)
    assert device.command() & MASTER
    guardian = function._guardian
    assert guardian.alive
    held = os.dup(device.fd)
    function.close()
    function.close()
    assert not guardian.alive
    assert os.pread(held, 1, STATUS) == b"\x0f", "left to the transport"
    assert log[-2:] == ["device closed", "group closed"]
    os.close(held)


def test_the_guardian_resets_the_device_of_a_driver_that_did_not_leave(function, device):
    function.guard(4, STATUS, 1)
    function.registers(4, 0, 0x38).write8(STATUS, 0x0F)
    function.bus_master(True)
    function._guardian.close()  # its end of the pipe is closed, as by a death
    assert os.pread(device.fd, 1, STATUS) == b"\0"
    assert not device.command() & MASTER


def test_a_guardian_that_is_gone_is_told_once(function):
    function.bus_master(True)
    assert not function.removal.take()
    os.kill(function._guardian.pid, signal.SIGKILL)
    function._guardian._process.wait(10)
    function._guardian._looked = 0.0
    with pytest.raises(GuardianLost):
        function.removal.take()
    function._guardian._looked = 0.0
    assert not function.removal.take()
    with pytest.raises(GuardianLost):
        function.bus_master(True)


def test_a_device_that_is_gone_needs_nobody(function, device, monkeypatch):
    function.bus_master(True)

    def gone(*_: object) -> int:
        raise DeviceGone("gone")

    monkeypatch.setattr(function.config, "read16", gone)
    guardian = function._guardian
    function.close()
    assert not guardian.alive
