"""Requests of a block device (5.2.6): many on their way at once, each checked when it comes back."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterable, Iterator, Sequence

from uvirtio.device import Device, Observer, QueueSpec, unobserved
from uvirtio.drivers.blk import config as configuration
from uvirtio.drivers.blk import ranges as cutting
from uvirtio.drivers.blk.burst import Burst
from uvirtio.drivers.blk.config import Lifetime, Limits
from uvirtio.drivers.blk.disk import Disk
from uvirtio.drivers.blk.queues import RequestQueues
from uvirtio.drivers.blk.ranges import Range
from uvirtio.drivers.blk.request import Request
from uvirtio.errors import BadSize, NotSupported, UsageError
from uvirtio.spec import blk as spec
from uvirtio.spec import features as f
from uvirtio.spec.blk import SECTOR_SIZE

_LIFETIME = struct.Struct("<HHH")

DEPTH = 32
"""Requests of one queue that are out at once, at most."""
REQUEST_SIZE = 32 << 10
"""Bytes of data of one request, at most; longer reads and writes are several requests."""

_LIMITED = {
    spec.Request.DISCARD: (f.Blk.DISCARD, "discard"),
    spec.Request.WRITE_ZEROES: (f.Blk.WRITE_ZEROES, "write_zeroes"),
    spec.Request.SECURE_ERASE: (f.Blk.SECURE_ERASE, "secure_erase"),
}


class Blk(Disk):
    """A disk. A sector is 512 bytes, whatever the device's block is; so many lie between 0 and ``capacity``.

    ``read`` and ``write`` wait; ``submit_read`` and its like give a :class:`Request`, whose ``result()`` waits.
    ``depth`` requests of a queue can be out; a submission beyond that waits for one to come back first.
    ``queues``: so many, if the device has them (MQ). ``request_size``: bytes of data of one request, at most.
    Nothing is written, discarded or zeroed without ``allow_write``.

    What is out stays the device's until it comes back: an interrupted wait loses no request and reuses no
    buffer, and ``close()`` waits for what is out, for as long as the device may take for one answer.

    Raises, beside what every driver does, ConfigError for limits that not even one sector fits.
    """

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
        if depth < 1 or queues < 1:
            raise UsageError(
                "a disk needs a queue, and a queue a depth", seen=(queues, depth), expected="1 or more of each"
            )
        if request_size < SECTOR_SIZE or request_size % SECTOR_SIZE:
            raise BadSize(
                "a request carries whole sectors", seen=request_size, expected=f"a multiple of {SECTOR_SIZE}"
            )
        self._wanted_depth, self._wanted_size, self._wanted_queues = depth, request_size, queues
        self._bursts: list[Burst] = []
        super().__init__(device, allow_write=allow_write, observe=observe)

    # --- bring-up -------------------------------------------------------------------------------------------

    def _queues(self) -> Sequence[QueueSpec]:
        self._read_config()
        count = min(self._wanted_queues, max(1, self._config.num_queues))
        return [QueueSpec(number, f"requestq{number + 1}", required=number == 0) for number in range(count)]

    def _before_ok(self) -> None:
        self._requests = RequestQueues(self, depth=self._wanted_depth, request_size=self._wanted_size)

    def _give_back(self, working: bool) -> None:
        """What was submitted is carried out, if the device still does anything."""
        try:
            if working and self.in_flight:
                self.wait()
            for burst in self._bursts if working else ():
                burst.settle(self.device.timeout)
        finally:
            for burst in self._bursts:
                burst.release()

    def _about(self) -> str:
        access = "read-only" if self.read_only or not self.allow_write else "writable"
        return f"{self._config.capacity} sectors, {access}, {self.in_flight} requests out"

    @property
    def queue_count(self) -> int:
        """Queues of this driver, those of bursts among them."""
        return self._requests.count

    @property
    def depth(self) -> int:
        """Requests of one queue that can be out at once."""
        return self._requests.depth

    @property
    def request_size(self) -> int:
        """Bytes of data of one request, at most, under what device and memory allow (5.2.4: size_max, seg_max)."""
        return self._requests.request_size

    @property
    def in_flight(self) -> int:
        """Requests that were submitted and did not come back yet."""
        return self._requests.in_flight

    # --- one by one -----------------------------------------------------------------------------------------

    def read(self, sector: int, sectors: int, *, timeout: float | None = None) -> bytes:
        """Read whole sectors.

        Args:
            sector: The first of them.
            sectors: How many, of 512 bytes.
            timeout: Seconds that the device has for each request of ``request_size`` bytes; None: its own.

        Returns:
            Their contents.

        Raises:
            BeyondEnd: They are not all of this disk; nothing was sent.
            BlkIoError: The device could not read them.
            BlkUnsupported: The device does not know the request.
            DeviceTimeout: A request was not answered in time.
        """
        with self.device.session():
            self.check_range(sector, sectors)
            out: list[Request] = []
            for first, count in self._pieces(sector, sectors):
                room = count * SECTOR_SIZE
                out.append(self._send(out, spec.Request.IN, first, count, room=room, timeout=timeout))
            return b"".join(self._requests.results(out, timeout))

    def write(self, sector: int, data: bytes | bytearray | memoryview, *, timeout: float | None = None) -> None:
        """Write whole sectors. They are safe from a power cut after ``flush()`` (see ``write_cache``).

        After an error any of the sectors may hold old data, new data or neither.

        Args:
            sector: The first of them.
            data: Their contents, a multiple of 512 bytes.
            timeout: Seconds that the device has for each request of ``request_size`` bytes; None: its own.

        Raises:
            WriteRefused: Writing was not allowed, or the disk is read-only; nothing was sent.
            BeyondEnd: They are not all of this disk; nothing was sent.
            BadSize: These are no whole sectors; nothing was sent.
            BlkIoError: The device could not write them.
            BlkUnsupported: The device does not know the request.
            DeviceTimeout: A request was not answered in time.
        """
        with self.device.session():
            view, sectors = self._writable(sector, data)
            out: list[Request] = []
            for first, count in self._pieces(sector, sectors):
                piece = view[(first - sector) * SECTOR_SIZE :][: count * SECTOR_SIZE]
                out.append(self._send(out, spec.Request.OUT, first, count, data=piece, timeout=timeout))
            self._requests.results(out, timeout)

    def flush(self, *, timeout: float | None = None) -> bool:
        """Have the device make durable all writes that are done; False where it has no cache (no FLUSH).

        ``timeout``: seconds for the one request; None: the device's own.
        """
        with self.device.session():
            if not self.device.has(f.Blk.FLUSH):
                return False
            self.submit_flush().result(timeout)
            return True

    def discard(self, sector: int, sectors: int, *, timeout: float | None = None) -> None:
        """Tell the device that nobody needs these sectors. What they hold afterwards is not defined (5.2.6.1).

        ``timeout``: seconds that the device has for each request of ``max_discard_sectors``; None: its own.
        Raises NotSupported, WriteRefused or BeyondEnd before anything is sent; BlkIoError, BlkUnsupported.
        """
        self.discard_ranges([(sector, sectors)], timeout=timeout)

    def discard_ranges(self, ranges: Sequence[Range], *, timeout: float | None = None) -> None:
        """:meth:`discard` of several ranges, as many in a request as the device takes."""
        self._over_ranges(spec.Request.DISCARD, ranges, 0, timeout)  # 5.2.6.1: no unmap bit here

    def write_zeroes(
        self, sector: int, sectors: int, *, unmap: bool = False, timeout: float | None = None
    ) -> None:
        """Make these sectors read as zeroes, without sending zeroes.

        ``unmap``: the device may give the room back to the host, where it can. Raises as :meth:`discard`.
        """
        flags = spec.SEGMENT_F_UNMAP if unmap else 0
        self._over_ranges(spec.Request.WRITE_ZEROES, [(sector, sectors)], flags, timeout)

    def secure_erase(self, sector: int, sectors: int, *, timeout: float | None = None) -> None:
        """Erase these sectors for good. Raises as :meth:`discard`."""
        self._over_ranges(spec.Request.SECURE_ERASE, [(sector, sectors)], 0, timeout)

    def identify(self, *, timeout: float | None = None) -> str:
        """The device's own name, up to 20 characters; empty if it has none. Raises BlkUnsupported."""
        with self.device.session():
            out = self._requests.submit(spec.Request.GET_ID, 0, 0, room=spec.ID_SIZE, timeout=timeout)
            told = out.result(timeout)
        return told.partition(b"\0")[0].decode("ascii", "backslashreplace")

    def lifetime(self, *, timeout: float | None = None) -> Lifetime:
        """How worn the medium is. Raises NotSupported where the device does not tell (LIFETIME)."""
        self._need(f.Blk.LIFETIME, "tell its lifetime")
        with self.device.session():
            out = self._requests.submit(spec.Request.GET_LIFETIME, 0, 0, room=spec.LIFETIME_SIZE, timeout=timeout)
            return Lifetime(*_LIFETIME.unpack(out.result(timeout)))

    def set_write_cache(self, on: bool, *, timeout: float | None = None) -> None:
        """Turn the device's write cache on or off (CONFIG_WCE). Raises NotSupported where it has no switch.

        What is in the cache is not on the medium because the cache was turned off (5.2.6.1): it is flushed.
        """
        self._need(f.Blk.CONFIG_WCE, "switch its write cache")
        with self.device.session():
            self.device.write_config(configuration.FIELDS["writeback"], int(on))
            self._read_config()
            if not on:
                self.flush(timeout=timeout)

    # --- many at a time -------------------------------------------------------------------------------------

    def submit_read(self, sector: int, sectors: int, *, queue: int | None = None, kick: bool = True) -> Request:
        """Send a read of at most ``request_size`` bytes. ``kick`` False: with the next submission, or wait.

        ``queue``: the number of the queue; None: where there is room. Raises BadSize, BeyondEnd; DeviceTimeout
        where all of ``depth`` is out and nothing comes back.
        """
        with self.device.session():
            self.check_range(sector, sectors)
            room = self._one_request(sectors)
            return self._requests.submit(spec.Request.IN, sector, sectors, room=room, queue=queue, kick=kick)

    def submit_write(
        self,
        sector: int,
        data: bytes | bytearray | memoryview,
        *,
        queue: int | None = None,
        kick: bool = True,
    ) -> Request:
        """Send a write of at most ``request_size`` bytes; ``data`` is copied. Raises as :meth:`submit_read`."""
        with self.device.session():
            view, sectors = self._writable(sector, data)
            self._one_request(sectors)
            return self._requests.submit(spec.Request.OUT, sector, sectors, data=view, queue=queue, kick=kick)

    def submit_flush(self, *, queue: int | None = None, kick: bool = True) -> Request:
        """Send a flush. It covers the writes that are done by now, not those on their way.

        Raises NotSupported without FLUSH.
        """
        self._need(f.Blk.FLUSH, "flush")
        with self.device.session():
            return self._requests.submit(
                spec.Request.FLUSH, 0, 0, queue=queue, kick=kick
            )  # 5.2.6.1: sector 0, no data

    def kick(self) -> None:
        """Make the device see what was submitted without a kick."""
        with self.device.session():
            self._requests.kick()

    def poll(self) -> int:
        """Take what came back, without waiting; how many requests that were."""
        with self.device.session():
            self.device.service()
            return self._requests.collect()

    def wait(self, requests: Iterable[Request] | None = None, *, timeout: float | None = None) -> None:
        """Wait until these (None: all that are out) came back, well or not; errors are in the requests.

        ``timeout`` in seconds, for all of them; the device's own where None. After a miss the device counts as
        broken, as after any answer that it owes. Raises DeviceTimeout, ProtocolError.
        """
        self._requests.wait(requests, timeout=timeout)

    # --- bursts ---------------------------------------------------------------------------------------------

    def burst(
        self, sectors: int, *, depth: int | None = None, write: bool = False, queue: int | None = None
    ) -> Burst:
        """Take a queue for requests of ``sectors`` sectors each, ``depth`` of them, that are sent many at a time.

        Reads, or with ``write`` writes. The queue (the last one, where None) serves nothing else until this driver
        is closed; where it was the only one, the other calls raise UsageError. Raises UsageError while something
        is out on it, WriteRefused, BadSize, QueueFull where the ring has no room for ``depth`` of them.
        """
        with self.device.session():
            if write:
                self._require_write("write to")
            if sectors < 1:
                raise BadSize("a request carries whole sectors", seen=sectors, expected="1 or more")
            requestq = self._requests.idle(queue)
            kind = spec.Request.OUT if write else spec.Request.IN
            count = requestq.depth if depth is None else depth
            made = Burst(self, requestq, kind, sectors=sectors, count=count)
            self._bursts.append(made)
            self._requests.remove(requestq)
            return made

    # --- what is asked for ----------------------------------------------------------------------------------

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
        """One of several requests. The first is shown to the device at once, so that it begins.

        The others are shown together, when all slots are out or the results are waited for: a kick costs more than
        a request.
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
                remedy="read() and write() make several of it; or give Blk a larger request_size",
            )
        return size

    def _over_ranges(self, kind: spec.Request, ranges: Sequence[Range], flags: int, timeout: float | None) -> None:
        bit, name = _LIMITED[kind]
        self._need(bit, name.replace("_", " "))
        with self.device.session():
            self._require_write(f"{name.replace('_', ' ')} on")
            for sector, sectors in ranges:
                self.check_range(sector, sectors)
            limits = getattr(self.config, name)
            assert isinstance(limits, Limits)
            if not limits.max_sectors or not limits.max_segments:
                raise NotSupported(
                    f"{self.device.address} offers {f.Blk(bit).name} and takes none",
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
                # 5.2.6: the sector of these requests means nothing; the ranges are in the data.
                out.append(self._send(out, kind, 0, total, data=data, timeout=timeout))
            self._requests.results(out, timeout)
