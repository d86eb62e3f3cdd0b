"""Plain values that the interfaces share, in a module of their own: reading sysfs does not load the Protocols."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

from uvirtio.typed import NamedTuple

DEFAULT_TIMEOUT = 5.0
"""Seconds that a device, or the program behind it, may take for one response."""

TIMEOUT_MAX = 1e8
"""Seconds; the longest time-out that every clock and system call here supports (three years)."""

RESPONSE_LEAST = 0.1
"""Seconds that a response may take at least where a call leaves it less: on a loaded host a process that is well
does not answer at once either."""


class InterruptMode(Enum):
    """The interrupt modes, best first (4.1.5.1.2, 4.1.4.5)."""

    PER_QUEUE = "msix-per-queue"
    SHARED = "msix-shared"
    INTX = "intx"
    """The interrupt pin of a PCI function, or the one line of a virtio-mmio device (4.2.3.4)."""

    POLLING = "polling"


class BarInfo(NamedTuple):
    """One base address register: its number, its size in bytes, and whether it decodes I/O ports."""

    index: int  # type: ignore[assignment]  # a tuple has a method of this name
    size: int
    is_io: bool


Trace = Callable[[str], None]
"""Called with one line of text for each register access and kick."""
