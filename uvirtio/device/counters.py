"""What is counted of a device while it is open."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Counters:
    """Counts since the device was opened. They go on while it is used; reading them asks the device nothing."""

    config_changes: int = 0
    """Notifications that the configuration changed."""
    interrupts_taken: int = 0
    """Times that an interrupt was taken."""
    missed_interrupts: int = 0
    """Times that something was there though no interrupt had said so."""
    interrupt_storms: int = 0
    """Times that interrupts came for nothing, faster than any work needs them."""
    polled: int = 0
    """Waits that polling ended before they had to sleep."""
