"""How much memory this machine can spare, and whether it is short of it."""

from __future__ import annotations

import time

from uvirtio.errors import Refused
from uvirtio.host.pressure import StallTrigger
from uvirtio.host.proc import meminfo
from uvirtio.host.roots import Roots

MIB = 1 << 20


def default_floor(total: int) -> int:
    """Return the bytes that a balloon leaves to its machine by default.

    Args:
        total: Memory of the machine (MemTotal), in bytes.

    Returns:
        5% of ``total``, at least 256 MiB, but at most a quarter.
    """
    return min(max(256 * MIB, total // 20), total // 4)


class FreeMemory:
    """How much memory this machine can spare: MemAvailable less a floor."""

    def __init__(self, roots: Roots, floor: int | None = None) -> None:
        """Set the floor; nothing is read yet.

        Args:
            roots: Whose /proc to read.
            floor: Bytes to leave to the machine; None: ``default_floor``.
        """
        self._roots = roots
        self._floor = floor

    def read(self) -> tuple[int, int]:
        """Read /proc/meminfo.

        Returns:
            MemAvailable and the floor, in bytes.

        Raises:
            Refused: /proc/meminfo does not say.
        """
        try:
            found = meminfo(self._roots)
            available, total = found["MemAvailable"], found["MemTotal"]
        except (OSError, KeyError) as error:
            raise Refused(
                "free-memory: it is not known how much memory is free",
                seen=f"/proc/meminfo: {error}",
                expected="MemAvailable and MemTotal",
                remedy="if you know that there is enough: inflate(..., force=True), or --force free-memory",
            ) from error
        return available, default_floor(total) if self._floor is None else self._floor

    def spare(self) -> int:
        """Return MemAvailable less the floor, in bytes; negative below the floor.

        Raises:
            Refused: /proc/meminfo does not say.
        """
        available, floor = self.read()
        return available - floor

    def check(self, size: int) -> None:
        """Check the rule free-memory: the machine can spare ``size`` bytes.

        Raises:
            Refused: It cannot, or it is not known.
        """
        available, floor = self.read()
        if size > available - floor:
            raise Refused(
                "free-memory: the balloon would leave this machine too little memory",
                seen=f"{size // MIB} MiB wanted, {available // MIB} MiB available",
                expected=f"at least {floor // MIB} MiB left",
                remedy=f"take at most {max(0, available - floor) // MIB} MiB; or inflate(..., force=True), "
                "--force free-memory",
            )


class Pressure:
    """Detects memory pressure: the kernel reports stalls (PSI), or MemAvailable is below the floor.

    Without PSI only the floor is checked, once a second. Owns a file descriptor.
    """

    _EVERY = 1.0  # seconds between looks at MemAvailable

    def __init__(self, roots: Roots, free: FreeMemory) -> None:
        """Arm a PSI trigger, where the kernel has PSI.

        Args:
            roots: Whose /proc to use.
            free: Knows the floor.
        """
        self._free = free
        self._next_look = 0.0
        self._trigger = StallTrigger(roots)

    @property
    def has_psi(self) -> bool:
        """Whether the kernel reports memory stalls (PSI)."""
        return self._trigger.armed

    def rose(self) -> bool:
        """Return whether it is time to give memory back. Never waits."""
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
        """Remove the PSI trigger; idempotent."""
        self._trigger.close()
