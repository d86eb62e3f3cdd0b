"""Memory pressure, by a trigger of ``/proc/pressure/memory`` (PSI)."""

from __future__ import annotations

import os
import select
from contextlib import suppress

from uvirtio.host.roots import Roots

TRIGGER = b"some 200000 2000000\0"
"""Stalls of 200 ms within 2 s. Windows of 2 s need no privilege (Documentation/accounting/psi.rst)."""


def lacking(roots: Roots) -> str:
    """Why no trigger can be set, in words; empty where one can. Nothing is set.

    Args:
        roots: Where ``/proc`` is.
    """
    path = roots.proc / "pressure" / "memory"
    try:
        os.close(os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC))
    except FileNotFoundError:
        return f"there is no {path}"
    except OSError as error:  # EOPNOTSUPP: built in and turned off
        return f"{path} cannot be opened: {os.strerror(error.errno or 0)}"
    return ""


class StallTrigger:
    """A PSI trigger: the kernel reports that tasks wait for memory. Owns a file descriptor.

    Where the kernel has no PSI (CONFIG_PSI), or refuses this user a trigger, it is not ``armed``.
    """

    def __init__(self, roots: Roots) -> None:
        """Set the trigger, if possible; ``armed`` says whether it was.

        Args:
            roots: Where ``/proc`` is.
        """
        self._fd = -1
        with suppress(OSError):
            fd = os.open(roots.proc / "pressure" / "memory", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                os.write(fd, TRIGGER)
                self._fd = fd
            except OSError:
                os.close(fd)

    @property
    def armed(self) -> bool:
        """Whether the trigger is set."""
        return self._fd >= 0

    def fired(self) -> bool:
        """Whether there was a stall since the last call. Never waits; closes itself where the trigger is gone."""
        if self._fd < 0:
            return False
        poller = select.poll()
        poller.register(self._fd, select.POLLPRI)
        for _, events in poller.poll(0):
            if events & select.POLLPRI:
                return True
            self.close()  # POLLERR
        return False

    def close(self) -> None:
        """Remove the trigger; idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
