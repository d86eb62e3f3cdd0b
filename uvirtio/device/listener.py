"""What the wait loop sleeps on: the descriptors of a device's events, told to the kernel once, not at every turn.

To build a poll set anew costs as much as to sleep on it, and to ask each event by itself whether it fired costs a
system call and an exception for each that did not. An epoll set says in one call which did.
"""

from __future__ import annotations

import select
from collections.abc import Iterable
from contextlib import suppress


class Listener:
    """A set of descriptors that poll readable. They stay their owners', who tell it before they close them."""

    def __init__(self) -> None:
        self._poll: select.epoll | None = None
        self.ready = False
        """Whether there is anything to listen to."""

    def listen(self, numbers: Iterable[int]) -> None:
        """Listen to these from now on, and to nothing else."""
        self.forget()
        self._poll = select.epoll()
        for number in set(numbers):
            self._poll.register(number, select.EPOLLIN)
        self.ready = True

    def fired(self, seconds: float) -> dict[int, int]:
        """The descriptors that can be read, waiting so long for the first; 0: without waiting.

        Each with the kernel's word for what it is ready for, which is of no use: an error shows when it is read.
        """
        assert self._poll is not None
        return dict(self._poll.poll(seconds))

    def forget(self) -> None:
        """Listen to nothing: the descriptors are about to be closed. Idempotent."""
        self.ready = False
        if self._poll is not None:
            with suppress(OSError):
                self._poll.close()
            self._poll = None
