"""Beside the kernel's own drivers: the same device and machine, one after the other in one boot of the lab VM.

Runs inside that VM (tools/bench --vm boots it). Its CPU is emulated, so only the ratios say something. The host's
part is asked for over QMP, on a serial line; what that takes is in both sides of a ratio alike.
"""

from __future__ import annotations

import mmap
import os
import random
import select
import statistics
import struct
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import uvirtio
from benches.measure import Section, told
from uvirtio.device import Device
from uvirtio.drivers.balloon import Balloon
from uvirtio.drivers.blk import Blk
from uvirtio.drivers.input import Input
from uvirtio.drivers.mem import Manager, Mem

_PCI = Path("/sys/bus/pci")
_MIB = 1 << 20
_SIZE = 256 * _MIB
_PATIENCE = 120.0


class Host:
    """QMP of the QEMU around us."""

    def __init__(self) -> None:
        sys.path.append(str(Path(__file__).resolve().parents[2]))
        self._witness: Any = import_module("tests.vm.qmp_witness").Witness()
        self.places: dict[str, str] = self._witness.pci_addresses()

    def ask(self, command: str, **arguments: Any) -> Any:
        return self._witness.execute(command, **arguments)

    def close(self) -> None:
        self._witness.close()


def give(address: str, driver: str) -> None:
    """Bind a function to this driver."""
    place = _PCI / "devices" / address
    (place / "driver_override").write_text(f"{driver}\n" if driver == "vfio-pci" else "\n")
    if (place / "driver").exists():
        (place / "driver/unbind").write_text(address)
    (_PCI / "drivers_probe").write_text(address)
    _until(
        lambda: (place / "driver").exists() and (place / "driver").resolve().name == driver, f"{driver} to bind"
    )


@contextmanager
def ours(address: str) -> Iterator[Device]:
    """The device in our hands; Linux has it again afterwards."""
    give(address, "vfio-pci")
    try:
        with uvirtio.open(address, timeout=30) as device:
            yield device
    finally:
        give(address, "virtio-pci")


def _until(ready: Callable[[], bool], what: str, pause: float = 0.001) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not ready():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {_PATIENCE:g} s for {what}")
        time.sleep(pause)


# --- blk ----------------------------------------------------------------------------------------------------


def disk(host: Host, section: Section, runs: int, quick: bool) -> None:
    """4 KiB reads, one at a time: O_DIRECT preadv on the kernel's disk, and ours."""
    address, count = host.places["disk"], 20 if quick else 300
    draw = random.Random(3)
    blocks = [draw.randrange(1024) for _ in range(count)]
    theirs, mine, many = [], [], []
    for _ in range(runs):
        _until(lambda: any((_PCI / "devices" / address).glob("virtio*/block/*")), "the kernel's disk")
        node = next((_PCI / "devices" / address).glob("virtio*/block/*")).name
        _until(lambda: Path("/dev", node).exists(), node)  # noqa: B023  # called here
        fd = os.open(f"/dev/{node}", os.O_RDONLY | os.O_DIRECT)
        with mmap.mmap(-1, 4096) as buffer:
            theirs.append(_median(blocks, lambda block: os.preadv(fd, [buffer], 4096 * block)))  # noqa: B023
        os.close(fd)
        with ours(address) as device, Blk(device, depth=32) as blk:
            mine.append(_median(blocks, lambda block: blk.read(8 * block, 8)))
            burst = blk.burst(8, depth=32)
            begin = time.perf_counter()
            found = sum(1 for _ in burst.read(8 * block for block in blocks))
            many.append((time.perf_counter() - begin) / found)
    section.add("4 KiB read: O_DIRECT preadv on /dev/vdX", theirs, "s")
    section.add("4 KiB read: Blk.read", mine, "s")
    section.add("4 KiB read: burst, 32 out", many, "s")
    section.compare("4 KiB read: Blk.read / preadv", mine, theirs, 1.5, at_least=False)
    section.compare("4 KiB read: burst / preadv", many, theirs, 1.0, at_least=False)


def _median(items: list[int], one: Callable[[int], object]) -> float:
    took = []
    for item in items:
        begin = time.perf_counter()
        one(item)
        took.append(time.perf_counter() - begin)
    return statistics.median(took)


# --- balloon ------------------------------------------------------------------------------------------------


