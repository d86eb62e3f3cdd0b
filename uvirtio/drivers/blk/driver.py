"""Requests of a block device (5.2.6): many on their way at once, each checked when it comes back."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import ClassVar

from uvirtio.device import Device, Observer, QueueSpec, unobserved
from uvirtio.drivers.base import Driver
from uvirtio.drivers.blk import config as configuration
from uvirtio.drivers.blk import ranges as cutting
from uvirtio.drivers.blk.burst import Burst
from uvirtio.drivers.blk.config import BlkConfig, Lifetime, Limits
from uvirtio.drivers.blk.ranges import Range
from uvirtio.drivers.blk.request import Request, RequestQueue, Slot
from uvirtio.errors import (
    BadSize,
    BeyondEnd,
    BlkIoError,
    BlkUnsupported,
    Closed,
    NotSupported,
    ProtocolError,
    QueueFull,
    UsageError,
    UvirtioError,
    WriteRefused,
)
from uvirtio.spec import blk as spec
from uvirtio.spec import features as f
from uvirtio.spec.blk import SECTOR_SIZE, Status
from uvirtio.virtqueue import Completion

_LIFETIME = struct.Struct("<HHH")
_NO_LIMIT = 0xFFFF_FFFF
_ZEROES = bytes(1 << 16)

DEPTH = 32
"""Requests of one queue that are out at once, at most."""
REQUEST_SIZE = 32 << 10
"""Bytes of data of one request, at most; longer reads and writes are several requests."""

_LIMITED = {
    spec.Request.DISCARD: (f.Blk.DISCARD, "discard"),
    spec.Request.WRITE_ZEROES: (f.Blk.WRITE_ZEROES, "write_zeroes"),
    spec.Request.SECURE_ERASE: (f.Blk.SECURE_ERASE, "secure_erase"),
}


class Blk(Driver):
    """A disk. A sector is 512 bytes, whatever the device's block is; so many lie between 0 and ``capacity``.

    ``read`` and ``write`` wait; ``submit_read`` and its like give a :class:`Request`, whose ``result()`` waits.
    ``depth`` requests of a queue can be out; a submission beyond that waits for one to come back first.
    ``queues``: so many, if the device has them (MQ). ``request_size``: bytes of data of one request, at most.
    Nothing is written, discarded or zeroed without ``allow_write``.

    What is out stays the device's until it comes back: an interrupted wait loses no request and reuses no
    buffer, and ``close()`` waits for what is out, for as long as the device may take for one answer.

    Raises, beside what every driver does, ConfigError for limits that not even one sector fits.
    """

    device_id: ClassVar[int] = spec.TYPE
    features: ClassVar[int] = f.mask(
        f.Blk.SIZE_MAX,
        f.Blk.SEG_MAX,
        f.Blk.GEOMETRY,
        f.Blk.RO,
        f.Blk.BLK_SIZE,
        f.Blk.FLUSH,
        f.Blk.TOPOLOGY,
        f.Blk.CONFIG_WCE,
        f.Blk.MQ,
        f.Blk.DISCARD,
        f.Blk.WRITE_ZEROES,
        f.Blk.LIFETIME,
        f.Blk.SECURE_ERASE,
        # Not ZONED: 5.2.5.1 wants all three zone models handled by who takes it.
    )

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
        self.allow_write = allow_write
        self.counts: dict[Status, int] = dict.fromkeys(Status, 0)
        """Requests that came back, by their status."""
        self._depth, self._request_size, self._queues_wanted = depth, request_size, queues
        self._lanes: list[RequestQueue] = []
        self._bursts: list[Burst] = []
        self._next_lane = 0
        super().__init__(device, observe=observe)
        for lane, index in zip(self._lanes, sorted(device.queues), strict=True):
            lane.queue = device.queues[index]
        self._first = self._lanes[0].queue
        self._count = len(self._lanes)
        self._depth = min(lane.depth for lane in self._lanes)
        self._request_size = min(lane.size for lane in self._lanes)

    # --- bring-up -------------------------------------------------------------------------------------------

    def _queues(self) -> Sequence[QueueSpec]:
        self._read_config()
        count = min(self._queues_wanted, max(1, self._config.num_queues))
        return [QueueSpec(number, f"requestq{number + 1}", required=number == 0) for number in range(count)]

    def _before_ok(self) -> None:
        device, config = self.device, self._config
        size_max = config.size_max or _NO_LIMIT
        self._lanes = []
        for index in sorted(device.queues):
            ring = device.queues[index].ring
            pieces = ring.size - 2  # beside header and status
            if config.seg_max is not None:
                pieces = min(pieces, max(1, config.seg_max))
            lane = RequestQueue(device.dma, min(self._depth, ring.size), self._request_size)
            lane.stock(size_max, pieces)
            self._limits = (size_max, pieces)
            self._lanes.append(lane)

    def _give_back(self, working: bool) -> None:
        """What was submitted is carried out, if the device still does anything."""
        try:
            if working and any(lane.out for lane in self._lanes):
                self.wait()
            for burst in self._bursts if working else ():
                burst.settle(self.device.timeout)
        finally:
            for burst in self._bursts:
                burst.release()

    def _about(self) -> str:
        access = "read-only" if self.read_only or not self.allow_write else "writable"
        return f"{self._config.capacity} sectors, {access}, {sum(lane.out for lane in self._lanes)} requests out"

    # --- what it is -----------------------------------------------------------------------------------------

    def _read_config(self) -> None:
        self._config_seen = self.device.config_changes
        self._config = configuration.read(self.device)

    @property
    def config(self) -> BlkConfig:
        """The configuration, read anew after each notification that it changed (5.2.6.1)."""
        with self.device.session():
            if self.device.config_changes != self._config_seen:
                self._read_config()
            return self._config

    def refresh(self) -> BlkConfig:
        """The configuration, read now."""
        with self.device.session():
            self._read_config()
            return self._config

    @property
    def capacity(self) -> int:
        """Sectors of 512 bytes. It can change while we look; a request that comes too late fails with IOERR."""
        return self.config.capacity

    @property
    def known_capacity(self) -> int:
        """The capacity as far as we were told, for who asks very often."""
        if self.device.config_changes != self._config_seen:
            self._read_config()
        return self._config.capacity

    def wait_for_change(self, *, timeout: float | None) -> bool:
        """Wait until the device says that its configuration changed; False if it does not within ``timeout``."""
        seen = self._config_seen
        return self.device.wait(
            lambda: self.device.config_changes != seen, timeout=timeout, what="a change", owed=False
        )

    def check_range(self, sector: int, sectors: int) -> None:
        """Raise BadSize or BeyondEnd unless these sectors are the device's (5.2.6.1: none past capacity)."""
        if sector < 0 or sectors < 0:
            raise BadSize("sectors are counted from 0", seen=(sector, sectors), expected="0 or more")
        if sector + sectors <= self.known_capacity:
            return
        if sector + sectors > self.refresh().capacity:  # it may have grown without a word
            raise BeyondEnd(
                f"{self.device.address} ends before sector {sector + sectors}",
                seen=f"{sectors} sectors from {sector}",
                expected=f"within {self._config.capacity} sectors",
                remedy="uvirtio blk info shows the capacity",
            )

    @property
    def read_only(self) -> bool:
        """The device takes no writes (RO)."""
        return self.device.has(f.Blk.RO)

    @property
    def write_cache(self) -> bool:
        """Whether a write that is done may still be lost with the power, until ``flush()``.

        With CONFIG_WCE the device says so; with FLUSH alone it is assumed (5.2.5.1); without, it is not so.
        """
        if self.device.has(f.Blk.CONFIG_WCE):
            return bool(self.config.writeback)
        return self.device.has(f.Blk.FLUSH)

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

    @property
    def queue_count(self) -> int:
        """Queues of this driver, those of bursts among them."""
        return self._count

    @property
    def depth(self) -> int:
        """Requests of one queue that can be out at once."""
        return self._depth

    @property
    def request_size(self) -> int:
        """Bytes of data of one request, at most, under what device and memory allow (5.2.4: size_max, seg_max)."""
        return self._request_size

    @property
    def in_flight(self) -> int:
        """Requests that were submitted and did not come back yet."""
        return sum(lane.out for lane in self._lanes)

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
            out = [
                self._submit(spec.Request.IN, first, count, room=count * SECTOR_SIZE, timeout=timeout)
                for first, count in self._pieces(sector, sectors)
            ]
            return b"".join(self._results(out, timeout))

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
            out = [
                self._submit(
                    spec.Request.OUT,
                    first,
                    count,
                    data=view[(first - sector) * SECTOR_SIZE :][: count * SECTOR_SIZE],
                    timeout=timeout,
                )
                for first, count in self._pieces(sector, sectors)
            ]
            self._results(out, timeout)

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
            out = self._submit(spec.Request.GET_ID, 0, 0, room=spec.ID_SIZE, timeout=timeout)
            told = out.result(timeout)
        return told.partition(b"\0")[0].decode("ascii", "backslashreplace")

    def lifetime(self, *, timeout: float | None = None) -> Lifetime:
        """How worn the medium is. Raises NotSupported where the device does not tell (LIFETIME)."""
        self._need(f.Blk.LIFETIME, "tell its lifetime")
        with self.device.session():
            out = self._submit(spec.Request.GET_LIFETIME, 0, 0, room=spec.LIFETIME_SIZE, timeout=timeout)
            return Lifetime(*_LIFETIME.unpack(out.result(timeout)))

    # --- many at a time -------------------------------------------------------------------------------------

    def submit_read(self, sector: int, sectors: int, *, queue: int | None = None, kick: bool = True) -> Request:
        """Send a read of at most ``request_size`` bytes. ``kick`` False: with the next submission, or wait.

        ``queue``: the number of the queue; None: where there is room. Raises BadSize, BeyondEnd; DeviceTimeout
        where all of ``depth`` is out and nothing comes back.
        """
        with self.device.session():
            self.check_range(sector, sectors)
            room = self._one_request(sectors)
            return self._submit(spec.Request.IN, sector, sectors, room=room, queue=queue, kick=kick)

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
            return self._submit(spec.Request.OUT, sector, sectors, data=view, queue=queue, kick=kick)

    def submit_flush(self, *, queue: int | None = None, kick: bool = True) -> Request:
        """Send a flush. It covers the writes that are done by now, not those on their way.

        Raises NotSupported without FLUSH.
        """
        self._need(f.Blk.FLUSH, "flush")
        with self.device.session():
            return self._submit(spec.Request.FLUSH, 0, 0, queue=queue, kick=kick)  # 5.2.6.1: sector 0, no data

    def kick(self) -> None:
        """Make the device see what was submitted without a kick."""
        with self.device.session():
            for lane in self._live_lanes():
                lane.queue.kick()

    def poll(self) -> int:
        """Take what came back, without waiting; how many requests that were."""
        with self.device.session():
            self.device.service()
            return self._collect()

    def wait(self, requests: Iterable[Request] | None = None, *, timeout: float | None = None) -> None:
        """Wait until these (None: all that are out) came back, well or not; errors are in the requests.

        ``timeout`` in seconds, for all of them; the device's own where None. After a miss the device counts as
        broken, as after any answer that it owes. Raises DeviceTimeout, ProtocolError.
        """
        with self.device.session():
            self.kick()
            left = None if requests is None else [one for one in requests if not one.done]

            def ready() -> bool:
                self._collect()
                if left is None:
                    return not self.in_flight
                while left and left[-1].done:
                    left.pop()
                return not left

            self._await(ready, timeout, "requests that are out" if left is None else f"{len(left)} requests")

    def _await(self, ready: Callable[[], bool], timeout: float | None, what: str) -> None:
        if not ready():
            limit = self.device.seconds(timeout)
            self.device.wait(ready, timeout=limit, what=what)

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
                self._allow_write("write to")
            if sectors < 1:
                raise BadSize("a request carries whole sectors", seen=sectors, expected="1 or more")
            lanes = self._live_lanes()
            lane = lanes[self._lane_number(lanes, queue)] if queue is not None else lanes[-1]
            if lane.out:
                raise UsageError(
                    f"{lane.queue.name} has requests out",
                    seen=lane.out,
                    expected="0",
                    remedy="wait() for them first",
                )
            size_max, pieces = self._limits
            made = Burst(
                self,
                lane.queue,
                spec.Request.OUT if write else spec.Request.IN,
                sectors=sectors,
                count=lane.depth if depth is None else depth,
                size_max=size_max,
                pieces=pieces,
            )
            self._bursts.append(made)
            self._lanes = [other for other in lanes if other is not lane]
            return made

    @staticmethod
    def _lane_number(lanes: Sequence[RequestQueue], queue: int) -> int:
        for number, lane in enumerate(lanes):
            if lane.queue.index == queue:
                return number
        told = ", ".join(str(lane.queue.index) for lane in lanes)
        raise UsageError("there is no such queue", seen=queue, expected=told)

    # --- the way out ----------------------------------------------------------------------------------------

    def _submit(
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
        slot = self._slot(queue, timeout)
        lane = slot.lane
        slot.prepare(kind, sector)
        slot.room = room
        readable, writable = [slot.header], [slot.status]
        if data:
            slot.fill(data)
            readable += slot.runs(len(data))
        elif room:
            # Cleared: what the device does not write must not look like an answer, or be somebody else's data.
            slot.fill(memoryview(_ZEROES)[:room] if room <= len(_ZEROES) else bytes(room))
            writable[:0] = slot.runs(room)
        slot.request = request = Request(self, kind, sector, sectors, lane.queue.index)
        try:
            self._add(lane, readable, writable, slot, timeout)
        except BaseException:
            lane.free.append(slot)
            raise
        if kick:
            lane.queue.kick()
        return request

    def _slot(self, queue: int | None, timeout: float | None) -> Slot:
        """A slot that nobody uses; waits for one where all are out."""
        lanes = self._live_lanes()
        if queue is not None:
            lanes = [lanes[self._lane_number(lanes, queue)]]
        elif len(lanes) > 1:
            self._next_lane = (self._next_lane + 1) % len(lanes)
            lanes = lanes[self._next_lane :] + lanes[: self._next_lane]
        for lane in lanes:
            if lane.free:
                return lane.free.pop()
        self.kick()

        def ready() -> bool:
            self._collect()
            return any(lane.free for lane in lanes)

        self._await(ready, timeout, "one of the requests that are out")
        return next(lane for lane in lanes if lane.free).free.pop()

    def _add(
        self,
        lane: RequestQueue,
        readable: Sequence[tuple[int, int]],
        writable: Sequence[tuple[int, int]],
        slot: Slot,
        timeout: float | None,
    ) -> None:
        ring = lane.queue.ring
        while True:
            try:
                return lane.queue.add(readable, writable, slot)
            except QueueFull:
                lane.queue.kick()
                out = ring.in_flight
                if not out:
                    raise
                # The chain is longer than what the ring has left: the slots are more than the descriptors.
                self._await(lambda: self._collect() > 0, timeout, "one of the requests that are out")

    def _live_lanes(self) -> list[RequestQueue]:
        if self.device.queues.get(self._first.index) is not self._first:
            raise Closed(f"the driver of {self.device.address} was closed")
        if not self._lanes:
            raise UsageError(
                f"all queues of {self.device.address} are taken by bursts",
                seen=len(self._bursts),
                expected="a queue that is free",
                remedy="Blk(device, queues=2) where the device has several, or a Blk without a burst",
            )
        return self._lanes

    # --- the way back ---------------------------------------------------------------------------------------

    def _collect(self) -> int:
        """Take all that came back; a status that is none is raised when all of it was taken."""
        count = 0
        senseless: UvirtioError | None = None
        for lane in self._live_lanes():
            for completion in lane.queue.reap():
                count += 1
                error = self._finish(lane, completion)
                senseless = senseless or error
        if senseless is not None:
            raise senseless
        return count

    def _finish(self, lane: RequestQueue, completion: Completion) -> UvirtioError | None:
        slot: Slot = completion.cookie
        request, slot.request = slot.request, None
        assert request is not None
        answer = slot.answer()
        room = slot.room
        senseless = None
        if answer == Status.OK:
            self.counts[Status.OK] += 1
            # The status byte decides. Old devices' used lengths are wrong (5.2.6.3), so these are only noted.
            if completion.written != room + spec.STATUS_SIZE:
                self._finding("the used length is not what was to be written")
            if room:
                request._data = slot.content(room)
        else:
            request.error = self.refusal(request.type, request.sector, request.sectors, answer)
            if isinstance(request.error, ProtocolError):
                senseless = request.error
        request.done = True
        lane.free.append(slot)
        return senseless

    def refusal(self, kind: spec.Request, sector: int, sectors: int, answer: int) -> UvirtioError:
        """What an answer that is not OK means."""
        address = self.device.address
        if answer not in (Status.IOERR, Status.UNSUPP):
            return ProtocolError(
                f"{address} gave back {kind.name} without a status",
                seen=f"status {answer:#04x}",
                expected="OK, IOERR or UNSUPP (5.2.6)",
                remedy="the device is at fault; its log may say more",
            )
        self.counts[Status(answer)] += 1
        if answer == Status.UNSUPP:
            return BlkUnsupported(
                f"{address} does not know {kind.name}",
                seen="UNSUPP",
                expected="OK",
                remedy="the device lacks it, whatever features it offers",
            )
        remedy = "the host's log says more: the file or disk behind the device failed"
        block = self._config.blk_size or SECTOR_SIZE
        if sector * SECTOR_SIZE % block or sectors * SECTOR_SIZE % block:
            remedy = f"the device's blocks have {block} bytes: ask for whole ones"
        what = f"{kind.name} of {sectors} sectors at {sector}" if sectors else kind.name
        return BlkIoError(f"{address} failed at {what}", seen="IOERR", expected="OK", remedy=remedy)

    def _results(self, requests: Sequence[Request], timeout: float | None) -> list[bytes]:
        """All results; the first error, once nothing of these is out any more. ``timeout`` is for each."""
        for request in requests:
            if not request.done:
                self.wait([request], timeout=timeout)
        return [request.result() for request in requests]

    # --- what is asked for ----------------------------------------------------------------------------------

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

    def _writable(self, sector: int, data: bytes | bytearray | memoryview) -> tuple[memoryview, int]:
        self._allow_write("write to")
        view = memoryview(data).cast("B")
        sectors, rest = divmod(len(view), SECTOR_SIZE)
        if rest:
            raise BadSize(
                "only whole sectors can be written",
                seen=f"{len(view)} bytes",
                expected=f"a multiple of {SECTOR_SIZE} (5.2.6.1)",
                remedy="read the last sector, change it, write it",
            )
        self.check_range(sector, sectors)
        return view, sectors

    def _allow_write(self, what: str) -> None:
        if self.read_only:
            raise WriteRefused(
                f"{self.device.address} is read-only",
                seen="RO",
                expected="a device that takes writes",
                remedy="make it writable on the host",
            )
        if not self.allow_write:
            raise WriteRefused(
                f"nobody allowed to {what} {self.device.address}",
                seen="allow_write=False",
                expected="consent",
                remedy="Blk(device, allow_write=True), or --allow-write",
            )

    def _need(self, bit: int, what: str) -> None:
        if not self.device.has(bit):
            raise NotSupported(
                f"{self.device.address} cannot {what}",
                seen=f"features {self.device.features:#x}",
                expected=f"{f.Blk(bit).name}, bit {int(bit)}",
                remedy="the host must offer it",
            )

    def _over_ranges(self, kind: spec.Request, ranges: Sequence[Range], flags: int, timeout: float | None) -> None:
        bit, name = _LIMITED[kind]
        self._need(bit, name.replace("_", " "))
        with self.device.session():
            self._allow_write(f"{name.replace('_', ' ')} on")
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
            out = []
            while pieces:
                these = [pieces.popleft() for _ in range(min(most, len(pieces)))]
                data = cutting.packed(these, flags)
                total = sum(count for _, count in these)
                # 5.2.6: the sector of these requests means nothing; the ranges are in the data.
                out.append(self._submit(kind, 0, total, data=data, timeout=timeout))
            self._results(out, timeout)
