"""The fast path: requests of one kind and size, prepared once, sent and reaped many at a time.

A ``Request`` costs some microseconds of Python: its header, its chain, its object. Here all of these are made at
the start, one slot for each request that can be in flight. Sending one means writing its sector and naming its
slot; the ring submits a batch with one copy and reaps it with one comparison. The checks are the same: the status
byte of each request, preset to an invalid status, and ids and lengths against what is in flight.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from uvirtio.drivers.blk.disk import Disk
from uvirtio.drivers.blk.request import NO_STATUS, RequestQueue, clipped
from uvirtio.errors import BadSize, ProtocolError, UsageError
from uvirtio.memory.access import words64
from uvirtio.spec import blk as spec
from uvirtio.spec.blk import SECTOR_SIZE
from uvirtio.virtqueue.slots import Chain, fixed_slots

_HEADER_WORDS = spec.HEADER_SIZE // 8

_LOOK = 256
"""Calls of ``wait`` between two checks for configuration changes and removal."""

_GLANCES = 16
"""Looks at the ring between two looks at the clock."""

_LOOKS = 500
"""Looks of ``read`` at the ring, some 30 us, before it looks at the clock."""

_TURN = 16
"""Reads that ``read`` sends and delivers at once, at most: the device works while the caller processes them."""

POLL = 50e-6
"""Seconds to poll the ring before waiting for an interrupt."""


class Burst:
    """Many requests of one kind and size, on a queue of their own. ``Blk.burst`` makes one.

    For loops that keep the device busy::

        burst.post(burst.slots, first_sectors)
        while ...:
            back = burst.wait()                  # slots whose requests are complete
            ...                                  # burst.content(slot) is a copy of its data
            burst.post(back, next_sectors)

    There are no views of the data: a view that is kept would keep the device's memory mapped.
    """

    def __init__(
        self, disk: Disk, requestq: RequestQueue, kind: spec.Request, *, sectors: int, count: int
    ) -> None:
        """Prepare the requests.

        Args:
            disk: The disk.
            requestq: An idle queue of it, used by this burst alone.
            kind: IN or OUT.
            sectors: Sectors of each request.
            count: How many requests can be in flight.

        Raises:
            BadSize: A request exceeds the device's limits.
            QueueFull: The ring has too few descriptors for ``count`` requests.
            MemlockExceeded, HugePagesLack, OperationFailed: There is no memory for the requests.
        """
        self.sectors = sectors
        """Sectors of each request."""
        self.count = count
        """Number of slots."""
        self.slots = array("H", range(count))
        """All slots, for the first ``post``."""
        self.returned = array("H")
        """The slots that the last ``take`` or ``wait`` reaped, also if it raised."""
        self._numbers = self.slots * 2
        self._waits = 0
        self._disk = disk
        self._device = disk.device
        self._queue = queue = requestq.queue
        self._kind = kind
        self._size = sectors * SECTOR_SIZE
        dma = self._device.dma
        headers, statuses, data = (
            dma.alloc(count * spec.HEADER_SIZE),
            dma.alloc(count),
            dma.alloc(count * self._size),
        )
        chains: list[Chain] = []
        for slot in range(count):
            header = headers.segments(slot * spec.HEADER_SIZE, spec.HEADER_SIZE)
            status = statuses.segments(slot, spec.STATUS_SIZE)
            runs = clipped(data.segments(slot * self._size, self._size), self._size, requestq.size_max)
            if len(runs) > requestq.pieces_max:
                raise BadSize(
                    "this is more than the device accepts in one request",
                    seen=f"{len(runs)} elements of data",
                    expected=f"at most {requestq.pieces_max}",
                    remedy="fewer sectors in a request",
                )
            chains.append((header, [*runs, *status]) if kind == spec.Request.IN else ([*header, *runs], status))
        self._slots = fixed_slots(queue.ring, chains)
        self._status = statuses.view[:count]
        self._data = [data.view[slot * self._size : (slot + 1) * self._size] for slot in range(count)]
        words = words64(headers.view, 0, _HEADER_WORDS * count)
        words[0::_HEADER_WORDS] = array("Q", [int(kind)]) * count
        self._headers, self._at = words, words[1::_HEADER_WORDS]
        self._none = bytes([NO_STATUS]) * count
        self._full = self._slots.written.tobytes()
        self._device.before_free(self._release)
        queue.ring.want_interrupts(False)

    def content(self, slot: int) -> bytes:
        """Return a copy of the data of a slot: what was read, once its request is complete."""
        return self._data[slot].tobytes()

    def contents(self, slots: Iterable[int]) -> list[bytes]:
        """Return copies of the data of several slots, in their order."""
        data = self._data
        return [data[slot].tobytes() for slot in slots]

    def fill(self, slot: int, data: bytes | bytearray | memoryview) -> None:
        """Set the data of a write, before its slot is posted.

        Args:
            slot: A slot that is not in flight.
            data: ``sectors`` whole sectors; copied.

        Raises:
            BadSize: ``data`` has another size.
            UsageError: The slot is in flight, or there is none of that number.
        """
        if len(data) != self._size:
            raise BadSize("this does not fill the slot", seen=len(data), expected=f"{self._size} bytes")
        self._slots.check([slot])
        self._data[slot][:] = data

    @property
    def in_flight(self) -> int:
        """Requests that were posted and are not complete."""
        return self._queue.ring.in_flight

    def post(self, slots: array[int], sectors: Sequence[int]) -> None:
        """Send requests. An error that is raised here means that none was sent.

        Args:
            slots: Slots that are not in flight, an ``array('H')`` such as ``take`` and ``wait`` return.
            sectors: The first sector of each.

        Raises:
            BeyondEnd: A request ends after the capacity.
            BadSize: A sector is negative.
            UsageError: A slot is in flight, or there are not as many sectors as slots.
        """
        with self._disk.session():
            self._post(slots, sectors)

    def _post(self, slots: array[int], sectors: Sequence[int], *, show: bool = True) -> None:
        count = len(slots)
        if not count:
            return
        if count != len(sectors):
            raise UsageError("each slot needs a sector", seen=len(sectors), expected=count)
        last = max(sectors) + self.sectors
        if min(sectors) < 0 or last > self._disk.known_capacity:
            self._disk.check_range(min(sectors), last - min(sectors))
        self._slots.check(slots)
        first, status, at = slots[0], self._status, self._at
        if slots == self._numbers[first : first + count]:  # consecutive, maybe with a wrap at the end
            fits = min(count, self.count - first)
            status[first : first + fits] = self._none[:fits]
            if fits == count:
                at[first : first + fits] = array("Q", sectors)
            else:
                at[first:] = array("Q", sectors[:fits])
                at[: count - fits] = array("Q", sectors[fits:])
                status[: count - fits] = self._none[fits:count]
        else:
            for slot, sector in zip(slots, sectors, strict=True):
                status[slot] = NO_STATUS
                at[slot] = sector
        if self._slots.submit(slots, show=show):
            self._queue.notify()

    def take(self) -> array[int]:
        """Reap complete requests, without waiting.

        Returns:
            Their slots, in the device's order; maybe none.

        Raises:
            BlkIoError, BlkUnsupported: The first request that failed; all that were reaped with it are in
                ``returned``, and can be posted again.
            ProtocolError: A status is invalid, or a request that succeeded is too short.
            RingCorruption: The used ring holds what cannot be.
        """
        with self._disk.session():
            return self._take()

    def _take(self) -> array[int]:
        self.returned = back = self._slots.reap()
        if back:
            self._queue.completions += len(back)
            status = bytes(self._status)
            if any(map(status.__getitem__, back)):
                self._failed(back, status)
            if self._slots.written.tobytes() != self._full:
                self._short(back)
        return back

    def wait(self, timeout: float | None = None, *, poll: float = POLL) -> array[int]:
        """Wait for complete requests, at least one.

        Args:
            timeout: Seconds to wait; the device's own where None.
            poll: Seconds to poll the ring before waiting for an interrupt.

        Returns:
            Their slots, in the device's order.

        Raises:
            UsageError: Nothing is in flight.
            DeviceTimeout: No request completed in time.
            BlkIoError, BlkUnsupported: The first request that failed; all that were reaped with it are in
                ``returned``, and can be posted again.
            ProtocolError: A status is invalid, or a request that succeeded is too short.
            RingCorruption: The used ring holds what cannot be.
        """
        device = self._device
        with self._disk.session():
            self._waits += 1
            if not self._waits % _LOOK:
                device.service()  # as the wait loop does, which does not run here
            if not self._slots.ready():
                self._check_out()
                self._await(device.seconds(timeout), poll)
            return self._take()

    def _await(self, timeout: float, poll: float) -> int:
        """Poll, then sleep, until a request is complete; how many are, at least."""
        ready, clock = self._slots.ready, time.perf_counter
        until = clock() + poll
        while clock() < until:
            for _ in range(_GLANCES):
                count = ready()
                if count:
                    return count
        self._sleep(timeout)
        return ready()

    def _sleep(self, timeout: float) -> None:
        """Wait for an interrupt until a request is complete."""
        ring, slots = self._queue.ring, self._slots
        ring.want_interrupts(True)
        try:
            self._device.wait(lambda: slots.ready() > 0, timeout=timeout, what="a request in flight")
        finally:
            if ring.broken is None:
                ring.want_interrupts(False)

    def _check_out(self) -> None:
        if not self.in_flight:
            raise UsageError("no request is in flight", expected="post() before wait()")

    def read(self, sectors: Iterable[int], *, out: int | None = None) -> Iterator[tuple[int, bytes]]:
        """Read from many sectors, with as many requests in flight as there are slots, or ``out``.

        With fewer in flight than there are slots, the next requests are in the ring before they are due, and are
        sent as soon as others are complete, even before those are checked: within a microsecond or two, so that a
        device which has nothing else to do has no time to go to sleep.

        Args:
            sectors: The first sector of each request.
            out: Requests in flight, at most; None: as many as there are slots.

        Yields:
            (sector, data) of each request, in the order of completion.

        Raises:
            UsageError: This burst writes, or ``out`` is not 1 to the number of slots.
            BeyondEnd: A request ends after the capacity.
            BadSize: A sector is negative.
            DeviceTimeout: No request completed in time.
            BlkIoError, BlkUnsupported: The first request that failed.
            ProtocolError: A status is invalid, or a request that succeeded is too short.
        """
        if self._kind != spec.Request.IN:
            raise UsageError("this burst writes", seen=self._kind.name, expected="IN")
        if out is not None and not 0 < out <= self.count:
            raise UsageError("a burst has no more requests in flight than slots", seen=out, expected=self.count)
        if out is not None and out < self.count:
            yield from self._read_ahead(iter(sectors), out)
            return
        wanted = iter(sectors)
        where = [0] * self.count
        idle, came = self.slots[:], self.slots[:0]
        try:
            while True:
                batch = list(islice(wanted, min(len(idle), _TURN)))
                for slot, sector in zip(idle, batch, strict=False):
                    where[slot] = sector
                self.post(idle[: len(batch)], batch)
                idle = idle[len(batch) :]
                if not came and self.in_flight:
                    came = self.take() if batch and idle else self.wait()
                elif not (batch or came):
                    return
                back, came = came[:_TURN], came[_TURN:]
                found = self.contents(back)  # copies, so that their slots can be sent again at once
                idle += back
                yield from zip([where[slot] for slot in back], found, strict=True)
        finally:
            self._leave()

    def _read_ahead(self, wanted: Iterator[int], most: int) -> Iterator[tuple[int, bytes]]:
        """``read`` with at most this many in flight; the other slots have been delivered, or are laid already."""
        where = [0] * self.count
        device, data = self._device, self._data
        ring, relay, notify = self._queue.ring, self._slots.relay, self._queue.notify
        idle, many, more, behind = self.slots[:], min(self.count // 2, self.count - most), True, True
        try:
            while True:
                batch: list[int] = []
                if more and len(idle) >= many:  # else some are laid; many at a time cost little more than one
                    batch = list(islice(wanted, min(len(idle), _TURN)))
                    more = len(batch) > 0
                with device.session():
                    if batch:
                        now, idle = idle[: len(batch)], idle[len(batch) :]
                        for slot, sector in zip(now, batch, strict=True):
                            where[slot] = sector
                        self._post(now, batch, show=False)
                    if behind:
                        self._show(most - ring.in_flight)
                        if not ring.in_flight:
                            return
                    self._waits += 1
                    if not self._waits % _LOOK:
                        device.service()
                    came, kick = relay(_LOOKS)  # others are sent before what has come is looked at
                    if kick:
                        notify()
                    if not came:
                        came = self._await(device.timeout, POLL)
                        self._show(came)
                    back = self._take()
                    behind = ring.in_flight < most
                found = [(where[slot], data[slot].tobytes()) for slot in back]
                idle += back
                yield from found
        finally:
            self._leave()

    def _show(self, count: int) -> None:
        """Send the requests that were laid first: as many as others are complete, or were never sent."""
        count = min(count, self._slots.laid)
        if count > 0 and self._slots.show(count):
            self._queue.notify()

    def _leave(self) -> None:
        """Leave nothing in flight, which later calls would take for their own."""
        if self._device.broken is None and (self.in_flight or self._slots.laid):
            self._show(self._slots.laid)
            self.settle(self._device.timeout)

    def settle(self, timeout: float) -> None:
        """Wait until nothing is in flight; what completes is discarded.

        Args:
            timeout: Seconds to wait.

        Raises:
            DeviceTimeout: Requests are still in flight.
            RingCorruption: The used ring holds what cannot be.
        """

        def ready() -> bool:
            self._slots.reap()
            return not self.in_flight

        if not ready():
            self._device.wait(ready, timeout=timeout, what="the requests of a burst")

    def _release(self) -> None:
        """Release the views of the device's memory, which is freed next."""
        for view in (self._status, self._at, self._headers, *self._data):
            view.release()

    # --- errors ---------------------------------------------------------------------------------------------

    def _failed(self, back: array[int], status: bytes) -> None:
        slot = next(slot for slot in back if status[slot])
        raise self._disk.refusal(self._kind, self._at[slot], self.sectors, status[slot])

    def _short(self, back: array[int]) -> None:
        """Fewer bytes were written than a read has: the rest is undefined, because it was not cleared."""
        full = self._size + spec.STATUS_SIZE if self._kind == spec.Request.IN else spec.STATUS_SIZE
        for slot in back:
            if self._slots.written[slot] != full:
                raise ProtocolError(
                    f"{self._device.address} answers OK, but wrote less than the whole answer",
                    seen=f"{self._slots.written[slot]} bytes",
                    expected=f"{full} bytes",
                    remedy="use Blk.read(), which clears its buffers and does without the length",
                )
