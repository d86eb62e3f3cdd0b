"""Interrupt storms: detection of spurious interrupts without end, and the back-off.

A vector that a device fires without end wakes the wait loop at once, each time, so that the process spins and the
device's useful work is delayed. From the hundredth in a row within a tenth of a second on, the loop sleeps for a
while without listening to interrupts and polls, as it does for a device without any.
"""

from __future__ import annotations

LIMIT = 100
"""Spurious interrupts in a row that count as a storm when they come within ``WINDOW``."""
WINDOW = 0.1
"""Seconds."""
FIRST, LAST = 1e-3, 10e-3
"""Seconds to sleep without listening, doubled from the first to the last while the storm lasts."""


class InterruptStorm:
    """Detects storms among one device's interrupts."""

    def __init__(self) -> None:
        self.count = 0
        """Storms so far."""
        self.row = 0
        """Spurious interrupts since the last iteration without an interrupt."""
        self._since = 0.0
        self._pause = 0.0

    def note(self, now: float, *, told: bool, useful: bool) -> float:
        """Record one iteration of the wait loop.

        Args:
            now: The monotonic clock, in seconds.
            told: Whether an interrupt came.
            useful: Whether the device had returned something.

        Returns:
            Seconds to sleep without listening to interrupts; 0.0 where there is no storm.
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
