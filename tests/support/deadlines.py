"""Every public call that has a time-out, as rows of a table: how it is prepared, and called with a time-out.

``calls()`` finds them by introspection, so that a call which is added to the package needs a row here.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib import import_module
from ipaddress import IPv4Address
from math import inf
from pathlib import Path
from typing import Any

import uvirtio
from uvirtio import Device
from uvirtio.drivers import scsi
from uvirtio.drivers.blk import Burst
from uvirtio.drivers.input import Bridge, Clone, Feed
from uvirtio.drivers.mem import Manager, Request
from uvirtio.drivers.net import RxMode
from uvirtio.drivers.net.bridge import Bridge as NetBridge
from uvirtio.drivers.net.ping import Ping
from uvirtio.errors import MemBusy
from uvirtio.interfaces import backend
from uvirtio.spec.page import VIRTIO_PAGE

CHECKOUT = next(path for path in Path(__file__).resolve().parents if (path / "pyproject.toml").exists())

Call = Callable[[float], object]
Row = tuple[str, Callable[[Device], Call]]
"""The type of the device, and what brings it up and returns the call."""

LUN = scsi.Lun(0)
_PAGES = 4 * 256
"""Pages of four buffers, so that a call takes several waits."""


class _Quiet:
    """A clone that no program writes to."""

    path = ""

    def __init__(self) -> None:
        self._ends = os.pipe()

    def fileno(self) -> int:
        return self._ends[0]

    def write(self, events: object) -> None:
        """Take events."""

    def read(self) -> list[Any]:
        return []

    def close(self) -> None:
        for number in self._ends:
            os.close(number)


class _End:
    """The other end of a bridge, which sends nothing."""

    ended = False
    waiting = False

    def __init__(self) -> None:
        self.clone = _Quiet()

    def fileno(self) -> int:
        return self.clone.fileno()

    def send(self, frames: list[Any]) -> int:
        return len(frames)

    def receive(self, most: int) -> list[bytes]:
        return []


def _of(
    kind: str,
    method: str,
    *arguments: Any,
    before: Callable[[Any], object] | None = None,
    sent: Callable[[Any], object] | None = None,
) -> Row:
    """A call of a driver itself; generators are asked for one element.

    Args:
        kind: The type of the device.
        method: The method.
        *arguments: Its arguments.
        before: Prepares the call while the device is well; returns the first argument, or None.
        sent: The same at the call, for what has to be in flight then.
    """

    def make(device: Device) -> Call:
        keywords: dict[str, Any] = {"allow_write": True} if kind in ("blk", "scsi") else {}
        if kind == "balloon":
            keywords = {"stats": None, "reporting": method == "report", "floor": 0}
        if kind == "net":
            keywords = {"vlans": True, "offloads": True, "announcements": True}
        driver = DRIVERS[kind](device, **keywords)
        given = before(driver) if before is not None else None

        def call(timeout: float) -> object:
            first = given
            if sent is not None:
                with driver.session(timeout if abs(timeout) < inf else None):
                    first = sent(driver)
            words = arguments if first is None else (first, *arguments)
            found = getattr(driver, method)(*words, timeout=timeout)
            return next(found, None) if inspect.isgenerator(found) else found

        return call

    return kind, make


def _with(kind: str, build: Callable[[Any], Any], method: str, *arguments: Any, posts: bool = False) -> Row:
    """A call of something that is made of a driver; ``posts``: a burst with a request in flight at the call."""

    def make(device: Device) -> Call:
        driver = DRIVERS[kind](device, **({"allow_write": True} if kind in ("blk", "scsi") else {}))
        built = build(driver)

        def call(timeout: float) -> object:
            if posts and not built.in_flight:
                with driver.session(timeout if abs(timeout) < inf else None):
                    built.post(built.slots[:1], [0])
            return getattr(built, method)(*arguments, timeout=timeout)

        return call

    return kind, make


def _result(kind: str, submit: Callable[[Any], Any]) -> Row:
    def make(device: Device) -> Call:
        driver = DRIVERS[kind](device)

        def call(timeout: float) -> object:
            with driver.session(timeout if abs(timeout) < inf else None):
                request = submit(driver)
            return request.result(timeout)

        return call

    return kind, make


DRIVERS: dict[str, Callable[..., Any]] = {
    "rng": uvirtio.Rng,
    "balloon": uvirtio.Balloon,
    "mem": uvirtio.Mem,
    "input": uvirtio.Input,
    "blk": uvirtio.Blk,
    "scsi": uvirtio.Scsi,
    "net": uvirtio.Net,
}


def _held(balloon: uvirtio.Balloon) -> None:
    balloon.inflate(_PAGES)


def _arena(balloon: uvirtio.Balloon) -> object:
    return balloon.arena(64 * VIRTIO_PAGE)


def _plugged(mem: uvirtio.Mem) -> None:
    mem.unplug_all()
    mem.plug(mem.addr, 4)


def _at(mem: uvirtio.Mem) -> object:
    mem.unplug_all()
    return mem.addr


def _plugged_at(mem: uvirtio.Mem) -> object:
    _plugged(mem)
    return mem.addr


def _busy(mem: uvirtio.Mem) -> object:
    def act(seconds: float) -> None:
        raise MemBusy("busy", done=0)

    return act


def _managed(mem: uvirtio.Mem) -> Manager:
    manager = Manager(mem)
    _plugged(mem)
    return manager


def _bridge(driver: uvirtio.Input) -> Bridge:
    clone: Clone = _Quiet()
    return Bridge(driver, Feed(clone, driver.describe()))


def _led(driver: uvirtio.Input) -> None:
    driver.send(17, 0, 1)


def _submitted(driver: uvirtio.Blk) -> object:
    return driver.submit_read(0, 1)


def _burst(driver: uvirtio.Blk) -> Burst:
    return driver.burst(8)


def _scsi_burst(driver: uvirtio.Scsi) -> object:
    return driver.burst(LUN, 8)


def _scsi_sent(driver: uvirtio.Scsi) -> object:
    return driver.submit(LUN, scsi.commands.inquiry())


def _sent(net: uvirtio.Net) -> None:
    net.send([bytes(60)])


def _ping(net: uvirtio.Net) -> Ping:
    made = Ping(net, IPv4Address("10.0.2.2"), source=IPv4Address("10.0.2.15"))
    made.mac = bytes(6)
    return made


def _device(name: str) -> Row:
    def make(device: Device) -> Call:
        uvirtio.Rng(device)
        if name == "reset_queue":
            return lambda timeout: device.reset_queue(device.queues[0], timeout=timeout)
        return lambda timeout: device.wait(lambda: False, timeout=timeout, what="nothing")

    return "rng", make


def _sector(sectors: int) -> bytes:
    return bytes(512 * sectors)


ROWS: dict[str, Row] = {
    "Device.wait": _device("wait"),
    "Device.reset_queue": _device("reset_queue"),
    "Rng.read": _of("rng", "read", 40),
    "Balloon.inflate": _of("balloon", "inflate", _PAGES),
    "Balloon.grow": _of("balloon", "inflate", _PAGES),
    "Balloon.deflate": _of("balloon", "deflate", _PAGES, before=_held),
    "Balloon.shrink": _of("balloon", "deflate", _PAGES, before=_held),
    "Balloon.hold": _of("balloon", "hold"),
    "Balloon.report": _of("balloon", "report", before=_arena),
    "Balloon.follow": _of("balloon", "follow", before=_held),
    "Mem.plug": _of("mem", "plug", 4, before=_at),
    "Mem.unplug": _of("mem", "unplug", 4, before=_plugged_at),
    "Mem.unplug_all": _of("mem", "unplug_all", before=_plugged),
    "Mem.state": _of("mem", "state", 4, before=_at),
    "Mem.ask": _of("mem", "ask", Request.STATE),
    "Mem.resync": _of("mem", "resync", before=_plugged),
    "Mem.patiently": _of("mem", "patiently", before=_busy),
    "Manager.plug_size": _with("mem", _managed, "plug_size", 4 << 20),
    "Manager.unplug_size": _with("mem", _managed, "unplug_size", 4 << 20),
    "Manager.converge": _with("mem", _managed, "converge"),
    "Manager.follow": _with("mem", _managed, "follow"),
    "Input.read": _of("input", "read"),
    "Input.read_frame": _of("input", "read_frame"),
    "Input.events": _of("input", "events"),
    "Input.frames": _of("input", "frames"),
    "Input.flush": _of("input", "flush", sent=_led),
    "Bridge.run": _with("input", _bridge, "run"),
    "Blk.read": _of("blk", "read", 0, 64),
    "Blk.write": _of("blk", "write", 0, _sector(64)),
    "Blk.flush": _of("blk", "flush"),
    "Blk.discard": _of("blk", "discard", 0, 8),
    "Blk.discard_ranges": _of("blk", "discard_ranges", [(8 * at, 4) for at in range(64)]),
    "Blk.write_zeroes": _of("blk", "write_zeroes", 0, 8),
    "Blk.secure_erase": _of("blk", "secure_erase", 0, 8),
    "Blk.identify": _of("blk", "identify"),
    "Blk.lifetime": _of("blk", "lifetime"),
    "Blk.set_write_cache": _of("blk", "set_write_cache", False),
    "Blk.wait": _of("blk", "wait", sent=lambda blk: [blk.submit_read(0, 1)]),
    "Blk.wait_for_change": _of("blk", "wait_for_change"),
    "blk.Burst.wait": _with("blk", _burst, "wait", posts=True),
    "blk.Burst.settle": _with("blk", _burst, "settle", posts=True),
    "blk.Request.result": _result("blk", _submitted),
    "Scsi.read": _of("scsi", "read", LUN, 0, 8),
    "Scsi.write": _of("scsi", "write", LUN, 0, _sector(8)),
    "Scsi.flush": _of("scsi", "flush", LUN),
    "Scsi.burst": _of("scsi", "burst", LUN, 8),
    "Scsi.execute": _of("scsi", "execute", LUN, scsi.commands.inquiry()),
    "Scsi.wait": _of("scsi", "wait", sent=lambda one: [_scsi_sent(one)]),
    "Scsi.manage": _of("scsi", "manage", scsi.Task.QUERY_TASK, LUN),
    "Scsi.abort": _of("scsi", "abort", before=_scsi_sent),
    "Scsi.abort_all": _of("scsi", "abort_all", LUN),
    "Scsi.is_pending": _of("scsi", "is_pending", before=_scsi_sent),
    "Scsi.reset_lun": _of("scsi", "reset_lun", LUN),
    "Scsi.reset_target": _of("scsi", "reset_target", 0),
    "Scsi.wait_for_event": _of("scsi", "wait_for_event"),
    "Scsi.report_luns": _of("scsi", "report_luns", 0),
    "Scsi.scan": _of("scsi", "scan"),
    "Scsi.inquiry": _of("scsi", "inquiry", LUN),
    "Scsi.vpd": _of("scsi", "vpd", LUN, 0x83),
    "Scsi.vpd_pages": _of("scsi", "vpd_pages", LUN),
    "Scsi.serial": _of("scsi", "serial", LUN),
    "Scsi.identifications": _of("scsi", "identifications", LUN),
    "Scsi.capacity": _of("scsi", "capacity", LUN),
    "Scsi.mode": _of("scsi", "mode", LUN),
    "Scsi.check_ready": _of("scsi", "check_ready", LUN),
    "Scsi.check_range": _of("scsi", "check_range", LUN, 0, 1 << 40),
    "scsi.Burst.wait": _with("scsi", _scsi_burst, "wait", posts=True),
    "scsi.Burst.settle": _with("scsi", _scsi_burst, "settle", posts=True),
    "scsi.Request.result": _result("scsi", _scsi_sent),
    "Net.receive": _of("net", "receive"),
    "Net.wait": _of("net", "wait"),
    "Net.frames": _of("net", "frames"),
    "Net.send_all": _of("net", "send_all", [bytes(60)] * 300),
    "Net.flush": _of("net", "flush", sent=_sent),
    "Net.announce": _of("net", "announce"),
    "Net.wait_for_link": _of("net", "wait_for_link", False),
    "Net.set_rx_mode": _of("net", "set_rx_mode", RxMode.PROMISC, True),
    "Net.set_mac_table": _of("net", "set_mac_table"),
    "Net.set_mac": _of("net", "set_mac", b"\x52\x54\0\1\2\3"),
    "Net.add_vlan": _of("net", "add_vlan", 7),
    "Net.remove_vlan": _of("net", "remove_vlan", 7),
    "Net.set_offloads": _of("net", "set_offloads", 0),
    "net.Bridge.run": _with("net", lambda net: NetBridge(net, _End()), "run"),
    "Ping.resolve": _with("net", _ping, "resolve"),
    "Ping.ask": _with("net", _ping, "ask", 1),
}

ELSEWHERE: dict[str, str] = {
    "Device.seconds": "says what a time-out may be",
    "Device.session": "a deadline for what is done inside",
    "OpenOptions": "tests/unit/device/test_options.py: what is not finite and above 0 is refused",
    "Machine": "tests/qemu/test_machine.py",
    "Machine.qmp_events": "tests/qemu/test_deadlines.py",
    "SuspendLock": "tests/unit/drivers/test_mem_suspend.py; no device",
    "Watcher.read": "tests/unit/binding/test_watch.py; no device",
    "vfio.Device.reset": "the kernel's own time: tests/vm/test_vfio.py",
    "transact": "of every call that is not of several requests",
    "settle": "the same",
    "verify": "tests/unit/drivers/test_mem_verify.py; memory in a child process, no request",
}
"""Those without a row, and what tests them."""


def _modules() -> Iterator[Any]:
    page = (CHECKOUT / "docs/api.md").read_text().partition("## Modules beside it")[2].partition("\n## ")[0]
    yield uvirtio
    for name in re.findall(r"^\| `(uvirtio\.[\w.]+)`", page, re.MULTILINE):
        if name not in ("uvirtio.pytest_plugin", "uvirtio.spec"):
            yield import_module(name)


def _takes_time(thing: Any) -> bool:
    with suppress(TypeError, ValueError):
        return "timeout" in inspect.signature(thing).parameters
    return False


def calls() -> dict[str, Any]:
    """Every public function and method with a parameter ``timeout``, by the name of its class and itself."""
    found: dict[str, Any] = {}
    for module in _modules():
        for name in getattr(module, "__all__", None) or [one for one in vars(module) if not one.startswith("_")]:
            thing = getattr(module, name)
            if not getattr(thing, "__module__", "").startswith("uvirtio") or _is_protocol(thing):
                continue
            if not inspect.isclass(thing):
                if callable(thing) and _takes_time(thing):
                    found[name] = thing
                continue
            if _takes_time(thing):
                found[name] = thing
            for member, method in inspect.getmembers_static(thing):
                method = getattr(method, "__func__", method)
                if member == "session" and thing is not uvirtio.Device:
                    continue  # of a driver: that of its device
                if member in _CONTRACTS and thing.__module__.startswith(
                    ("uvirtio.scripted", "uvirtio.backends.qemu")
                ):
                    continue  # of a back end: what it has to do is tested with it
                if not member.startswith("_") and inspect.isfunction(method) and _takes_time(method):
                    found[_name(method, thing)] = method
    return found


def _is_protocol(thing: Any) -> bool:
    return bool(getattr(thing, "_is_protocol", False))


_CONTRACTS = {member for contract in vars(backend).values() if _is_protocol(contract) for member in vars(contract)}
"""What back ends have to offer."""


def _name(method: Any, owner: type) -> str:
    """``Class.method``, with the package in front where several have a class of this name."""
    package = owner.__module__.split(".")
    short = f"{owner.__name__}.{method.__name__}"
    if owner.__name__ in ("Burst", "Request") or (owner.__name__ == "Device" and "backends" in package):
        return f"{package[2]}.{short}"
    return f"net.{short}" if owner.__name__ == "Bridge" and "net" in package else short
