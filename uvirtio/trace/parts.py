"""What a back end's object hands out, on a tape: registers, events, doorbells, the clock and plugged memory."""

from __future__ import annotations

import mmap
import os
import select
import time
from collections.abc import Callable
from typing import Any

from uvirtio.errors import Closed, Misuse
from uvirtio.interfaces.memory import Doorbell, Event, MemoryWindow, Registers
from uvirtio.memory.access import WidthRegisters, read_field, write_field
from uvirtio.memory.clock import HostClock
from uvirtio.trace.tape import Tape, flag, no_facts, number, obtain


class WatchedRegisters(WidthRegisters):
    """A window of registers on a tape. Satisfies ``Registers``."""

    def __init__(self, tape: Tape, name: str, length: int, inner: Registers | None) -> None:
        """Put a window on a tape.

        Args:
            tape: The tape.
            name: What the record calls it.
            length: Its length, in bytes.
            inner: The real registers; None in a replay.
        """
        super().__init__(0, length)
        self._tape, self._name, self._inner = tape, name, inner

    def _place(self, offset: int, width: int) -> int:
        if self._inner is not None:
            return offset  # checked there
        if self._closed:
            raise Closed("these registers are closed")
        if offset < 0 or offset + width > self.length:
            raise Misuse(f"a {width}-byte access at {offset:#x} of {self.length:#x}")
        return offset

    def _read(self, place: int, width: int) -> int:
        def do() -> int:
            assert self._inner is not None
            return read_field(self._inner, place, width)

        value = self._tape.ask("read", f"{self._name}+{place:#x}", [8 * width], do, number)
        return int(value) & (1 << 8 * width) - 1

    def _write(self, place: int, width: int, value: int) -> None:
        def do() -> None:
            assert self._inner is not None
            write_field(self._inner, place, width, value)

        self._tape.ask("write", f"{self._name}+{place:#x}", [8 * width, value], do)

    def close(self) -> None:
        """Close the window; idempotent."""
        super().close()
        if self._inner is not None:
            self._inner.close()


class WatchedEvent:
    """An interrupt on a tape. Satisfies ``Event``."""

    def __init__(self, tape: Tape, name: str, inner: Event | None) -> None:
        """Put an event on a tape.

        Args:
            tape: The tape.
            name: What the record calls it.
            inner: The real event; None in a replay.
        """
        self._tape, self._name, self._inner = tape, name, inner
        self._fd = -1

    def fileno(self) -> int:
        """Return the file descriptor; in a replay one that never fires by itself."""
        if self._inner is not None:
            number = self._inner.fileno()
        else:
            if self._fd < 0:
                self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            number = self._fd
        self._tape.names[number] = self._name
        return number

    def take(self) -> bool:
        """Consume what is pending; see ``Event``."""

        def do() -> bool:
            assert self._inner is not None
            return self._inner.take()

        return bool(self._tape.ask("take", self._name, [], do, flag))

    def rearm(self) -> None:
        """Unmask a level-triggered line; see ``Event``."""

        def do() -> None:
            assert self._inner is not None
            self._inner.rearm()

        self._tape.ask("rearm", self._name, [], do)

    def close(self) -> None:
        """Release the event; idempotent."""
        if self._inner is not None:
            self._inner.close()
        number, self._fd = self._fd, -1
        if number >= 0:
            os.close(number)


class WatchedDoorbell:
    """A doorbell on a tape. Satisfies ``Doorbell``."""

    def __init__(self, tape: Tape, name: str, inner: Doorbell | None) -> None:
        """Put a doorbell on a tape.

        Args:
            tape: The tape.
            name: What the record calls it.
            inner: The real doorbell; None in a replay.
        """
        self._tape, self._name, self._inner = tape, name, inner

    def ring(self, value: int) -> None:
        """Kick the device."""

        def do() -> None:
            assert self._inner is not None
            self._inner.ring(value)

        self._tape.ask("kick", self._name, [value], do)

    def fileno(self) -> int:
        """Return the descriptor of a doorbell that is an eventfd."""
        return int(getattr(self._inner, "fileno")())  # noqa: B009  # no Doorbell has to have one

    def close(self) -> None:
        """Release the doorbell; idempotent."""
        if self._inner is not None:
            self._inner.close()


def _names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _seconds(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1e15


class _Set:
    """A set of file descriptors on a tape: what woke is noted by the names of the events."""

    def __init__(self, tape: Tape, make: Callable[[], Any]) -> None:
        self._tape = tape
        self._inner = None if tape.replays else make()
        self._numbers: list[int] = []

    def register(self, fd: int, eventmask: int = select.POLLIN, /) -> None:
        """Add a descriptor."""
        self._numbers.append(fd)
        if self._inner is not None:
            self._inner.register(fd, eventmask)

    def poll(self, timeout: Any = None, _most: int = -1, /) -> list[tuple[int, int]]:
        """Return the descriptors that can be read, however many; in a replay those that could be."""

        def do() -> list[str]:
            assert self._inner is not None
            return sorted({self._tape.names.get(number, "other") for number, _ in self._inner.poll(timeout)})

        woke = self._tape.ask("poll", "events", [timeout], do, _names)
        names = self._tape.names
        return [(number, select.POLLIN) for number in self._numbers if names.get(number, "other") in woke]

    def close(self) -> None:
        """Close the set."""
        if self._inner is not None:
            self._inner.close()


class WatchedClock:
    """The clock on a tape. Satisfies ``Clock``."""

    def __init__(self, tape: Tape) -> None:
        """Put this machine's clock on a tape; in a replay it shows the recorded times."""
        self._tape = tape

    def monotonic(self) -> float:
        """Return the monotonic clock, in seconds; in a replay that of the machine of the record."""
        return float(self._tape.ask("time", "clock", [], time.monotonic, _seconds))

    def sleep(self, seconds: float, /) -> None:
        """Sleep; not in a replay."""
        self._tape.ask("sleep", "clock", [seconds], lambda: time.sleep(seconds))

    def random(self) -> float:
        """Return a random number from 0.0 up to 1.0."""
        return float(self._tape.ask("random", "clock", [], HostClock.random, _seconds))

    def epoll(self) -> _Set:
        """Return an empty epoll set."""
        return _Set(self._tape, select.epoll)

    def poll(self) -> _Set:
        """Return an empty set as of ``select.poll``."""
        return _Set(self._tape, select.poll)


class WatchedWindow:
    """Memory that a device provides, on a tape; a replay has zeros there. Satisfies ``MemoryWindow``."""

    def __init__(self, tape: Tape, size: int, inner: MemoryWindow | None) -> None:
        """Put a window on a tape.

        Args:
            tape: The tape.
            size: Its size, in bytes.
            inner: The real window; None in a replay.
        """
        self.size = size
        self._tape, self._inner = tape, inner

    def map(self, offset: int, length: int) -> mmap.mmap:
        """Map whole pages of it; see ``MemoryWindow``."""

        def make() -> mmap.mmap:
            assert self._inner is not None
            return self._inner.map(offset, length)

        _, made = obtain(self._tape, "plugged_memory.map", [offset, length], make, no_facts)
        return mmap.mmap(-1, length) if made is None else made

    def close(self) -> None:
        """Release the window; idempotent."""
        if self._inner is not None:
            self._inner.close()
