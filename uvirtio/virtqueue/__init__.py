"""Virtqueues: the split ring of 2.7 and the packed ring of 2.8, behind one interface."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol

SgEntry = tuple[int, int]
"""(device address, length in bytes) of one element of a chain."""


class Completion(NamedTuple):
    """A chain that the device has used: the caller's cookie, and how many bytes it says that it wrote."""

    cookie: Any
    written: int


class Virtqueue(Protocol):
    """One virtqueue, whatever its ring format.

    Chains are added (nothing is visible to the device yet), then published in one go; completions are reaped.
    """

    kind: Literal["split", "packed"]
    index: int
    size: int
    findings: dict[str, int]
    """How often the device did something odd that is tolerated, by name."""

    @property
    def addresses(self) -> tuple[int, int, int]:
        """Device addresses of the descriptor, driver and device areas (2.6)."""
        ...

    @property
    def kick_data(self) -> int:
        """Where the device finds what comes next: next_off in bits 0..14, next_wrap in bit 15 (2.9)."""
        ...

    @property
    def broken(self) -> str | None:
        """Why the queue takes nothing more, or None. Every call but abandon() and close() raises then."""
        ...

    @property
    def free(self) -> int:
        """Descriptors that are free now."""
        ...

    @property
    def in_flight(self) -> int:
        """Chains that were published and not reaped."""
        ...

    def needs(self, elements: int) -> int:
        """How many descriptors of the ring a chain of so many elements takes."""
        ...

    def add(self, readable: Sequence[SgEntry], writable: Sequence[SgEntry], cookie: Any) -> None:
        """Lay down one chain, readable runs first. Raises BadChain (our mistake) or QueueFull, changing nothing.

        This and all calls below raise DeviceBroken after a RingCorruption or abandon(), Closed after close().
        """
        ...

    def publish(self) -> bool:
        """Make all added chains visible with one index store and one fence; True: the device wants a kick."""
        ...

    def pending(self) -> bool:
        """Whether the device has used something that was not reaped."""
        ...

    def reap(self, limit: int | None = None) -> list[Completion]:
        """Completions in the device's order, at most ``limit``.

        Raises RingCorruption, after which the queue takes nothing more; the cookies of completions of the same
        call that came before the bad one are among those of abandon().
        """
        ...

    def want_interrupts(self, on: bool) -> bool:
        """Ask for interrupts, or not. Turning them on fences and returns pending(): True means reap again."""
        ...

    def abandon(self) -> list[Any]:
        """After a confirmed reset: the cookies of everything still out; the ring is dead from then on."""
        ...

    def close(self) -> None:
        """Release the views of the ring memory, and the memory if the queue made it; idempotent."""
        ...
