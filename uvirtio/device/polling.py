"""How long to look at a ring before sleeping: longer where answers come soon, and not at all where they do not."""

from __future__ import annotations

_SHARE = 16
"""The window begins at this part of the most that is allowed, and comes back to it when polling pays again."""


class PollWindow:
    """The time that a wait spends polling before it sleeps, in seconds; never more than ``most``.

    A wait that polling ended doubles it. One that had to sleep for longer than ``most`` halves it, down to
    nothing: its polling was for nothing. One that slept for a shorter time lets it grow: a longer look would have
    seen the answer.
    """

    def __init__(self, most: float) -> None:
        self.most = most
        self.seconds = most / _SHARE

    def found(self) -> None:
        """The answer came while it was polled for."""
        self._grow()

    def slept(self, seconds: float) -> None:
        """The answer came after so long a wait, polling and sleeping together."""
        if seconds <= self.most:
            self._grow()
        elif self.seconds < 2 * self.most / _SHARE:
            self.seconds = 0.0
        else:
            self.seconds /= 2

    def _grow(self) -> None:
        self.seconds = min(self.most, max(2 * self.seconds, self.most / _SHARE))
