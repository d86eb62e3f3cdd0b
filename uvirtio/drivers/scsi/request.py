"""A command that was submitted, and the memory of its request, its data and its answer."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from uvirtio.device import Queue
from uvirtio.drivers.requests import carried, first
from uvirtio.drivers.scsi.commands import Command
from uvirtio.drivers.scsi.config import ScsiConfig
from uvirtio.drivers.scsi.lun import Lun
from uvirtio.errors import UvirtioError
from uvirtio.spec import scsi as spec
from uvirtio.typed import TYPE_CHECKING
from uvirtio.virtqueue import SgEntry

if TYPE_CHECKING:
    from uvirtio.interfaces.memory import Block, DmaSpace

_HEAD = struct.Struct("<8sQBBB")
_ANSWER = struct.Struct("<IIHBB")
_LINE = 64
NO_ANSWER = b"\xff" * spec.RESPONSE_SIZE
"""Preset of the answer before the device writes it: no response of 5.6.6.1."""

CDB_AT = spec.REQUEST_SIZE


class Waits(Protocol):
    """What a ``Request`` needs of its queues."""

    def wait(self, requests: Sequence[Request], *, timeout: float | None) -> None:
        """Wait until requests are complete; ``timeout`` in seconds, the device's own where None."""
        ...


class Request:
    """One command that was submitted.

    Attributes:
        lun: Its logical unit.
        command: The command.
        tag: Its identifier (``id`` of 5.6.6.1), which no other request in flight has.
        queue: The index of its queue.
        done: Whether it is complete.
        error: Why it failed; None if it did not, or is not complete.
    """

    __slots__ = ("_data", "_waits", "command", "done", "error", "lun", "queue", "tag")

    def __init__(self, waits: Waits, lun: Lun, command: Command, tag: int, queue: int) -> None:
        """Describe a request; ``RequestQueues`` submits it.

        Args:
            waits: Waits for it.
            lun: Its logical unit.
            command: The command.
            tag: Its identifier.
            queue: The index of its queue.
        """
        self._waits = waits
        self._data = b""
        self.lun = lun
        self.command = command
        self.tag = tag
        self.queue = queue
        self.done = False
        self.error: UvirtioError | None = None

    def result(self, timeout: float | None = None) -> bytes:
        """Wait until the request is complete.

        Args:
            timeout: Seconds to wait; the device's own where None.

        Returns:
            What the device wrote; empty for commands without data to read.

        Raises:
            ScsiCheck, ScsiStatus, ScsiTransport, ScsiAnswer: The command failed.
            DeviceTimeout: It did not complete in time; the device counts as broken then.
            ProtocolError: Its answer is invalid.
        """
        if not self.done:
            self._waits.wait([self], timeout=timeout)
        if self.error is not None:
            raise self.error
        return self._data

    def __repr__(self) -> str:
        state = "out" if not self.done else "failed" if self.error else "done"
        return f"<{self.command.name} to {self.lun}, {state}>"


@dataclass(frozen=True, slots=True)
class Shape:
    """Where request and answer lie in the memory of one slot.

    The request begins 3 bytes after a multiple of 8, and the answer 4 bytes, so that the address in a CDB of READ
    and WRITE is an aligned word, and residual, status and response are one too (``Burst``). Neither shares a cache
    line with the other.
    """

    request_size: int
    answer_size: int
    request_at: int
    answer_at: int
    stride: int
    """Bytes of a slot: a power of two, so that no part of one crosses a page."""


