"""The request queues of a disk: submitting requests, waiting for them and reaping them."""

from __future__ import annotations

from collections.abc import Sequence

from uvirtio.drivers.blk.disk import Disk
from uvirtio.drivers.blk.request import Request, RequestQueue, Slot
from uvirtio.drivers.requests import BaseRequestQueues
from uvirtio.errors import ProtocolError, UvirtioError
from uvirtio.spec import blk as spec
from uvirtio.spec.blk import Status
from uvirtio.virtqueue import Completion, Virtqueue

_OK = Status.OK

POLL = 200e-6
"""Seconds for which a call of one request polls the ring, at most, before it waits for an interrupt."""

_SKIPPED = 16
"""Calls that do not poll after several polls in vain, at most: one after the first, then twice as many each."""

_GLANCES = 16
"""Looks at the ring between two looks at the clock."""

_LOOK = 256
"""Calls between two checks for configuration changes and removal."""


class RequestQueues(BaseRequestQueues[RequestQueue, Request]):
    """All request queues of a started disk."""

    def __init__(self, disk: Disk, *, depth: int, request_size: int) -> None:
        """Allocate the slots of all queues.

        Args:
            disk: The disk. Its device has its queues, and DRIVER_OK is not set yet.
            depth: Requests of one queue that may be in flight.
            request_size: Bytes of data of one request, at most, where the device's limits are not lower.

        Raises:
            ConfigError: Not even one sector fits the device's limits.
            MemlockExceeded, HugePagesLack, OperationFailed: There is no memory for the requests.
        """
        self._disk, device, config = disk, disk.device, disk.config
        made = []
        for _, queue in sorted(device.queues.items()):
            requestq = RequestQueue(queue, device.dma, min(depth, queue.ring.size), request_size)
            requestq.stock(config.size_max, config.seg_max)
            made.append(requestq)
        super().__init__(disk, made)
        self._calls = 0
        self._skip = self._skipping = 0  # calls that do not poll: of these, how many are left
        self._zeroes = b""  # as many as the last read had bytes

    # --- submitting -----------------------------------------------------------------------------------------

    def submit(
        self,
        kind: spec.Request,
        sector: int,
        sectors: int,
        *,
        data: bytes | memoryview = b"",
        room: int = 0,
        queue: int | None = None,
        kick: bool = True,
        timeout: float | None = None,
    ) -> Request:
        """Submit one request; waits for a slot if all are in flight.

        Args:
            kind: The request's type (5.2.6).
            sector: Its first sector.
            sectors: How many sectors it covers, for errors.
            data: What the device reads; copied.
            room: Bytes of data that the device writes.
            queue: The index of the queue; None: any with a free slot.
            kick: Notify the device; else the next kick or wait does.
            timeout: Seconds to wait for a slot; the device's own where None.

        Raises:
            DeviceTimeout: All slots are in flight, and no request completed.
            UsageError: There is no such queue, or bursts have taken all queues.
            ProtocolError: A request that completed meanwhile has an invalid status.
            Closed: The driver was closed.
        """
        slot = self._slot(queue, timeout)
        requestq = slot.requestq
        slot.prepare(kind, sector)
        slot.room = room
        if data:
            slot.fill(data)
        elif room:
            # Cleared: what the device does not write must not look like data, nor be that of an earlier request.
            if room != len(self._zeroes):
                self._zeroes = bytes(room)
            slot.fill(self._zeroes)
        readable, writable = slot.chain(len(data), room)
        slot.request = request = Request(self, kind, sector, sectors, requestq.queue.index)
        try:
            self._add(requestq, readable, writable, slot, timeout)
        except BaseException:
            requestq.free.append(slot)
            raise
        if kick:
            requestq.queue.kick()
        return request

    def call(
        self,
        kind: spec.Request,
        sector: int,
        sectors: int,
        *,
        data: bytes | memoryview = b"",
        room: int = 0,
        timeout: float | None = None,
    ) -> bytes:
        """Submit one request, and wait for it; the arguments are those of ``submit``.

        Args:
            kind: The request's type (5.2.6).
            sector: Its first sector.
            sectors: How many sectors it covers, for errors.
            data: What the device reads; copied.
            room: Bytes of data that the device writes.
            timeout: Seconds to wait; the device's own where None.

        Returns:
            The data of a read; empty for other requests.

        Raises:
            BlkIoError, BlkUnsupported: The request failed.
            DeviceTimeout: It did not complete in time; the device counts as broken then.
            UsageError: Bursts have taken all queues.
            ProtocolError: A status is invalid.
            Closed: The driver was closed.
        """
        request = self.submit(kind, sector, sectors, data=data, room=room, timeout=timeout)
        if len(self._free) > 1:
            self.kick()  # what was submitted to other queues without a kick

        def ready() -> bool:
            self.collect()
            return request.done

        device = self._device
        self._calls += 1
        if not self._calls % _LOOK:
            device.service()  # as the wait loop does, which does not run while polling is enough
        seconds = device.seconds(timeout)
        if not (self._poll(device.queues[request.queue].ring, min(POLL, seconds)) and ready()):
            device.wait(ready, timeout=seconds, what="1 request")
        return request.result()

    def _poll(self, ring: Virtqueue, seconds: float) -> bool:
        """Look at a ring for a while, where that has been of use; whether something was used."""
        if self._skipping:
            self._skipping -= 1
            return False
        clock = self._device.clock.monotonic
        end = clock() + seconds
        while True:  # it looks at least once, however late it is
            for _ in range(_GLANCES):
                if ring.pending():
                    self._skip = 0
                    return True
            if clock() >= end:
                break
        self._skip = self._skipping = min(_SKIPPED, 2 * self._skip or 1)
        return False

    def _slot(self, index: int | None, timeout: float | None) -> Slot:
        """A free slot; waits for one if all are in flight."""
        requestqs = self._numbered(index)
        for requestq in requestqs:
            if requestq.free:
                return requestq.free.pop()
        self.kick()

        def ready() -> bool:
            self.collect()
            return any(requestq.free for requestq in requestqs)

        self._await(ready, timeout, "one of the requests that are out")
        return next(requestq for requestq in requestqs if requestq.free).free.pop()

    # --- completion -----------------------------------------------------------------------------------------

    def results(self, requests: Sequence[Request], timeout: float | None) -> list[bytes]:
        """Wait for requests and return their data.

        Args:
            requests: What to wait for.
            timeout: Seconds for each; the device's own where None.

        Raises:
            BlkIoError, BlkUnsupported: The first request that failed; raised when all are complete.
            DeviceTimeout: One did not complete in time; the device counts as broken then.
            ProtocolError: A status is invalid.
        """
        for request in requests:
            if not request.done:
                self.wait([request], timeout=timeout)
        return [request.result() for request in requests]

    def _finish(self, requestq: RequestQueue, completion: Completion) -> UvirtioError | None:
        slot: Slot = completion.cookie
        request, slot.request = slot.request, None
        assert request is not None
        answer = slot.answer()
        room = slot.room
        senseless = None
        if answer == _OK:
            self._disk.counts[_OK] += 1
            # The status byte decides. Used lengths of old devices are wrong (5.2.6.3), so they are only counted.
            if completion.written != room + spec.STATUS_SIZE:
                self._disk.findings["the used length is not what was to be written"] += 1
            if room:
                request._data = slot.content(room)
        else:
            request.error = self._disk.refusal(request.type, request.sector, request.sectors, answer)
            if isinstance(request.error, ProtocolError):
                senseless = request.error
        request.done = True
        requestq.free.append(slot)
        return senseless
