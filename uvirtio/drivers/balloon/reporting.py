"""Free page reporting (5.5.6.7): the host may take the memory behind free pages, until we touch them."""

from __future__ import annotations

from uvirtio.device import Device, Queue
from uvirtio.drivers.balloon.arena import Arena, Range, Use
from uvirtio.spec import features as f


class Reporting:
    """Sends the free ranges of an arena, as many at a time as the queue takes."""

    def __init__(self, device: Device, queue: Queue) -> None:
        """Report on ``queue``, the reporting_vq of ``device``."""
        self._device = device
        self._queue = queue
        self._poison = device.has(f.Balloon.PAGE_POISON)
        self.reported = 0
        """Bytes that the device has acknowledged."""

    def serve(self) -> None:
        """Reap the ranges that the device acknowledged; never waits.

        Raises:
            RingCorruption: The used ring holds what cannot be.
        """
        for done in self._queue.reap():
            one: Range = done.cookie
            one.use = Use.REPORTED
            self.reported += one.size

    def report(self, arena: Arena) -> int:
        """Report the free ranges of an arena, and wait until the device has acknowledged them (5.5.6.7.1).

        Args:
            arena: The memory.

        Returns:
            The bytes that were acknowledged.

        Raises:
            DeviceTimeout: The device did not acknowledge a queueful in time.
            RingCorruption: The used ring holds what cannot be.
        """
        self.serve()
        before = self.reported
        waiting = [one for one in arena.ranges if one.use is Use.FREE]
        while waiting:
            if self.reported != before:
                self._device.check_time("the other ranges of the arena")
            posted = 0
            while waiting and (not posted or self._queue.ring.free >= len(waiting[-1].runs)):
                one = waiting[-1]
                if self._poison:
                    arena.fill_free(one)  # 5.5.6.7.1: the host may rely on the pattern
                self._queue.add((), one.runs, one)
                one.use = Use.OUT
                waiting.pop()
                posted += 1
            self._queue.kick()
            seconds = self._device.seconds(None)
            self._device.wait(self._all_back, timeout=seconds, what="the acknowledgement of reported pages")
        return self.reported - before

    def _all_back(self) -> bool:
        self.serve()
        return self._queue.ring.in_flight == 0
