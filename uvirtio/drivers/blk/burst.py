"""Bursts of a block device (5.2.6): requests of one kind and size, many at a time (``drivers.burst``)."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence

from uvirtio.drivers.blk.disk import Disk
from uvirtio.drivers.blk.request import NO_STATUS, RequestQueue, clipped
from uvirtio.drivers.burst import POLL, BaseBurst
from uvirtio.drivers.requests import REQUEST_SIZE_MAX, carried
from uvirtio.errors import BadSize, ProtocolError
from uvirtio.memory.access import words64
from uvirtio.spec import blk as spec
from uvirtio.spec.blk import SECTOR_SIZE
from uvirtio.virtqueue.slots import Chain

_HEADER_WORDS = spec.HEADER_SIZE // 8
_TABLE = 256
"""Bytes of a table of ``bytes.translate``: a status for each slot that a queue can have."""
_OK = bytes([spec.Status.OK])


class Burst(BaseBurst):
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
        size, reads = sectors * SECTOR_SIZE, kind == spec.Request.IN
        dma = disk.device.dma
        most = min(REQUEST_SIZE_MAX, carried(dma, requestq.pieces_max, requestq.size_max))
        if size > most:
            raise _too_long(f"{size} bytes", f"at most {most} bytes")
        super().__init__(disk, requestq.queue, size=size, length=sectors, count=count, reads=reads)
        self.sectors = sectors
        """Sectors of each request."""
        self._disk, self._kind = disk, kind
        headers, data = dma.alloc(count * spec.HEADER_SIZE), dma.alloc(count * size)
        statuses = dma.alloc(max(count, _TABLE))
        chains: list[Chain] = []
        for slot in range(count):
            header = headers.segments(slot * spec.HEADER_SIZE, spec.HEADER_SIZE)
            status = statuses.segments(slot, spec.STATUS_SIZE)
            runs = clipped(data.segments(slot * size, size), size, requestq.size_max)
            if len(runs) > requestq.pieces_max:
                raise _too_long(f"{len(runs)} elements of data", f"at most {requestq.pieces_max}")
            chains.append((header, [*runs, *status]) if reads else ([*header, *runs], status))
        self._lay(chains)
        assert count <= _TABLE  # as many slots as a queue has entries
        self._answers = statuses.view[:count]
        self._table = statuses.view[:_TABLE]
        self._divide(data.view)
        words = words64(headers.view, 0, _HEADER_WORDS * count)
        words[0::_HEADER_WORDS] = array("Q", [int(kind)]) * count
        self._headers, self._at = words, words[1::_HEADER_WORDS]
        self._none = bytes([NO_STATUS]) * count
        self._full = self._slots.written.tobytes()
        self._device.before_free(self.release)

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
        self._send(slots, sectors)

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
        return self._come()

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
        return self._come(timeout, poll)

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
        return self._read(sectors, out)

    def release(self) -> None:
        """Release the views of the device's memory, which the driver frees."""
        super().release()
        self._headers.release()
        self._table.release()

    # --- addresses and answers ------------------------------------------------------------------------------

    def _words(self, starts: Sequence[int]) -> array[int]:
        disk, length = self._disk, self._length
        try:
            words = starts if type(starts) is array and starts.typecode == "Q" else array("Q", starts)
        except OverflowError:  # no sector of any device
            disk.check_range(min(starts), length)
            disk.check_range(max(starts), length)
            raise
        last = max(words)
        if last + length > disk.known_capacity:
            disk.check_range(last, length)
        return words

    def _check(self, back: array[int]) -> None:
        status = self._table.tobytes()
        # The low byte of each slot, replaced by its status: as many calls for 32 slots as for one.
        if back.tobytes()[::2].translate(status).strip(_OK):
            slot = next(slot for slot in back if status[slot])
            raise self._disk.refusal(self._kind, self._at[slot], self.sectors, status[slot])
        if self._slots.written.tobytes() != self._full:
            self._short(back)

    def _short(self, back: array[int]) -> None:
        """Fewer bytes were written than a read has: the rest is undefined, because it was not cleared."""
        full = self._size + spec.STATUS_SIZE if self._reads else spec.STATUS_SIZE
        for slot in back:
            if self._slots.written[slot] != full:
                raise ProtocolError(
                    f"{self._device.address} answers OK, but wrote less than the whole answer",
                    seen=f"{self._slots.written[slot]} bytes",
                    expected=f"{full} bytes",
                    remedy="use Blk.read(), which clears its buffers and does without the length",
                )


def _too_long(seen: str, expected: str) -> BadSize:
    return BadSize(
        "this is more than the device accepts in one request",
        seen=seen,
        expected=expected,
        remedy="fewer sectors in a request",
    )
