"""What a device and its drivers look like in a failed assertion: told from our own books, with no access."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import uvirtio
from uvirtio import opening
from uvirtio.drivers.base import Driver
from uvirtio.errors import DeviceGone, DeviceTimeout, UvirtioError
from uvirtio.interfaces.values import InterruptMode
from uvirtio.scripted.balloon import Balloon
from uvirtio.scripted.blk import Disk as Blk
from uvirtio.scripted.input import Input
from uvirtio.scripted.mem import Mem
from uvirtio.scripted.model import Model
from uvirtio.scripted.pci import ScriptedDevice
from uvirtio.scripted.rng import Rng

KINDS: dict[str, tuple[Callable[[], Model], type[Driver], str]] = {
    "balloon": (Balloon, uvirtio.Balloon, "0 pages held, "),
    "blk": (Blk, uvirtio.Blk, " sectors, read-only, 0 requests out, "),
    "input": (Input, uvirtio.Input, ""),
    "mem": (Mem, uvirtio.Mem, " blocks plugged, "),
    "rng": (Rng, uvirtio.Rng, ""),
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def test_a_device_says_what_it_is_and_how_far_it_is(kind: str):
    model, driver, about = KINDS[kind]
    device = opening.identify("x:1", ScriptedDevice(model()), interrupts=[InterruptMode.SHARED], ring="split")
    assert repr(device) == f"<Device x:1 {kind}, not started>"
    with driver(device) as driven:
        assert repr(device) == f"<Device x:1 {kind}, DRIVER_OK, split, msix-shared>"
        assert repr(driven).startswith(f"<{driver.__name__} x:1, ") and repr(driven).endswith(f"{about}DRIVER_OK>")
        for queue in device.queues.values():
            assert repr(queue) == f"<Queue {queue.index} {queue.name}, split, {queue.ring.size} entries>"
    assert repr(device) == f"<Device x:1 {kind}, not started>"
    device.close()
    assert repr(device) == f"<Device x:1 {kind}, closed>"
    assert repr(driven).endswith(", closed>")


def test_every_step_of_the_bring_up_has_its_own_state():
    device = opening.identify("x:1", ScriptedDevice(Rng()))
    states: list[str] = []

    class Watched:
        def __init__(self, _step: str) -> None: ...
        def __enter__(self) -> None: ...
        def __exit__(self, *_: object) -> None:
            states.append(device.state)

    with device, uvirtio.Rng(device, observe=Watched):
        assert list(dict.fromkeys(states)) == ["not started", "ACKNOWLEDGE", "DRIVER", "FEATURES_OK", "DRIVER_OK"]


def test_a_repr_touches_nothing(kind: str):
    model, driver, _ = KINDS[kind]
    scripted = ScriptedDevice(model())
    with opening.identify("x:1", scripted) as device, driver(device) as driven:
        before = len(scripted.log)
        for thing in (device, driven, *device.queues.values()):
            assert repr(thing)
        assert len(scripted.log) == before


@pytest.mark.parametrize(("error", "state"), [(DeviceGone("x", seen="y"), "gone"), (DeviceTimeout("x"), "broken")])
def test_a_device_that_failed_can_still_be_shown(kind: str, error: UvirtioError, state: str, monkeypatch: Any):
    model, driver, _ = KINDS[kind]
    with opening.identify("x:1", ScriptedDevice(model())) as device, driver(device) as driven:
        with pytest.raises(type(error)), device.session():
            raise error
        for name in ("status", "read_config", "generation", "device_features", "causes"):
            monkeypatch.setattr(device.transport, name, lambda *_: pytest.fail("the device was asked"))
        assert f" {kind}, {state}, " in repr(device)
        assert repr(driven).endswith(f", {state}>")
        monkeypatch.undo()


def test_a_driver_can_be_shown_before_it_is_one(kind: str):
    _, driver, _ = KINDS[kind]
    half = object.__new__(driver)
    assert repr(half) == f"<{driver.__name__}, no device>"
    with opening.identify("x:1", ScriptedDevice(KINDS[kind][0]())) as device:
        half.device = device
        assert repr(half) == f"<{driver.__name__} x:1, not started>"


def test_what_the_books_say_is_shown():
    with opening.identify("x:1", ScriptedDevice(Balloon())) as device, uvirtio.Balloon(device, floor=0) as balloon:
        balloon.inflate(3)
        assert repr(balloon) == "<Balloon x:1, 3 pages held, DRIVER_OK>"
    with opening.identify("x:1", ScriptedDevice(Input())) as device, uvirtio.Input(device) as keyboard:
        name = keyboard.describe().name
        assert repr(keyboard) == f"<Input x:1, {name!r}, DRIVER_OK>"
