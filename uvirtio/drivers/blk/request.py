"""A submitted request, and the memory of its header, data and status."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Protocol

from uvirtio.device import Queue
from uvirtio.drivers.requests import carried, first
from uvirtio.errors import ConfigError, UvirtioError
from uvirtio.spec import blk as spec
from uvirtio.typed import TYPE_CHECKING
from uvirtio.virtqueue import SgEntry

if TYPE_CHECKING:
    from uvirtio.interfaces.memory import Block, DmaSpace

write_header = struct.Struct("<IIQB").pack_into
"""Writes a header, and the status behind it."""
_CONTROL = 32  # bytes of each slot: the header, and the status apart from it
_STATUS_AT = spec.HEADER_SIZE
_NO_LIMIT = 0xFFFF_FFFF
NO_STATUS = 0xFF
"""Preset of the status byte before the device writes it; not a status of 5.2.6."""


Entry = tuple[tuple[SgEntry, ...], tuple[SgEntry, ...], "Slot"]
"""What a queue adds: the readable and the writable elements of a chain, and its cookie."""
Room = tuple[Callable[[memoryview, int], None], Callable[[memoryview, int], tuple[bytes]]]
"""What clears a number of bytes at an offset, and what copies them out, each in one call."""


class Waits(Protocol):
    """What a ``Request`` needs of its queues."""

    def wait(self, requests: Sequence[Request], *, timeout: float | None) -> None:
        """Wait until requests are complete; ``timeout`` in seconds, the device's own where None."""
        ...


class Request:
    """One request that was submitted.

    Attributes:
        type: Its type (5.2.6).
        sector: Its first sector.
        sectors: How many sectors it covers.
        queue: The index of its queue.
        done: Whether it is complete.
        error: Why it failed; None if it did not, or is not complete.
    """

    __slots__ = ("_data", "_waits", "done", "error", "queue", "sector", "sectors", "type")

    _waits: Waits
    _data: bytes
    type: spec.Request
    sector: int
    sectors: int
    queue: int
    done: bool
    error: UvirtioError | None

    def result(self, timeout: float | None = None) -> bytes:
        """Wait until the request is complete.

        Args:
            timeout: Seconds to wait; the device's own where None.

        Returns:
            The data of a read; empty for other requests.

        Raises:
            BlkIoError, BlkUnsupported: The request failed.
            DeviceTimeout: It did not complete in time; the device counts as broken then.
            ProtocolError: Its status is invalid.
        """
        if not self.done:
            self._waits.wait([self], timeout=timeout)
        if self.error is not None:
            raise self.error
        return self._data

    def __repr__(self) -> str:
        state = "out" if not self.done else "failed" if self.error else "done"
        return f"<{self.type.name} of {self.sectors} sectors at {self.sector}, {state}>"


def requested(waits: Waits, kind: spec.Request, sector: int, sectors: int, queue: int) -> Request:
    """Describe a request that ``RequestQueues`` submits.

    Args:
        waits: Waits for it.
        kind: Its type (5.2.6).
        sector: Its first sector.
        sectors: How many sectors it covers.
        queue: The index of its queue.
    """
    request = Request()
    request._waits, request._data, request.queue = waits, b"", queue
    request.type, request.sector, request.sectors = kind, sector, sectors
    request.done, request.error = False, None
    return request


class Slot:
    """Memory for one request: header, data and status, at fixed device addresses."""

    __slots__ = (
        "_control",
        "_data",
        "_header",
        "_lengths",
        "_runs",
        "_status",
        "clear",
        "copy",
        "data_at",
        "entry",
        "full",
        "header_at",
        "request",
        "requestq",
        "room",
        "status_at",
    )

    def __init__(self, requestq: RequestQueue, number: int, size: int, size_max: int) -> None:
        """Take a slot of a queue's memory.

        Args:
            requestq: The queue.
            number: Which slot, from 0.
            size: Bytes of data.
            size_max: Bytes of one element, at most.
        """
        self.requestq = requestq
        self.request: Request | None = None
        self.room = 0
        """Bytes of data that the device may write."""
        self.full = spec.STATUS_SIZE
        """The same and the status: what a device writes of a request that succeeds."""
        self._control, self._data = requestq.control_view, requestq.data_view
        self.header_at, self.data_at = number * _CONTROL, number * size
        self.status_at = self.header_at + _STATUS_AT
        """Where the status byte is in the memory of the queue."""
        # 32 divides a page, so neither of these crosses one. Each is an element of its own (5.2.6.4).
        (self._header,) = requestq.control.segments(self.header_at, spec.HEADER_SIZE)
        (self._status,) = requestq.control.segments(self.status_at, spec.STATUS_SIZE)
        self._runs = clipped(requestq.data.segments(self.data_at, size), size, size_max)
        self._lengths = (0, 0)
        self.clear, self.copy = requestq.room(0)
        """Clears the room; and copies it: both of the queue's memory, from ``data_at`` on."""
        self.entry: Entry = ((self._header,), (self._status,), self)
        """Readable and writable elements of the request; the same objects for one of the same lengths."""

    def prepare(self, kind: int, sector: int, data: bytes | memoryview, room: int) -> None:
        """Write the header (5.2.6) and the data, or clear the room for it, and preset the status.

        Cleared: what the device does not write must not look like data, nor be that of an earlier request.

        Args:
            kind: The request's type.
            sector: Its first sector.
            data: What the device reads; copied.
            room: Bytes of data that it writes; 0 where there is ``data``.
        """
        length = len(data)
        if self._lengths != (length, room):
            self.shape(length, room)
        write_header(self._control, self.header_at, kind, 0, sector, NO_STATUS)
        if room:
            self.clear(self._data, self.data_at)
        elif length:
            self._data[self.data_at : self.data_at + length] = data

    def shape(self, length: int, room: int) -> None:
        """Make the chain of requests with as much data."""
        part = first(self._runs, length or room)
        readable, writable = (part, []) if length else ([], part)
        entry: Entry = (self._header, *readable), (*writable, self._status), self
        clear, copy = self.requestq.room(room)
        made = entry, clear, copy, (length, room), room, room + spec.STATUS_SIZE
        # In one statement, without a call: an interrupted one leaves no shape that is half of another's.
        self.entry, self.clear, self.copy, self._lengths, self.room, self.full = made

    @property
    def most(self) -> int:
        """Elements of its longest chain."""
        return 2 + len(self._runs)

    def fits(self, pieces_max: int) -> int:
        """Return the bytes of whole sectors that ``pieces_max`` elements can carry."""
        return sum(size for _, size in self._runs[:pieces_max]) // spec.SECTOR_SIZE * spec.SECTOR_SIZE