def shape_of(config: ScsiConfig) -> Shape:
    """Return the layout for these sizes of CDB and sense data (5.6.4)."""
    request, answer = spec.REQUEST_SIZE + config.cdb_size, spec.RESPONSE_SIZE + config.sense_size
    at = 3
    back = -(-(at + request) // _LINE) * _LINE + 4
    return Shape(request, answer, at, back, 1 << (back + answer - 1).bit_length())


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer as it was when it was read, once (5.6.6.1)."""

    sense_len: int
    residual: int
    qualifier: int
    status: int
    response: int
    sense: bytes
    """All of the area, whatever ``sense_len`` says."""


def answer_in(data: bytes) -> Answer:
    """Take an answer apart."""
    sense_len, residual, qualifier, status, response = _ANSWER.unpack_from(data)
    return Answer(sense_len, residual, qualifier, status, response, data[spec.RESPONSE_SIZE :])


def header(lun: Lun, tag: int, cdb: bytes, cdb_size: int) -> bytes:
    """Return the readable part of a request (5.6.6.1.2: task_attr, prio and crn are 0)."""
    # Of the class: a text has an ``encode`` of its own, and would go out as the number of another unit.
    return _HEAD.pack(Lun.encode(lun), tag, 0, 0, 0) + cdb.ljust(cdb_size, b"\0")


class Slot:
    """Memory for one request at fixed device addresses."""

    full: ClassVar[int] = 0
    """What a used length is taken for that was lost; none is looked at here."""

    __slots__ = (
        "_at",
        "_control",
        "_data",
        "_data_at",
        "_runs",
        "_shape",
        "answer_entry",
        "head",
        "request",
        "requestq",
    )

    def __init__(self, requestq: RequestQueue, number: int) -> None:
        """Take a slot of a queue's memory.

        Args:
            requestq: The queue.
            number: Which slot, from 0.
        """
        shape = self._shape = requestq.shape
        self.requestq = requestq
        self.request: Request | None = None
        self._control, self._data = requestq.control, requestq.data
        self._at, self._data_at = number * shape.stride, number * requestq.size
        (self.head,) = requestq.control.segments(self._at + shape.request_at, shape.request_size)
        (self.answer_entry,) = requestq.control.segments(self._at + shape.answer_at, shape.answer_size)
        self._runs = requestq.data.segments(self._data_at, requestq.size)

    def prepare(self, request: Request) -> None:
        """Write the request, and preset the answer."""
        shape, view = self._shape, self._control.view
        at = self._at + shape.request_at
        size = shape.request_size - spec.REQUEST_SIZE
        view[at : at + shape.request_size] = header(request.lun, request.tag, request.command.cdb, size)
        at = self._at + shape.answer_at
        view[at : at + shape.answer_size] = NO_ANSWER + bytes(shape.answer_size - spec.RESPONSE_SIZE)

    def fill(self, data: bytes | memoryview) -> None:
        """Write the data."""
        self._data.view[self._data_at : self._data_at + len(data)] = data

    def runs(self, length: int) -> list[SgEntry]:
        """Return the first ``length`` bytes of data as elements of the chain."""
        return first(self._runs, length)

    def fits(self, pieces_max: int) -> int:
        """Return the bytes of data that ``pieces_max`` elements can carry, in units of 512."""
        return sum(size for _, size in self._runs[:pieces_max]) // spec.UNIT * spec.UNIT

    def answer(self) -> Answer:
        """Return the answer, copied out first."""
        at = self._at + self._shape.answer_at
        return answer_in(bytes(self._control.view[at : at + self._shape.answer_size]))

    def content(self, length: int) -> bytes:
        """Return a copy of the first ``length`` bytes of data."""
        return bytes(self._data.view[self._data_at : self._data_at + length])


class RequestQueue:
    """One request queue and the slots of its requests."""

    def __init__(self, queue: Queue, dma: DmaSpace, config: ScsiConfig, *, depth: int, size: int) -> None:
        """Allocate the memory of the slots, and make them.

        Args:
            queue: The virtqueue.
            dma: The memory of the device.
            config: The device's limits.
            depth: Slots.
            size: Bytes of data of each slot.

        Raises:
            MemlockExceeded, HugePagesLack, OperationFailed: There is not that much DMA memory.
        """
        self.queue = queue
        self.depth = depth
        self.pieces_max = max(1, min(config.seg_max, queue.ring.size - 2))  # beside request and answer
        """Elements of data in one command, at most."""
        size = min(size, carried(dma, self.pieces_max, size))
        self.size = size
        """Bytes of data of one request, at most."""
        self.shape = shape_of(config)
        self.control: Block = dma.alloc(depth * self.shape.stride)
        self.data: Block = dma.alloc(depth * size)
        made = [Slot(self, number) for number in range(depth)]
        self.size = min(slot.fits(self.pieces_max) for slot in made)
        self.slots: Sequence[Slot] = made
        """All slots, free or not."""
        self.free: list[Slot] = made[::-1]
        self.laid: Sequence[Any] = ()

    @property
    def out(self) -> int:
        """Requests in flight."""
        return self.depth - len(self.free)
