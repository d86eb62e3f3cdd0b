"""Eventfds: an interrupt that arrives in one, and a doorbell that is one."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack, closing
from typing import Protocol, TypeVar

from uvirtio.errors import Closed
from uvirtio.memory.unclosed import warn_unclosed


class EventFd:
    """An eventfd that the kernel signals: an edge-triggered vector, an error, a removal request.

    ``fileno()`` polls readable while something is pending. Close-on-exec, never blocks. Satisfies ``Event``.
    """

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def fileno(self) -> int:
        """Return the descriptor.

        Raises:
            Closed: After ``close()``.
        """
        if self._fd < 0:
            raise Closed("this event is closed")
        return self._fd

    def take(self) -> bool:
        """Consume what is pending, without waiting; returns whether anything was.

        Raises:
            Closed: After ``close()``.
        """
        try:
            os.eventfd_read(self._fd if self._fd >= 0 else self.fileno())
        except BlockingIOError:
            return False
        return True

    def rearm(self) -> None:
        """Do nothing: an eventfd fires again without it."""

    def close(self) -> None:
        """Close the descriptor; idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> EventFd:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            warn_unclosed(self, str(self._fd), then=self.close)


class Closes(Protocol):
    """What owns a descriptor."""

    def close(self) -> None:
        """Close it."""


Owner = TypeVar("Owner", bound=Closes)


def all_or_none(make: Callable[[], Owner], count: int) -> list[Owner]:
    """Make several owners of descriptors; where one cannot be made, those that were are closed.

    Args:
        make: Makes one.
        count: How many.

    Raises:
        OSError: What ``make`` raises: a limit was reached.
    """
    with ExitStack() as undo:
        made = [undo.enter_context(closing(make())) for _ in range(count)]
        undo.pop_all()
    return made


class EventFdDoorbell:
    """A kick through an eventfd: the kernel (KVM, vhost) listens on it and writes one fixed word (4.1.5.2).

    So the value of ``ring`` is not transmitted, and NOTIFICATION_DATA cannot be used. Satisfies ``Doorbell``.
    """

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def fileno(self) -> int:
        """Return the descriptor, to be passed to the listener.

        Raises:
            Closed: After ``close()``.
        """
        if self._fd < 0:
            raise Closed("this doorbell is closed")
        return self._fd

    def ring(self, value: int) -> None:
        """Signal the eventfd; ``value`` is ignored.

        Raises:
            Closed: After ``close()``.
        """
        del value
        if self._fd < 0:
            self.fileno()
        os.eventfd_write(self._fd, 1)

    def close(self) -> None:
        """Close the descriptor; idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
