"""What the wait loop sleeps on: which descriptors fired, and that it looks at what they do not tell."""

from __future__ import annotations

import os

import pytest

from uvirtio import opening
from uvirtio.device.listener import Listener
from uvirtio.drivers.rng import Rng as Driver
from uvirtio.errors import DeviceGone
from uvirtio.interfaces.values import InterruptMode
from uvirtio.scripted.pci import ScriptedDevice
from uvirtio.scripted.rng import Rng


def test_which_ones_fired():
    first, second = (os.eventfd(0, os.EFD_NONBLOCK) for _ in range(2))
    try:
        listener = Listener()
        assert not listener.ready
        listener.forget()
        listener.listen([first, second, first])
        assert listener.ready and not listener.fired(0)
        os.eventfd_write(second, 1)
        assert list(listener.fired(10)) == [second]
        os.eventfd_write(first, 1)
        assert sorted(listener.fired(0)) == sorted([first, second])
        os.eventfd_read(second)
        assert list(listener.fired(0)) == [first]
        listener.listen([second])
        assert not listener.fired(0)
        listener.forget()
        assert not listener.ready
    finally:
        os.close(first)
        os.close(second)


@pytest.mark.parametrize("mode", [InterruptMode.PER_QUEUE, InterruptMode.SHARED, InterruptMode.INTX])
def test_a_wait_that_slept_asks_only_those_that_fired(mode: InterruptMode):
    scripted = ScriptedDevice(Rng(), auto=False)
    with (
        opening.identify("0000:00:04.0", scripted, interrupts=[mode], timeout=30) as device,
        Driver(device) as rng,
    ):
        scripted.auto = True
        assert len(rng.read(64)) == 64
        for events in (scripted.msix, [scripted.line]):
            assert all(event is None or not event.closed for event in events)
        before = device.counters.interrupts_taken
        assert not device.wait(lambda: False, timeout=0.05, what="nothing", owed=False)
        assert device.counters.interrupts_taken - before <= 1  # what was left from the read, and then no more
        scripted.interrupt_config()
        assert device.wait(lambda: device.counters.config_changes > 0, timeout=5, what="the change")
    scripted.assert_left()


def test_a_removal_that_its_descriptor_does_not_tell_is_found_within_a_moment():
    """As QEMU's: what it said beside an answer is read already, and the socket is quiet."""
    scripted = ScriptedDevice(Rng())
    with opening.identify("0000:00:04.0", scripted, timeout=30) as device, Driver(device):
        assert not device.wait(lambda: False, timeout=0.01, what="nothing", owed=False)
        removal = scripted.removal
        assert removal is not None
        removal.take = lambda: True  # type: ignore[method-assign]
        with pytest.raises(DeviceGone):
            device.wait(lambda: False, timeout=5, what="nothing", owed=False)


def test_events_are_forgotten_before_they_are_closed_and_made_anew():
    scripted = ScriptedDevice(Rng())
    with opening.identify("0000:00:04.0", scripted, timeout=30) as device:
        for _ in range(3):
            with Driver(device) as rng:
                assert not device.wait(lambda: False, timeout=0.01, what="nothing", owed=False)
                assert len(rng.read(8)) == 8
                scripted.interrupt_config()
                seen = device.counters.config_changes
                device.wait(lambda seen=seen: device.counters.config_changes != seen, timeout=5, what="the change")
    scripted.assert_left()
