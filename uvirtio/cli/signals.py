"""SIGINT, SIGTERM and SIGHUP: every way out leaves the device in order.

An exception that a handler throws can come between any two instructions, also in the middle of laying down a
chain. So while a device is open the handler only asks its wait loop to stop; without one it throws.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Protocol

LEAVING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Signalled(BaseException):
    """One of the signals that end a command. A BaseException, so that nobody takes it for a failure."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    @property
    def name(self) -> str:
        return signal.Signals(self.number).name

    @property
    def exit_code(self) -> int:
        """128 + the signal's number, as a shell has it: 130, 143, 129."""
        return 128 + self.number


class Interruptible(Protocol):
    """What a handler needs of a device."""

    def interrupt(self, reason: BaseException) -> None: ...


class Guard:
    """Where the signals of one command go."""

    def __init__(self) -> None:
        self.received: Signalled | None = None
        self._device: Interruptible | None = None
        self._writing = False

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Handle the signals inside the block. One that was ignored (nohup) stays ignored."""
        before: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}
        for number in LEAVING:
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, self._handle)
        try:
            yield
        finally:
            for key, handler in before.items():
                signal.signal(key, signal.SIG_DFL if handler is None else handler)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        again, self.received = self.received is not None, Signalled(number)
        if self._writing:
            raise self.received
        if self._device is not None:
            self._device.interrupt(self.received)
        elif not again:
            raise self.received  # once: what rolls back or cleans up after the first is left to finish

    def watch(self, device: Interruptible | None) -> None:
        """From now on signals go to this device's wait loop (None: to nobody's)."""
        self._device = device
        if device is not None and self.received is not None:
            device.interrupt(self.received)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Around output, which a reader can block for ever: there a signal throws, for no ring is half laid."""
        self._writing = True
        try:
            yield
        finally:
            self._writing = False
