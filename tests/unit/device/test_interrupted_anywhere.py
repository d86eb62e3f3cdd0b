"""Ctrl-C anywhere: each driver's whole story, ended at the first, second, ... n-th turn of the wait loop.

An interruption only sets a flag, which the wait loop looks at; so what comes at any instruction comes at one of
these turns. Each time the driver has to leave in order, and what it says must be what the device knows.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from uvirtio.device import Device
from uvirtio.drivers.balloon import Balloon as BalloonDriver
from uvirtio.drivers.input import Input as InputDriver
from uvirtio.drivers.mem import Manager
from uvirtio.drivers.mem import Mem as MemDriver
from uvirtio.interfaces.values import InterruptMode
from uvirtio.opening import identify
from uvirtio.scripted.balloon import Balloon
from uvirtio.scripted.input import Input
from uvirtio.scripted.mem import BLOCK
from uvirtio.scripted.mem import Mem as MemModel
from uvirtio.scripted.model import Model
from uvirtio.scripted.pci import ScriptedDevice
from uvirtio.spec import features as f
from uvirtio.spec import input as spec
from uvirtio.spec.balloon import Stat

ADDRESS = "0000:00:04.0"
SYN = (0, 0, 0)


class CtrlC(BaseException):
    """What a signal handler gives to Device.interrupt."""


def balloon_story(device: Device, model: Balloon) -> None:
    with BalloonDriver(device, stats=lambda: {Stat.MEMFREE: 1}, floor=0, hinting=True, reporting=True) as driver:
        arena = driver.arena(1 << 20)
        driver.lend(arena)
        driver.inflate(700)
        model.set_target(300)
        model.set_hint_id(7)
        driver.follow(timeout=0.001)
        driver.report(arena)
        driver.deflate(100, force=True)
        model.ask_for_stats()
        driver.hold(timeout=0.001)


def mem_story(device: Device, model: MemModel) -> None:
    with MemDriver(device) as driver:
        manager = Manager(driver, unit=2 * BLOCK)
        driver.plug(driver.addr + 5 * BLOCK, 3)
        driver.unplug(driver.addr + 6 * BLOCK, 1)
        manager.converge(timeout=1.0)
        taken = manager.hand_out("somebody", count=1)
        model.request(4 * BLOCK)
        manager.converge(timeout=1.0)
        manager.give_back(taken[0])
        driver.resync()
        driver.unplug_all()
        driver.plug(driver.addr, 2)


def input_story(device: Device, model: Input) -> None:
    with InputDriver(device) as driver:
        driver.describe()
        model.inject((1, 30, 1), SYN, (1, 30, 0), SYN)
        assert driver.read_frame(timeout=1.0) is not None
        for on in (True, False, True):
            driver.set_led(1, on)
        driver.flush(timeout=1.0)
        model.inject((1, 31, 1), SYN)
        driver.service()
        driver.read(timeout=0.001)


def balloon_left(model: Model) -> None:
    assert isinstance(model, Balloon)
    assert model.actual == 0 and not model.frames


def mem_left(model: Model) -> None:
    """What is plugged stays, and the next one finds exactly that."""
    assert isinstance(model, MemModel)
    there = set(model.plugged)
    with identify(ADDRESS, ScriptedDevice(model)) as device, MemDriver(device) as driver:
        assert {block for block in range(64) if driver.leftover.covers(block, 1)} == there
    model.close()


def input_left(model: Model) -> None:
    del model


def keyboard() -> Input:
    return Input(answers={(spec.Select.EV_BITS, spec.EV_LED): b"\x07"})


def everything() -> Balloon:
    return Balloon(features=f.mask(*f.Balloon))


STORIES = {
    "balloon": (everything, balloon_story, balloon_left),
    "mem": (lambda: MemModel(requested=8 * BLOCK), mem_story, mem_left),
    "input": (keyboard, input_story, input_left),
}


@pytest.mark.fault(92)
@pytest.mark.parametrize("mode", [InterruptMode.PER_QUEUE, InterruptMode.INTX, InterruptMode.POLLING])
@pytest.mark.parametrize("name", STORIES)
def test_it_leaves_in_order_wherever_it_is_interrupted(name: str, mode: InterruptMode) -> None:
    make, story, left = STORIES[name]
    for turn in itertools.count(1):
        model = make()
        scripted = ScriptedDevice(model, vectors=6)
        device = identify(ADDRESS, scripted, timeout=30.0, interrupts=[mode])
        interrupted = _interrupt_at(device, turn)
        try:
            with device:
                story(device, model)  # type: ignore[arg-type]
        except CtrlC:
            pass
        scripted.assert_left()
        assert device.broken is None
        left(model)
        if not interrupted():
            break
    assert turn > 4, "there were turns to be interrupted at"


def _interrupt_at(device: Device, turn: int) -> Callable[[], bool]:
    """Interrupt at this turn of the wait loop; whether it came to that."""
    take, done = device._waiting._take, 0

    def counted(now: float) -> bool:
        nonlocal done
        done += 1
        if done == turn:
            device.interrupt(CtrlC())
        return take(now)

    device._waiting._take = counted  # type: ignore[method-assign]
    return lambda: done >= turn
