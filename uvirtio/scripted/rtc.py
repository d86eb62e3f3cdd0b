"""A clock (5.23) made of Python, which goes on by a millisecond each time that it is read.

Lies: ``garbled`` (statuses are others), ``untouched`` (answers are not written).
"""

from __future__ import annotations

from uvirtio.scripted.answering import Answering
from uvirtio.scripted.ring import Chain
from uvirtio.spec import rtc as spec
from uvirtio.spec.rtc import Request, Status

_TICK = 10**6


class Rtc(Answering):
    """One clock, UTC."""

    device_id = spec.TYPE
    queue_sizes = (64,)

    def __init__(self, *, now: int = 1_700_000_000 * 10**9, tick: int = _TICK) -> None:
        super().__init__()
        self.now = now
        self.tick = tick

    def answer(self, queue: int, data: bytes, chain: Chain) -> bytes | None:
        """Answer a request."""
        self.device.check("RTC-01", len(data) >= spec.HEAD.size, f"a request of {len(data)} bytes")
        (kind,) = spec.HEAD.unpack_from(data.ljust(spec.HEAD.size, b"\0"))
        clock = int.from_bytes(data[8:10], "little")
        if kind == Request.CFG:
            return spec.CFG.pack(Status.OK, 1)
        if kind not in (Request.CLOCK_CAP, Request.READ):
            return bytes([Status.EOPNOTSUPP]) + bytes(7)
        if clock:
            return bytes([Status.EINVAL]) + bytes(7)
        if kind == Request.CLOCK_CAP:
            return spec.CLOCK_CAP.pack(Status.OK, spec.UTC, 0, 0)
        self.now += self.tick
        return spec.READ.pack(Status.OK, self.now)

    def garble(self, queue: int, data: bytes, answer: bytes) -> bytes:
        """Another status."""
        return bytes([answer[0] ^ Status.EIO]) + answer[1:]
