"""Uevents that a test sends: messages in the kernel's format, and a source of them."""

from __future__ import annotations

import os
from collections import deque

from uvirtio.host.uevents import Uevent, parse


def message(action: str, devpath: str, subsystem: str, seqnum: int, **variables: str) -> bytes:
    """What the kernel sends for it (lib/kobject_uevent.c)."""
    lines = [f"{action}@{devpath}", f"ACTION={action}", f"DEVPATH={devpath}", f"SUBSYSTEM={subsystem}"]
    lines += [f"{key}={value}" for key, value in variables.items()]
    return "\0".join([*lines, f"SEQNUM={seqnum}", ""]).encode()


class SentEvents:
    """A source of uevents that a test fills."""

    source = "test"

    def __init__(self) -> None:
        self.overruns = 0
        self.closed = False
        self.seqnum = 0
        self._waiting: deque[Uevent] = deque()
        self._ready = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def send(self, action: str, devpath: str, subsystem: str, seqnum: int | None = None, **variables: str) -> None:
        self.seqnum = self.seqnum + 1 if seqnum is None else seqnum
        event = parse(message(action, devpath, subsystem, self.seqnum, **variables))
        assert event is not None
        self._waiting.append(event)
        os.eventfd_write(self._ready, 1)

    def lose(self) -> None:
        """The socket's buffer is full: what waits is dropped."""
        self._waiting.clear()
        self.overruns += 1
        os.eventfd_write(self._ready, 1)

    def fileno(self) -> int:
        return self._ready

    def receive(self) -> Uevent | None:
        if self._waiting:
            return self._waiting.popleft()
        try:
            os.eventfd_read(self._ready)
        except BlockingIOError:
            pass
        return None

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            os.close(self._ready)