def balloon(host: Host, section: Section, runs: int, quick: bool) -> None:
    """Inflate and deflate, from the first page to the last acknowledgement or free page; the parts apart."""
    address, pages = host.places["balloon"], (16 * _MIB if quick else _SIZE) // 4096
    results: dict[str, list[float]] = {name: [] for name in ("in", "out", "our in", "get", "our out", "free")}
    results |= {"all in": [], "all out": []}
    for _ in range(runs):
        full = int(host.ask("query-balloon")["actual"])
        results["in"].append(_kernel_balloon(host, full - pages * 4096, "balloon_inflate", pages))
        results["out"].append(_kernel_balloon(host, full, "balloon_deflate", pages))
        with ours(address) as device, Balloon(device, floor=0) as mine:
            spent = {"get": 0.0, "free": 0.0}
            pin = device.dma.pin

            def timed(size: int) -> Any:
                begin = time.perf_counter()
                block = pin(size)  # noqa: B023
                spent["get"] += time.perf_counter() - begin  # noqa: B023
                close = block.close

                def timed_close() -> None:
                    begin = time.perf_counter()
                    close()
                    spent["free"] += time.perf_counter() - begin  # noqa: B023

                block.close = timed_close  # type: ignore[method-assign]
                return block

            device.dma.pin = timed  # type: ignore[method-assign]
            begin = time.perf_counter()
            mine.inflate(pages)
            whole = time.perf_counter() - begin
            begin = time.perf_counter()
            mine.deflate(pages)
            back = time.perf_counter() - begin
            results["all in"].append(whole)
            results["all out"].append(back)
            results["our out"].append(back - spent["free"])
            results["free"].append(spent["free"])
            results["get"].append(spent["get"])
            results["our in"].append(whole - spent["get"])
    size = f"{pages * 4096 // _MIB} MiB"
    section.add(f"inflate {size}: virtio_balloon", results["in"], "s", "getting the pages included")
    section.add(f"inflate {size}: ours", results["all in"], "s", "getting the pages included")
    section.add(f"inflate {size}: of that getting the pages", results["get"], "s", "zeroed and pinned")
    section.add(f"inflate {size}: of that the rest", results["our in"], "s", "the host works beside the former")
    section.add(f"deflate {size}: virtio_balloon", results["out"], "s")
    section.add(f"deflate {size}: ours", results["all out"], "s", "freeing the pages included")
    section.add(f"deflate {size}: of that requests", results["our out"], "s")
    section.add(f"deflate {size}: of that freeing the pages", results["free"], "s", "unpinned and unmapped")
    section.compare("inflate: ours / virtio_balloon", results["all in"], results["in"], 0.6, at_least=False)
    section.compare("deflate: ours / virtio_balloon", results["all out"], results["out"], 0.6, at_least=False)


def _kernel_balloon(host: Host, target: int, counter: str, pages: int) -> float:
    """Seconds from the host's wish to the kernel's last page, by its own counter."""
    before = _vmstat(counter)
    begin = time.perf_counter()
    host.ask("balloon", value=target)
    _until(lambda: _vmstat(counter) - before >= pages, f"{counter} of {pages}")
    return time.perf_counter() - begin


def _vmstat(name: str) -> int:
    for line in Path("/proc/vmstat").read_text().splitlines():
        if line.startswith(f"{name} "):
            return int(line.split()[1])
    raise LookupError(f"/proc/vmstat has no {name}")


# --- mem ----------------------------------------------------------------------------------------------------


def memory(host: Host, section: Section, runs: int, quick: bool) -> None:
    """Plug and unplug, from the host's wish until it is met."""
    address, size = host.places["mem"], 32 * _MIB if quick else _SIZE
    results: dict[str, list[float]] = {name: [] for name in ("plug", "unplug", "our plug", "our unplug")}

    def request(wanted: int) -> None:
        host.ask("qom-set", path="/machine/peripheral/mem", property="requested-size", value=wanted)

    def met(wanted: int) -> bool:
        return int(host.ask("query-memory-devices")[0]["data"]["size"]) == wanted

    for _ in range(runs):
        for name, wanted in (("plug", size), ("unplug", 0)):
            begin = time.perf_counter()
            request(wanted)
            _until(lambda: met(wanted), f"virtio_mem to have {wanted} bytes", 0.0)  # noqa: B023
            results[name].append(time.perf_counter() - begin)
        # It removes the last block after the host has it back; a driver that is unbound before cannot come again.
        _until(lambda: "(virtio_mem)" not in Path("/proc/iomem").read_text(), "virtio_mem to remove its memory")
        with ours(address) as device, Mem(device) as mem:
            manager = Manager(mem)
            for name, wanted in (("our plug", size), ("our unplug", 0)):
                begin = time.perf_counter()
                request(wanted)
                manager.follow(timeout=0.0)
                _until(lambda: met(wanted), f"{wanted} bytes", 0.0)  # noqa: B023
                results[name].append(time.perf_counter() - begin)
    text = f"{size // _MIB} MiB"
    section.add(f"plug {text}: virtio_mem", results["plug"], "s", "onlined for Linux: what that adds is in it")
    section.add(f"plug {text}: ours", results["our plug"], "s", "for this process: nothing is onlined")
    section.add(f"unplug {text}: virtio_mem", results["unplug"], "s")
    section.add(f"unplug {text}: ours", results["our unplug"], "s")
    section.compare("plug: ours / virtio_mem", results["our plug"], results["plug"], 1.0, at_least=False)
    section.compare("unplug: ours / virtio_mem", results["our unplug"], results["unplug"], 1.0, at_least=False)


