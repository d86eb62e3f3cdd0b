"""The epoll set that the wait loop sleeps on: the file descriptors of a device's events, registered once.

Building a poll set for each sleep costs as much as the sleep itself; asking each event whether it fired costs a
system call and an exception for each that did not. An epoll set says in one call which did.
"""

from __future__ import annotations

import select
from collections.abc import Callable, Iterable
from contextlib import suppress

from uvirtio.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from uvirtio.interfaces.clock import ClosingPoller


def _nothing(_seconds: float, _most: int) -> list[tuple[int, int]]:
    return []


class Listener:
    """A set of file descriptors to wait for. It does not own them: call ``forget`` before closing them."""

    def __init__(self, make: Callable[[], ClosingPoller] = select.epoll) -> None:
        """Begin with an empty set.

        Args:
            make: Makes an epoll set.
        """
        self._make = make
        self._poll: ClosingPoller | None = None
        self.ready = False
        """Whether there is anything to listen to."""
        self.look: Callable[[float, int], list[tuple[int, int]]] = _nothing
        """Returns the file descriptors that can be read, each with its epoll events; these may be ignored, as an
        error shows in the read. It takes the seconds to wait for the first, 0: without waiting; and ``most``."""
        self.most = 0
        """How many descriptors there are. Where nothing is said epoll makes room for a thousand, at each call."""

    def listen(self, numbers: Iterable[int]) -> None:
        """Replace the set.

        Args:
            numbers: The file descriptors to listen to from now on.
        """
        self.forget()
        self._poll = self._make()
        different = set(numbers)
        for number in different:
            self._poll.register(number, select.EPOLLIN)
        self.look, self.most = self._poll.poll, len(different)
        self.ready = True

    def forget(self) -> None:
        """Empty the set, before the descriptors are closed. Idempotent."""
        self.ready, self.look = False, _nothing
        if self._poll is not None:
            with suppress(OSError):
                self._poll.close()
            self._poll = None
