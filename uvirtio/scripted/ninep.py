"""A 9P transport (type 9) made of Python, over a file system of one directory.

Lies: ``garbled`` (answers have another tag), ``untouched`` (answers are not written).
"""

from __future__ import annotations

from struct import pack, unpack_from

from uvirtio.scripted.answering import Answering
from uvirtio.scripted.ring import Chain
from uvirtio.spec import ninep as spec
from uvirtio.spec.ninep import Message

_EOPNOTSUPP = 95


class NineP(Answering):
    """A server of 9P2000.L."""

    device_id = spec.TYPE
    queue_sizes = (64,)

    def __init__(self, *, tag: bytes = b"scripted") -> None:
        super().__init__()
        self.config = bytearray(pack("<H", len(tag)) + tag)
        self.fids: set[int] = set()

    def reset(self) -> None:
        """The device was reset: nothing is attached."""
        self.fids.clear()

    def answer(self, queue: int, data: bytes, chain: Chain) -> bytes | None:
        """Answer a message."""
        size, kind, tag = spec.HEAD.unpack_from(data.ljust(spec.HEAD.size, b"\0"))
        self.device.check("9P-01", size == len(data), f"a message of {len(data)} bytes says {size}")
        if size != len(data):
            return b""
        kind, body = self._carried_out(kind, data[spec.HEAD.size :])
        return spec.HEAD.pack(spec.HEAD.size + len(body), kind, tag) + body

    def garble(self, queue: int, data: bytes, answer: bytes) -> bytes:
        """The answer to another request."""
        return answer[:5] + bytes([answer[5] ^ 1]) + answer[6:]

    def _carried_out(self, kind: int, body: bytes) -> tuple[int, bytes]:
        if kind == Message.TVERSION:
            size, length = unpack_from("<IH", body)
            asked = body[6 : 6 + length]
            self.fids.clear()
            said = spec.VERSION if asked == spec.VERSION else b"unknown"
            return kind + 1, pack("<IH", min(size, 8192), len(said)) + said
        if kind == Message.TATTACH:
            self.fids.add(unpack_from("<I", body)[0])
            return kind + 1, spec.QID.pack(spec.QID_DIRECTORY, 0, 1)
        return Message.RLERROR, pack("<I", _EOPNOTSUPP)
