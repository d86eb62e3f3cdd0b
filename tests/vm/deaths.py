"""Deaths in a real kernel: commands killed at random moments, on each way to a device, and what that leaves.

After each death all memory that is free is filled with a pattern, as some of it was before the command began, and
the next command has to work while it lies there. QEMU says whether the device was reset, the kernel's log whether
anything went where it should not.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

from lab.commands import Command
from lab.pace import loop
from lab.vm import FAULTS, alarms_of

from tests.support.virtio_state import started
from tests.vm import pattern
from tests.vm.commands import Done, commands
from tests.vm.pattern import MIB, Pattern
from tests.vm.qmp_witness import Witness

PATIENCE = 240
"""Seconds for a command to end: an emulated CPU may have a tenth of a busy one."""

HELD = 128 * MIB
"""What is filled before the first command begins, and held to the end."""

LOOK = 0.05
"""Seconds between two looks at how much memory a command has."""

DROP_CACHES = Path("/proc/sys/vm/drop_caches")
AUTO_ONLINE = Path("/sys/devices/system/memory/auto_online_blocks")

OUTER_LOOP = float(os.environ.get("UVIRTIO_KILLS_LOOP", "0"))
"""Seconds that ``loop`` takes outside of the VM, as tools/lab/cli_soak.py measured; 0: not told."""

SECONDS = 2.0
"""For a guardian to go and the next start to end, in seconds of the outer CPU; no test judges it."""

HUGE_LEFT = 6
"""Huge pages that the next start finds free."""

PRELOADED = (
    *("evdev", "uvirtio.backends.vhost_vdpa", "uvirtio.backends.uio_pci", "uvirtio.backends.devmem"),
    *("uvirtio.drivers.blk.driver", "uvirtio.drivers.mem.kernel_use", "uvirtio.online.consumer"),
    *("uvirtio.host.memory", "uvirtio.transports.mmio", "uvirtio.transports.pci", "uvirtio.transports.vdpa"),
)
"""What the commands import when they have their device: on an emulated CPU that takes longer than they do."""


@dataclass(frozen=True, slots=True)
class Way:
    """How a driver comes to its device."""

    name: str
    take: Callable[[list[str]], None]
    """Puts devices into the hands of user space, by hand."""
    give: Callable[[list[str]], None]
    """Puts them into the kernel's."""
    drive: tuple[str, ...] = ()
    """For each command that drives a device."""
    bind: tuple[str, ...] = ()
    """For ``uvirtio bind``."""
    inside: str = "/virtio-backend"
    """Where QEMU has the virtio device, in the one that has the id."""


@dataclass(slots=True)
class Machine:
    """The devices of this machine, by their ids, on one way."""

    way: Way
    addresses: dict[str, str]
    witness: Witness
    folder: Path
    drivers: Callable[[], dict[str, str]]
    """Which driver has which device now."""
    at_first: dict[str, str] = field(init=False)
    """The same, before anything was done."""
    memory: int = field(init=False)
    """Bytes that the host gives, with an empty balloon."""
    total: int = field(init=False)
    """MemTotal."""
    auto_online: str = field(init=False)

    def __post_init__(self) -> None:
        self.at_first = self.drivers()
        self.memory = int(self.witness.execute("query-balloon")["actual"])
        self.total, self.auto_online = pattern.total(), AUTO_ONLINE.read_text().strip()


@dataclass(frozen=True, slots=True)
class Victim:
    """What is killed, what comes next, and what has to be true then.

    ADDRESS in its words is the device's, ADDRESSES those of all; FOLDER is one for files.
    """

    name: str
    device: str
    """The id; empty: all of them."""
    words: tuple[str, ...]
    following: tuple[str, ...]
    """The next start."""
    before: Callable[[Machine], None] = lambda _machine: None
    meanwhile: Callable[[Machine], None] = lambda _machine: None
    """What the host does while the command lives, over and over."""
    after: Callable[[Machine], list[str]] = lambda _machine: []
    """What is wrong after the next start."""

    @property
    def drives(self) -> bool:
        """Whether its words are for a driver, and not for ``bind`` or ``restore``."""
        return bool(self.device)


