"""What is dropped without ``close()``: a ResourceWarning that names it, and what is released then."""

from __future__ import annotations

import gc
import importlib
import os
import pkgutil
import re
import socket
import sys
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import uvirtio
from tests.fakes.played_vhost_user import PlayedBackEnd
from tests.fakes.uevents import SentEvents
from tests.support.descriptors import descriptors
from tests.support.programs import CHECKOUT, run_program
from uvirtio import opening
from uvirtio.backends import vfio
from uvirtio.backends.devmem import DevmemWindow
from uvirtio.backends.uio_pci import UioPciFunction
from uvirtio.backends.vfio.iommufd import Ioas
from uvirtio.backends.vfio_pci import VfioPciFunction
from uvirtio.backends.vhost_vdpa import VhostVdpaNode
from uvirtio.binding.watch import Watcher
from uvirtio.drivers.balloon import Balloon as BalloonDriver
from uvirtio.drivers.input import Description, Feed, InputEvent
from uvirtio.drivers.mem import SuspendLock
from uvirtio.drivers.net.bridge import Datagrams
from uvirtio.drivers.rng import Rng as RngDriver
from uvirtio.host.roots import Roots
from uvirtio.memory.eventfd import EventFd
from uvirtio.memory.unclosed import warn_unclosed
from uvirtio.scripted import Balloon, Rng, ScriptedDevice
from uvirtio.trace import Recorder

OF_ANOTHER = {
    "uvirtio.backends.owned_blocks.OwnedBlocks": "a space is its back end's, which frees it",
    "uvirtio.backends.pages.PagedBlock": "a block is its space's, and memory that the device may still write to",
    "uvirtio.backends.resources.Resources": "calls that its owner makes",
    "uvirtio.binding.settle.Settling": "its source of uevents is a socket of Python's, or libudev's, which close",
    "uvirtio.conform": "what is there while one command runs; its Device warns",
    "uvirtio.cli.screen.Queues": "nothing but words on a screen",
    "uvirtio.device.state.Session": "a word of a with statement",
    "uvirtio.device.state._Timed": "a word of a with statement",
    "uvirtio.diag.raw._Raw": "views of memory of a Device, which warns",
    "uvirtio.drivers.balloon.arena.Arena": "memory of a Device, which warns, and frees it after its reset",
    "uvirtio.drivers.base.Driver": "its Device warns",
    "uvirtio.drivers.mem.region.Piece": "its Region's, and a mapping that ends with it",
    "uvirtio.drivers.mem.region.Region": "a mapping of a Device, which warns",
    "uvirtio.host.syscalls.Kernel": "system calls: its close is close(2)",
    "uvirtio.host.limits.told": "a word of a with statement",
    "uvirtio.pytest_plugin.lab.LabVm": "its process is a subprocess.Popen, which warns",
    "uvirtio.scripted.core.ScriptedCore": "a model made of Python, in memory",
    "uvirtio.scripted.mem.Mem": "a model made of Python, and a mapping that ends with it",
}
"""What needs no warning of its own, by its class or a package, and why."""


def _is_another(cls: type) -> bool:
    names = [f"{one.__module__}.{one.__name__}" for one in cls.__mro__]
    return any(name == known or name.startswith(f"{known}.") for name in names for known in OF_ANOTHER)


def _all_classes() -> Iterator[type]:
    for found in pkgutil.walk_packages(uvirtio.__path__, "uvirtio."):
        if found.name.rpartition(".")[2] not in ("__main__", "guardian_process"):
            module = importlib.import_module(found.name)
            yield from (
                one for one in vars(module).values() if isinstance(one, type) and one.__module__ == found.name
            )


def _public() -> set[type]:
    """The classes of the modules that docs/api.md names."""
    page = (CHECKOUT / "docs/api.md").read_text()
    modules = [importlib.import_module(name) for name in re.findall(r"^\| `(uvirtio\.[a-z_.]+)` \| `", page, re.M)]
    assert len(modules) > 20
    return {one for module in modules for one in vars(module).values() if isinstance(one, type)}


