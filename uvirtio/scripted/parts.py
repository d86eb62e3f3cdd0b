"""The parts that a scripted device hands to a driver: events on real eventfds, and checked registers."""

from __future__ import annotations

import os
from collections.abc import Callable

from uvirtio.errors import Closed


class ScriptedEvent:
    """An ``Event`` on a real eventfd. ``level``: INTx, masked by ``take()`` until ``rearm()``."""

    def __init__(self, *, level: bool = False, asserted: Callable[[], bool] = lambda: False) -> None:
        self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._level = level
        self._asserted = asserted
        self._masked = False
        self.fired = 0
        self.stuck = False
        self.closed = False

    def fire(self) -> None:
        if self.closed or self._masked:
            return
        self.fired += 1
        os.eventfd_write(self._fd, 1)

    def fileno(self) -> int:
        if self.closed:
            raise Closed("this event is closed")
        return self._fd

    def take(self) -> bool:
        try:
            os.eventfd_read(self.fileno())
        except BlockingIOError:
            return False
        self._masked = self._level
        if self.stuck:
            self.fire()
        return True

    def rearm(self) -> None:
        if self._masked:
            self._masked = False
            if self._asserted() or self.stuck:
                self.fire()

    def storm(self, on: bool) -> None:
        """Fire again as soon as it was taken, or no more."""
        self.stuck = on
        if on:
            self.fire()

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            os.close(self._fd)


class Window:
    """``Registers`` over a region of the device; refuses what real registers refuse."""

    def __init__(
        self,
        length: int,
        read: Callable[[int, int], int],
        write: Callable[[int, int, int], None],
    ) -> None:
        self.length = length
        self._read, self._write = read, write
        self.closed = False

    def _check(self, offset: int, width: int) -> None:
        if self.closed:
            raise Closed("these registers are closed")
        if offset < 0 or offset + width > self.length or offset % width:
            raise ValueError(f"a {width}-byte access at {offset:#x} of {self.length:#x}")

    def _get(self, offset: int, width: int) -> int:
        self._check(offset, width)
        return self._read(offset, width)

    def _put(self, offset: int, width: int, value: int) -> None:
        self._check(offset, width)
        if not 0 <= value < 1 << 8 * width:
            raise ValueError(f"{value:#x} does not fit {width} bytes")
        self._write(offset, width, value)

    def read8(self, offset: int) -> int:
        return self._get(offset, 1)

    def read16(self, offset: int) -> int:
        return self._get(offset, 2)

    def read32(self, offset: int) -> int:
        return self._get(offset, 4)

    def write8(self, offset: int, value: int) -> None:
        self._put(offset, 1, value)

    def write16(self, offset: int, value: int) -> None:
        self._put(offset, 2, value)

    def write32(self, offset: int, value: int) -> None:
        self._put(offset, 4, value)

    def close(self) -> None:
        self.closed = True
