"""Interrupts that come for nothing, far too many of them: noticed, and listened to less often.

A vector that a device fires without end wakes the wait loop at once, each time, so that the process spins and the
device's useful work waits behind it. From the hundredth in a row within a tenth of a second on, the loop sleeps
for a while without listening to interrupts, as it does where there are none at all, and looks for itself.
"""

from __future__ import annotations

LIMIT = 100
"""Interrupts for nothing, in a row, that make a storm when they come within ..."""
WINDOW = 0.1
"""... so many seconds."""
FIRST, LAST = 1e-3, 10e-3
"""Seconds to sleep without listening, growing from the first to the last while the storm goes on."""


class InterruptStorm:
    """Keeps watch over one device's interrupts; ``count`` is how many storms there were."""

    def __init__(self) -> None:
        self.count = 0
        self.row = 0
        """Interrupts for nothing since the last quiet turn."""
        self._since = 0.0
        self._pause = 0.0

    def note(self, now: float, *, told: bool, useful: bool) -> float:
        """After a turn of the wait loop: seconds to stay deaf, or 0.0.

        ``told``: an interrupt came. ``useful``: something was there for it. ``now`` in seconds.
        """
        if not told:
            self.row, self._pause = 0, 0.0
            return 0.0
        if useful:
            return 0.0
        if self._pause:
            self._pause = min(2 * self._pause, LAST)
            return self._pause
        if not self.row or now - self._since > WINDOW:
            self.row, self._since = 0, now
        self.row += 1
        if self.row >= LIMIT:
            self.count += 1
            self._pause = FIRST
        return self._pause