def test_what_can_be_closed_warns_or_is_of_another() -> None:
    """A new context manager, or a public class with ``close``, gets a ``__del__`` or a line in ``OF_ANOTHER``."""
    public = _public()
    closable = [
        one
        for one in _all_classes()
        if not getattr(one, "_is_protocol", False)
        and (hasattr(one, "__exit__") or (one in public and hasattr(one, "close")))
    ]
    assert uvirtio.Device in closable and Recorder in closable and len(closable) > 50
    silent = {f"{one.__module__}.{one.__name__}" for one in closable if not hasattr(one, "__del__")}
    missing = [one for one in closable if not hasattr(one, "__del__") and not _is_another(one)]
    assert not missing, "a __del__ that warns, or a line in OF_ANOTHER"
    unused = {known for known in OF_ANOTHER if not any(name.startswith(known) for name in silent)}
    assert not unused, "these warn now, or are no more"


# --- files, sockets and the like: told, and closed ---------------------------------------------------------------


@contextmanager
def nothing_said() -> Iterator[None]:
    """Of nothing a warning is given. (As errors they would be lost: what ``__del__`` raises is.)"""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        yield
        gc.collect()
    assert [str(one.message) for one in said] == []


class _Clone:
    def __init__(self) -> None:
        self.closed = False

    def fileno(self) -> int:
        return 0

    def write(self, events: Any) -> None: ...

    def receive(self) -> list[InputEvent]:
        return []

    def close(self) -> None:
        self.closed = True


def _eventfd() -> tuple[object, str, Callable[[], object]]:
    made = EventFd()
    fd = made.fileno()
    return made, f"EventFd {fd}", lambda: os.fstat(fd)


