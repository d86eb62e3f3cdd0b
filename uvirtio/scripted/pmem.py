"""Persistent memory (5.19) made of Python: a bytearray that a file and the processors share.

Lies: ``garbled`` (a flush fails), ``untouched`` (answers are not written).
"""

from __future__ import annotations

from uvirtio.scripted.answering import Answering
from uvirtio.scripted.ring import Chain
from uvirtio.spec import pmem as spec
from uvirtio.spec.layout import by_name, size

_START = 1 << 32


class Pmem(Answering):
    """``length`` bytes of memory at 4 GiB."""

    device_id = spec.TYPE
    fields = by_name(spec.CONFIG)
    queue_sizes = (64,)
    other_sides = frozenset({"memory"})

    def __init__(self, *, length: int = 1 << 20) -> None:
        super().__init__()
        self.config = bytearray(size(spec.CONFIG))
        self.put("start", _START)
        self.put("size", length)
        self.memory = bytearray(length)
        self.flushes = 0

    def answer(self, queue: int, data: bytes, chain: Chain) -> bytes | None:
        """Flush."""
        right = data == spec.REQUEST.pack(spec.FLUSH)
        self.device.check("PMEM-01", right, f"the request {data.hex()}")
        self.flushes += right
        return spec.RESPONSE.pack(0 if right else 1)

    def garble(self, queue: int, data: bytes, answer: bytes) -> bytes:
        """A flush that failed."""
        return spec.RESPONSE.pack(1)

    def cpu_read(self, address: int, length: int) -> bytes:
        """Read the memory at its address."""
        return self.file_read(address - _START, length)

    def cpu_write(self, address: int, data: bytes) -> None:
        """Write the memory at its address."""
        self.file_write(address - _START, data)

    def file_read(self, offset: int, length: int) -> bytes:
        """Read the file behind it."""
        return bytes(self.memory[offset : offset + length])

    def file_write(self, offset: int, data: bytes) -> None:
        """Write the file behind it."""
        self.memory[offset : offset + len(data)] = data
