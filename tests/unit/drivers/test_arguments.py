"""Arguments that are no numbers, or impossible ones: each is refused before anything is done, and nothing hangs.

Every method of every driver that takes an integer is found by introspection, and called with what is none, on one
device: what a refused call left behind, the next ones and the close would meet.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator
from math import inf, nan
from typing import Any

import pytest

import uvirtio
from tests.unit.drivers.test_closed import ARGUMENTS, KEYWORDS
from uvirtio import scripted
from uvirtio.drivers import scsi
from uvirtio.drivers.mem import Manager
from uvirtio.drivers.scsi import Lun
from uvirtio.errors import BadSize, Closed, QueueFull, Refused, UsageError
from uvirtio.interfaces.values import TIMEOUT_MAX
from uvirtio.spec import features as f

NO_INTEGERS = (nan, inf, -inf, 1.5, "7", b"7", [])
"""What no integer is; and None, where that is no choice of its own."""
IMPOSSIBLE = (-1, 1 << 64, 10**400)
"""Integers that no argument can be, but those of ``FREE``."""

FREE = {
    "Rng.read": "as many bytes as there is time for",
    "Input.send": "a value is signed",
    "Input.__init__": "a bound for a reader, which allocates nothing",
    "Blk.__init__": "no more than the device has",
    "Scsi.__init__": "no more than the device has",
    "Net.__init__": "no more than the device has",
    "Balloon.__init__": "a floor may be more than there is",
    "Manager.__init__": "a limit may be more than there is, or less",
    "Manager.hand_out": "no more than there is",
    "Manager.converge": "no more than there is, and not less than nothing",
}

ARGS = {
    **ARGUMENTS,
    "Net.send": ([bytes(60)],),
    "Net.send_all": ([bytes(60)],),
    "Net.add_vlan": (7,),
    "Net.remove_vlan": (7,),
    "Net.set_offloads": (0,),
    "Manager.plug_size": (2 << 20,),
    "Manager.unplug_size": (2 << 20,),
    "Manager.hand_out": ("somebody",),
}
del ARGS["Mem.plug"], ARGS["Mem.unplug"], ARGS["Mem.state"]


def disk() -> scripted.Disk:
    return scripted.Disk(features=f.mask(*f.Blk) & ~f.mask(f.Blk.RO))


MAKE: dict[str, tuple[type[Any], Callable[[], scripted.Model], dict[str, Any], Callable[[Any], object]]] = {
    "rng": (uvirtio.Rng, scripted.Rng, {}, lambda rng: rng.read(4)),
    "input": (uvirtio.Input, scripted.Input, {}, lambda one: one.describe()),
    "balloon": (
        uvirtio.Balloon,
        lambda: scripted.Balloon(features=f.mask(f.Balloon.PAGE_REPORTING)),
        {"stats": None, "reporting": True, "floor": 0},
        lambda balloon: balloon.inflate(1),
    ),
    "mem": (uvirtio.Mem, lambda: scripted.Mem(requested=16 << 21), {}, lambda mem: mem.plug(mem.addr, 1)),
    "blk": (uvirtio.Blk, disk, {"allow_write": True, "depth": 1}, lambda blk: blk.read(0, 1)),
    "scsi": (
        uvirtio.Scsi,
        scripted.ScsiHost,
        {"allow_write": True, "depth": 1},
        lambda host: host.read(Lun(0), 0, 1),
    ),
    "net": (
        uvirtio.Net,
        lambda: scripted.Net(features=f.mask(*f.Net) & ~f.mask(f.Net.MQ), status=3),
        {"vlans": True, "offloads": True},
        lambda net: net.send([bytes(60)]),
    ),
}
REFUSALS = (TypeError, UsageError, QueueFull, Refused)
INSIDE = {"check_range", "refusal", "judge", "short", "beyond_end", "transport_error"}
"""What drivers call, with integers of their own."""


def taken(method: Any) -> Iterator[tuple[str, bool, int]]:
    """The parameters that are integers: name, whether None is a choice, and place (below 0: by name alone)."""
    for place, (name, one) in enumerate(list(inspect.signature(method).parameters.items())[1:]):
        if one.annotation in ("int", "int | None"):
            yield name, "None" in one.annotation, place if one.kind is one.POSITIONAL_OR_KEYWORD else -1


def calls(driver: Any) -> Iterator[tuple[str, Callable[[Any], object], bool]]:
    """Each integer that a driver's methods take: its name, a call with another value, whether None is good."""
    for name, method in inspect.getmembers_static(type(driver)):
        if name.startswith("_") or not inspect.isfunction(method) or name in INSIDE:
            continue
        key = f"{type(driver).__name__}.{name}"
        for parameter, optional, place in taken(method):
            arguments = list(ARGS.get(key, (getattr(driver, "addr", None), 1)))

            def call(
                value: Any,
                name: str = name,
                base: list[Any] = arguments,
                at: int = place,
                word: str = parameter,
            ) -> object:
                words = dict(KEYWORDS.get(f"{type(driver).__name__}.{name}", {}))
                given = list(base)
                if 0 <= at < len(given):
                    given[at] = value
                else:
                    words[word] = value
                made = getattr(driver, name)(*given, **words)
                return list(made) if inspect.isgenerator(made) else made

            yield f"{key}({parameter})", call, optional


