"""What was done to a scripted device, and what is wrong with it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple


class Access(NamedTuple):
    """One thing that was done to the device; ``op`` is ``read``, ``write`` or ``call``."""

    op: str
    region: str
    offset: int
    width: int
    value: int


@dataclass
class Faults:
    """What is wrong with the device. Everything is off by default."""

    reset_reads: int = 0
    """Status reads after a reset that do not show 0 yet; -1: it never does."""
    reset_seconds: float = 0.0
    memory_off: bool = False
    """PCI: memory decoding is off in the command register, so every register reads ones."""
    power_state: int = 0
    """PCI: the power state, D0 to D3; in all but D0 every register reads ones."""
    refuse_features: bool = False
    """FEATURES_OK does not stick."""
    refuse_with: int = 0
    """A feature word: FEATURES_OK does not stick while all of these bits are accepted."""
    refuse_without: int = 0
    """A feature word: FEATURES_OK does not stick unless all of these bits are accepted."""
    features_later: int | None = None
    """What is offered after the first reading of all four words, instead of what was."""
    status_or: int = 0
    """Bits that every status read has on top (never while a reset completes)."""
    needs_reset_at: str | None = None
    """``driver_ok`` or ``kick``: when DEVICE_NEEDS_RESET goes up."""
    generation_bumps: int = 0
    """So many reads of config_generation each find it changed; -1: all do."""
    num_queues: int | None = None
    queue_size: dict[int, int] = field(default_factory=dict)
    """What queue_size reads before it is written, by queue; 0: there is no such queue."""
    queue_size_stuck: bool = False
    """queue_size does not take what is written."""
    address_mask: int = (1 << 64) - 1
    """Bits of queue addresses that the device keeps."""
    enabled_before: bool = False
    """queue_enable reads 1 before it was written."""
    never_enables: bool = False
    """queue_enable reads 0 after it was written."""
    no_vectors: frozenset[int] | set[int] = frozenset()
    """Vectors that read back as NO_VECTOR."""
    msix_fails: bool = False
    """Turning MSI-X on raises OperationFailed."""
    silent: bool = False
    """Kicks are heard and nothing is done."""
    silent_with: int = 0
    """A feature word: silent while all of these bits are accepted."""
    silent_queues: frozenset[int] | set[int] = frozenset()
    lose_interrupts: bool = False
    """Completions without their interrupts."""
    queue_reset_reads: int = 0
    """Reads of queue_reset that show 1 before it is done; -1: for ever."""
