"""What users of fixed slots see of them; slots.py has the slots of each ring format."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence

from uvirtio.typed import Protocol


class Slots(Protocol):
    """The fixed chains of one queue; see ``fixed_slots``."""

    count: int
    written: array[int]
    """By slot: bytes that the device wrote the last time it was used. Before that: the size of its buffer."""

    @property
    def laid(self) -> int:
        """Slots that were submitted and not shown."""
        ...

    def submit(self, slots: Sequence[int], *, show: bool = True) -> bool:
        """Post slots to the device.

        Args:
            slots: The slots; an ``array('H')`` is fastest, and the unchanged result of ``reap`` fastest of all.
            show: Let the device see them, and those before them. Else ``show`` does, in less time: for callers
                that know the next request before the one in front of it is complete. A device that has nothing to
                do goes to sleep within microseconds, and waking it takes longer than a request.

        Returns:
            Whether the device requests a notification (kick).

        Raises:
            UsageError: A slot is in flight, named twice or does not exist. Nothing changed.
            DeviceBroken: The queue is broken or abandoned.
            Closed: The queue is closed.
        """
        ...

    def resize(self, slots: Sequence[int], lengths: Sequence[int]) -> None:
        """Set how many bytes of idle slots the device may read. Only for slots of one readable element.

        Args:
            slots: The slots; that they are idle is checked when they are submitted.
            lengths: The length of each in bytes, from 1 to that of the element that was given to ``fixed_slots``.

        Raises:
            UsageError: A slot is not of one readable element, or a length is above that of the element.
        """
        ...

    def show(self, count: int) -> bool:
        """Let the device see slots that were submitted without, in their order.

        Args:
            count: How many, at most ``laid``.

        Returns:
            Whether the device requests a notification (kick).

        Raises:
            DeviceBroken: The queue is broken or abandoned.
            Closed: The queue is closed.
        """
        ...

    def relay(self, looks: int, notify: Callable[[], None], goal: int = 1) -> int:
        """Look for used slots; as soon as there are any, let the device see others, at most as many.

        Args:
            looks: How often to look for one more, at most.
            notify: Notifies the device; called where it requests that.
            goal: Go on until as many are used, while slots are laid. A ring may return sooner.

        Returns:
            As ``ready``.

        Raises:
            RingCorruption: The used ring is invalid; the queue accepts no calls any more.
            DeviceBroken: The queue is broken or abandoned.
            Closed: The queue is closed.
        """
        ...

    def ready(self) -> int:
        """Return a number of slots that are used and not reaped: some, if there are any.

        Raises:
            RingCorruption: The used ring is invalid; the queue accepts no calls any more.
            DeviceBroken: The queue is broken or abandoned.
            Closed: The queue is closed.
        """
        ...

    def check(self, slots: Sequence[int]) -> None:
        """Check slots as ``submit`` does, for callers that write into the buffers first.

        Raises:
            UsageError: A slot is in flight, named twice or does not exist.
        """
        ...

    def reap(self) -> array[int]:
        """Return the used slots, an ``array('H')`` in the device's order; empty where there are none.

        Raises:
            RingCorruption: The used ring is invalid; the queue accepts no calls any more.
            DeviceBroken: The queue is broken or abandoned.
            Closed: The queue is closed.
        """
        ...

    def out(self) -> list[int]:
        """Return the slots that are in flight, lowest first."""
        ...

    def numbers(self) -> list[int]:
        """Return the numbers of the chains in flight, counted from the start, lowest first.

        One that was overtaken by more chains than the ring is long has the highest number that it can have.
        """
        ...
