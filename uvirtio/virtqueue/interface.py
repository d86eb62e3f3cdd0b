"""What the users of a virtqueue see of it, whatever its ring format."""

from __future__ import annotations

from collections.abc import Sequence

from uvirtio.typed import TYPE_CHECKING, Protocol
from uvirtio.virtqueue import Completion, SgEntry

if TYPE_CHECKING:
    from typing import Any, Literal


class Virtqueue(Protocol):
    """One virtqueue of either ring format.

    Chains are added (invisible to the device), then published together; used chains are reaped.

    Raises:
        DeviceBroken: In any call but ``abandon`` and ``close``: after RingCorruption or ``abandon``.
        Closed: In any call but ``abandon`` and ``close``: after ``close``.
    """

    kind: Literal["split", "packed"]
    index: int
    size: int
    published: int
    """Number of chains that were made visible to the device since the start."""
    findings: dict[str, int]
    """How often the device deviated from the standard in ways that are tolerated, by name."""

    overclaimed: int
    """The most bytes that the device claimed to have written to a chain that it may only read."""

    @property
    def addresses(self) -> tuple[int, int, int]:
        """Device addresses of the descriptor, driver and device areas (2.6)."""
        ...

    @property
    def kick_data(self) -> int:
        """Position of what comes next, for the kick (2.9): next_off in bits 0..14, next_wrap in bit 15."""
        ...

    @property
    def broken(self) -> str | None:
        """Why the queue accepts no calls any more; None while it works."""
        ...

    @property
    def free(self) -> int:
        """Number of free descriptors."""
        ...

    @property
    def in_flight(self) -> int:
        """Number of chains that are published and not reaped."""
        ...

    def needs(self, elements: int) -> int:
        """Return how many descriptors of the ring a chain takes.

        Args:
            elements: Number of elements of the chain.
        """
        ...

    def add(self, readable: Sequence[SgEntry], writable: Sequence[SgEntry], cookie: Any) -> None:
        """Write one descriptor chain into the ring, not yet visible to the device.

        Args:
            readable: Elements that the device reads; they come first (2.7.4.2).
            writable: Elements that the device writes.
            cookie: Identifies the chain when it is reaped.

        Raises:
            BadChain: The chain breaks a rule of the standard (a caller's mistake). Nothing changed.
            QueueFull: Too few descriptors are free. Nothing changed.
            UsageError: The queue has fixed slots.
        """
        ...

    def add_all(self, chains: list[Any]) -> None:
        """Add several chains; those that were added are taken out of the list, also by a call that raises.

        Args:
            chains: (readable, writable, cookie) of each, as for ``add``.

        Raises:
            BadChain, QueueFull, UsageError: As ``add`` of one of them does.
        """
        ...

    def publish(self) -> bool:
        """Make all added chains visible, with one index store and one fence.

        Returns:
            Whether the device requests a notification (kick).
        """
        ...

    def send(self, readable: Sequence[SgEntry], writable: Sequence[SgEntry], cookie: Any) -> bool:
        """Do what ``add`` and ``publish`` do; in a step, and without a call, where the ring can.

        Returns:
            Whether the device requests a notification (kick).

        Raises:
            BadChain, QueueFull, UsageError: As ``add`` does.
        """
        ...

    def wants_kick(self) -> bool:
        """Whether a notification that the device requested for what is visible is still of use.

        It is not once the device suppresses notifications: it looks at the ring after it stops doing so, and then
        finds everything (2.7.10, 2.8.21.3).
        """
        ...

    def pending(self) -> bool:
        """Whether the device has used a chain that was not reaped."""
        ...

    def reap(self, limit: int | None = None) -> list[Completion]:
        """Return used chains, in the device's order.

        Args:
            limit: Maximum number of chains; None: all.

        Raises:
            RingCorruption: The used ring is invalid; the queue accepts no calls any more. The cookies of chains
                that this call took before the invalid one are among those of ``abandon``.
            UsageError: The queue has fixed slots.
        """
        ...

    def take(self, looks: int = 1) -> tuple[Any, int] | None:
        """Return one used chain, as ``reap`` does: for a caller that has one in flight, and waits for it.

        Args:
            looks: How often to look whether there is one, at most.

        Returns:
            Its cookie, and the number of bytes that the device reports as written; None where there is none yet.

        Raises:
            RingCorruption, UsageError: As ``reap`` does.
        """
        ...

    def numbers(self) -> list[int]:
        """The numbers of the chains in flight, counted from the start, lowest first; not of fixed slots."""
        ...

    def cookies(self) -> list[Any]:
        """The cookies of the chains that were added and not reaped; not of fixed slots."""
        ...

    def words(self) -> dict[str, int]:
        """Return the indices, flags and event words as they are now, by name; for people who look for a fault."""
        ...

    def taken(self) -> bool | None:
        """Whether the device shows that it has taken everything published; None where it does not show that."""
        ...

    def want_interrupts(self, on: bool) -> bool:
        """Enable or suppress used buffer notifications (2.3).

        Returns:
            ``pending()``, read after a fence: True means reap again. False when suppressing.
        """
        ...

    def abandon(self) -> list[Any]:
        """Give up the queue after a confirmed reset, and return the cookies of all chains that were not reaped."""
        ...

    def close(self) -> None:
        """Release the views of the ring memory, and the memory if the queue allocated it; idempotent."""
        ...
