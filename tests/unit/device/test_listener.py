"""What the wait loop sleeps on: which descriptors fired, and that it looks at what they do not tell."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator

import pytest

from uvirtio import opening
from uvirtio.device import Device
from uvirtio.device.listener import Listener
from uvirtio.drivers.rng import Rng as Driver
from uvirtio.errors import DeviceGone
from uvirtio.interfaces.transport import Causes
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
        assert listener.ready and listener.most == 2 and not listener.look(0, 2)
        os.eventfd_write(second, 1)
        assert [number for number, _ in listener.look(10, 2)] == [second]
        os.eventfd_write(first, 1)
        assert sorted(number for number, _ in listener.look(0, 2)) == sorted([first, second])
        os.eventfd_read(second)
        assert [number for number, _ in listener.look(0, 2)] == [first]
        listener.listen([second])
        assert listener.most == 1 and not listener.look(0, 1)
        listener.forget()
        assert not listener.ready and not listener.look(0, 1)
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


@pytest.mark.parametrize("vectors", [3, 2, 1])
def test_a_vector_of_queues_alone_needs_no_look_at_causes(vectors: int, monkeypatch: pytest.MonkeyPatch):
    scripted = ScriptedDevice(Rng(), vectors=vectors)
    with opening.identify("0000:00:04.0", scripted, timeout=30) as device, Driver(device) as rng:
        assert len(rng.read(64)) == 64
        device.service()
        causes, asked = device.transport.causes, 0

        def counted(fired: Collection[int] | None = None) -> Causes:
            nonlocal asked
            asked += fired is not None  # None: all are looked at, ten times a second
            return causes(fired)

        monkeypatch.setattr(device.transport, "causes", counted)
        taken = device.counters.interrupts_taken
        # With one vector for all, each interrupt may mean that the configuration changed.
        for event in [one for one in scripted.msix if one is not None][-1:]:
            for number in range(1, 4):
                os.eventfd_write(event.fileno(), 1)
                assert device.service() and device.interrupted
                assert device.counters.interrupts_taken == taken + number
                assert not device.service() and not device.interrupted
        assert (asked > 0) is (vectors == 1)
        changes = device.counters.config_changes
        os.eventfd_write(event.fileno(), 1)
        scripted.interrupt_config()
        assert device.service() and device.counters.config_changes == changes + 1, "both, in one look"
        # What another took between the look and the take is no interrupt.
        monkeypatch.setattr(device._waiting._listener, "look", lambda *_: [(event.fileno(), 1)])
        taken = device.counters.interrupts_taken
        assert not device.service() and not device.interrupted and device.counters.interrupts_taken == taken
    scripted.assert_left()


class _Expecting:
    """A device whose last vector is of a queue alone, with a clock that stands still, and a count of the looks."""

    def __init__(self, device: Device, scripted: ScriptedDevice, monkeypatch: pytest.MonkeyPatch) -> None:
        self.device, self.scripted = device, scripted
        self.looks = 0
        loop = device._waiting
        self.event = [one for one in scripted.msix if one is not None][-1]
        assert not device.wait(lambda: False, timeout=0.01, what="nothing", owed=False)
        self.now = device.clock.monotonic()
        loop._look_at = self.now + 0.1
        monkeypatch.setattr(loop, "_monotonic", lambda: self.now)
        look = loop._listener.look

        def counted(seconds: float, most: int) -> list[tuple[int, int]]:
            self.looks += 1
            return look(seconds, most)

        monkeypatch.setattr(loop._listener, "look", counted)

    def interrupt(self) -> int:
        """An interrupt, and a wait that takes it; how many looks at all events that took."""
        looks, counters = self.looks, self.device.counters
        taken = counters.interrupts_taken
        self.event.fire()
        assert self.device.wait(lambda: counters.interrupts_taken > taken, timeout=30, what="an interrupt")
        assert counters.interrupts_taken == taken + 1 and self.device.interrupted
        return self.looks - looks


@pytest.fixture
def expecting(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Expecting]:
    scripted = ScriptedDevice(Rng(), vectors=3)
    with opening.identify("0000:00:04.0", scripted, timeout=30) as device, Driver(device):
        yield _Expecting(device, scripted, monkeypatch)
    scripted.assert_left()


def test_a_vector_that_fired_at_two_looks_is_expected_at_the_next_ones(expecting: _Expecting):
    assert [expecting.interrupt() for _ in range(5)] == [1, 1, 0, 0, 0]
    expecting.now += 2e-3
    assert [expecting.interrupt() for _ in range(3)] == [1, 0, 0], "the others are looked at, within a millisecond"
    expecting.now += 0.2
    assert [expecting.interrupt() for _ in range(4)] == [0, 1, 1, 0], "each event was asked, by none of the looks"
    expecting.now += 2e-3
    device, looks = expecting.device, expecting.looks
    for found in range(1, 4):
        assert device.wait(lambda: True, timeout=30, what="what is there")
        assert not device.interrupted and expecting.looks == looks + found
    assert [expecting.interrupt() for _ in range(3)] == [1, 1, 0], "it did not fire at the last one"


def test_one_that_is_expected_and_does_not_come_is_expected_no_more(expecting: _Expecting):
    assert [expecting.interrupt() for _ in range(3)] == [1, 1, 0]
    device, takes, take = expecting.device, 0, expecting.device._waiting._likely

    def counted() -> bool:
        nonlocal takes
        takes += 1
        return take()

    device._waiting._likely = counted
    for found in range(1, 4):
        looks = expecting.looks
        assert device.wait(lambda: True, timeout=30, what="what is there")
        assert not device.interrupted and (expecting.looks, takes) == (looks + 1, 1), found


def test_what_else_fires_is_seen_although_a_vector_is_expected(expecting: _Expecting):
    device, scripted = expecting.device, expecting.scripted
    assert [expecting.interrupt() for _ in range(3)] == [1, 1, 0]
    scripted.interrupt_config()
    assert expecting.interrupt() == 0 and device.counters.config_changes == 0
    # A wait that is not over looks at all of them, before it sleeps.
    assert device.wait(lambda: device.counters.config_changes == 1, timeout=30, what="the change")
    assert [expecting.interrupt() for _ in range(3)] == [1, 1, 0]
    scripted.interrupt_config()
    expecting.now += 2e-3
    assert expecting.interrupt() == 1 and device.counters.config_changes == 2
    assert [expecting.interrupt() for _ in range(3)] == [1, 1, 0], "one after a change is not expected at once"
    assert scripted.removal is not None
    scripted.removal.fire()
    expecting.now += 2e-3
    with pytest.raises(DeviceGone):
        expecting.interrupt()


def test_a_wait_that_expects_a_vector_is_ended_as_any_other(expecting: _Expecting):
    device = expecting.device
    assert [expecting.interrupt() for _ in range(3)] == [1, 1, 0]
    device.interrupt(KeyError("a signal handler's"))
    with pytest.raises(KeyError):
        expecting.interrupt()
    expecting.event.take()
    assert expecting.interrupt() == 0
    device.stop()
    assert device._waiting._likely_until == 0.0, "its event is closed"


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