@pytest.mark.parametrize("kind", MAKE)
def test_what_is_no_number_is_refused_and_leaves_nothing(kind: str) -> None:
    driven, model, keywords, works = MAKE[kind]
    found = scripted.ScriptedDevice(model())
    with uvirtio.open(found, timeout=0.3) as device:
        driver = driven(device, **keywords)
        drivers = [driver, Manager(driver)] if kind == "mem" else [driver]
        count = 0
        for one in drivers:
            for name, call, optional in calls(one):
                values: tuple[Any, ...] = NO_INTEGERS if optional else (*NO_INTEGERS, None)
                if name.partition("(")[0] not in FREE:
                    values += IMPOSSIBLE
                for value in values:
                    count += 1
                    with pytest.raises(REFUSALS):
                        print(name, repr(value)[:20], call(value))
        assert count > 7
        assert device.broken is None and not found.violations, found.violations
        works(driver)
        begin = time.monotonic()
    assert time.monotonic() - begin < 0.3, "something was waited for, until the time-out"
    found.assert_left()


@pytest.mark.parametrize("kind", MAKE)
def test_an_option_that_is_no_number_starts_no_driver(kind: str) -> None:
    driven, model, keywords, works = MAKE[kind]
    found = scripted.ScriptedDevice(model())
    with uvirtio.open(found, timeout=0.3) as device:
        for name, optional, _ in taken(driven.__init__):
            for value in NO_INTEGERS if optional else (*NO_INTEGERS, None):
                with pytest.raises(REFUSALS):
                    driven(device, **{**keywords, name: value})
                assert device.state == "not started"
        if kind in ("blk", "scsi"):
            for size in (1 << 31, 1 << 64, 10**400 * 512, -512):
                with pytest.raises(BadSize, match="carries"):
                    driven(device, **{**keywords, "request_size": size})
            with driven(device, **{**keywords, "request_size": 64 << 20}) as driver:  # no more than fits a chain
                assert driver.request_size < 1 << 20
        with driven(device, **keywords) as driver:
            works(driver)


def test_a_manager_takes_integers() -> None:
    with uvirtio.open(scripted.ScriptedDevice(scripted.Mem())) as device, uvirtio.Mem(device) as mem:
        for name in ("unit", "step", "limit"):
            for value in NO_INTEGERS:
                with pytest.raises(TypeError):
                    Manager(mem, **{name: value})
        with pytest.raises(UsageError, match="choice"):
            uvirtio.Mem(device, leftover="plug")  # type: ignore[arg-type]


def test_a_limit_that_is_no_number_is_not_followed() -> None:
    with (
        uvirtio.open(scripted.ScriptedDevice(scripted.Balloon())) as device,
        uvirtio.Balloon(device, stats=None) as balloon,
    ):
        for value, error in ((nan, TypeError), (inf, TypeError), (-1, BadSize), (1 << 32, BadSize)):
            with pytest.raises(error):
                balloon.follow(limit=value, timeout=0.01)  # type: ignore[arg-type]


def test_a_text_is_no_logical_unit() -> None:
    """``"0:0".encode()`` is four bytes, and would be the number of another unit."""
    found = scripted.ScriptedDevice(scripted.ScsiHost())
    with uvirtio.open(found, timeout=0.3) as device, uvirtio.Scsi(device, allow_write=True, depth=1) as host:
        for call in (
            lambda lun: host.write(lun, 0, bytes(512)),
            lambda lun: host.execute(lun, scsi.commands.inquiry()),
            host.abort_all,
            host.reset_lun,
        ):
            for lun in ("0:0", b"0:0", None, 0):
                with pytest.raises((AttributeError, TypeError)):
                    call(lun)
        assert host.in_flight == 0
        assert host.inquiry(Lun(0))
    found.assert_left()
    with pytest.raises(TypeError):
        Lun(1.5)  # type: ignore[arg-type]


def test_switches_are_written_as_0_and_1() -> None:
    found = scripted.ScriptedDevice(disk())
    with uvirtio.open(found) as device, uvirtio.Blk(device, allow_write=True) as blk:
        for on in (7, "yes", nan):
            blk.set_write_cache(on)  # type: ignore[arg-type]
            assert blk.write_cache
    assert not found.violations


@pytest.mark.parametrize("timeout", [10**400, 1e300, TIMEOUT_MAX * 2])
def test_a_wait_that_is_too_long_for_a_clock_ends_by_a_close(timeout: float) -> None:
    with uvirtio.open(scripted.ScriptedDevice(scripted.Input())) as device, uvirtio.Input(device) as source:
        device.pulse = lambda: device.interrupt(Closed("enough"))
        with pytest.raises(Closed, match="enough"):
            source.read(timeout=timeout)


def test_a_burst_has_a_depth_that_its_queue_can_have() -> None:
    with uvirtio.open(scripted.ScriptedDevice(scripted.Disk())) as device, uvirtio.Blk(device) as blk:
        most = blk.device.queues[0].ring.size
        for depth, error in ((0, UsageError), (-1, UsageError), (most + 1, QueueFull), (1 << 31, QueueFull)):
            with pytest.raises(error):
                blk.burst(1, depth=depth)
        with pytest.raises(BadSize):
            blk.burst(1 << 31)
        assert len(blk.read(0, 1)) == 512
        assert blk.burst(1, depth=most).count == most, "as deep as the queue"