@dataclass(slots=True)
class Deaths:
    """What came of the kills of one command."""

    way: str
    name: str
    kills: int = 0
    """Those that met a living command."""
    late: int = 0
    stops: int = 0
    lived: float = 0.0
    """Seconds that the command takes when it is left alone, or took when a kill came late."""
    alone: float = 0.0
    """Seconds that the next start takes after one that was left alone."""
    slowest_end: float = 0.0
    """Seconds from a death until its guardian had gone, too."""
    slowest_start: float = 0.0
    scaled: float = 0.0
    """The most of end and next start in seconds of the CPU that emulates the guest's; 0 where that is not told."""
    had: int = 0
    """The most memory, in bytes, that was seen gone while the command lived."""
    had_huge: int = 0
    """Likewise, in huge pages of the pool."""
    filled: int = 0
    """The fewest bytes that were filled after a death."""
    faults: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Killing:
    """Kills of commands on one machine. It holds memory until ``close``."""

    def __init__(self, machine: Machine, seed: int) -> None:
        self._machine = machine
        self._draw = random.Random(seed)
        self._held = Pattern("memory held from the beginning", HELD, seed)
        self._log = KernelLog()

    def close(self) -> None:
        """Free the memory, and close the log."""
        self._held.close()
        self._log.close()

    def run(self, victim: Victim, count: int, seconds: float | None = None) -> Deaths:
        """Kill it so often, but after one for no longer than ``seconds``; then stop it, a fifth as often."""
        deaths = Deaths(self._machine.way.name, victim.name)
        begin = time.monotonic()
        DROP_CACHES.write_text("1")  # what is cached is no memory that could be filled
        self._left_alone(victim, deaths)
        while deaths.kills < count and deaths.kills + deaths.late < 2 * count + 4 and len(deaths.faults) < 5:
            if deaths.kills and seconds is not None and time.monotonic() - begin > seconds:
                break
            try:
                deaths.faults += [f"kill {deaths.kills}: {fault}" for fault in self._kill(victim, deaths)]
            except AssertionError as error:  # a fault may leave the next one impossible
                deaths.faults.append(f"after kill {deaths.kills}: {error}")
                break
        for _ in range(deaths.kills // 5):
            if len(deaths.faults) < 5:
                deaths.faults += [f"stop {deaths.stops}: {fault}" for fault in self._stop(victim, deaths)]
                deaths.stops += 1
        if not deaths.kills:
            deaths.faults.append(f"no kill met a living command; {deaths.late} came late")
        return deaths

    def _words(self, victim: Victim, words: tuple[str, ...]) -> list[str]:
        machine, all_of_them = self._machine, list(self._machine.addresses.values())
        found = [word.replace("FOLDER", str(machine.folder)) for word in words]
        if "ADDRESSES" in found:
            at = found.index("ADDRESSES")
            found[at : at + 1] = all_of_them
        if victim.device:
            found = [machine.addresses[victim.device] if word == "ADDRESS" else word for word in found]
        if victim.drives:
            found += machine.way.drive
        return [*found, *(machine.way.bind if words[0] == "bind" else ())]

    def _start(self, victim: Victim) -> Command:
        victim.before(self._machine)
        return commands().start(*self._words(victim, victim.words))

    def _next(self, victim: Victim) -> Done:
        return commands().run(*self._words(victim, victim.following), timeout=PATIENCE)

    def _left_alone(self, victim: Victim, deaths: Deaths) -> None:
        memory, huge = pattern.free(), pattern.free_huge_pages()
        child = self._start(victim)
        begin = time.monotonic()
        while (code := self._live(victim, child, LOOK)) is None and time.monotonic() - begin < PATIENCE:
            deaths.had = max(deaths.had, memory - pattern.free())
            deaths.had_huge = max(deaths.had_huge, huge - pattern.free_huge_pages())
        deaths.lived = time.monotonic() - begin
        said = child.stdout.read()
        child.close()
        assert code == 0, f"uvirtio {' '.join(victim.words)} ends with {code}: {said}"
        begin = time.monotonic()
        done = self._next(victim)
        deaths.alone = time.monotonic() - begin
        assert done.returncode == 0, f"uvirtio {' '.join(victim.following)}: {done.stdout}{done.stderr}"
        wrong = victim.after(self._machine) + self._log.complaints()
        assert not wrong, wrong

    def _live(self, victim: Victim, child: Command, seconds: float) -> int | None:
        """Wait for its end so long, with what the host does; the exit code."""
        end = time.monotonic() + seconds
        while (code := child.poll()) is None and (left := end - time.monotonic()) > 0:
            victim.meanwhile(self._machine)
            time.sleep(min(left, 0.01))
        return code

    def _kill(self, victim: Victim, deaths: Deaths) -> list[str]:
        machine, pages = self._machine, pattern.free_huge_pages()
        child = self._start(victim)
        found: list[str] = []
        begin = time.monotonic()
        code = self._live(victim, child, self._draw.uniform(0, deaths.lived))
        alive = code is None
        if not alive:  # the first of its kind had more to load, or the CPU has less to do now
            deaths.lived = time.monotonic() - begin
        if code:
            found.append(f"before it was killed it ended with {code}: {' '.join(child.stdout.read().split())}")
        child.kill()
        child.wait(PATIENCE)
        death = time.monotonic()
        deaths.kills += alive
        deaths.late += not alive
        guardians_go(child.pid)
        gone = time.monotonic() - death
        # What was plugged takes a part of the pattern, which needs another place before it can go.
        more = pattern.total() - machine.total
        with (
            closing(Pattern.of_free_memory(deaths.kills, deaths.had, left=more)) as freed,
            closing(Pattern.of_free_huge_pages(deaths.kills, deaths.had_huge, HUGE_LEFT)) as huge,
        ):
            if victim.device and started(machine.witness.execute, self._path(victim.device)):
                found.append("the device is not reset")
            victim.meanwhile(machine)
            speed = loop()
            begin = time.monotonic()
            done = self._next(victim)
            took = time.monotonic() - begin
            speed += loop()
            if done.returncode:
                found.append(f"next start: {' '.join((done.stdout + done.stderr).split())}")
            victim.meanwhile(machine)
            found += self._held.wrong() + freed.wrong() + huge.wrong()
            size = freed.size + huge.size
        child.close()
        deaths.filled = min(deaths.filled or size, size)
        deaths.slowest_end = max(deaths.slowest_end, gone)
        deaths.slowest_start = max(deaths.slowest_start, took)
        if OUTER_LOOP:
            scaled = (gone + took) * 2 * OUTER_LOOP / speed
            deaths.scaled = max(deaths.scaled, scaled)
            if scaled > SECONDS:
                found.append(f"next start only after {scaled:.1f} s of the outer CPU's ({gone + took:.1f} s here)")
        guardians_go(child.pid)
        if (now := pattern.free_huge_pages()) != pages:
            found.append(f"{pages - now} huge pages are not free again")
        return found + victim.after(machine) + self._log.complaints()

    def _stop(self, victim: Victim, deaths: Deaths) -> list[str]:
        child = self._start(victim)
        self._live(victim, child, self._draw.uniform(0, deaths.lived))
        child.send_signal(signal.SIGSTOP)
        time.sleep(self._draw.uniform(0.1, 1.0))
        child.send_signal(signal.SIGCONT)
        code = self._live(victim, child, PATIENCE)
        said = child.stdout.read() if code is not None else "and does not end"
        child.close()
        found = [] if code == 0 else [f"ends with {code}: {' '.join(said.split())}"]
        done = self._next(victim)
        if done.returncode:
            found.append(f"next start: {' '.join((done.stdout + done.stderr).split())}")
        return found + victim.after(self._machine) + self._held.wrong() + self._log.complaints()

    def _path(self, device: str) -> str:
        return f"/machine/peripheral/{device}{self._machine.way.inside}"


def open_log() -> int:
    """A descriptor of the kernel's log, at its end."""
    fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    os.lseek(fd, 0, os.SEEK_END)
    return fd


def read_log(fd: int, length: int) -> bytes:
    """The next record of the kernel's log. Raises BlockingIOError where there is none yet."""
    return os.read(fd, length)


class KernelLog:
    """What the kernel says from now on."""

    def __init__(self) -> None:
        self._fd = open_log()

    def close(self) -> None:
        """Close it."""
        os.close(self._fd)

    def complaints(self) -> list[str]:
        """Its complaints since the last call: about itself, or about a device that the IOMMU had to stop."""
        lines: list[str] = []
        while True:
            try:
                record = read_log(self._fd, 8192).decode(errors="replace")
            except BlockingIOError:
                break
            except BrokenPipeError:  # some were overwritten before they were read
                continue
            lines += record.partition(";")[2].splitlines()[:1]
        return [f"the kernel: {line}" for line in (*alarms_of("\n".join(lines)), *filter(FAULTS.search, lines))]


def guardians(since: int) -> list[int]:
    """The processes that quiet a device when its driver is dead, of those that are younger than ``since``.

    One whose driver died just when it was started is not yet that program, but has the lock of the device.
    """
    found = []
    for process in (path for path in Path("/proc").iterdir() if path.name.isdigit() and int(path.name) > since):
        try:
            named = b"\0guardian_process.py\0" in (process / "cmdline").read_bytes()
            if named or any(file.readlink().match("/run/uvirtio/*.lock") for file in (process / "fd").iterdir()):
                found.append(int(process.name))
        except OSError:
            pass
    return found


def guardians_go(since: int) -> None:
    """Wait for those of a command, whose process was ``since``, and of later ones to have done their work."""
    deadline = time.monotonic() + PATIENCE
    while guardians(since):
        assert time.monotonic() < deadline, "a guardian does not end"
        time.sleep(0.02)
