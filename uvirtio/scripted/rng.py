"""An entropy source (5.4) made of Python."""

from __future__ import annotations

from uvirtio.scripted.model import Model
from uvirtio.scripted.ring import Chain
from uvirtio.spec import rng as spec


class Rng(Model):
    """An entropy source (5.4) whose bytes are known: 0, 1, 2, ... from ``source``."""

    device_id = spec.TYPE

    def __init__(self, *, at_most: int | None = None) -> None:
        super().__init__()
        self.at_most = at_most
        self.given = bytearray()

    def source(self, count: int) -> bytes:
        """The next ``count`` bytes that it gives."""
        first = len(self.given)
        return bytes((first + number) & 0xFF for number in range(count))

    def handle(self, queue: int, chain: Chain) -> int | None:
        """Fill the buffer; the bytes written."""
        self.device.check("RNG-01", not chain.readable, "a readable element on the request queue")
        count = chain.room if self.at_most is None else min(chain.room, self.at_most)
        data = self.source(count)
        self.given += data
        return chain.fill(data)
