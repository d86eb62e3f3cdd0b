"""A request on its way, and the memory that it travels in."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Protocol

from uvirtio.device import Queue
from uvirtio.errors import ConfigError, UvirtioError
from uvirtio.interfaces.memory import Block, DmaSpace
from uvirtio.spec import blk as spec
from uvirtio.virtqueue import SgEntry

_HEADER = struct.Struct("<IIQ")
_CONTROL = 32  # bytes of each slot: the header, and the status apart from it
_STATUS_AT = spec.HEADER_SIZE
_NO_LIMIT = 0xFFFF_FFFF
NO_STATUS = 0xFF
"""What the status byte holds before the device writes it: no status of 5.2.6."""


class Waits(Protocol):
    """Who waits for requests."""

    def wait(self, requests: Sequence[Request], *, timeout: float | None) -> None: ...


class Request:
    """One request that was submitted. ``done`` says whether the device gave it back; ``error`` how it failed."""

    __slots__ = ("_data", "_waits", "done", "error", "queue", "sector", "sectors", "type")

    def __init__(self, waits: Waits, kind: spec.Request, sector: int, sectors: int, queue: int) -> None:
        self._waits = waits
        self._data = b""
        self.type = kind
        self.sector = sector
        self.sectors = sectors
        self.queue = queue
        self.done = False
        self.error: UvirtioError | None = None

    def result(self, timeout: float | None = None) -> bytes:
        """The data of a read, nothing of others; waits until the device gave it back.

        ``timeout`` in seconds (None: the device's own). Raises BlkIoError, BlkUnsupported, DeviceTimeout.
        """
        if not self.done:
            self._waits.wait([self], timeout=timeout)
        if self.error is not None:
            raise self.error
        return self._data

    def __repr__(self) -> str:
        state = "out" if not self.done else "failed" if self.error else "done"
        return f"<{self.type.name} of {self.sectors} sectors at {self.sector}, {state}>"


class Slot:
    """Memory for one request: header, data, status, at device addresses that never change."""

    __slots__ = (
        "_control",
        "_control_at",
        "_cut",
        "_cut_length",
        "_data",
        "_data_at",
        "_runs",
        "header",
        "request",
        "requestq",
        "room",
        "status",
    )

    def __init__(self, requestq: RequestQueue, number: int, size: int, size_max: int) -> None:
        self.requestq = requestq
        self.request: Request | None = None
        self.room = 0
        """Bytes of data that the device may write."""
        self._control, self._data = requestq.control, requestq.data
        self._control_at, self._data_at = number * _CONTROL, number * size
        # 32 divides a page, so neither of these is cut by one. Each is an element alone (5.2.6.4).
        (self.header,) = requestq.control.segments(self._control_at, spec.HEADER_SIZE)
        (self.status,) = requestq.control.segments(self._control_at + _STATUS_AT, spec.STATUS_SIZE)
        self._runs = clipped(requestq.data.segments(self._data_at, size), size, size_max)
        self._cut: Sequence[SgEntry] = self._runs
        self._cut_length = size

    def prepare(self, kind: int, sector: int) -> None:
        """Write the header (5.2.6), and what is no status."""
        at, view = self._control_at, self._control.view
        view[at : at + spec.HEADER_SIZE] = _HEADER.pack(kind, 0, sector)
        view[at + _STATUS_AT] = NO_STATUS

    def fill(self, data: bytes | memoryview) -> None:
        self._data.view[self._data_at : self._data_at + len(data)] = data

    def runs(self, length: int) -> Sequence[SgEntry]:
        """The first ``length`` bytes of data as elements."""
        if length != self._cut_length:
            self._cut, self._cut_length = _first(self._runs, length), length
        return self._cut

    def fits(self, pieces_max: int) -> int:
        """Whole sectors of data, in bytes, that so many elements can carry."""
        return sum(size for _, size in self._runs[:pieces_max]) // spec.SECTOR_SIZE * spec.SECTOR_SIZE

    def answer(self) -> int:
        return self._control.view[self._control_at + _STATUS_AT]

    def content(self, length: int) -> bytes:
        return bytes(self._data.view[self._data_at : self._data_at + length])


class RequestQueue:
    """One queue, the slots of its requests, and what the device takes in one of them."""

    def __init__(self, queue: Queue, dma: DmaSpace, depth: int, size: int) -> None:
        self.queue = queue
        self.depth = depth
        self.size = size
        """Bytes of data of one request, at most."""
        self.control: Block = dma.alloc(depth * _CONTROL)
        self.data: Block = dma.alloc(depth * size)
        self.size_max = _NO_LIMIT
        """Bytes of one element of data, at most."""
        self.pieces_max = queue.ring.size - 2  # beside header and status
        """Elements of data in one request, at most."""
        self.free: list[Slot] = []

    def stock(self, size_max: int | None, seg_max: int | None) -> None:
        """Make the slots, with as much data each as the device's limits (5.2.4) allow; None: it has no such limit.

        Raises:
            ConfigError: Not even one sector fits.
        """
        self.size_max = size_max or _NO_LIMIT
        if seg_max is not None:
            self.pieces_max = min(self.pieces_max, max(1, seg_max))
        made = [Slot(self, number, self.size, self.size_max) for number in range(self.depth)]
        self.size = min(slot.fits(self.pieces_max) for slot in made)
        if not self.size:
            raise ConfigError(
                "not even one sector fits what the device takes in a request",
                seen=f"{self.pieces_max} elements of {self.size_max} bytes",
                expected="512 bytes",
                remedy="the device is at fault: size_max and seg_max are too small (5.2.4)",
            )
        self.free = made[::-1]

    @property
    def out(self) -> int:
        return self.depth - len(self.free)


def clipped(runs: Sequence[SgEntry], length: int, size_max: int) -> list[SgEntry]:
    """The first ``length`` bytes of ``runs``, in elements of at most ``size_max`` bytes."""
    made: list[SgEntry] = []
    for address, size in _first(runs, length):
        made += [(address + at, min(size_max, size - at)) for at in range(0, size, size_max)]
    return made


def _first(runs: Sequence[SgEntry], length: int) -> list[SgEntry]:
    made: list[SgEntry] = []
    for address, size in runs:
        if length <= 0:
            break
        made.append((address, min(size, length)))
        length -= size
    return made
