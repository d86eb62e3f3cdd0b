"""A sound device (5.14) made of Python: a stream out and a stream in, without a clock.

Lies: ``garbled`` (codes are others), ``untouched`` (answers are not written).
"""

from __future__ import annotations

from uvirtio.scripted.answering import Answering
from uvirtio.scripted.ring import Chain
from uvirtio.spec import sound as spec
from uvirtio.spec.layout import by_name, size
from uvirtio.spec.sound import Request, Status

_NEEDS = {
    Request.PCM_PREPARE: ("set", "prepared"),
    Request.PCM_START: ("prepared", "running"),
    Request.PCM_STOP: ("running", "prepared"),
    Request.PCM_RELEASE: ("prepared", "set"),
}
"""By request: the state that it is for, and the state that it leads to (5.14.6.6.1)."""


class Sound(Answering):
    """Two streams."""

    device_id = spec.TYPE
    fields = by_name(spec.CONFIG)
    queue_sizes = (64, 64, 64, 64)

    def __init__(self, *, directions: tuple[int, ...] = (spec.OUTPUT, spec.INPUT)) -> None:
        super().__init__()
        self.config = bytearray(size(spec.CONFIG))
        self.put("streams", len(directions))
        self.directions = directions
        self.states: dict[int, str] = {}
        self.played = bytearray()

    def reset(self) -> None:
        """The device was reset: its streams have no parameters."""
        self.states.clear()

    def answer(self, queue: int, data: bytes, chain: Chain) -> bytes | None:
        """Answer a control request, or take a period."""
        if queue == spec.EVENTQ:
            return None
        if queue != spec.CONTROLQ:
            return self._period(queue, data, chain.room)
        self.device.check("SND-01", len(data) >= spec.PCM_HEADER.size, f"a request of {len(data)} bytes")
        kind, stream = spec.PCM_HEADER.unpack_from(data)
        if kind == Request.PCM_INFO:
            _, start, count, length = spec.QUERY_INFO.unpack(data)
            if start + count > len(self.directions) or length < spec.PCM_INFO.size:
                return spec.HEADER.pack(Status.BAD_MSG)
            items = [spec.PCM_INFO.pack(0, 0, 1 << 5, 1 << 7, one, 1, 2) for one in self.directions]
            return spec.HEADER.pack(Status.OK) + b"".join(items[start : start + count])
        return spec.HEADER.pack(self._changed(kind, stream))

    def garble(self, queue: int, data: bytes, answer: bytes) -> bytes:
        """Another code."""
        if queue == spec.RXQ:
            return answer[: -spec.TRANSFER_STATUS.size] + spec.TRANSFER_STATUS.pack(Status.IO_ERR, 0)
        return spec.HEADER.pack(Status.IO_ERR) + answer[spec.HEADER.size :]

    def _changed(self, kind: int, stream: int) -> Status:
        if stream >= len(self.directions):
            return Status.BAD_MSG
        if kind == Request.PCM_SET_PARAMS:
            self.states[stream] = "set"
            return Status.OK
        if kind not in tuple(_NEEDS):
            return Status.NOT_SUPP
        before, after = _NEEDS[Request(kind)]
        if self.states.get(stream) != before:
            return Status.BAD_MSG
        self.states[stream] = after
        return Status.OK

    def _period(self, queue: int, data: bytes, room: int) -> bytes:
        (stream,) = spec.TRANSFER.unpack_from(data)
        running = self.states.get(stream) == "running"
        self.device.check("SND-02", running, f"a period of stream {stream}, which does not run")
        status = spec.TRANSFER_STATUS.pack(Status.OK if running else Status.IO_ERR, 0)
        if queue == spec.TXQ:
            self.played += data[spec.TRANSFER.size :]
            return status
        return bytes(room - len(status)) + status
