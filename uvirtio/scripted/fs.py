"""A file system device (5.11) made of Python: a FUSE server whose only file is its root directory.

Lies: ``garbled`` (answers are to another request), ``untouched`` (answers are not written).
"""

from __future__ import annotations

import stat

from uvirtio.scripted.answering import Answering
from uvirtio.scripted.ring import Chain
from uvirtio.spec import fs as spec
from uvirtio.spec.layout import by_name, size

_FORGET = 2
_EINVAL, _ENOSYS = 22, 38


class Fs(Answering):
    """A server of FUSE 7.31."""

    device_id = spec.TYPE
    fields = by_name(spec.CONFIG)
    queue_sizes = (64, 64)

    def __init__(self, *, tag: bytes = b"scripted") -> None:
        super().__init__()
        self.config = bytearray(tag.ljust(size(spec.CONFIG), b"\0"))
        self.put("num_request_queues", 1)

    def answer(self, queue: int, data: bytes, chain: Chain) -> bytes | None:
        """Answer a request; FORGET has no answer."""
        whole = len(data) >= spec.FUSE_IN_HEADER.size
        self.device.check("FS-01", whole, f"a request of {len(data)} bytes")
        if not whole:
            return b""
        length, opcode, unique, *_ = spec.FUSE_IN_HEADER.unpack_from(data)
        if opcode == _FORGET:
            return b""
        error, body = (-_EINVAL, b"") if length != len(data) else self._carried_out(opcode)
        return spec.FUSE_OUT_HEADER.pack(spec.FUSE_OUT_HEADER.size + len(body), error, unique) + body

    def garble(self, queue: int, data: bytes, answer: bytes) -> bytes:
        """The answer to another request."""
        return answer[:8] + bytes([answer[8] ^ 1]) + answer[9:]

    def _carried_out(self, opcode: int) -> tuple[int, bytes]:
        if opcode == spec.FUSE_INIT:
            versions = b"".join(number.to_bytes(4, "little") for number in spec.FUSE_VERSION)
            return 0, versions.ljust(spec.FUSE_INIT_OUT_SIZE, b"\0")
        if opcode == spec.FUSE_GETATTR:
            mode = (stat.S_IFDIR | 0o755).to_bytes(4, "little")
            return 0, (bytes(spec.FUSE_ATTR_MODE) + mode).ljust(spec.FUSE_ATTR_OUT_SIZE, b"\0")
        return (0, b"") if opcode == spec.FUSE_DESTROY else (-_ENOSYS, b"")
