"""Eventfds: an interrupt that arrives in one, and a doorbell that is one."""

from __future__ import annotations

import os

from uvirtio.errors import Closed


class EventFd:
    """An eventfd that the kernel signals: an edge-triggered vector, an error, a request to give back.

    ``fileno()`` polls readable while something is pending. Close-on-exec, never blocks.
    """

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def fileno(self) -> int:
        if self._fd < 0:
            raise Closed("this event is closed")
        return self._fd

    def take(self) -> bool:
        """Consume what is pending; whether there was anything. Never waits."""
        try:
            os.eventfd_read(self.fileno())
        except BlockingIOError:
            return False
        return True

    def rearm(self) -> None:
        """Nothing: an eventfd fires again by itself."""

    def close(self) -> None:
        """Close the descriptor; idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> EventFd:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class EventFdDoorbell:
    """A kick through an eventfd: whoever listens at it rings for us, with one fixed word (4.1.5.2).

    So the value of ``ring`` goes nowhere, and NOTIFICATION_DATA cannot be carried.
    """

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def fileno(self) -> int:
        """The descriptor, for whoever is to listen. Raises Closed."""
        if self._fd < 0:
            raise Closed("this doorbell is closed")
        return self._fd

    def ring(self, value: int) -> None:
        del value
        os.eventfd_write(self.fileno(), 1)

    def close(self) -> None:
        """Close the descriptor; idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