class RequestQueue:
    """One request queue, the slots of its requests, and the device's limits for a request."""

    def __init__(
        self,
        queue: Queue,
        dma: DmaSpace,
        *,
        depth: int,
        size: int,
        size_max: int | None,
        seg_max: int | None,
    ) -> None:
        """Allocate the memory of the slots, each with as much data as the device's limits (5.2.4) allow.

        Args:
            queue: The virtqueue.
            dma: The memory of the device.
            depth: Slots.
            size: Bytes of data of each slot, at most.
            size_max: Bytes of one element, at most; None: no limit.
            seg_max: Elements of data in one request, at most; None: no limit.

        Raises:
            ConfigError: Not even one sector fits.
            MemlockExceeded, HugePagesLack, OperationFailed: There is not that much DMA memory.
        """
        self.queue = queue
        self.depth = depth
        self.size_max = size_max or _NO_LIMIT
        """Bytes of one element of data, at most."""
        most = max(0, queue.ring.size - 2)  # beside header and status
        self.pieces_max = most if seg_max is None else min(most, max(1, seg_max))
        """Elements of data in one request, at most."""
        size = min(size, carried(dma, self.pieces_max, self.size_max))
        if not size:
            raise self._too_small()
        self.control: Block = dma.alloc(depth * _CONTROL)
        self.data: Block = dma.alloc(depth * size)
        self.control_view, self.data_view = self.control.view, self.data.view
        self.index = queue.index
        self.quiet = 0
        """Requests that were submitted without a kick, modulo ``queues.TOGETHER``."""
        self._room = 0, _room_of(0)
        self.laid: list[Entry] = []
        """Chains of requests that were submitted, and are not in the ring yet: many are put there at a time."""
        made = [Slot(self, number, size, self.size_max) for number in range(depth)]
        self.size = min(slot.fits(self.pieces_max) for slot in made)
        """Bytes of data of one request, at most."""
        if not self.size:
            raise self._too_small()
        self.slots: Sequence[Slot] = made
        """All slots, free or not."""
        self.free: list[Slot] = made[::-1]
        ring = queue.ring
        self.roomy = depth * max(ring.needs(slot.most) for slot in made) <= ring.size
        """Whether the ring has a place for the requests of all slots, whatever their size."""

    def _too_small(self) -> ConfigError:
        return ConfigError(
            "not even one sector fits into a request of this device",
            seen=f"{self.pieces_max} elements of {self.size_max} bytes",
            expected="512 bytes",
            remedy="the device is at fault: size_max and seg_max are too small (5.2.4), or the queue is",
        )

    def room(self, length: int) -> Room:
        """Return what clears and copies so many bytes; the same for slots that ask for the same length."""
        if length != self._room[0]:
            self._room = length, _room_of(length)
        return self._room[1]

    def lay(self) -> None:
        """Put what is laid into the ring, if there is any; the device does not see it before it is shown."""
        if self.laid:
            self.queue.add_all(self.laid)

    @property
    def out(self) -> int:
        """Requests in flight."""
        return self.depth - len(self.free)


def clipped(runs: Sequence[SgEntry], length: int, size_max: int) -> list[SgEntry]:
    """Split memory into elements of a chain.

    Args:
        runs: Device addresses and lengths.
        length: Bytes of ``runs`` to use, from the start.
        size_max: Bytes of one element, at most.
    """
    made: list[SgEntry] = []
    for address, size in first(runs, length):
        made += [(address + at, min(size_max, size - at)) for at in range(0, size, size_max)]
    return made


def _room_of(length: int) -> Room:
    return struct.Struct(f"{length}x").pack_into, struct.Struct(f"{length}s").unpack_from
