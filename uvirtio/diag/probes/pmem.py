"""The data path of persistent memory (5.19): a flush, and the memory itself where this process has its file.

A flush alone is a round trip: that something was flushed cannot be seen from here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from uvirtio.device import QueueSpec
from uvirtio.diag.probes.outcome import PathResult, other_side
from uvirtio.diag.probes.talk import QUEUE_SIZE, Ask, AskingPath, Room
from uvirtio.interfaces.backend import OtherSide
from uvirtio.spec import pmem as spec
from uvirtio.spec.layout import by_name

_FIELDS: Final = by_name(spec.CONFIG)
_PLACE: Final = 0x1000
"""Where in the memory something is written, in bytes."""
_FROM_FILE: Final = b"uvirtio, by file"
_BY_CPU: Final = b"uvirtio, by cpu."


def flush() -> Ask:
    """A flush (5.19.6)."""

    def wrong(rooms: Sequence[Room]) -> str | None:
        (ret,) = spec.RESPONSE.unpack(rooms[0].data)
        return None if ret == 0 else f"ret {ret:#x} instead of 0 (5.19.7.1)"

    return Ask("FLUSH", spec.REQUESTQ, (spec.REQUEST.pack(spec.FLUSH),), (spec.RESPONSE.size,), wrong)


class PmemPath(AskingPath):
    """Flushes, and compares both sides of the memory."""

    def queues(self) -> list[QueueSpec]:
        """The one queue that there is."""
        return [QueueSpec(spec.REQUESTQ, "req_vq", QUEUE_SIZE)]

    def exercise(self) -> PathResult:
        """Two flushes; between them bytes go into the memory at one side, and come out at the other."""
        start, size = self._device.read_config(_FIELDS["start"], _FIELDS["size"])
        self.ask(flush())
        about = f"{size >> 20} MiB at {start:#x}; flushed twice"
        side = other_side(self._device, "memory")
        if side is not None:
            self._both_ways(side, start)
            about += "; written in its file and read in the machine, and back"
        self.ask(flush())
        return PathResult(about)

    def _both_ways(self, side: OtherSide, start: int) -> None:
        before = side.file_read(_PLACE, len(_FROM_FILE))
        try:
            side.file_write(_PLACE, _FROM_FILE)
            seen = side.cpu_read(start + _PLACE, len(_FROM_FILE))
            if seen != _FROM_FILE:
                raise self.differs("what its file holds, read in the machine,", repr(seen), repr(_FROM_FILE))
            side.cpu_write(start + _PLACE, _BY_CPU)
            seen = side.file_read(_PLACE, len(_BY_CPU))
            if seen != _BY_CPU:
                raise self.differs("what the machine writes, read in its file,", repr(seen), repr(_BY_CPU))
        finally:
            side.file_write(_PLACE, before)