def _end() -> tuple[object, str, Callable[[], object]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    theirs.close()
    fd = ours.detach()
    return Datagrams(fd), f"Datagrams {fd}", lambda: os.fstat(fd)


def _watcher() -> tuple[object, str, Callable[[], object]]:
    made = Watcher(Roots(), events=SentEvents())
    wake = made._wake
    return made, f"Watcher {made.source}", lambda: os.fstat(wake)


def _lock() -> tuple[object, str, Callable[[], object]]:
    made = SuspendLock("a test", roots=Roots.under("/nonexistent"))
    made.hold()
    lacking = made.lacking
    made._wake_lock = "uvirtio-test"  # there is none here: who releases it learns that

    def still_held() -> None:
        if any(why.startswith("wake_unlock: ") for why in lacking):
            raise OSError

    return made, "SuspendLock a test", still_held


@pytest.mark.parametrize("make", [_eventfd, _end, _watcher, _lock])
def test_what_has_a_descriptor_is_closed_like_a_file(
    make: Callable[[], tuple[object, str, Callable[[], object]]],
) -> None:
    made, name, look = make()
    with pytest.warns(ResourceWarning, match=f"^unclosed {re.escape(name)}$"):
        del made
        gc.collect()
    with pytest.raises(OSError):
        look()


def test_a_feed_releases_its_clone() -> None:
    clone = _Clone()
    feed = Feed(clone, Description(name="keys"))
    with pytest.warns(ResourceWarning, match=r"^unclosed Feed keys$"):
        del feed
    assert clone.closed


def test_a_record_is_ended(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    record = Recorder(path)
    with pytest.warns(ResourceWarning, match=f"^unclosed Recorder {re.escape(str(path))}$"):
        del record
    assert path.read_text().rstrip().endswith("]")


def test_what_was_closed_says_nothing(tmp_path: Path) -> None:
    with nothing_said():
        for close in (
            EventFd(),
            Recorder(tmp_path / "a"),
            Feed(_Clone(), Description(name="keys")),
            Watcher(Roots(), events=SentEvents()),
            opening.identify("0000:00:04.0", ScriptedDevice(Rng())),
        ):
            close.close()
            del close
        gc.collect()


class _Nameless:
    """What cannot even say what it is."""

    closed = False

    def __repr__(self) -> str:
        raise ValueError

    def close(self) -> None:
        self.closed = True


def test_what_cannot_be_named_is_released_all_the_same() -> None:
    made = _Nameless()
    with pytest.raises(ValueError):
        warn_unclosed(made, then=made.close)
    assert made.closed


# --- hardware's: told, and kept ----------------------------------------------------------------------------------

HARDWARE: dict[type, dict[str, object]] = {
    vfio.Container: {"path": Path("/dev/vfio/vfio")},
    vfio.Group: {"path": Path("/dev/vfio/7")},
    vfio.Device: {"name": "0000:00:04.0"},
    Ioas: {"id": 3},
    VhostVdpaNode: {"address": "/dev/vhost-vdpa-0"},
    VfioPciFunction: {"address": "0000:00:04.0", "_closed": False},
    UioPciFunction: {"address": "0000:00:04.0", "_closed": False},
    DevmemWindow: {"address": "mmio:0xfeb02e00", "_closed": False},
}


@pytest.mark.parametrize("kind", HARDWARE, ids=lambda kind: kind.__name__)
def test_a_descriptor_of_hardware_stays_open(kind: type) -> None:
    """The kernel stops the device when it is closed, and frees its maps: not while its memory may be in use."""
    fd = os.memfd_create("node")
    made: Any = kind.__new__(kind)
    for name, value in {"_fd": fd, **HARDWARE[kind]}.items():
        setattr(made, name, value)
    about = next(iter(HARDWARE[kind].values()))
    with pytest.warns(ResourceWarning, match=f"^unclosed {kind.__name__} {re.escape(str(about))}$"):
        del made
    os.close(fd)


@pytest.mark.parametrize("kind", HARDWARE, ids=lambda kind: kind.__name__)
def test_what_was_never_opened_says_nothing(kind: type) -> None:
    with nothing_said():
        made = kind.__new__(kind)
        del made


# --- devices -----------------------------------------------------------------------------------------------------


def dropped(make: Callable[[], uvirtio.Device]) -> list[str]:
    """What is said when a device is dropped, and that it is gone then."""
    device = make()
    known = weakref.ref(device)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        del device
        gc.collect()
    assert known() is None
    assert {one.category for one in said} == {ResourceWarning}
    return [str(one.message) for one in said]


def test_a_scripted_device_is_left_in_order() -> None:
    scripted = ScriptedDevice(Balloon())
    before = len(descriptors())

    def made() -> uvirtio.Device:
        device = opening.identify("0000:00:04.0", scripted)
        BalloonDriver(device).inflate(300)
        return device

    assert dropped(made) == ["unclosed <Device 0000:00:04.0 balloon, DRIVER_OK, split, msix-per-queue>"]
    scripted.assert_left()
    assert scripted.model.actual_writes[-1] == 0  # type: ignore[attr-defined]
    assert len(descriptors()) <= before


def test_it_is_left_where_warnings_are_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    scripted, seen = ScriptedDevice(Rng()), list[object]()
    monkeypatch.setattr(sys, "unraisablehook", lambda about: seen.append(about.exc_type))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        RngDriver(opening.identify("here", scripted))
        gc.collect()
    assert seen == [ResourceWarning]
    scripted.assert_left()


def test_a_device_that_was_never_started_is_closed() -> None:
    scripted = ScriptedDevice(Rng())
    assert dropped(lambda: opening.identify("here", scripted)) == ["unclosed <Device here rng, not started>"]
    assert scripted.closed


def test_a_driver_alone_keeps_its_device() -> None:
    scripted = ScriptedDevice(Rng())
    rng = RngDriver(opening.identify("here", scripted))
    gc.collect()
    assert len(rng.read(4)) == 4 and not scripted.closed
    with pytest.warns(ResourceWarning, match="unclosed <Device here rng, DRIVER_OK"):
        del rng
        gc.collect()
    scripted.assert_left()


def test_a_device_whose_reset_fails_keeps_its_memory() -> None:
    scripted = ScriptedDevice(Rng())

    def made() -> uvirtio.Device:
        device = opening.identify("here", scripted, timeout=0.05)
        RngDriver(device)
        scripted.faults.reset_reads, scripted.can_reset = -1, False
        return device

    assert len(dropped(made)) == 1
    assert scripted.closed and scripted.memory.open_blocks()


def test_a_record_of_a_dropped_device_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "record"

    def made() -> uvirtio.Device:
        device = uvirtio.open("scripted:rng", record=path)
        RngDriver(device).read(4)
        return device

    assert len(dropped(made)) == 1
    assert '"close"' in path.read_text().splitlines()[-1]


def test_a_vhost_user_device_hangs_up(tmp_path: Path) -> None:
    back_end = PlayedBackEnd(tmp_path / "s")
    before = len(descriptors())

    def made() -> uvirtio.Device:
        device = uvirtio.open(f"vhost-user:rng:{tmp_path / 's'}")
        RngDriver(device).read(4)
        return device

    try:
        assert dropped(made) == [
            f"unclosed <Device vhost-user:rng:{tmp_path / 's'} rng, DRIVER_OK, split, msix-per-queue>"
        ]
    finally:
        back_end.close()
    assert len(descriptors()) <= before + 1


KEPT = """
import atexit, gc, os, sys, warnings, weakref
from uvirtio.scripted import Balloon, ScriptedDevice
from uvirtio import opening
from uvirtio.drivers.balloon import Balloon as Driver

warnings.simplefilter("always")
scripted = ScriptedDevice(Balloon())
scripted.undivided = False  # as hardware is not

parent = os.getpid()

@atexit.register
def report():
    if os.getpid() == parent:
        scripted.assert_left()
        print("left in order", scripted.model.actual_writes[-1], flush=True)

driver = Driver(opening.identify("0000:00:04.0", scripted, timeout=1.0))
driver.inflate(300)
known = weakref.ref(driver.device)
del driver
gc.collect()
gc.collect()
print("kept", scripted.closed, len(scripted.model.frames), flush=True)
if os.fork() == 0:
    sys.exit()  # nothing to say, and nothing to leave, in a forked child
os.wait()
"""


def test_a_device_of_hardware_is_left_when_the_process_ends() -> None:
    done = run_program(KEPT)
    lines = done.stdout.splitlines()
    assert lines[0] == "kept False 300" and lines[-1] == "left in order 0", done
    told = [line for line in done.stderr.splitlines() if "unclosed" in line]
    assert len(told) == 1 and "unclosed <Device 0000:00:04.0 balloon, DRIVER_OK" in told[0], done.stderr
    assert done.returncode == 0


KEPT_AT_EXIT = """
import atexit, gc
from uvirtio.scripted import Balloon, ScriptedDevice
from uvirtio import opening
from uvirtio.drivers.balloon import Balloon as Driver

scripted = ScriptedDevice(Balloon())
scripted.undivided = False  # as hardware is not

@atexit.register
def report():
    scripted.assert_left()
    print("left in order", scripted.model.actual_writes[-1])

drivers = [Driver(opening.identify("0000:00:04.0", scripted, timeout=1.0))]
drivers[0].inflate(30)

@atexit.register
def drop():
    drivers.clear()
    gc.collect()
    print("kept", scripted.closed)
"""


def test_one_that_is_dropped_by_what_runs_at_exit_is_left_then() -> None:
    done = run_program(KEPT_AT_EXIT)
    assert done.stdout.splitlines() == ["kept False", "left in order 0"], done
