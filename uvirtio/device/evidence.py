"""What a queue shows of a device that does not answer: whether it was told, has taken the buffers, or keeps them.

The ring's own words tell those cases apart (2.7, 2.8), so that an error does not end in "nothing".
"""

from __future__ import annotations

from uvirtio.errors import UvirtioError
from uvirtio.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing import Any, Literal

    from uvirtio.typed import Protocol
    from uvirtio.virtqueue.interface import Virtqueue

    Stall = Literal["idle", "used", "suppressed", "untaken", "kept", "silent"]
    """Where the buffers of a queue are.

    ``idle``: none are out. ``used``: the device returned some that were not reaped. ``suppressed``: the device
    asked for no kick, and did not look by itself. ``untaken``: it was kicked and took none. ``kept``: it took them
    and returns none. ``silent``: it was kicked, and the ring does not show whether it took them.
    """

    class HasBooks(Protocol):
        """The part of a queue that is looked at."""

        index: int
        name: str
        ring: Virtqueue
        kicks: int
        kicked: int

        def kick_owed(self) -> None:
            """Notify the device of what it may not know of."""
            ...

        def ages(self) -> list[tuple[int, float]]:
            """The chains in flight, oldest first: number, and seconds since it was published."""
            ...


_AGES_MOST = 64
"""Chains whose age is shown, the oldest."""


class QueueEvidence(NamedTuple):
    """One queue at one moment."""

    index: int  # type: ignore[assignment]  # a tuple has a method of this name
    name: str
    format: str
    """``split`` or ``packed``."""
    size: int
    """Entries."""
    free: int
    """Descriptors of the ring that are in no chain."""
    addresses: tuple[int, int, int]
    """Device addresses of the descriptor, driver and device areas (2.6)."""
    published: int
    """Chains that were made available since the start."""
    in_flight: int
    """Chains that the device has."""
    kicks: int
    """Notifications sent to the device."""
    unkicked: int
    """Chains published after the last kick, because the device asked for none."""
    words: dict[str, int]
    """The indices, flags and event words of the ring."""
    stall: Stall
    ages: tuple[tuple[int, float], ...]
    """The oldest chains in flight: the number of each since the start, and for how many seconds it is out."""

    def as_dict(self) -> dict[str, Any]:
        """The fields as a dictionary, for JSON."""
        ages = [{"chain": number, "seconds": round(seconds, 6)} for number, seconds in self.ages]
        return {**self._asdict(), "addresses": list(self.addresses), "ages": ages}

    def __str__(self) -> str:
        words = ", ".join(f"{name} {value}" for name, value in self.words.items())
        return f"{self.name} (queue {self.index}): {SAYS[self.stall]}; {self.kicks} kicks; {words}"


SAYS: dict[Stall, str] = {
    "idle": "no buffer is out",
    "used": "the device returned buffers",
    "suppressed": "the device asked for no kick and did not look at the ring",
    "untaken": "kicked, and the device has not taken the buffers",
    "kept": "the device took the buffers and has not returned them",
    "silent": "kicked, and no buffer came back",
}
"""A ``Stall`` in words."""


def of_queue(queue: HasBooks) -> QueueEvidence | None:
    """Look at a queue; None where its ring is closed.

    Args:
        queue: The queue, which belongs to a device that was started.
    """
    ring = queue.ring
    try:
        words, taken, ages = ring.words(), ring.taken(), queue.ages()
    except (UvirtioError, ValueError):  # the views are released
        return None
    unkicked = ring.published - queue.kicked
    stall: Stall
    if not ring.in_flight:
        stall = "idle"
    elif _returned(ring):
        stall = "used"
    elif taken:
        stall = "kept"
    elif unkicked > 0:
        stall = "suppressed"
    else:
        stall = "silent" if taken is None else "untaken"
    return QueueEvidence(
        queue.index,
        queue.name,
        ring.kind,
        ring.size,
        ring.free,
        ring.addresses,
        ring.published,
        ring.in_flight,
        queue.kicks,
        unkicked,
        words,
        stall,
        tuple(ages[:_AGES_MOST]),
    )


def _returned(ring: Virtqueue) -> bool:
    try:
        return ring.pending()
    except UvirtioError:  # the ring is broken: its words are all that counts
        return False
