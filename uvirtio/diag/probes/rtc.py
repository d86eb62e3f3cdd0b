"""The data path of a clock (5.23): its clocks are counted, and the first is read twice."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

from uvirtio.device import QueueSpec
from uvirtio.diag.probes.outcome import PathResult
from uvirtio.diag.probes.talk import QUEUE_SIZE, Ask, AskingPath, Room, in_words
from uvirtio.spec import rtc as spec
from uvirtio.spec.rtc import Request, Status

_FIRST: Final = 0
_PAUSE: Final = 0.005
"""Seconds between both readings."""
_LATEST: Final = 253_402_300_799 * 10**9
"""The end of the year 9999, in nanoseconds since 1970."""


def _asked(kind: Request, body: bytes, room: int, wrong: str) -> Ask:
    def judge(rooms: Sequence[Room]) -> str | None:
        status, zeros = rooms[0].data[0], rooms[0].data[1:8]
        if status != Status.OK or any(zeros):
            return f"status {in_words(status, Status, 'no status of 5.23.6')}, then {zeros.hex(' ')}{wrong}"
        return None

    return Ask(kind.name, spec.REQUESTQ, (body,), (room,), judge)


def configuration() -> Ask:
    """CFG: how many clocks there are."""
    plain = _asked(Request.CFG, spec.HEAD.pack(Request.CFG), spec.CFG.size, "")

    def wrong(rooms: Sequence[Room]) -> str | None:
        no = plain.wrong(rooms)
        return no if no is not None or spec.CFG.unpack(rooms[0].data)[1] else "no clock at all (5.23.6)"

    return plain._replace(wrong=wrong)


def capability(clock: int) -> Ask:
    """CLOCK_CAP: what kind of clock it is.

    Args:
        clock: Its number, 16 bits.
    """
    body = spec.OF_CLOCK.pack(Request.CLOCK_CAP, clock)
    plain = _asked(Request.CLOCK_CAP, body, spec.CLOCK_CAP.size, f" of clock {clock}")

    def wrong(rooms: Sequence[Room]) -> str | None:
        no = plain.wrong(rooms)
        if no is not None:
            return no
        kind = spec.CLOCK_CAP.unpack(rooms[0].data)[1]
        return None if kind in spec.CLOCK_TYPES else f"clock {clock} is of type {kind}, which there is not"

    return plain._replace(wrong=wrong)


def reading(clock: int) -> Ask:
    """READ: what the clock shows, in nanoseconds.

    Args:
        clock: Its number, 16 bits.
    """
    return _asked(Request.READ, spec.OF_CLOCK.pack(Request.READ, clock), spec.READ.size, f" of clock {clock}")


class RtcPath(AskingPath):
    """Reads the first clock twice, and compares what passed meanwhile."""

    def queues(self) -> list[QueueSpec]:
        """The queue for requests."""
        return [QueueSpec(spec.REQUESTQ, "requestq", QUEUE_SIZE)]

    def exercise(self) -> PathResult:
        """CFG, CLOCK_CAP, READ twice."""
        (answer,) = self.ask(configuration())
        count = spec.CFG.unpack(answer)[1]
        (answer,) = self.ask(capability(_FIRST))
        kind = spec.CLOCK_TYPES[spec.CLOCK_CAP.unpack(answer)[1]]
        first, began = self._read(), self._device.clock.monotonic()
        self._device.wait(lambda: False, timeout=_PAUSE, what="time to pass", owed=False)
        second, took = self._read(), self._device.clock.monotonic() - began
        shown = f"{first} ns"
        if kind == spec.CLOCK_TYPES[spec.UTC] and first <= _LATEST:
            shown = datetime.fromtimestamp(first // 10**9, UTC).strftime("%Y-%m-%d %H:%M:%S")
        about = f"{count} clock{'s' * (count != 1)}; clock 0, {kind}: {shown}"
        passed = (second - first) / 1e9
        if passed <= 0:
            return PathResult(about, f"it does not go on: {passed:g} s between readings {took:.3f} s apart")
        return PathResult(f"{about}; it goes on")

    def _read(self) -> int:
        (answer,) = self.ask(reading(_FIRST))
        return int(spec.READ.unpack(answer)[1])
