"""What this machine says of its memory: /proc/meminfo, /proc/vmstat, a cgroup, and the pressure on it (PSI)."""

from __future__ import annotations

import os
import select
import time
from contextlib import suppress
from pathlib import Path

from uvirtio.errors import Refused
from uvirtio.host.roots import Roots

MIB = 1 << 20


def numbers(path: Path) -> dict[str, int]:
    """The first number behind each name of a file of names and numbers; ``kB`` is KiB (proc(5)), in bytes.

    Raises OSError. Lines that have another shape are left out.
    """
    found: dict[str, int] = {}
    for line in path.read_text(encoding="ascii", errors="replace").splitlines():
        name, *values = line.replace(":", " ").split() or [""]
        if values and values[0].isdecimal():
            found[name] = int(values[0]) << (10 if values[1:2] == ["kB"] else 0)
    return found


def default_floor(total: int) -> int:
    """Bytes that are left to a machine of ``total`` bytes: 5%, at least 256 MiB, but never above a quarter."""
    return min(max(256 * MIB, total // 20), total // 4)


class FreeMemory:
    """How much this machine can spare: MemAvailable less a floor (bytes; None: ``default_floor``)."""

    def __init__(self, roots: Roots, floor: int | None = None) -> None:
        self._path = roots.proc / "meminfo"
        self._floor = floor

    def read(self) -> tuple[int, int]:
        """(MemAvailable, the floor), in bytes. Raises Refused where the kernel does not tell."""
        try:
            found = numbers(self._path)
            available, total = found["MemAvailable"], found["MemTotal"]
        except (OSError, KeyError) as error:
            raise Refused(
                "free-memory: it is not known how much memory is free",
                seen=f"{self._path}: {error}",
                expected="MemAvailable and MemTotal",
                remedy="where you know that there is enough: --force free-memory",
            ) from error
        return available, default_floor(total) if self._floor is None else self._floor

    def spare(self) -> int:
        """Bytes above the floor; negative below it. Raises Refused where that is not known."""
        available, floor = self.read()
        return available - floor

    def check(self, size: int) -> None:
        """Raise Refused, by the rule free-memory, unless ``size`` bytes can be spared."""
        available, floor = self.read()
        if size > available - floor:
            raise Refused(
                "free-memory: the balloon would leave this machine too little memory",
                seen=f"{size // MIB} MiB wanted, {available // MIB} MiB available",
                expected=f"at least {floor // MIB} MiB left",
                remedy=f"take at most {max(0, available - floor) // MIB} MiB, or: --force free-memory",
            )


class Pressure:
    """Whether memory is short here: the kernel says so (PSI), or MemAvailable is below the floor.

    PSI needs CONFIG_PSI; without it only the floor is looked at, once a second. Owns a descriptor.
    """

    TRIGGER = b"some 200000 2000000\0"
    """Stalls of 200 ms within 2 s. Windows of 2 s need no privilege (Documentation/accounting/psi.rst)."""
    _EVERY = 1.0  # seconds between looks at MemAvailable

    def __init__(self, roots: Roots, free: FreeMemory) -> None:
        self._free = free
        self._next_look = 0.0
        self._fd = -1
        with suppress(OSError):
            fd = os.open(roots.proc / "pressure" / "memory", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                os.write(fd, self.TRIGGER)
                self._fd = fd
            except OSError:
                os.close(fd)

    @property
    def has_psi(self) -> bool:
        """Whether the kernel will tell."""
        return self._fd >= 0

    def rose(self) -> bool:
        """Whether it is time to give memory back. Never waits."""
        if self._fd >= 0:
            poller = select.poll()
            poller.register(self._fd, select.POLLPRI)
            for _, events in poller.poll(0):
                if events & select.POLLPRI:
                    return True
                self.close()  # POLLERR: the trigger is gone, MemAvailable is left
        now = time.monotonic()
        if now < self._next_look:
            return False
        self._next_look = now + self._EVERY
        try:
            return self._free.spare() < 0
        except Refused:
            return False

    def close(self) -> None:
        """Take the trigger back; idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
