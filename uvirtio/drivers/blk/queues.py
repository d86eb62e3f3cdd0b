"""The request queues of a disk: submitting requests, waiting for them and reaping them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress

from uvirtio.device import Queue
from uvirtio.drivers.blk.disk import Disk
from uvirtio.drivers.blk.request import NO_STATUS, Request, RequestQueue, Slot, requested, write_header
from uvirtio.drivers.requests import LOOK, BaseRequestQueues
from uvirtio.errors import ProtocolError, QueueFull, UvirtioError
from uvirtio.spec import blk as spec
from uvirtio.spec.blk import Status
from uvirtio.virtqueue import Completion

_OK = int(Status.OK)  # two plain integers are compared in half of the time
_SUCCESS = Status.OK
_IN = spec.Request.IN
_END = sys.maxsize


TOGETHER = 8
"""Requests without a kick that are made available together: a device that polls works on them meanwhile."""


LOOKS = 64
"""Looks of a call that is alone at the ring, some microseconds, before it looks at the clock."""


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
        self._session = disk.session()
        limits = {"size_max": config.size_max, "seg_max": config.seg_max}
        made = [
            RequestQueue(queue, device.dma, depth=min(depth, queue.ring.size), size=request_size, **limits)
            for _, queue in sorted(device.queues.items())
        ]
        super().__init__(disk, made)
        self._choose()
        self._request = requested(self, spec.Request.IN, 0, 0, self._first.index)
        """Of the calls that are alone: when such a one begins, no slot has it."""

    # --- submitting -----------------------------------------------------------------------------------------

    def submit(
        self,
        kind: spec.Request,
        sector: int,
        sectors: int,
        data: bytes | memoryview = b"",
        room: int = 0,
        queue: int | None = None,
        kick: bool = True,
        timeout: float | None = None,
        *,
        quiet: bool = False,
    ) -> Request:
        """Submit one request; waits for a slot if all are in flight.

        Args:
            kind: The request's type (5.2.6).
            sector: Its first sector.
            sectors: How many sectors it covers, for errors.
            data: What the device reads; copied.
            room: Bytes of data that the device writes.
            queue: The index of the queue; None: any with a free slot.
            kick: Notify the device; else the next kick or wait does, at the latest.
            timeout: Seconds to wait for a slot; the device's own where None.
            quiet: Interrupts may stay suppressed: the caller looks at the ring.

        Raises:
            DeviceTimeout: All slots are in flight, and no request completed.
            UsageError: There is no such queue, or bursts have taken all queues.
            ProtocolError: A request that completed meanwhile has an invalid status.
            Closed: The driver was closed.
        """
        free, slot = self._free, None
        try:
            if len(free) == 1 and queue is None and free[0].free:  # the session: the driver is not closed
                requestq = free[0]
                slot = requestq.free.pop()
            else:
                slot = self._slot(queue, timeout)
                requestq = slot.requestq
            if self._silent and kick and not quiet:
                self._listen()
            live = requestq.queue
            slot.prepare(kind, sector, data, room)
            slot.request = request = requested(self, kind, sector, sectors, live.index)
            requestq.lay()
            try:
                live.add(*slot.entry)  # of the queue: a record watches it
            except QueueFull:
                self._listen()
                self._add(requestq, *slot.entry, timeout)
        except BaseException:
            self._unsent(slot)
            raise
        if kick:
            live.kick()
        else:
            requestq.quiet += 1
            if requestq.quiet >= TOGETHER:
                self._show(requestq)
        return request

    def read_later(self, sector: int, sectors: int, room: int) -> Request | None:
        """Submit a read without a kick, where that needs no wait: in a step, for callers of many.

        It is put into the ring together with others, and shown to the device with every ``TOGETHER``-th of them.
        It needs the session's lock alone: only at those can it fail.

        Args:
            sector: Its first sector.
            sectors: How many sectors it covers, at least one.
            room: The same in bytes, at most ``request_size``.

        Returns:
            The request; None where it takes more than a step, and ``submit`` has to do it.

        Raises:
            DeviceBroken, OperationFailed: As of ``Queue.show_added``; it is submitted all the same.
        """
        requestq = self._quick
        if requestq is None or not requestq.free:
            return None
        free, laid = requestq.free, requestq.laid
        slot = free[-1]
        if slot.room != room:
            slot.shape(0, room)
        # What ``Slot.prepare`` and ``requested`` do, without their calls.
        write_header(requestq.control_view, slot.header_at, _IN, 0, sector, NO_STATUS)
        slot.clear(requestq.data_view, slot.data_at)
        slot.request = request = Request()
        request._waits, request._data, request.queue = self, b"", requestq.index
        request.type, request.sector, request.sectors = _IN, sector, sectors
        request.done, request.error = False, None
        # In one statement, and without a call between: a signal comes before both or after both.
        laid[_END:], free[-1:] = (slot.entry,), ()
        requestq.quiet = quiet = requestq.quiet + 1
        if quiet >= TOGETHER:
            try:
                self._show(requestq)
            except BaseException:
                with self._session:  # which notes what this means for the device
                    raise
        return request

    def _show(self, requestq: RequestQueue) -> None:
        if self._silent:
            self._listen()
        requestq.quiet = 0
        requestq.lay()
        requestq.queue.show_added()

    def _lay(self, requestq: RequestQueue) -> None:
        requestq.lay()

    def remove(self, requestq: RequestQueue) -> None:
        """Stop using a queue for single requests, because a burst takes it."""
        super().remove(requestq)
        self._choose()

    def _choose(self) -> None:
        """Note whether there is one queue alone that takes requests."""
        self._only = self._free[0] if len(self._free) == 1 else None
        """The queue that takes requests, where there is but one."""
        self._quick = self._only if self._only is not None and self._only.roomy else None
        """The same, where its ring always has a place for a request that has a slot."""

    def call(
        self,
        kind: spec.Request,
        sector: int,
        sectors: int,
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
        requestq = self._only
        if requestq is None or len(requestq.free) != requestq.depth:
            return self._beside(kind, sector, sectors, data, room, timeout)
        # Nothing else is in flight: fewer steps, and one ``Request`` for all such calls.
        live, free, request = requestq.queue, requestq.free, self._request
        request.type, request.sector, request.sectors = kind, sector, sectors
        looking = self.looks and not self._skipping
        try:
            if looking and not self._silent:
                self._silence()
            slot = None
            try:
                slot = free.pop()
                if room:  # what ``Slot.prepare`` does, without its call
                    if slot.room != room:
                        slot.shape(0, room)
                    write_header(requestq.control_view, slot.header_at, kind, 0, sector, NO_STATUS)
                    slot.clear(requestq.data_view, slot.data_at)
                else:
                    slot.prepare(kind, sector, data, 0)
                slot.request = request
                live.send(*slot.entry)  # of the queue: a record watches it
            except BaseException:
                self._unsent(slot)
                raise
            came = live.take(LOOKS) if looking else None
            if came is not None:  # what ``_look`` does, without its call
                self._skip = 0
                self._waits = waits = self._waits + 1
                if not waits % LOOK:
                    self._device.service()
            else:  # only now the clock is asked
                came = self._await_one(live, timeout)
            if requestq.control_view[slot.status_at] == _OK and came[1] == slot.full:
                # What ``_finish`` does for a request that succeeded.
                found = slot.copy(requestq.data_view, slot.data_at)[0] if room else b""
                self._disk.counts[_SUCCESS] += 1
                # Last, and without a call between, as there.
                slot.request = None
                free += (slot,)
                return found
            request.error, request._data = None, b""  # of an earlier call that was interrupted
            invalid = self._finish(requestq, [Completion(*came)])
            if invalid is not None:
                raise invalid
        except BaseException:
            if requestq.out:
                with suppress(UvirtioError):
                    live.kick()  # it may not have been shown yet
            self._leave_wait()
            raise
        if request.error is not None:
            raise request.error
        found, request._data = request._data, b""
        return found

    def _await_one(self, live: Queue, timeout: float | None) -> tuple[Slot, int]:
        """Wait for the only chain in flight, which did not come back at once; see ``Queue.take``."""
        live.note()
        came: tuple[Slot, int] | None = None

        def ready() -> bool:
            nonlocal came
            came = live.take()
            return came is not None

        self._look_then_wait(ready, timeout, "1 request")
        assert came is not None
        return came

    def _beside(
        self,
        kind: spec.Request,
        sector: int,
        sectors: int,
        data: bytes | memoryview,
        room: int,
        timeout: float | None,
    ) -> bytes:
        """Do what ``call`` does beside other requests, or with several queues."""
        free = self._free
        alone = len(free) > 1 and not self.in_flight

        def ready() -> bool:
            self._gather()
            return request.done

        try:
            if alone and not self._silent and not self._skipping:
                self._silence()
            request = self.submit(kind, sector, sectors, data, room, None, True, timeout, quiet=alone)
            if len(free) > 1:
                self.kick()  # what was submitted to other queues without a kick
            self._look_then_wait(ready, timeout, "1 request")
        except BaseException:
            self._leave_wait()
            raise
        return request.result()

    def _slot(self, index: int | None, timeout: float | None) -> Slot:
        """A free slot; waits for one if all are in flight."""
        requestqs = self._numbered(index)
        for requestq in requestqs:
            if requestq.free:
                return requestq.free.pop()
        self._listen()
        self.kick()

        def ready() -> bool:
            self._gather()
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

    def _finish(self, requestq: RequestQueue, done: Sequence[Completion]) -> UvirtioError | None:
        control, data, free, disk = requestq.control_view, requestq.data_view, requestq.free, self._disk
        invalid: UvirtioError | None = None
        good = 0
        for slot, written in done:
            request: Request = slot.request
            answer = control[slot.status_at]
            if answer == _OK:
                good += 1
                # The status byte decides. Used lengths of old devices are wrong (5.2.6.3): they are only counted.
                if written != slot.full:
                    disk.findings["the used length is not what was to be written"] += 1
                if slot.room:
                    (request._data,) = slot.copy(data, slot.data_at)
            else:
                request.error = error = disk.refusal(request.type, request.sector, request.sectors, answer)
                if isinstance(error, ProtocolError):
                    invalid = invalid or error
            # Last, and without a call between: what was not finished is found by it (``recover``).
            slot.request, request.done = None, True
            free.append(slot)
        disk.counts[Status.OK] += good
        return invalid
