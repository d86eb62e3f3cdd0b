"""For how long a device has had each chain of a queue.

The ring's own books know which chains are out, not since when: a time for each chain would cost every driver
something. So methods of one queue are replaced, as a record does it, and a queue without a watch costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from uvirtio.device import Queue


class Ages:
    """The chains of one queue that are with the device, each with the time at which it was added."""

    def __init__(self, queue: Queue, now: Callable[[], float]) -> None:
        """Watch a queue from now on; chains that are out already count from now.

        Args:
            queue: The queue of a device that was started.
            now: The clock, in seconds.
        """
        self._queue, self._now = queue, now
        self._out: list[tuple[Any, float]] = []
        begin = now()
        slots = queue.slots
        if slots is not None:
            self._out = [(slot, begin) for slot in slots.out()]
        else:
            # Whose they are is not known here; they are dropped from this end when more come back than were added.
            self._out = [(_Unknown(), begin) for _ in range(queue.ring.in_flight)]
        whole: Any = queue
        add, submit, reap, reap_slots = whole.add, whole.submit, whole.reap, whole.reap_slots

        def added(readable: Sequence[Any], writable: Sequence[Any], cookie: Any) -> None:
            add(readable, writable, cookie)
            self._out.append((cookie, now()))

        def submitted(slots: Sequence[int]) -> None:
            at = now()
            posted = [(int(slot), at) for slot in slots]
            submit(slots)
            self._out += posted

        def reaped(limit: int | None = None) -> Any:
            done = reap(limit)
            for completion in done:
                self._back(completion.cookie)
            return done

        def slots_reaped() -> Any:
            found = reap_slots()
            for slot in found:
                self._back(int(slot))
            return found

        whole.add, whole.submit, whole.reap, whole.reap_slots = added, submitted, reaped, slots_reaped

    def now(self) -> tuple[float, ...]:
        """The age of each chain that is out, in seconds, the oldest first."""
        at = self._now()
        # A chain that was added and not yet published is not with the device; it is the youngest.
        return tuple(at - since for _, since in self._out[: self._queue.ring.in_flight])

    def _back(self, cookie: Any) -> None:
        unknown = None
        for place, (posted, _) in enumerate(self._out):
            if posted is cookie or (type(cookie) is int and posted == cookie):
                del self._out[place]
                return
            if unknown is None and isinstance(posted, _Unknown):
                unknown = place
        if unknown is not None:
            del self._out[unknown]


class _Unknown:
    """Stands for a cookie of a chain that was added before the watch began."""
