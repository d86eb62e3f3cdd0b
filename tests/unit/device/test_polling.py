"""Polling before sleeping: how long, with interrupts off, and nothing missed on the way back."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from uvirtio import opening
from uvirtio.device import Device, QueueSpec
from uvirtio.device.polling import PollWindow
from uvirtio.errors import DeviceTimeout, RingCorruption
from uvirtio.interfaces.values import InterruptMode
from uvirtio.scripted.pci import ScriptedDevice
from uvirtio.scripted.rng import Rng
from uvirtio.spec import features as f
from uvirtio.spec import pci

LONG_US = 2e5
"""Microseconds: the window begins at a sixteenth, and that is long enough for whatever happens in a test."""

WORDS = {
    name: f.mask(f.VERSION_1, *bits)
    for name, bits in {
        "split": (),
        "split+event_idx": (f.EVENT_IDX,),
        "packed": (f.RING_PACKED,),
        "packed+event_idx": (f.RING_PACKED, f.EVENT_IDX),
    }.items()
}
every_word = pytest.mark.parametrize("word", WORDS.values(), ids=WORDS.keys())


def test_the_window_grows_where_polling_pays_and_goes_where_it_does_not():
    window = PollWindow(1.6)
    assert window.seconds == pytest.approx(0.1)
    for expected in (0.2, 0.4, 0.8, 1.6, 1.6):
        window.found()
        assert window.seconds == pytest.approx(expected)
    for expected in (0.8, 0.4, 0.2, 0.1, 0, 0):
        window.slept(2.0)
        assert window.seconds == pytest.approx(expected)
    for expected in (0.1, 0.2):
        window.slept(1.0)
        assert window.seconds == pytest.approx(expected)


def test_no_window_stays_none():
    window = PollWindow(0)
    window.found()
    window.slept(0)
    assert window.seconds == 0


class Late(Rng):
    """Keeps chains until ``release``."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[Any] = []

    def handle(self, queue: int, chain: Any) -> int | None:
        self.kept.append(chain)
        return None

    def release(self, *, interrupt: bool = True) -> None:
        kept, self.kept = self.kept, []
        for chain in kept:
            self.device.complete(0, chain, chain.fill(b"x"), interrupt=interrupt)


def started(
    scripted: ScriptedDevice, poll_us: float = LONG_US, mode: InterruptMode = InterruptMode.SHARED
) -> Device:
    device = opening.identify(scripted.address, scripted, timeout=2, interrupts=[mode], poll_us=poll_us)
    device.start(wanted=0, queues=[QueueSpec(0, "queue 0", size=8)])
    return device


def posted(device: Device, count: int = 1) -> None:
    buffer = device.dma.alloc(4096)
    for number in range(count):
        device.queues[0].add((), buffer.segments(0, 8), number)
    device.queues[0].kick()


def watched(scripted: ScriptedDevice, device: Device, at: dict[int, Callable[[], object]]) -> Callable[[], bool]:
    """A ``ready`` that does something at its n-th call, and notes whether interrupts were wanted then."""
    calls = 0
    wanted: list[bool] = []

    def ready() -> bool:
        nonlocal calls
        calls += 1
        wanted.append(device.queues[0].ring._interrupts)  # type: ignore[attr-defined]
        at.get(calls, lambda: None)()
        return bool(device.queues[0].reap())

    ready.wanted = wanted  # type: ignore[attr-defined]
    return ready


@pytest.mark.spec("SPL-13", "SPL-14", "PKD-21")
@every_word
def test_what_comes_while_polling_is_found_without_an_interrupt(word: int):
    model = Late()
    scripted = ScriptedDevice(model, features=word)
    with started(scripted) as device:
        posted(device)
        ready = watched(scripted, device, {5: model.release})
        assert device.wait(ready, timeout=2, what="an answer")
        wanted: list[bool] = ready.wanted  # type: ignore[attr-defined]
        assert wanted[0] and not any(wanted[1:]), "on at the first look, off while polling"
        assert device.queues[0].ring._interrupts, "on again afterwards"  # type: ignore[attr-defined]
        assert device.counters.polled == 1 and device.counters.interrupts_taken == 0
        assert sum(event.fired for event in scripted.msix) == 0
    scripted.assert_left()


