"""Deaths: commands killed at random moments; they, their QEMUs and their daemons stopped for a while."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvirtio
from soaks import state

_MAIN = "import sys; from uvirtio.cli import main; sys.argv[0] = 'uvirtio'; sys.exit(main())"
_MARK = "UVIRTIO_SOAK"
"""In the environment of a command and of all that it starts."""

_LAST = 2.0
"""Seconds for what a killed command started to go too, and for the next start."""

_PATIENCE = 60.0

_COMES = 20.0
"""Seconds that a command may take to start its QEMU or daemon."""


@dataclass(frozen=True, slots=True)
class Victim:
    """A command to be killed. DISK in its words is the path of an image of 1 MiB."""

    name: str
    words: tuple[str, ...]
    next_start: Callable[[str], None]
    """Opens and drives the same device; gets the image."""
    child: str
    """What the program is called that has the device."""


def _next_qemu(device: str) -> Callable[[str], None]:
    def start(_disk: str) -> None:
        with uvirtio.open(f"qemu:{device}", timeout=_PATIENCE) as opened, uvirtio.Rng(opened) as driver:
            driver.read(16)

    return start


def _next_balloon(_disk: str) -> None:
    with (
        uvirtio.open("qemu:virtio-balloon-pci", timeout=_PATIENCE) as device,
        uvirtio.Balloon(device) as driver,
    ):
        driver.inflate(16)


def _next_mem(_disk: str) -> None:
    address = "qemu:virtio-mem-pci,requested-size=64M"
    with uvirtio.open(address, timeout=_PATIENCE) as device, uvirtio.Mem(device) as driver:
        driver.plug(driver.addr, 1)


def _next_input(_disk: str) -> None:
    with (
        uvirtio.open("qemu:virtio-keyboard-pci", timeout=_PATIENCE) as device,
        uvirtio.Input(device) as driver,
    ):
        driver.describe()


def _next_disk(form: str) -> Callable[[str], None]:
    def start(disk: str) -> None:
        with (
            uvirtio.open(form.replace("DISK", disk), timeout=_PATIENCE) as device,
            uvirtio.Blk(device, allow_write=True) as driver,
        ):
            driver.write(0, bytes(512))  # whoever holds the image for writing is in the way

    return start


_QEMU, _QSD = "qemu-system", "qemu-storage-da"
_DISK_OF_QEMU, _DISK_OF_DAEMON = "qemu:q35,file=DISK/virtio-blk-pci", "vhost-user:qsd/DISK"
_WRITE = ("--in", "DISK.in", "--allow-write")

VICTIMS = (
    Victim(
        "balloon inflate",
        ("balloon", "inflate", "qemu:virtio-balloon-pci", "64M", "--hold", "1"),
        _next_balloon,
        _QEMU,
    ),
    Victim("mem plug", ("mem", "plug", "qemu:virtio-mem-pci,requested-size=64M", "64M"), _next_mem, _QEMU),
    Victim("input events", ("input", "events", "qemu:virtio-keyboard-pci", "--for", "1"), _next_input, _QEMU),
    Victim("rng read", ("rng", "read", "qemu:virtio-rng-pci", "4M"), _next_qemu("virtio-rng-pci"), _QEMU),
    Victim("blk read", ("blk", "read", _DISK_OF_QEMU, "0", "1M"), _next_disk(_DISK_OF_QEMU), _QEMU),
    Victim("blk write", ("blk", "write", _DISK_OF_QEMU, "0", *_WRITE), _next_disk(_DISK_OF_QEMU), _QEMU),
    Victim("blk read, vu", ("blk", "read", _DISK_OF_DAEMON, "0", "1M"), _next_disk(_DISK_OF_DAEMON), _QSD),
    Victim("blk write, vu", ("blk", "write", _DISK_OF_DAEMON, "0", *_WRITE), _next_disk(_DISK_OF_DAEMON), _QSD),
)


@dataclass(slots=True)
class Tally:
    """What came of the kills of one command, or of its stops."""

    name: str
    stopped: bool = False
    """Whether it was stopped for a while and not killed."""
    kills: int = 0
    """Those that met a living command."""
    late: int = 0
    """Those that came after its end."""
    with_child: int = 0
    """Kills at which it had started its QEMU or daemon."""
    missed: int = 0
    """Those that ended as a device that does not answer: with its QEMU stopped beyond the deadline of a call."""
    slowest_end: float = 0.0
    """Seconds until all that it had started was gone."""
    slowest_start: float = 0.0
    """Seconds of the next start, with one operation and the end."""
    faults: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.name,
            "stopped": self.stopped,
            "kills": self.kills,
            "late": self.late,
            "with_child": self.with_child,
            "missed": self.missed,
            "slowest_end_s": round(self.slowest_end, 3),
            "slowest_start_s": round(self.slowest_start, 3),
            "faults": self.faults,
        }

    def line(self) -> str:
        """For people."""
        begin = f"{'FAIL' if self.faults else 'ok  '} {self.name:15} {self.kills:4} "
        faults = "".join(f"; {one}" for one in self.faults)
        if self.stopped:
            return f"{begin}stopped ({self.with_child} its QEMU or daemon, {self.missed} UV-DEV-TIMEOUT){faults}"
        return (
            f"{begin}killed  ({self.with_child} with its QEMU or daemon up, {self.late} came late); all gone"
            f" within {self.slowest_end:.2f} s, next start {self.slowest_start:.2f} s{faults}"
        )


class Killing:
    """Kills of commands, each in the folder that it is given."""

    def __init__(self, scratch: Path, watched: tuple[Path, ...], seed: int) -> None:
        self._disk, self._watched = scratch / "disk.img", watched
        self._errors = scratch / "stderr"
        self._disk.write_bytes(bytes(1 << 20))
        Path(f"{self._disk}.in").write_bytes(os.urandom(1 << 20))
        self._draw = random.Random(seed)

    def kills(self, victim: Victim, count: int) -> Tally:
        """Kill a command so often, at moments between its start and its end."""
        tally = Tally(victim.name)
        longest = self._whole(victim)
        before = frozenset(state.files(self._watched))
        while tally.kills + tally.late < 2 * count and tally.kills < count and len(tally.faults) < 5:
            self._kill(victim, tally, longest)
            if left := frozenset(state.files(self._watched)) - before:
                tally.faults.append(f"files left: {', '.join(sorted(left)[:3])}")
                before |= left
        return tally

    def _whole(self, victim: Victim) -> float:
        """Seconds that the command takes when it is left alone, which has to succeed."""
        begin = time.monotonic()
        child, _ = self._start(victim)
        code = child.wait(_PATIENCE)
        if code:
            raise AssertionError(f"uvirtio {' '.join(self._words(victim))} ends with {code}: {self._said()}")
        return time.monotonic() - begin

    def _words(self, victim: Victim) -> list[str]:
        return [word.replace("DISK", str(self._disk)) for word in victim.words]

    def _start(self, victim: Victim) -> tuple[subprocess.Popen[bytes], str]:
        mark = uuid.uuid4().hex
        command = [sys.executable, "-c", _MAIN, *self._words(victim)]
        path = os.pathsep.join(sys.path[1:2])
        with self._errors.open("wb") as errors:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                start_new_session=True,
                env={**os.environ, _MARK: mark, "PYTHONPATH": path},
            )
        return child, mark

    def _said(self) -> str:
        """What the last command said of its errors, in one line."""
        return " ".join(self._errors.read_text(errors="replace").split())

    def _moment(self, child: subprocess.Popen[bytes], mark: str, longest: float, *, busy: bool) -> None:
        """Wait for a random moment of a command's life; ``busy``: while its QEMU or daemon is there."""
        begin = time.monotonic()
        while busy and child.poll() is None and len(marked(mark)) < 2 and time.monotonic() - begin < _COMES:
            time.sleep(0.02)
        with suppress(subprocess.TimeoutExpired):
            child.wait(self._draw.uniform(0, max(longest - (time.monotonic() - begin), 0.05)))

    def _kill(self, victim: Victim, tally: Tally, longest: float) -> None:
        child, mark = self._start(victim)
        self._moment(child, mark, longest, busy=bool((tally.kills + tally.late) % 2))
        others = [pid for pid in marked(mark) if pid != child.pid]
        alive = child.poll() is None
        child.kill()
        child.wait()
        tally.kills += alive
        tally.late += not alive
        tally.with_child += alive and bool(others)
        begin = time.monotonic()
        while orphans := marked(mark):
            if time.monotonic() - begin > _LAST:
                tally.faults.append(f"orphans: {orphans}")
                for pid in orphans:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                break
            time.sleep(0.01)
        tally.slowest_end = max(tally.slowest_end, time.monotonic() - begin)
        begin = time.monotonic()
        try:
            victim.next_start(str(self._disk))
        except uvirtio.UvirtioError as error:
            tally.faults.append(f"next start: {error.code} {error.message}")
        tally.slowest_start = max(tally.slowest_start, time.monotonic() - begin)

    def stops(self, victim: Victim, count: int) -> Tally:
        """Stop the command, or what has its device, for a while and let it go on: it still ends well."""
        tally = Tally(victim.name, stopped=True)
        longest = self._whole(victim)
        for number in range(count):
            child, mark = self._start(victim)
            try:
                self._moment(child, mark, longest, busy=bool(number % 2))
                held = [pid for pid in marked(mark) if number % 2 == (pid != child.pid)]
                for signal_number in (signal.SIGSTOP, signal.SIGCONT):
                    for pid in held:
                        with suppress(ProcessLookupError):
                            os.kill(pid, signal_number)
                    if signal_number == signal.SIGSTOP:
                        time.sleep(self._draw.uniform(0.1, 1.0))
                tally.kills += bool(held)
                tally.with_child += bool(held) and held != [child.pid]
                if code := child.wait(_PATIENCE):
                    if number % 2 and "UV-DEV-TIMEOUT" in self._said():
                        tally.missed += 1
                        continue
                    who = "its child" if number % 2 else "it"
                    tally.faults.append(f"ends with {code} after {who} was stopped: {self._said()}")
            finally:
                child.kill()
                child.wait()
            if marked(mark):
                tally.faults.append("something runs on")
        return tally


def marked(mark: str) -> list[int]:
    """The processes whose environment has this mark, but not those that are dead already."""
    found = []
    wanted = f"{_MARK}={mark}\0".encode()
    for one in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if wanted in (one / "environ").read_bytes() + b"\0":
                found.append(int(one.name))
    return found
