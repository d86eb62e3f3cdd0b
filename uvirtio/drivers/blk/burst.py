"""The fast way: requests of one kind and size, laid down once, sent and taken back many at a time.

A :class:`Request` costs some microseconds of Python: its header, its chain, its object. Here all that is made at
the start, one slot for each request that can be out. To send one is to write its sector and to name its slot; the
ring posts a batch with one copy and takes it back with one comparison. What is believed is the same: the status
byte of each request, preset to what is no status, and ids and lengths against what is out.
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
"""Waits between two looks at what else the device has to say: its configuration, its removal."""

_TURN = 16
"""Reads that a turn of ``read`` sends and delivers at most: the device works while somebody looks at them."""

POLL = 50e-6
"""Seconds to look at the ring before waiting for an interrupt."""


class Burst:
    """``count`` slots, each a request of ``sectors`` sectors, on a queue of its own. See ``Blk.burst``.

    Made for loops that keep the device busy::

        burst.post(burst.slots, first_sectors)
        while ...:
            back = burst.wait()                  # slots whose requests are done
            ...                                  # burst.content(slot) is a copy of its data
            burst.post(back, next_sectors)

    Views of the data are not given out: one that somebody keeps would keep the device's memory mapped.
    """

    def __init__(
        self, disk: Disk, requestq: RequestQueue, kind: spec.Request, *, sectors: int, count: int
    ) -> None:
        self.sectors = sectors
        self.count = count
        self.slots = array("H", range(count))
        """All slots: what a first ``post`` takes."""
        self.returned = array("H")
        """What the last ``take`` or ``wait`` found, also if it raised."""
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
                    "this is more than the device takes in one request",
                    seen=f"{len(runs)} elements of data",
                    expected=f"at most {requestq.pieces_max}",
                    remedy="fewer sectors in a request",
                )
            chains.append((header, [*runs, *status]) if kind == spec.Request.IN else ([*header, *runs], status))
        self._slots = fixed_slots(queue.ring, chains)
        # From here on nothing can fail, so that nobody else has to release these.
        self._status = statuses.view[:count]
        self._data = [data.view[slot * self._size : (slot + 1) * self._size] for slot in range(count)]
        words = words64(headers.view, 0, _HEADER_WORDS * count)
        words[0::_HEADER_WORDS] = array("Q", [int(kind)]) * count
        self._headers, self._at = words, words[1::_HEADER_WORDS]
        self._none = bytes([NO_STATUS]) * count
        self._full = self._slots.written.tobytes()
        queue.ring.want_interrupts(False)

    def content(self, slot: int) -> bytes:
        """A copy of the data of a slot: what was read, once it came back."""
        return self._data[slot].tobytes()

    def contents(self, slots: Iterable[int]) -> list[bytes]:
        """The same for several slots, in their order."""
        data = self._data
        return [data[slot].tobytes() for slot in slots]

    def fill(self, slot: int, data: bytes | bytearray | memoryview) -> None:
        """Put in what a write will write, ``sectors`` sectors of it, before its slot is posted."""
        if len(data) != self._size:
            raise BadSize("this does not fill the slot", seen=len(data), expected=f"{self._size} bytes")
        self._slots.check([slot])
        self._data[slot][:] = data

    @property
    def in_flight(self) -> int:
        return self._queue.ring.in_flight

    def post(self, slots: array[int], sectors: Sequence[int]) -> None:
        """Send these slots, for requests that begin at these sectors.

        ``slots`` is an ``array('H')``: what ``take`` and ``wait`` return. Raises BeyondEnd or UsageError before
        anything is sent.
        """
        with self._device.session():
            self._post(slots, sectors)

    def _post(self, slots: array[int], sectors: Sequence[int]) -> None:
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
        if slots == self._numbers[first : first + count]:  # they follow each other, maybe over the end
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
        if self._slots.submit(slots):
            self._queue.notify()

    def take(self) -> array[int]:
        """The slots that came back by now, in the device's order; maybe none.

        Raises BlkIoError or BlkUnsupported for the first that failed; all that came back with it are in
        ``returned`` then, and can be posted again. Raises ProtocolError, RingCorruption.
        """
        with self._device.session():
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
        """The slots that came back, at least one; looks for ``poll`` seconds before it waits for an interrupt.

        ``timeout`` in seconds, the device's own where None. Raises as :meth:`take`, DeviceTimeout, and UsageError
        where nothing is out.
        """
        device = self._device
        with device.session():
            self._waits += 1
            if not self._waits % _LOOK:
                device.service()  # a queue that is never empty never gets to the wait loop, which does this
            back = self._take()
            if back:
                return back
            self._check_out()
            until = time.perf_counter() + poll
            while time.perf_counter() < until:
                for _ in range(8):
                    back = self._take()
                    if back:
                        return back
            return self._sleep(device.timeout if timeout is None else timeout)

    def _sleep(self, timeout: float) -> array[int]:
        found: list[array[int]] = []

        def ready() -> bool:
            back = self._take()
            if back:
                found.append(back)
            return bool(found)

        ring = self._queue.ring
        ring.want_interrupts(True)
        try:
            self._device.wait(ready, timeout=timeout, what="a request in flight")
        finally:
            if ring.broken is None:
                ring.want_interrupts(False)
        return found[0]

    def _check_out(self) -> None:
        if not self.in_flight:
            raise UsageError("nothing is out that could come back", expected="post() before wait()")

    def read(self, sectors: Iterable[int]) -> Iterator[tuple[int, bytes]]:
        """Read from all these sectors, as many at once as there are slots: (sector, data), as they come back.

        Raises as :meth:`wait`.
        """
        if self._kind != spec.Request.IN:
            raise UsageError("this burst writes", seen=self._kind.name, expected="IN")
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
                found = self.contents(back)  # copies: their slots can go again while these are looked at
                idle += back
                yield from zip([where[slot] for slot in back], found, strict=True)
        finally:
            if self._device.broken is None and self.in_flight:
                self.settle(self._device.timeout)  # nobody is left who would tell these from later ones

    def settle(self, timeout: float) -> None:
        """Wait until nothing is out. Raises DeviceTimeout."""

        def ready() -> bool:
            self._slots.reap()
            return not self.in_flight

        if not ready():
            self._device.wait(ready, timeout=timeout, what="the requests of a burst")

    def release(self) -> None:
        """Let go of the views; the blocks end with the device's memory."""
        for view in (self._status, self._at, self._headers, *self._data):
            view.release()

    # --- what went wrong ------------------------------------------------------------------------------------

    def _failed(self, back: array[int], status: bytes) -> None:
        slot = next(slot for slot in back if status[slot])
        raise self._disk.refusal(self._kind, self._at[slot], self.sectors, status[slot])

    def _short(self, back: array[int]) -> None:
        """Less was written than a read holds: nobody knows what the rest is, for it was not cleared."""
        full = self._size + spec.STATUS_SIZE if self._kind == spec.Request.IN else spec.STATUS_SIZE
        for slot in back:
            if self._slots.written[slot] != full:
                raise ProtocolError(
                    f"{self._device.address} says OK, and that it wrote less than that",
                    seen=f"{self._slots.written[slot]} bytes",
                    expected=f"{full} bytes",
                    remedy="use Blk.read(), which clears its buffers and does without the length",
                )
