"""The counters of an open device."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Counters:
    """Counts since the device was opened. They are live; reading them does not access the device."""

    config_changes: int = 0
    """Notifications that the configuration changed."""
    interrupts_taken: int = 0
    """Interrupts that were taken."""
    missed_interrupts: int = 0
    """Times that a wait ended by polling although interrupts were on and none had come."""
    interrupt_storms: int = 0
    """Interrupt storms: many spurious interrupts within a tenth of a second."""
    polled: int = 0
    """Waits that busy-polling ended before they had to sleep."""
