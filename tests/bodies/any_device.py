"""What holds for a driver of any type."""

from __future__ import annotations

import pytest

from tests.bodies import Cell
from uvirtio.device import Device
from uvirtio.drivers.balloon import Balloon
from uvirtio.drivers.base import Driver
from uvirtio.drivers.blk import Blk
from uvirtio.drivers.input import Input
from uvirtio.drivers.mem import Mem
from uvirtio.drivers.net import Net
from uvirtio.drivers.rng import Rng
from uvirtio.drivers.scsi import Scsi
from uvirtio.errors import Closed
from uvirtio.spec import features as f

DRIVERS: dict[int, type[Driver]] = {1: Net, 2: Blk, 4: Rng, 5: Balloon, 8: Scsi, 18: Input, 24: Mem}


def drive(device: Device) -> Driver:
    """The driver for this device, brought up."""
    return DRIVERS[device.device_id](device)


@pytest.mark.spec("STAT-01", "INIT-01", "INIT-L01", "PCI-COM-04", "PCI-LEG-06")
def test_the_device_sees_what_we_negotiated(cell: Cell) -> None:
    with cell.open() as device, drive(device):
        seen = cell.state()
        assert seen.status - {"FEATURES_OK"} == {"ACKNOWLEDGE", "DRIVER", "DRIVER_OK"}
        assert ("FEATURES_OK" in seen.status) is not cell.legacy
        assert not seen.broken
        assert cell.started()
        assert device.transport.legacy is cell.legacy
        assert device.has(f.VERSION_1) is not cell.legacy
        assert device.has(f.ANY_LAYOUT) is cell.legacy
        assert device.has(f.ACCESS_PLATFORM) is cell.translated
        accepted = cell.accepted(device)
        assert ("VERSION_1" in accepted) is not cell.legacy
        assert ("ACCESS_PLATFORM" in accepted) is cell.translated


@pytest.mark.spec("RSV-05")
def test_packed_rings_and_in_order_are_taken_where_they_are_offered(cell: Cell) -> None:
    with cell.open() as device, drive(device):
        offered = f.has(device.offered, f.RING_PACKED)
        assert device.has(f.RING_PACKED) is offered
        accepted = cell.accepted(device)
        assert ("RING_PACKED" in accepted) is offered
        assert {queue.ring.kind for queue in device.queues.values()} == {"packed" if offered else "split"}
        offered = f.has(device.offered, f.IN_ORDER)
        assert device.has(f.IN_ORDER) is offered
        assert ("IN_ORDER" in accepted) is offered


@pytest.mark.spec("RST-01", "CLN-02")
def test_the_device_is_reset_when_it_is_left(cell: Cell) -> None:
    with cell.open() as device:
        with drive(device):
            pass
        assert device.transport.status() == 0
        assert not cell.state().status
        assert not cell.started()


@pytest.mark.spec("SPL-01", "PKD-01", "RSV-03", "RSV-04", "SPL-L01", "SPL-L02", "PCI-LEG-05")
def test_the_rings_are_where_we_put_them(cell: Cell) -> None:
    with cell.open() as device, drive(device):
        for index, queue in device.queues.items():
            seen = cell.queue(index)
            desc, avail, used = queue.ring.addresses
            assert seen["vring-num"] == queue.ring.size
            assert (seen["vring-desc"], seen["vring-avail"], seen["vring-used"]) == (desc, avail, used)


@pytest.mark.spec("PCI-MSX-03", "PCI-MSX-01")
def test_the_interrupt_mode_is_the_one_asked_for(cell: Cell) -> None:
    with cell.open() as device, drive(device):
        assert device.transport.interrupt_mode is cell.mode


def test_a_driver_can_be_started_again_on_the_same_device(cell: Cell) -> None:
    with cell.open() as device:
        for _ in range(3):
            with drive(device):
                assert device.queues
            assert not device.queues


def test_closing_twice_is_once(cell: Cell) -> None:
    device = cell.open()
    driver = drive(device)
    driver.close()
    driver.close()
    device.close()
    device.close()
    with pytest.raises(Closed), device.session():
        pass
