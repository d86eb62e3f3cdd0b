"""What is done over and over: each workload with its devices, and how often a day has it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from lab.rfb import Vnc

import uvirtio
from uvirtio.qemu import Machine

MIB = 1 << 20
PATIENCE = 60.0
"""Seconds for an answer: a busy machine is no fault."""

Round = Callable[[], int]
"""Some cycles; how many they were."""


@dataclass(frozen=True, slots=True)
class Work:
    """One workload. ``begin`` has a folder for its files, and yields what makes a round."""

    name: str
    about: str
    day: int
    """Cycles of a day, squeezed."""
    begin: Callable[[Path], AbstractContextManager[Round]]
    settles: int = 2_000
    """Cycles after which memory stays as it is: pools have their sizes, and the garbage collector its rhythm."""


def _check(what: str, seen: object, expected: object) -> None:
    if seen != expected:
        raise AssertionError(f"{what} is {seen!r}, not {expected!r}")


@contextmanager
def balloon(_folder: Path) -> Iterator[Round]:
    """Inflate, deflate; the host is asked once a round."""
    ram = 256 * MIB
    with (
        Machine(devices=["virtio-balloon-pci"], ram=ram) as machine,
        machine.open(0, timeout=PATIENCE) as device,
        uvirtio.Balloon(device) as driver,
    ):

        def work() -> int:
            for _ in range(100):
                driver.inflate(16)
                driver.deflate(16)
            _check("actual", driver.actual, 0)
            machine.qmp_events("BALLOON_CHANGE")  # the last thousand would be kept, a second apart
            _check("the host's balloon", machine.qmp("query-balloon")["actual"], ram)
            return 100

        yield work


@contextmanager
def memory(_folder: Path) -> Iterator[Round]:
    """Plug a block, unplug it."""
    device_model = "virtio-mem-pci,id=mem,requested-size=64M"
    with (
        Machine(devices=[device_model]) as machine,
        machine.open(0, timeout=PATIENCE) as device,
        uvirtio.Mem(device) as driver,
    ):
        blocks = driver.config().usable_region_size // driver.block_size
        number = 0

        def work() -> int:
            nonlocal number
            for _ in range(100):
                at = driver.config().address_of(number % blocks)
                driver.plug(at, 1)
                driver.unplug(at, 1)
                number += 1
            _check("findings", driver.findings, {})
            machine.qmp_events("MEMORY_DEVICE_SIZE_CHANGE")
            _check("the host's size", machine.qmp("query-memory-devices")[0]["data"]["size"], 0)
            return 100

        yield work


@contextmanager
def pointer(folder: Path) -> Iterator[Round]:
    """A pointer moves, and each event is read: less than a queue of 64 at once, or QEMU drops them.

    By VNC, for QEMU takes QMP a byte at a time: 2 ms for an event.
    """
    path, whole = folder / "vnc", 20
    display = ["-vnc", f"unix:{path}", "-device", "VGA"]
    with (
        Machine(devices=["virtio-tablet-pci"], arguments=display) as machine,
        machine.open(0, timeout=PATIENCE) as device,
        uvirtio.Input(device) as driver,
        Vnc(str(path)) as client,
    ):
        number = 0

        def work() -> int:
            nonlocal number
            events = 0
            for _ in range(50):
                moves = [(0, (number + step) % client.width, step) for step in range(whole)]
                client.point(*moves)
                for _ in range(whole):
                    frame = driver.read_frame(timeout=PATIENCE)
                    _check("a frame", None if frame is None else len(frame), 3)  # X, Y, SYN_REPORT
                    events += 3
                number += whole
            _check("events lost", driver.lost, 0)
            return events

        yield work
    path.unlink(missing_ok=True)


@contextmanager
def random_bytes(_folder: Path) -> Iterator[Round]:
    """Reads of 64 random bytes."""
    with (
        Machine(devices=["virtio-rng-pci"]) as machine,
        machine.open(0, timeout=PATIENCE) as device,
        uvirtio.Rng(device) as driver,
    ):

        def work() -> int:
            for _ in range(200):
                _check("length", len(driver.read(64)), 64)
            return 200

        yield work


def _image(folder: Path) -> Path:
    path = folder / "disk.img"
    path.write_bytes(b"".join(number.to_bytes(4, "little") * 128 for number in range(2048)))
    return path


def _disk_round(driver: uvirtio.Blk) -> Round:
    number = 0

    def work() -> int:
        nonlocal number
        for _ in range(200):
            sector = number % 2040
            _check("a sector", driver.read(sector, 8)[:4], sector.to_bytes(4, "little"))
            number += 1
        return 200

    return work


@contextmanager
def qemu_disk(folder: Path) -> Iterator[Round]:
    """Reads of 4 KiB from QEMU's disk."""
    with (
        Machine(devices=["virtio-blk-pci"], drives=[_image(folder)]) as machine,
        machine.open(0, timeout=PATIENCE) as device,
        uvirtio.Blk(device) as driver,
    ):
        yield _disk_round(driver)


