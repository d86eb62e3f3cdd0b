"""The adaptive busy-poll window: how long to poll a ring before sleeping."""

from __future__ import annotations

_SHARE = 16
"""The window begins at this fraction of its maximum, and returns to it when polling pays again."""


class PollWindow:
    """The time that a wait spends polling before it sleeps, in seconds; never more than ``most``.

    A wait that polling ended doubles it. One that had to sleep for longer than ``most`` halves it, down to 0:
    its polling was wasted. One that slept for a shorter time doubles it: longer polling would have been enough.
    """

    def __init__(self, most: float) -> None:
        """Begin with a small window.

        Args:
            most: The longest window, in seconds; 0: no polling.
        """
        self.most = most
        self.seconds = most / _SHARE

    def found(self) -> None:
        """Record a wait that ended while polling."""
        self._grow()

    def slept(self, seconds: float) -> None:
        """Record a wait that had to sleep.

        Args:
            seconds: Its whole length, polling and sleeping together.
        """
        if seconds <= self.most:
            self._grow()
        elif self.seconds < 2 * self.most / _SHARE:
            self.seconds = 0.0
        else:
            self.seconds /= 2

    def _grow(self) -> None:
        self.seconds = min(self.most, max(2 * self.seconds, self.most / _SHARE))
