"""Bursts of a SCSI disk (5.6.6.1): reads or writes of one size to one unit, many at a time (``drivers.burst``)."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence

from uvirtio.drivers.burst import POLL, BaseBurst
from uvirtio.drivers.requests import REQUEST_SIZE_MAX, carried, first
from uvirtio.drivers.scsi import commands as c
from uvirtio.drivers.scsi.lun import Lun
from uvirtio.drivers.scsi.queues import RequestQueues
from uvirtio.drivers.scsi.request import NO_ANSWER, RequestQueue, answer_in, header
from uvirtio.drivers.scsi.units import Units
from uvirtio.errors import BadSize
from uvirtio.memory.access import words32, words64
from uvirtio.spec import scsi as spec
from uvirtio.virtqueue.slots import Chain

_BLOCK_AT = spec.REQUEST_SIZE + 2
"""Where the address is in the request: in the CDBs of READ and WRITE, of 10 bytes (4) and of 16 (8)."""
_JUDGED = 4
"""Where residual, qualifier, status and response are in the answer: one word, 0 where all went well."""


class Burst(BaseBurst):
    """Many reads or writes of one size, to one unit, on a queue of their own. ``Scsi.burst`` makes one.

    For loops that keep the device busy::

        burst.post(burst.slots, first_blocks)
        while ...:
            back = burst.wait()                  # slots whose requests are complete
            ...                                  # burst.content(slot) is a copy of its data
            burst.post(back, next_blocks)

    There are no views of the data: a view that is kept would keep the device's memory mapped.
    """

    def __init__(
        self,
        scsi: Units,
        requests: RequestQueues,
        requestq: RequestQueue,
        lun: Lun,
        *,
        blocks: int,
        count: int,
        write: bool,
    ) -> None:
        """Prepare the requests.

        Args:
            scsi: The driver.
            requests: Its queues.
            requestq: An idle one of them, used by this burst alone.
            lun: The unit.
            blocks: Blocks of each request.
            count: How many requests can be in flight.
            write: Whether they write.

        Raises:
            BadSize: A request exceeds the device's limits.
            QueueFull: The ring has too few descriptors for ``count`` requests.
            ScsiCheck, ScsiStatus, ScsiTransport, ScsiAnswer: The unit does not say how large it is.
            MemlockExceeded, HugePagesLack, OperationFailed: There is no memory for the requests.
        """
        capacity = scsi.known_capacity(lun) or scsi.capacity(lun)
        size, dma = blocks * capacity.block_size, scsi.device.dma
        most = min(REQUEST_SIZE_MAX, carried(dma, requestq.pieces_max, REQUEST_SIZE_MAX))
        if size > most:
            raise _too_long(f"{size} bytes", f"at most {most} bytes")
        super().__init__(scsi, requestq.queue, size=size, length=blocks, count=count, reads=not write)
        self.lun = lun
        """The unit."""
        self.blocks = blocks
        """Blocks of each request."""
        self._scsi, self._requests, self._shape = scsi, requests, requestq.shape
        self._capacity = capacity
        long = not c.fits_10(capacity.blocks - 1, blocks)
        start = 1 << 32 if long else 0  # any address that wants this form of the command
        self._command = (
            c.write(start, bytes(size), capacity.block_size)
            if write
            else c.read(start, blocks, capacity.block_size)
        )
        shape = self._shape
        control, data = dma.alloc(count * shape.stride), dma.alloc(count * size)
        chains: list[Chain] = []
        for slot in range(count):
            at = slot * shape.stride
            head = control.segments(at + shape.request_at, shape.request_size)
            answer = control.segments(at + shape.answer_at, shape.answer_size)
            runs = first(data.segments(slot * size, size), size)
            if len(runs) > requestq.pieces_max:
                raise _too_long(f"{len(runs)} elements of data", f"at most {requestq.pieces_max}")
            chains.append(([*head, *runs], answer) if write else (head, [*answer, *runs]))
        self._lay(chains)
        self._control = control.view[: count * shape.stride]
        cdb_size = shape.request_size - spec.REQUEST_SIZE
        for slot in range(count):
            at = slot * shape.stride + shape.request_at
            text = header(lun, requests.tag(), self._command.cdb, cdb_size)
            self._control[at : at + shape.request_size] = text
        self._divide(data.view)
        step = shape.stride // 8
        self._longs = words64(self._control, 0, step * count)
        self._answers = self._longs[(shape.answer_at + _JUDGED) // 8 :: step]
        self._none = array("Q", [int.from_bytes(NO_ANSWER[_JUDGED:], "little")]) * count
        self._code = "Q" if long else "I"
        self._ints = words32(self._control, 0, 2 * step * count)
        where = shape.request_at + _BLOCK_AT
        self._at = self._longs[where // 8 :: step] if long else self._ints[where // 4 :: 2 * step]
        self._device.before_free(self.release)

    def post(self, slots: array[int], blocks: Sequence[int]) -> None:
        """Send requests. An error that is raised here means that none was sent.

        Args:
            slots: Slots that are not in flight, an ``array('H')`` such as ``take`` and ``wait`` return.
            blocks: The first block of each.

        Raises:
            BeyondEnd: A request ends after the capacity.
            BadSize: A block is negative.
            UsageError: A slot is in flight, or there are not as many blocks as slots.
        """
        self._send(slots, blocks)

    def take(self) -> array[int]:
        """Reap complete requests, without waiting.

        Returns:
            Their slots, in the device's order; maybe none.

        Raises:
            ScsiCheck, ScsiStatus, ScsiTransport, ScsiAnswer: The first request that failed; all that were reaped
                with it are in ``returned``, and can be posted again.
            ProtocolError: An answer is invalid.
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
            ScsiCheck, ScsiStatus, ScsiTransport, ScsiAnswer: The first request that failed; all that were reaped
                with it are in ``returned``, and can be posted again.
            ProtocolError: An answer is invalid.
            RingCorruption: The used ring holds what cannot be.
        """
        return self._come(timeout, poll)

    def read(self, blocks: Iterable[int], *, out: int | None = None) -> Iterator[tuple[int, bytes]]:
        """Read from many blocks, with as many requests in flight as there are slots, or ``out``.

        With fewer in flight than there are slots, the next requests are in the ring before they are due, and are
        sent as soon as others are complete, even before those are checked.

        Args:
            blocks: The first block of each request.
            out: Requests in flight, at most; None: as many as there are slots.

        Yields:
            (block, data) of each request, in the order of completion.

        Raises:
            UsageError: This burst writes, or ``out`` is not 1 to the number of slots.
            BeyondEnd: A request ends after the capacity.
            BadSize: A block is negative.
            DeviceTimeout: No request completed in time.
            ScsiCheck, ScsiStatus, ScsiTransport, ScsiAnswer: The first request that failed. A unit attention is
                one: it is not repeated here.
            ProtocolError: An answer is invalid.
        """
        return self._read(blocks, out)

    def release(self) -> None:
        """Release the views of the device's memory, before it is freed."""
        super().release()
        for view in (self._longs, self._ints, self._control):
            view.release()

    # --- addresses and answers ------------------------------------------------------------------------------

    def _words(self, starts: Sequence[int]) -> array[int]:
        self._check_range(min(starts), max(starts) + self.blocks)
        made = array(self._code, starts)
        made.byteswap()  # CDBs are big-endian
        return made

    def _check_range(self, first: int, end: int) -> None:
        known = self._scsi.known_capacity(self.lun) or self._capacity
        if first < 0 or end > known.blocks:
            if first >= 0 and not self._requests.free:
                raise self._scsi.beyond_end(self.lun, first, end - first, known)  # no queue to ask again
            self._scsi.check_range(self.lun, first, end - first)
            known = self._scsi.known_capacity(self.lun) or known
        self._capacity = known
        if known.block_size != self._size // self.blocks or (self._code == "I" and end > 1 << 32):
            raise BadSize(
                f"logical unit {self.lun} is another one than when this burst was made",
                seen=f"{known.blocks} blocks of {known.block_size} bytes",
                expected=f"blocks of {self._size // self.blocks} bytes, no more than the commands can name",
                remedy="make another burst",
            )

    def _check(self, back: array[int]) -> None:
        answers = self._answers
        if any(map(answers.__getitem__, back)):
            for slot in back:
                if answers[slot]:
                    self._judge(slot)

    def _judge(self, slot: int) -> None:
        """Raise what an answer means that is not all zeros; a qualifier or a strange residual alone is none."""
        at = slot * self._shape.stride + self._shape.answer_at
        found = answer_in(bytes(self._control[at : at + self._shape.answer_size]))
        _, error = self._scsi.judge(self.lun, self._command, found)
        if error is not None:
            raise error


def _too_long(seen: str, expected: str) -> BadSize:
    return BadSize(
        "this is more than the device accepts in one command",
        seen=seen,
        expected=expected,
        remedy="fewer blocks in a request",
    )
