"""What a service tells the manager that started it: sd_notify(3), without a library."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from contextlib import suppress

_PER_SECOND = 1_000_000


class Manager:
    """The service manager of this process, where there is one that wants to hear of it; else nothing is said."""

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        """Look who is to be told.

        Args:
            environ: NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID are looked up here; None: ``os.environ``.
        """
        environ = os.environ if environ is None else environ
        self._address = environ.get("NOTIFY_SOCKET", "")
        self.every: float | None = None
        """Seconds between two signs of life, half of what the watchdog gives; None: it wants none."""
        microseconds = environ.get("WATCHDOG_USEC", "")
        mine = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        if self._address and mine and microseconds.isascii() and microseconds.isdigit():
            self.every = max(int(microseconds[:18]) / _PER_SECOND / 2, 0.1)

    def ready(self, status: str) -> None:
        """The service is at work."""
        self._tell(f"READY=1\nSTATUS={status}")

    def alive(self) -> None:
        """A sign of life for the watchdog."""
        if self.every is not None:
            self._tell("WATCHDOG=1")

    def stopping(self) -> None:
        """The service is on its way out."""
        self._tell("STOPPING=1")

    def _tell(self, text: str) -> None:
        # "@" is the manager's way to write an abstract address (unix(7)). One that is not there ends nothing.
        if not self._address.startswith(("/", "@")):
            return
        address = "\0" + self._address[1:] if self._address[0] == "@" else self._address
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as bell:
            bell.setblocking(False)  # a manager that does not read is no reason to wait
            bell.sendto(text.encode(errors="replace"), address)