@contextmanager
def daemon_disk(folder: Path) -> Iterator[Round]:
    """Reads of 4 KiB from the disk of qemu-storage-daemon."""
    with (
        uvirtio.open(f"vhost-user:qsd/{_image(folder)}", timeout=PATIENCE) as device,
        uvirtio.Blk(device) as driver,
    ):
        yield _disk_round(driver)


@contextmanager
def qemu_opens(_folder: Path) -> Iterator[Round]:
    """A QEMU starts, its device is opened and driven, all is closed."""

    def work() -> int:
        with (
            uvirtio.open("qemu:virtio-rng-pci", timeout=PATIENCE) as device,
            uvirtio.Rng(device) as driver,
        ):
            _check("length", len(driver.read(64)), 64)
        return 1

    yield work


@contextmanager
def daemon_opens(folder: Path) -> Iterator[Round]:
    """A qemu-storage-daemon starts, its disk is opened and read, all is closed."""
    path = _image(folder)

    def work() -> int:
        with (
            uvirtio.open(f"vhost-user:qsd/{path}", timeout=PATIENCE) as device,
            uvirtio.Blk(device) as driver,
        ):
            _check("a sector", driver.read(7, 1)[:4], (7).to_bytes(4, "little"))
        return 1

    yield work


@contextmanager
def qemu_resets(_folder: Path) -> Iterator[Round]:
    """A driver starts, works, and the device is reset under it by its owner."""
    with Machine(devices=["virtio-rng-pci"]) as machine, machine.open(0, timeout=PATIENCE) as device:

        def work() -> int:
            for _ in range(10):
                with uvirtio.Rng(device) as driver:
                    _check("length", len(driver.read(16)), 16)
                    device.reset()
            return 10

        yield work


@contextmanager
def daemon_resets(folder: Path) -> Iterator[Round]:
    """The same with a back end of vhost-user."""
    with uvirtio.open(f"vhost-user:qsd/{_image(folder)}", timeout=PATIENCE) as device:

        def work() -> int:
            for _ in range(10):
                with uvirtio.Blk(device) as driver:
                    _check("a sector", driver.read(7, 1)[:4], (7).to_bytes(4, "little"))
                    device.reset()
            return 10

        yield work


ALL = (
    Work("balloon", "qemu: inflate and deflate 16 pages", 86_400, balloon, 500),
    Work("mem", "qemu: plug and unplug a block", 86_400, memory, 500),
    Work("input", "qemu: events of a pointer", 10_000_000, pointer, 100_000),
    Work("rng", "qemu: reads of 64 bytes", 1_000_000, random_bytes),
    Work("blk", "qemu: reads of 4 KiB", 1_000_000, qemu_disk),
    Work("blk-vu", "vhost-user: reads of 4 KiB", 1_000_000, daemon_disk),
    Work("open", "qemu: whole open and close", 10_000, qemu_opens, 2_500),
    Work("open-vu", "vhost-user: whole open and close", 10_000, daemon_opens, 2_500),
    Work("reset", "qemu: start, work, reset", 1_000, qemu_resets, 500),
    Work("reset-vu", "vhost-user: start, work, reset", 1_000, daemon_resets, 2_500),
)
BY_NAME = {work.name: work for work in ALL}
PROMISED = ("reset", "reset-vu", "open-vu", "balloon", "input", "open", "mem")
"""Whose day is promised (docs/soak.md): the short ones first, and --within leaves their rest to the others."""