@pytest.mark.spec("SPL-28", "PKD-24")
@every_word
def test_what_comes_while_interrupts_go_on_is_found(word: int, monkeypatch: pytest.MonkeyPatch):
    model = Late()
    scripted = ScriptedDevice(model, features=word)
    with started(scripted, poll_us=160) as device:  # a window of 10 us: one look or two
        posted(device)
        ring: Any = device.queues[0].ring
        before = type(ring).want_interrupts

        def racing(this: Any, on: bool) -> bool:
            if on:
                model.release()  # after the last look, and before we ask for interrupts
            return bool(before(this, on))

        monkeypatch.setattr(type(ring), "want_interrupts", racing)
        begin = time.monotonic()
        assert device.wait(lambda: bool(device.queues[0].reap()), timeout=2, what="an answer")
        assert device.counters.polled == 1, "it did not sleep"
        assert time.monotonic() - begin < 2
    scripted.assert_left()


@every_word
def test_what_comes_later_wakes_it(word: int):
    model = Late()
    scripted = ScriptedDevice(model, features=word)
    with started(scripted, poll_us=160) as device:
        posted(device)
        sleeps = []
        sleep = device._waiting._sleep

        def sleeping(*args: Any) -> bool:
            sleeps.append(device.queues[0].ring._interrupts)  # type: ignore[attr-defined]
            model.release()
            return sleep(*args)

        device._waiting._sleep = sleeping  # type: ignore[method-assign]
        assert device.wait(lambda: bool(device.queues[0].reap()), timeout=2, what="an answer")
        assert sleeps == [True], "interrupts are on while it sleeps"
        assert (
            device.counters.polled == 0
            and device.counters.interrupts_taken == 1
            and device.counters.missed_interrupts == 0
        )
    scripted.assert_left()


@pytest.mark.parametrize(("poll_us", "mode"), [(0, InterruptMode.SHARED), (LONG_US, InterruptMode.POLLING)])
def test_nothing_is_polled_where_nobody_asked_or_where_all_is_polled_anyway(poll_us: float, mode: InterruptMode):
    model = Late()
    scripted = ScriptedDevice(model)
    with started(scripted, poll_us, mode) as device:
        posted(device)
        ready = watched(scripted, device, {2: model.release})
        sleep = device._waiting._sleep
        device._waiting._sleep = lambda *args: (model.release(), sleep(*args))[1]  # type: ignore[method-assign]
        assert device.wait(ready, timeout=2, what="an answer")
        assert device.counters.polled == 0
        assert all(ready.wanted)  # type: ignore[attr-defined]
    scripted.assert_left()


def test_a_deadline_holds_while_polling():
    scripted = ScriptedDevice(Late())
    with started(scripted, poll_us=1e9) as device:
        posted(device)
        begin = time.monotonic()
        with pytest.raises(DeviceTimeout):
            device.wait(lambda: bool(device.queues[0].reap()), timeout=0.05, what="an answer")
        assert time.monotonic() - begin < 10
    scripted.assert_left()


@every_word
def test_a_lie_while_polling_is_the_error_that_comes_out(word: int):
    model = Late()
    scripted = ScriptedDevice(model, features=word)
    scripted.lies.used_id = lambda ident: ident ^ 7
    with started(scripted) as device:
        posted(device)
        ready = watched(scripted, device, {3: model.release})
        with pytest.raises(RingCorruption):
            device.wait(ready, timeout=2, what="an answer")
        assert isinstance(device.broken, RingCorruption)
    scripted.assert_left()


def test_the_driver_and_its_slots_go_on_with_polling():
    from uvirtio.drivers.input import Input as InputDriver
    from uvirtio.drivers.input import InputEvent
    from uvirtio.scripted.input import Input

    scripted = ScriptedDevice(Input(), common_length=pci.COMMON_CFG_SIZE)
    with (
        opening.identify(scripted.address, scripted, timeout=2, poll_us=LONG_US) as device,
        InputDriver(device) as keyboard,
    ):
        for turn in range(20):
            assert scripted.model.inject((1, 30 + turn, 1), (0, 0, 0)) == 2
            assert keyboard.read(timeout=2) == [InputEvent(1, 30 + turn, 1), InputEvent(0, 0, 0)]
        assert keyboard.read(timeout=0.05) == []
    scripted.assert_left()
