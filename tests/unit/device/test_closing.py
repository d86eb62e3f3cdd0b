"""Closing from elsewhere: from another thread, from a callback, twice at once, with signal handlers that raise."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

import uvirtio
from uvirtio import Device, scripted
from uvirtio.device import signals
from uvirtio.device.signals import signals_held
from uvirtio.errors import Closed, UvirtioError

WAITS: dict[str, tuple[Callable[[], scripted.Model], Callable[[Device], Any], Callable[[Any], object]]] = {
    "input": (scripted.Input, uvirtio.Input, lambda driver: driver.read()),
    "events": (scripted.Input, uvirtio.Input, lambda driver: list(driver.events())),
    "blk": (scripted.Disk, uvirtio.Blk, lambda driver: driver.wait_for_change(timeout=None)),
    "scsi": (scripted.ScsiHost, uvirtio.Scsi, lambda driver: driver.wait_for_event(timeout=None)),
    "net": (scripted.Net, uvirtio.Net, lambda driver: driver.receive()),
    "balloon": (
        scripted.Balloon,
        lambda device: uvirtio.Balloon(device, stats=None),
        lambda driver: driver.follow(),
    ),
}

Waiting = tuple[Device, Any, Callable[[], BaseException | None]]


@contextmanager
def waiting(
    name: str,
) -> Iterator[Waiting]:
    """A driver whose call waits without end in another thread; yields what waits until that call has ended."""
    model, make, call = WAITS[name]
    found = scripted.ScriptedDevice(model())
    with uvirtio.open(found, timeout=5) as device:
        driver = make(device)
        begun, ended = threading.Event(), list[BaseException | None]()
        device.pulse = begun.set

        def run() -> None:
            try:
                call(driver)
                ended.append(None)
            except UvirtioError as error:
                ended.append(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        assert begun.wait(10)

        def end() -> BaseException | None:
            thread.join(10)
            return ended[0]

        yield device, driver, end
    found.assert_left()


@pytest.mark.fault(91)
@pytest.mark.parametrize("way", ["driver.close", "device.stop", "device.close", "two at once"])
@pytest.mark.parametrize("name", WAITS)
def test_a_close_from_another_thread_ends_what_waits_without_end(name: str, way: str) -> None:
    with waiting(name) as (device, driver, end):
        closers = {
            "driver.close": [driver.close],
            "device.stop": [device.stop],
            "device.close": [device.close],
            "two at once": [device.close, driver.close, device.stop],
        }[way]
        threads = [threading.Thread(target=one, daemon=True) for one in closers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
            assert not thread.is_alive(), "it waits for the call that waits without end"
        assert isinstance(end(), Closed)
        device.pulse = None
        if way in ("driver.close", "device.stop"):
            assert device.state == "not started" and not device.closing
            again = WAITS[name][1](device)
            # Nothing is left that would end a sleep at once, again and again.
            slept = device._waiting._sleep  # type: ignore[attr-defined]
            sleeps: list[bool] = []
            device._waiting._sleep = lambda *how: sleeps.append(slept(*how)) or sleeps[-1]  # type: ignore
            assert not device.wait(lambda: False, timeout=0.05, what="nothing", owed=False)
            assert len(sleeps) < 10
            again.close()
        else:
            assert device.state == "closed" and device.closing


def test_a_stop_that_a_signal_ends_leaves_the_device_in_use() -> None:
    with waiting("input") as (device, driver, end):
        acquire = device._acquire

        def interrupted(*, blocking: bool = True) -> bool:
            if blocking:
                raise CtrlC
            return acquire(blocking=False)

        device._acquire = interrupted  # type: ignore[assignment]
        with pytest.raises(CtrlC):
            device.stop()
        assert not device.closing
        device._acquire = acquire
        driver.close()
        assert isinstance(end(), Closed)
        device.pulse = None
        WAITS["input"][1](device).close()


def test_a_queue_that_is_gone_is_no_key_error() -> None:
    """A callback resets or leaves the device in the middle of a call, which then looks for its queue."""
    with uvirtio.open(scripted.ScriptedDevice(scripted.Balloon())) as device:
        balloon = uvirtio.Balloon(device, stats=None, floor=0)
        with pytest.raises(Closed, match="no queue 0"):
            balloon.inflate(9000, progress=lambda held: held and device.reset())
        with pytest.raises(Closed):
            device.queues[7]
        assert device.queues.get(7) is None


def test_a_callback_that_closes_within_its_own_close_closes_once() -> None:
    """Closing waits for what is in flight, and that wait has the callback, too."""
    model = scripted.Disk()
    found = scripted.ScriptedDevice(model)
    with uvirtio.open(found, timeout=0.3) as device:
        disk = uvirtio.Blk(device)
        model.hold = True
        out = [disk.submit_read(0, 1)]
        device.pulse = device.close
        with pytest.raises(Closed):
            disk.wait(out, timeout=1)
        assert not out[0].done and device.state == "closed"
    found.assert_left()


def test_memory_is_freed_though_a_view_of_it_is_not_released() -> None:
    class Mistake(Exception):
        pass

    def mistake() -> None:
        raise Mistake

    found, released = scripted.ScriptedDevice(scripted.Rng()), []
    with uvirtio.open(found) as device:
        uvirtio.Rng(device)
        device.before_free(mistake)
        device.before_free(lambda: released.append(1))
        with pytest.raises(Mistake):
            device.stop()
        assert released
    found.assert_left()


class CtrlC(BaseException):
    pass


def test_handlers_come_back_though_each_of_them_raises() -> None:
    """A signal at each place of the exchange: all handlers are as before, and none is lost that came meanwhile."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    used: Any = vars(signals)["signal"]  # the module that it calls by this name
    real, before = used.signal, {number: used.getsignal(number) for number in numbers}
    taken: list[int] = []

    def handler(number: int, _frame: object) -> None:
        taken.append(number)
        raise CtrlC

    try:
        for number in numbers:
            real(number, handler)
        for place in range(20):
            calls = iter(range(100))

            def exchange(number: int, how: Any, place: int = place, calls: Iterator[int] = calls) -> Any:
                found = real(number, how)
                if next(calls) == place:
                    signal.raise_signal(signal.SIGINT)  # at once: one of the handlers, or what holds them
                return found

            taken.clear()
            used.signal = exchange
            with suppress(CtrlC), signals_held():
                pass
            used.signal = real
            assert {number: signal.getsignal(number) for number in numbers} == dict.fromkeys(numbers, handler)
            assert len(taken) == (place < len(numbers) * 4), place
        with suppress(CtrlC), signals_held():
            for number in numbers:
                signal.raise_signal(number)
            taken.clear()
        assert taken == list(numbers)
    finally:
        used.signal = real
        for number, one in before.items():
            real(number, one)
