"""The block driver (5.2): calls that wait for their requests, and requests that are submitted many at a time."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from operator import index

from uvirtio.device import Device, Observer, QueueSpec, unobserved
from uvirtio.drivers.blk import config as configuration
from uvirtio.drivers.blk import ranges as cutting
from uvirtio.drivers.blk.burst import Burst
from uvirtio.drivers.blk.config import Lifetime, Limits
from uvirtio.drivers.blk.disk import Disk
from uvirtio.drivers.blk.queues import RequestQueues
from uvirtio.drivers.blk.ranges import Range
from uvirtio.drivers.blk.request import Request
from uvirtio.drivers.requests import burst_depth, options
from uvirtio.errors import BadSize, NotSupported
from uvirtio.spec import blk as spec
from uvirtio.spec import features as f
from uvirtio.spec.blk import SECTOR_SIZE

_LIFETIME = struct.Struct("<HHH")

DEPTH = 32
"""Requests of one queue that can be in flight, by default."""
REQUEST_SIZE = 32 << 10
"""Bytes of data of one request, by default; longer reads and writes are several requests."""

_IN, _OUT = spec.Request.IN, spec.Request.OUT

_LIMITED = {
    spec.Request.DISCARD: (f.Blk.DISCARD, "discard"),
    spec.Request.WRITE_ZEROES: (f.Blk.WRITE_ZEROES, "write_zeroes"),
    spec.Request.SECURE_ERASE: (f.Blk.SECURE_ERASE, "secure_erase"),
}


class Blk(Disk):
    """Driver of the block device (5.2): reads, writes and flushes a disk.

    A sector is 512 bytes, whatever the device's block size is; sectors are numbered from 0 to ``capacity`` - 1.
    ``read`` and ``write`` wait; ``submit_read`` and the other ``submit_`` calls return a ``Request``, whose
    ``result()`` waits.

    Buffers in flight belong to the device until their request is complete: an interrupted wait loses no request
    and reuses no buffer, and ``close()`` waits for all requests in flight, up to the device's timeout.
    """

    _requests: RequestQueues

    def __init__(
        self,
        device: Device,
        *,
        allow_write: bool = False,
        depth: int = DEPTH,
        request_size: int = REQUEST_SIZE,
        queues: int = 1,
        observe: Observer = unobserved,
    ) -> None:
        """Start the device; ``Driver.__init__`` lists how that can fail.

        Args:
            device: An open block device.
            allow_write: Allow calls that write, discard, zero or erase.
            depth: Requests of one queue that can be in flight; another one waits until one is complete.
            request_size: Bytes of data of one request, at most; a multiple of 512.
            queues: Request queues to use, if the device has as many (MQ).
            observe: Called after each step of the initialisation.

        Raises:
            NotVirtio: The device is of another type.
            UsageError: ``depth`` or ``queues`` is below 1.
            BadSize: ``request_size`` is no multiple of 512, or not from 512 bytes to 64 MiB.
            ConfigError: The device's limits do not allow a request of one sector.
        """
        wanted = options(depth, request_size, queues, SECTOR_SIZE)
        self._wanted_depth, self._wanted_size, self._wanted_queues = wanted
        self._bursts: list[Burst] = []
        super().__init__(device, allow_write=allow_write, observe=observe)

    # --- bring-up -------------------------------------------------------------------------------------------

    def _queues(self) -> Sequence[QueueSpec]:
        self._read_config()
        count = min(self._wanted_queues, max(1, self._config.num_queues))
        return [QueueSpec(number, f"requestq{number + 1}", required=number == 0) for number in range(count)]

    def _before_ok(self) -> None:
        self._requests = RequestQueues(self, depth=self._wanted_depth, request_size=self._wanted_size)

    def _about(self) -> str:
        access = "read-only" if self.read_only or not self.allow_write else "writable"
        return f"{self._config.capacity} sectors, {access}, {self.in_flight} requests out"

    # --- one by one -----------------------------------------------------------------------------------------

    def read(self, sector: int, sectors: int, *, timeout: float | None = None) -> bytes:
        """Read sectors.

        Args:
            sector: The first one.
            sectors: How many.
            timeout: Seconds in all; None: the device's own for each request of ``request_size`` bytes.

        Raises:
            BadSize: A number is negative; nothing was sent.
            BeyondEnd: The sectors end after the capacity; nothing was sent.
            BlkIoError, BlkUnsupported: A request failed.
            DeviceTimeout: A request did not complete in time.
            ProtocolError: A status is invalid.
        """
        sector, sectors = index(sector), index(sectors)  # no NumPy integer, whose sums wrap
        requests, session, room = self._requests, self._session, sectors * SECTOR_SIZE
        if timeout is None and session.made_here[0]:
            with session.lock:  # what ``with session`` does, without its calls, for what most reads are
                if (
                    0 <= sector <= self._config.capacity - sectors
                    and 0 < room <= requests.request_size
                    and self._counters.config_changes == self._config_seen
                    and session.works()
                ):
                    try:
                        return requests.call(_IN, sector, sectors, b"", room)
                    except BaseException as error:
                        session.left_by(error)
                        raise
        with self.session(timeout):
            if sector < 0 or sectors < 0 or sector + sectors > self.known_capacity:
                self.check_range(sector, sectors)
            if 0 < room <= requests.request_size:
                return requests.call(_IN, sector, sectors, b"", room, timeout)
            out: list[Request] = []
            for first, count in self._pieces(sector, sectors):
                room = count * SECTOR_SIZE
                out.append(self._send(out, spec.Request.IN, first, count, room=room, timeout=timeout))
            return b"".join(requests.results(out, timeout))

    def write(self, sector: int, data: bytes | bytearray | memoryview, *, timeout: float | None = None) -> None:
        """Write whole sectors. They survive a power failure after ``flush()`` (see ``write_cache``).

        After a failed request, any of the sectors may hold old data, new data or neither.

        Args:
            sector: The first one.
            data: Their contents; a multiple of 512 bytes.
            timeout: Seconds in all; None: the device's own for each request of ``request_size`` bytes.

        Raises:
            WriteRefused: Writes are not allowed, or the device is read-only; nothing was sent.
            BadSize: ``data`` is not whole sectors, or ``sector`` is negative; nothing was sent.
            BeyondEnd: The sectors end after the capacity; nothing was sent.
            BlkIoError, BlkUnsupported: A request failed.
            DeviceTimeout: A request did not complete in time.
            ProtocolError: A status is invalid.
        """
        with self._session if timeout is None else self.session(timeout):
            sector = index(sector)
            view, sectors = self._writable(sector, data)
            if 0 < len(view) <= self._requests.request_size:
                self._requests.call(_OUT, sector, sectors, view, 0, timeout)
                return
            out: list[Request] = []
            for first, count in self._pieces(sector, sectors):
                piece = view[(first - sector) * SECTOR_SIZE :][: count * SECTOR_SIZE]
                out.append(self._send(out, spec.Request.OUT, first, count, data=piece, timeout=timeout))
            self._requests.results(out, timeout)

    def flush(self, *, timeout: float | None = None) -> bool:
        """Flush the device's write cache: all completed writes are durable then.

        Args:
            timeout: Seconds to wait; the device's own where None.

        Returns:
            False where the device has no cache (no FLUSH), and nothing was sent.

        Raises:
            BlkIoError, BlkUnsupported: The request failed.
            DeviceTimeout: It did not complete in time.
            ProtocolError: Its status is invalid.
        """
        with self.session(timeout):
            if not self.device.has(f.Blk.FLUSH):
                return False
            self.submit_flush().result(timeout)
            return True

    def discard(self, sector: int, sectors: int, *, timeout: float | None = None) -> None:
        """Discard sectors that are no longer needed; their contents are undefined then (5.2.6.1).

        Args:
            sector: The first one.
            sectors: How many.
            timeout: Seconds in all; None: the device's own for each request.

        Raises:
            NotSupported: The device has no DISCARD; nothing was sent.
            WriteRefused: Writes are not allowed, or the device is read-only; nothing was sent.
            BadSize, BeyondEnd: The sectors are out of range; nothing was sent.
            BlkIoError, BlkUnsupported: A request failed.
            DeviceTimeout: A request did not complete in time.
            ProtocolError: A status is invalid.
        """
        self.discard_ranges([(sector, sectors)], timeout=timeout)

    def discard_ranges(self, ranges: Sequence[Range], *, timeout: float | None = None) -> None:
        """Discard several ranges, as many in one request as the device accepts.

        Args:
            ranges: (first sector, number of sectors) of each.
            timeout: Seconds in all; None: the device's own for each request.

        Raises:
            NotSupported: The device has no DISCARD; nothing was sent.
            WriteRefused: Writes are not allowed, or the device is read-only; nothing was sent.
            BadSize, BeyondEnd: A range is out of range; nothing was sent.
            BlkIoError, BlkUnsupported: A request failed.
            DeviceTimeout: A request did not complete in time.
            ProtocolError: A status is invalid.
        """
        self._over_ranges(spec.Request.DISCARD, ranges, 0, timeout)  # 5.2.6.1: no unmap bit here

    def write_zeroes(
        self, sector: int, sectors: int, *, unmap: bool = False, timeout: float | None = None
    ) -> None:
        """Make sectors read as zeros, without sending zeros (WRITE_ZEROES).

        Args:
            sector: The first one.
            sectors: How many.
            unmap: Allow the device to deallocate them, where it can.
            timeout: Seconds in all; None: the device's own for each request.

        Raises:
            NotSupported: The device has no WRITE_ZEROES; nothing was sent.
            WriteRefused: Writes are not allowed, or the device is read-only; nothing was sent.
            BadSize, BeyondEnd: The sectors are out of range; nothing was sent.
            BlkIoError, BlkUnsupported: A request failed.
            DeviceTimeout: A request did not complete in time.
            ProtocolError: A status is invalid.
        """
        flags = spec.SEGMENT_F_UNMAP if unmap else 0
        self._over_ranges(spec.Request.WRITE_ZEROES, [(sector, sectors)], flags, timeout)

    def secure_erase(self, sector: int, sectors: int, *, timeout: float | None = None) -> None:
        """Erase sectors so that their contents cannot be recovered (SECURE_ERASE).

        Args:
            sector: The first one.
            sectors: How many.
            timeout: Seconds in all; None: the device's own for each request.

        Raises:
            NotSupported: The device has no SECURE_ERASE; nothing was sent.
            WriteRefused: Writes are not allowed, or the device is read-only; nothing was sent.
            BadSize, BeyondEnd: The sectors are out of range; nothing was sent.
            BlkIoError, BlkUnsupported: A request failed.
            DeviceTimeout: A request did not complete in time.
            ProtocolError: A status is invalid.
        """
        self._over_ranges(spec.Request.SECURE_ERASE, [(sector, sectors)], 0, timeout)

    def identify(self, *, timeout: float | None = None) -> str:
        """Read the device's id string (GET_ID), its serial number in most devices.

        Args:
            timeout: Seconds to wait; the device's own where None.

        Returns:
            Up to 20 characters; empty if it has none.

        Raises:
            BlkIoError, BlkUnsupported: The request failed.
            DeviceTimeout: It did not complete in time.
            ProtocolError: Its status is invalid.
        """
        with self.session(timeout):
            out = self._requests.submit(spec.Request.GET_ID, 0, 0, room=spec.ID_SIZE, timeout=timeout)
            told = out.result(timeout)
        return told.partition(b"\0")[0].decode("ascii", "backslashreplace")

    def lifetime(self, *, timeout: float | None = None) -> Lifetime:
        """Read the wear of the medium (GET_LIFETIME).

        Args:
            timeout: Seconds to wait; the device's own where None.

        Raises:
            NotSupported: The device has no LIFETIME.
            BlkIoError, BlkUnsupported: The request failed.
            DeviceTimeout: It did not complete in time.
            ProtocolError: Its status is invalid.
        """
        self._need(f.Blk.LIFETIME, "tell its lifetime")
        with self.session(timeout):
            out = self._requests.submit(spec.Request.GET_LIFETIME, 0, 0, room=spec.LIFETIME_SIZE, timeout=timeout)
            return Lifetime(*_LIFETIME.unpack(out.result(timeout)))

    def set_write_cache(self, on: bool, *, timeout: float | None = None) -> None:
        """Turn the device's write cache on or off (CONFIG_WCE).

        Turning it off does not write its contents to the medium (5.2.6.1), so it is flushed then.

        Args:
            on: The new state.
            timeout: Seconds to wait for the flush; the device's own where None.

        Raises:
            NotSupported: The device has no CONFIG_WCE.
            BlkIoError, BlkUnsupported: The flush failed.
            DeviceTimeout: It did not complete in time.
            ProtocolError: Its status is invalid.
        """
        self._need(f.Blk.CONFIG_WCE, "switch its write cache")
        with self.session(timeout):
            self.device.write_config(configuration.FIELDS["writeback"], int(bool(on)))
            self._read_config()
            if not on:
                self.flush(timeout=timeout)

    # --- many at a time -------------------------------------------------------------------------------------

    def submit_read(self, sector: int, sectors: int, *, queue: int | None = None, kick: bool = True) -> Request:
        """Submit a read of at most ``request_size`` bytes. Waits for a slot if ``depth`` requests are in flight.

        Args:
            sector: The first sector.
            sectors: How many.
            queue: The index of the queue; None: any with a free slot.
            kick: Notify the device; else the next kick or wait does, at the latest.

        Returns:
            The request; its ``result()`` waits for the data.

        Raises:
            BadSize: The sectors do not fit one request, or a number is negative.
            BeyondEnd: The sectors end after the capacity.
            UsageError: There is no such queue, or bursts have taken all queues.
            DeviceTimeout: No request completed in time to free a slot.
            ProtocolError: A request that completed meanwhile has an invalid status.
        """
        sector, sectors = index(sector), index(sectors)
        requests, session, room = self._requests, self._session, sectors * SECTOR_SIZE
        if not kick and queue is None and session.made_here[0]:
            with session.lock:
                if (
                    0 <= sector <= self._config.capacity - sectors
                    and 0 < room <= requests.request_size
                    and self._counters.config_changes == self._config_seen
                    and session.works()
                ):
                    request = requests.read_later(sector, sectors, room)
                    if request is not None:
                        return request
        with session:
            if sector < 0 or not 0 < room <= requests.request_size or sector + sectors > self.known_capacity:
                self.check_range(sector, sectors)
                self._one_request(sectors)
            return requests.submit(_IN, sector, sectors, b"", room, queue, kick)

    def submit_write(
        self,
        sector: int,
        data: bytes | bytearray | memoryview,
        *,
        queue: int | None = None,
        kick: bool = True,
    ) -> Request:
        """Submit a write of at most ``request_size`` bytes. Waits for a slot if ``depth`` requests are in flight.

        Args:
            sector: The first sector.
            data: Whole sectors; copied.
            queue: The index of the queue; None: any with a free slot.
            kick: Notify the device; else the next kick or wait does, at the latest.

        Returns:
            The request; its ``result()`` waits until it is complete.

        Raises:
            WriteRefused: Writes are not allowed, or the device is read-only.
            BadSize: ``data`` is not whole sectors or does not fit one request, or ``sector`` is negative.
            BeyondEnd: The sectors end after the capacity.
            UsageError: There is no such queue, or bursts have taken all queues.
            DeviceTimeout: No request completed in time to free a slot.
            ProtocolError: A request that completed meanwhile has an invalid status.
        """
        with self.session():
            sector = index(sector)
            view, sectors = self._writable(sector, data)
            self._one_request(sectors)
            return self._requests.submit(spec.Request.OUT, sector, sectors, data=view, queue=queue, kick=kick)

    def submit_flush(self, *, queue: int | None = None, kick: bool = True) -> Request:
        """Submit a flush. It covers the writes that are complete now, not those in flight.

        Args:
            queue: The index of the queue; None: any with a free slot.
            kick: Notify the device; else the next kick or wait does, at the latest.

        Returns:
            The request; its ``result()`` waits until it is complete.

        Raises:
            NotSupported: The device has no FLUSH.
            UsageError: There is no such queue, or bursts have taken all queues.
            DeviceTimeout: No request completed in time to free a slot.
            ProtocolError: A request that completed meanwhile has an invalid status.
        """
        self._need(f.Blk.FLUSH, "flush")
        with self.session():
            return self._requests.submit(
                spec.Request.FLUSH, 0, 0, queue=queue, kick=kick
            )  # 5.2.6.1: sector 0, no data

    def poll(self) -> int:
        """Reap complete requests, without waiting.

        Returns:
            How many there were.

        Raises:
            ProtocolError: A status is invalid.
        """
        with self.session():
            self.device.service()
            return self._requests.collect()

    def wait(self, requests: Iterable[Request] | None = None, *, timeout: float | None = None) -> None:
        """Wait until requests are complete, successful or not; errors are in the requests.

        Args:
            requests: What to wait for; None: all that are in flight.
            timeout: Seconds, for all of them; the device's own where None.

        Raises:
            DeviceTimeout: They did not complete in time; the device counts as broken then.
            ProtocolError: A status is invalid.
        """
        self._requests.wait(requests, timeout=timeout)

    # --- bursts ---------------------------------------------------------------------------------------------

    def burst(
        self, sectors: int, *, depth: int | None = None, write: bool = False, queue: int | None = None
    ) -> Burst:
        """Reserve a queue for requests of one kind and size that are sent many at a time.

        The queue serves nothing else until this driver is closed; if it was the only one, the other calls fail
        with UsageError.

        Args:
            sectors: Sectors of each request.
            depth: Requests that can be in flight; the driver's own ``depth`` where None.
            write: Writes, else reads.
            queue: The index of the queue; None: the last one.

        Raises:
            WriteRefused: Writes are not allowed, or the device is read-only.
            BadSize: ``sectors`` is below 1, or more than the device accepts in one request.
            UsageError: Requests are in flight on the queue, there is no such queue, or none is left; or ``depth``
                is below 1.
            QueueFull: The ring has too few descriptors for ``depth`` requests.
            MemlockExceeded, HugePagesLack, OperationFailed: There is no memory for the requests.
        """
        with self.session():
            if write:
                self._require_write("write to")
            sectors = index(sectors)
            if sectors < 1:
                raise BadSize("a request carries whole sectors", seen=sectors, expected="1 or more")
            requestq = self._requests.idle(queue)
            kind = spec.Request.OUT if write else spec.Request.IN
            count = requestq.depth if depth is None else burst_depth(requestq.queue, depth)
            made = Burst(self, requestq, kind, sectors=sectors, count=count)
            self._bursts.append(made)
            self._requests.remove(requestq)
            return made

    # --- requests of a call ---------------------------------------------------------------------------------

    def _send(
        self,
        before: Sequence[Request],
        kind: spec.Request,
        sector: int,
        sectors: int,
        *,
        data: bytes | memoryview = b"",
        room: int = 0,
        timeout: float | None,
    ) -> Request:
        """Submit one of several requests. Only the first is kicked at once, so that the device starts.

        The others are kicked together, when all slots are in flight or the results are waited for: a kick costs
        more than a request.
        """
        kick = not before
        return self._requests.submit(kind, sector, sectors, data=data, room=room, kick=kick, timeout=timeout)

    def _pieces(self, sector: int, sectors: int) -> Iterator[Range]:
        step = self.request_size // SECTOR_SIZE
        return ((at, min(step, sector + sectors - at)) for at in range(sector, sector + sectors, step))

    def _one_request(self, sectors: int) -> int:
        size = sectors * SECTOR_SIZE
        if not 0 < size <= self.request_size:
            raise BadSize(
                "this does not fit one request",
                seen=size,
                expected=f"1..{self.request_size} bytes",
                remedy="read() and write() split it; or give Blk a larger request_size",
            )
        return size

    def _over_ranges(self, kind: spec.Request, ranges: Sequence[Range], flags: int, timeout: float | None) -> None:
        bit, name = _LIMITED[kind]
        self._need(bit, name.replace("_", " "))
        with self.session(timeout):
            self._require_write(f"{name.replace('_', ' ')} on")
            ranges = [(index(sector), index(sectors)) for sector, sectors in ranges]
            for sector, sectors in ranges:
                self.check_range(sector, sectors)
            limits = getattr(self.config, name)
            assert isinstance(limits, Limits)
            if not limits.max_sectors or not limits.max_segments:
                raise NotSupported(
                    f"{self.device.address} offers {f.Blk(bit).name} with limits of 0",
                    seen=f"{limits.max_segments} segments of {limits.max_sectors} sectors",
                    expected="1 or more of each",
                    remedy="the device is at fault (5.2.4)",
                )
            most = min(limits.max_segments, self.request_size // spec.SEGMENT_SIZE)
            pieces = deque(cutting.segments(ranges, limits))
            out: list[Request] = []
            while pieces:
                these = [pieces.popleft() for _ in range(min(most, len(pieces)))]
                data = cutting.packed(these, flags)
                total = sum(count for _, count in these)
                # 5.2.6: the sector of these requests is not used; the ranges are in the data.
                out.append(self._send(out, kind, 0, total, data=data, timeout=timeout))
            self._requests.results(out, timeout)
