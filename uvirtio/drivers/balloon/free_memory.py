"""How much memory this machine can spare, and whether it is short of it."""

from __future__ import annotations

import time

from uvirtio.errors import Refused
from uvirtio.host.pressure import StallTrigger
from uvirtio.host.proc import meminfo
from uvirtio.host.roots import Roots

MIB = 1 << 20


def default_floor(total: int) -> int:
    """Bytes that are left to a machine of ``total`` bytes: 5%, at least 256 MiB, but never above a quarter."""
    return min(max(256 * MIB, total // 20), total // 4)


class FreeMemory:
    """How much this machine can spare: MemAvailable less a floor (bytes; None: ``default_floor``)."""

    def __init__(self, roots: Roots, floor: int | None = None) -> None:
        self._roots = roots
        self._floor = floor

    def read(self) -> tuple[int, int]:
        """(MemAvailable, the floor), in bytes. Raises Refused where the kernel does not tell."""
        try:
            found = meminfo(self._roots)
            available, total = found["MemAvailable"], found["MemTotal"]
        except (OSError, KeyError) as error:
            raise Refused(
                "free-memory: it is not known how much memory is free",
                seen=f"/proc/meminfo: {error}",
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

    Without PSI only the floor is looked at, once a second. Owns a descriptor.
    """

    _EVERY = 1.0  # seconds between looks at MemAvailable

    def __init__(self, roots: Roots, free: FreeMemory) -> None:
        self._free = free
        self._next_look = 0.0
        self._trigger = StallTrigger(roots)

    @property
    def has_psi(self) -> bool:
        """Whether the kernel will tell."""
        return self._trigger.armed

    def rose(self) -> bool:
        """Whether it is time to give memory back. Never waits."""
        if self._trigger.fired():
            return True
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
        self._trigger.close()
