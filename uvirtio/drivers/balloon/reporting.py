"""Free page reporting (5.5.6.7): the host may take the memory behind what we say is free, until we touch it."""

from __future__ import annotations

from uvirtio.device import Device, Queue
from uvirtio.drivers.balloon.arena import Arena, Range, Use
from uvirtio.spec import features as f


class Reporting:
    """Sends the free ranges of an arena, as many at a time as the queue takes."""

    def __init__(self, device: Device, queue: Queue) -> None:
        self._device = device
        self._queue = queue
        self._poison = device.has(f.Balloon.PAGE_POISON)
        self.reported = 0
        """Bytes that the device has acknowledged."""

    def serve(self) -> None:
        """Take back what the device has used; never waits."""
        for done in self._queue.reap():
            one: Range = done.cookie
            one.use = Use.REPORTED
            self.reported += one.size

    def report(self, arena: Arena, timeout: float) -> int:
        """Report what is free in the arena; returns the bytes. ``timeout`` (seconds) is for each queueful.

        Returns when the device has acknowledged all: until then the ranges are out of bounds (5.5.6.7.1).
        """
        self.serve()
        before = self.reported
        waiting = [one for one in arena.ranges if one.use is Use.FREE]
        while waiting:
            posted = 0
            while waiting and (not posted or self._queue.ring.free >= len(waiting[-1].runs)):
                one = waiting[-1]
                if self._poison:
                    arena.fill_free(one)  # 5.5.6.7.1: the host may rely on it
                self._queue.add((), one.runs, one)
                one.use = Use.OUT
                waiting.pop()
                posted += 1
            self._queue.kick()
            self._device.wait(self._all_back, timeout=timeout, what="the acknowledgement of reported pages")
        return self.reported - before

    def _all_back(self) -> bool:
        self.serve()
        return self._queue.ring.in_flight == 0
