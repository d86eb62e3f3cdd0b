"""What comes after a reset: an interrupt that was on its way, and the whole reset after one of a queue."""

from __future__ import annotations

import pytest

from uvirtio.device import Device
from uvirtio.drivers.rng import Rng as RngDriver
from uvirtio.errors import DeviceBroken, DeviceTimeout
from uvirtio.interfaces.values import InterruptMode
from uvirtio.opening import identify
from uvirtio.scripted import Rng, ScriptedDevice
from uvirtio.spec import features as f
from uvirtio.spec import pci

MODES = [InterruptMode.PER_QUEUE, InterruptMode.SHARED, InterruptMode.INTX]


def opened(scripted: ScriptedDevice, mode: InterruptMode = InterruptMode.PER_QUEUE) -> Device:
    return identify("0000:00:04.0", scripted, timeout=5.0, interrupts=(mode,))


@pytest.mark.fault(44)
@pytest.mark.parametrize("mode", MODES)
def test_an_interrupt_after_the_reset_is_nothing(mode: InterruptMode) -> None:
    """It was on its way when status 0 was read: what it finds is no queue, and the next start is as any other."""
    scripted = ScriptedDevice(Rng())
    with opened(scripted, mode) as device:
        with RngDriver(device) as rng:
            assert len(rng.read(4)) == 4
            signals = [*scripted.msix]
            vector = scripted.queues[0].vector
        assert device.transport.status() == 0
        for late in signals:
            late.fire()
        scripted._interrupt(pci.ISR_QUEUE, vector)
        scripted._interrupt(pci.ISR_CONFIG, vector)
        with RngDriver(device) as rng:
            assert len(rng.read(4)) == 4
            assert device.broken is None
    scripted.assert_left()


@pytest.mark.fault(49)
def test_a_queue_reset_that_never_ends_is_followed_by_a_whole_one() -> None:
    bits = f.mask(f.VERSION_1, f.RING_RESET)
    scripted = ScriptedDevice(Rng(), features=bits, common_length=pci.COMMON_CFG_SIZE, queue_reset_reads=-1)
    with opened(scripted) as device:
        with RngDriver(device) as rng:
            old = device.queues[0].ring.addresses
            with pytest.raises(DeviceTimeout):
                device.reset_queue(device.queues[0], timeout=0.05)
            with pytest.raises(DeviceBroken):
                rng.read(1)
            assert all(scripted.memory.is_mapped(address, 1) for address in old)
        assert device.transport.status() == 0
        mapped = any(scripted.memory.is_mapped(address, 1) for address in old)
        assert not mapped, "the whole reset that followed settled whose it is"
    scripted.assert_left()
