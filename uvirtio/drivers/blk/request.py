"""A request on its way, and the memory that it travels in."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING

from uvirtio.device import Queue
from uvirtio.errors import ConfigError, UvirtioError
from uvirtio.interfaces.memory import Block, DmaSpace
from uvirtio.spec import blk as spec
from uvirtio.virtqueue import SgEntry

if TYPE_CHECKING:
    from uvirtio.drivers.blk.driver import Blk

_HEADER = struct.Struct("<IIQ")
_CONTROL = 32  # bytes of each slot: the header, and the status apart from it
_STATUS_AT = spec.HEADER_SIZE
NO_STATUS = 0xFF
"""What the status byte holds before the device writes it: no status of 5.2.6."""


class Request:
    """One request that was submitted. ``done`` says whether the device gave it back; ``error`` how it failed."""

    __slots__ = ("_blk", "_data", "done", "error", "queue", "sector", "sectors", "type")

    def __init__(self, blk: Blk, kind: spec.Request, sector: int, sectors: int, queue: int) -> None:
        self._blk = blk
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
            self._blk.wait([self], timeout=timeout)
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
        "lane",
        "request",
        "room",
        "status",
    )

    def __init__(self, lane: RequestQueue, number: int, size: int, size_max: int) -> None:
        self.lane = lane
        self.request: Request | None = None
        self.room = 0
        """Bytes of data that the device may write."""
        self._control, self._data = lane.control, lane.data
        self._control_at, self._data_at = number * _CONTROL, number * size
        # 32 divides a page, so neither of these is cut by one. Each is an element alone (5.2.6.4).
        (self.header,) = lane.control.segments(self._control_at, spec.HEADER_SIZE)
        (self.status,) = lane.control.segments(self._control_at + _STATUS_AT, spec.STATUS_SIZE)
        self._runs = clipped(lane.data.segments(self._data_at, size), size, size_max)
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
    """One queue and the slots of its requests."""

    def __init__(self, dma: DmaSpace, depth: int, size: int) -> None:
        self.queue: Queue
        self.depth = depth
        self.size = size
        """Bytes of data of one request, at most."""
        self.control: Block = dma.alloc(depth * _CONTROL)
        self.data: Block = dma.alloc(depth * size)
        self.free: list[Slot] = []

    def stock(self, size_max: int, pieces_max: int) -> None:
        """Make the slots, with as much data each as ``pieces_max`` elements of ``size_max`` bytes can carry."""
        made = [Slot(self, number, self.size, size_max) for number in range(self.depth)]
        self.size = min(slot.fits(pieces_max) for slot in made)
        if not self.size:
            raise ConfigError(
                "not even one sector fits what the device takes in a request",
                seen=f"{pieces_max} elements of {size_max} bytes",
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