# --- input --------------------------------------------------------------------------------------------------

_EVENT = struct.Struct("llHHi")
_EV_KEY = 1
_FLOOD, _FRAME = 200, 20
"""Key events, and how many of them come as one; a queue of 64 would drop a frame that does not fit as a whole."""


def keyboard(host: Host, section: Section, runs: int, quick: bool) -> None:
    """From the host's key press, sent over QMP, to the event in this process; and how much of a flood is lost."""
    address, count = host.places["keyboard"], 4 if quick else 40
    theirs, mine, lost, our_lost = [], [], [], []
    for _ in range(runs):
        _until(lambda: any((_PCI / "devices" / address).glob("virtio*/input/input*/event*")), "evdev's node")
        node = next((_PCI / "devices" / address).glob("virtio*/input/input*/event*")).name
        _until(lambda: Path("/dev/input", node).exists(), node)  # noqa: B023
        fd = os.open(f"/dev/input/{node}", os.O_RDONLY | os.O_NONBLOCK)
        theirs.append(_press(host, count, lambda: _evdev_key(fd, _PATIENCE)))  # noqa: B023
        lost.append(_flood(host, lambda: _evdev_key(fd, 1.0)))  # noqa: B023
        os.close(fd)
        with ours(address) as device, Input(device) as own:
            keys = _Keys(own)
            mine.append(_press(host, count, lambda: keys.next(_PATIENCE)))  # noqa: B023
            our_lost.append(_flood(host, lambda: keys.next(1.0)))  # noqa: B023
    section.add("key press, QMP to event: virtio_input, evdev", theirs, "s")
    section.add("key press, QMP to event: ours", mine, "s")
    section.add(f"{_FLOOD} key events while nobody reads, lost: virtio_input, evdev", lost, "events")
    section.add(f"{_FLOOD} key events while nobody reads, lost: ours", our_lost, "events")
    section.compare("key press: ours / virtio_input", mine, theirs, None, at_least=False)


class _Keys:
    def __init__(self, own: Input) -> None:
        self._own = own
        self._waiting: list[Any] = []

    def next(self, seconds: float) -> bool:
        """Wait for one key event; False if none comes."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            while self._waiting:
                if self._waiting.pop(0).type == _EV_KEY:
                    return True
            self._waiting += self._own.read(timeout=max(0.0, deadline - time.monotonic()))
        return False


def _evdev_key(fd: int, seconds: float) -> bool:
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if _EVENT.unpack(os.read(fd, _EVENT.size))[2] == _EV_KEY:
                return True
        except BlockingIOError:
            poller.poll(max(0.0, deadline - time.monotonic()) * 1000)
    return False


def _send(host: Host, count: int) -> None:
    key = {"type": "qcode", "data": "a"}
    events = [{"type": "key", "data": {"down": number % 2 == 0, "key": key}} for number in range(count)]
    host.ask("input-send-event", events=events)


def _press(host: Host, count: int, arrives: Callable[[], bool]) -> float:
    took = []
    for _ in range(count):
        begin = time.perf_counter()
        _send(host, 2)
        if not (arrives() and arrives()):
            raise TimeoutError("a key press did not arrive")
        took.append(time.perf_counter() - begin)
    return statistics.median(took)


def _flood(host: Host, arrives: Callable[[], bool]) -> float:
    for _ in range(_FLOOD // _FRAME):
        _send(host, _FRAME)
    found = 0
    while found < _FLOOD and arrives():
        found += 1
    return float(_FLOOD - found)


def run(runs: int, quick: bool, parts: Sequence[str]) -> Section:
    """One device after the other: those of these names, or all."""
    section = Section(
        "vm", "In the lab VM, whose CPU is emulated: ours through vfio-pci, beside the kernel's drivers."
    )
    host = Host()
    try:
        for part in (disk, balloon, memory, keyboard):
            if parts and part.__name__ not in parts:
                continue
            print(f"bench: vm: {part.__name__} ...", file=sys.stderr, flush=True)
            try:
                part(host, section, runs, quick)
            except Exception as error:  # noqa: BLE001  # the others are worth the boot; it is told, and counts
                section.failed.append(f"{part.__name__}: {told(error)}")
    finally:
        host.close()
    return section
