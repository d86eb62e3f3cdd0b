"""The parts that a scripted device hands to a driver: events on real eventfds, and checked registers."""

from __future__ import annotations

import os
from collections.abc import Callable

from uvirtio.errors import Closed, Misuse


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
        """Signal the event, unless it is masked."""
        if self.closed or self._masked:
            return
        self.fired += 1
        os.eventfd_write(self._fd, 1)

    def fileno(self) -> int:
        """The eventfd."""
        if self.closed:
            raise Closed("this event is closed")
        return self._fd

    def take(self) -> bool:
        """Consume the signal; whether there was one."""
        try:
            os.eventfd_read(self.fileno())
        except BlockingIOError:
            return False
        self._masked = self._level
        if self.stuck:
            self.fire()
        return True

    def rearm(self) -> None:
        """Unmask a level-triggered line."""
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
        """Close the eventfd. Idempotent."""
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
            raise Misuse(
                f"a {width}-byte access at {offset:#x}",
                seen=f"{width} bytes at {offset:#x}",
                expected=f"inside {self.length:#x} bytes, aligned",
            )

    def _get(self, offset: int, width: int) -> int:
        self._check(offset, width)
        return self._read(offset, width)

    def _put(self, offset: int, width: int, value: int) -> None:
        self._check(offset, width)
        if not 0 <= value < 1 << 8 * width:
            raise Misuse(
                f"{value:#x} does not fit {width} bytes", seen=f"{value:#x}", expected=f"{8 * width} bits"
            )
        self._write(offset, width, value)

    def read8(self, offset: int) -> int:
        """Read one byte."""
        return self._get(offset, 1)

    def read16(self, offset: int) -> int:
        """Read two bytes, little-endian."""
        return self._get(offset, 2)

    def read32(self, offset: int) -> int:
        """Read four bytes, little-endian."""
        return self._get(offset, 4)

    def write8(self, offset: int, value: int) -> None:
        """Write one byte."""
        self._put(offset, 1, value)

    def write16(self, offset: int, value: int) -> None:
        """Write two bytes, little-endian."""
        self._put(offset, 2, value)

    def write32(self, offset: int, value: int) -> None:
        """Write four bytes, little-endian."""
        self._put(offset, 4, value)

    def close(self) -> None:
        """Close the window. Idempotent."""
        self.closed = True
