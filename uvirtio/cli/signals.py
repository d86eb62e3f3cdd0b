"""SIGINT, SIGTERM and SIGHUP: a command cleans up the device before it exits.

An exception from a signal handler can come between any two instructions, also while descriptors are being written.
So while a device is open the handler only asks its wait loop to stop; otherwise it raises.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Protocol

LEAVING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Signalled(BaseException):
    """One of the signals that end a command. A BaseException, so that no handler takes it for a failure."""

    def __init__(self, number: int) -> None:
        """Make it.

        Args:
            number: Of the signal.
        """
        super().__init__(number)
        self.number = number

    @property
    def name(self) -> str:
        """The signal's name: ``SIGINT``."""
        return signal.Signals(self.number).name

    @property
    def exit_code(self) -> int:
        """128 + the signal's number, as in a shell: 130, 143, 129."""
        return 128 + self.number


class Interruptible(Protocol):
    """The part of a device that a signal handler uses."""

    def interrupt(self, reason: BaseException) -> None:
        """Make the wait loop raise ``reason`` before it waits again."""


class Guard:
    """Delivers the signals of one command: to the wait loop of its device, or as an exception."""

    def __init__(self) -> None:
        """Make it; no handler is installed yet."""
        self.received: Signalled | None = None
        self._device: Interruptible | None = None
        self._writing = False

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Handle the signals inside the block. A signal that was ignored before (nohup) stays ignored."""
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
            raise self.received  # only once: the roll-back or clean-up after the first signal may finish

    def watch(self, device: Interruptible | None) -> None:
        """Deliver signals to this device's wait loop from now on; None: raise them."""
        self._device = device
        if device is not None and self.received is not None:
            device.interrupt(self.received)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Raise signals inside the block: output can block for ever, and no ring is being changed there."""
        self._writing = True
        try:
            yield
        finally:
            self._writing = False
