"""The counters of an open device."""

from __future__ import annotations

import warnings

from uvirtio.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any


class Counters:
    """Counts since the device was opened. They are live; reading them does not access the device."""

    __slots__ = ("config_changes", "interrupt_storms", "interrupts_taken", "missed_interrupts", "polled")

    def __init__(self) -> None:
        """Begin at 0."""
        self.config_changes = 0
        """Notifications that the configuration changed."""
        self.interrupts_taken = 0
        """Interrupts that were taken."""
        self.missed_interrupts = 0
        """Times that a wait ended by polling although interrupts were on and none had come."""
        self.interrupt_storms = 0
        """Interrupt storms: many spurious interrupts within a tenth of a second."""
        self.polled = 0
        """Waits that busy-polling ended before they had to sleep."""

    def as_dict(self) -> dict[str, int]:
        """Return the counts by name."""
        names = ("config_changes", "interrupts_taken", "missed_interrupts", "interrupt_storms", "polled")
        return {name: getattr(self, name) for name in names}


def moved(name: str) -> property:
    """Return a counter under the name that it had on the device before 0.2. Goes with 0.3.

    Args:
        name: The counter.
    """

    def read(device: Any) -> int:
        warnings.warn(f"Device.{name} is Device.counters.{name} now", DeprecationWarning, stacklevel=2)
        return int(getattr(device.counters, name))

    return property(read)
