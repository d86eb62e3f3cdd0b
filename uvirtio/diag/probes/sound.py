"""The data path of a sound device (5.14): its streams, and one period each way where that may be heard."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from uvirtio.device import QueueSpec
from uvirtio.diag.probes.outcome import PathResult
from uvirtio.diag.probes.talk import QUEUE_SIZE, UNTOUCHED, Ask, AskingPath, Room, in_words
from uvirtio.spec import sound as spec
from uvirtio.spec.layout import by_name
from uvirtio.spec.sound import Request, Status

_FIELDS: Final = by_name(spec.CONFIG)
_STREAMS_MAX: Final = 16
"""Streams that are asked for."""
_PERIOD: Final = 2048
_PARAMS: Final = (2 * _PERIOD, _PERIOD, 0, 2, spec.FORMAT_S16, spec.RATE_48000)
"""Two channels of 16 bits at 48 kHz: a period of 10.7 ms."""
_DIRECTIONS: Final = {spec.OUTPUT: "out", spec.INPUT: "in"}


def code_in_words(code: int) -> str:
    """The code of an answer.

    Args:
        code: 32 bits.
    """
    return in_words(code, Status, "no status of 5.14.6")


def _wrong_code(room: Room) -> str | None:
    (code,) = spec.HEADER.unpack_from(room.data)
    return None if code == Status.OK else code_in_words(code)


def pcm_info(count: int) -> Ask:
    """PCM_INFO of the first streams (5.14.6.6.1), which changes nothing.

    Args:
        count: How many.
    """

    def wrong(rooms: Sequence[Room]) -> str | None:
        no = _wrong_code(rooms[0])
        if no is not None:
            return no
        for number, (_, _, formats, rates, direction, least, most) in enumerate(streams(rooms[0].data)):
            if direction not in _DIRECTIONS or not 1 <= least <= most or not formats or not rates:
                said = f"direction {direction}, {least} to {most} channels, formats {formats:#x}, rates {rates:#x}"
                return f"stream {number}: {said}"
        return None

    body = spec.QUERY_INFO.pack(Request.PCM_INFO, 0, count, spec.PCM_INFO.size)
    room = spec.HEADER.size + count * spec.PCM_INFO.size
    return Ask("PCM_INFO", spec.CONTROLQ, (body,), (room,), wrong)


def streams(answer: bytes) -> list[tuple[int, ...]]:
    """The streams of an answer to PCM_INFO, as the fields of ``spec.sound.PCM_INFO``.

    Args:
        answer: All of it.
    """
    return list(spec.PCM_INFO.iter_unpack(answer[spec.HEADER.size :]))


def control(kind: Request, stream: int) -> Ask:
    """A request about a stream that is answered with a code alone.

    Args:
        kind: Its type.
        stream: The stream.
    """
    body = spec.PCM_HEADER.pack(kind, stream)
    if kind == Request.PCM_SET_PARAMS:
        body = spec.SET_PARAMS.pack(kind, stream, *_PARAMS)
    return Ask(kind.name, spec.CONTROLQ, (body,), (spec.HEADER.size,), lambda rooms: _wrong_code(rooms[0]))


def period(stream: int, direction: int) -> Ask:
    """One period (5.14.6.8): silence that is played, or what is recorded.

    Args:
        stream: The stream.
        direction: ``OUTPUT`` or ``INPUT``.
    """

    def wrong(rooms: Sequence[Room]) -> str | None:
        if rooms[-1].untouched:
            return UNTOUCHED
        no = _wrong_code(rooms[-1])
        return UNTOUCHED if no is None and rooms[0].untouched else no

    head = spec.TRANSFER.pack(stream)
    if direction == spec.OUTPUT:
        return Ask("a period to play", spec.TXQ, (head, bytes(_PERIOD)), (spec.TRANSFER_STATUS.size,), wrong)
    return Ask("a period to record", spec.RXQ, (head,), (_PERIOD, spec.TRANSFER_STATUS.size), wrong)


class SoundPath(AskingPath):
    """Asks for the streams; plays silence and records where that may be."""

    def queues(self) -> list[QueueSpec]:
        """All four."""
        names = ("controlq", "eventq", "txq", "rxq")
        return [
            QueueSpec(index, name, QUEUE_SIZE, owed=index != spec.EVENTQ, required=index != spec.EVENTQ)
            for index, name in enumerate(names)
        ]

    def exercise(self) -> PathResult:
        """PCM_INFO; of the first stream of each direction SET_PARAMS, PREPARE, START, a period, STOP, RELEASE."""
        (count,) = self._device.read_config(_FIELDS["streams"])
        if not count:
            return PathResult("it has no stream: nothing was asked", skipped=True)
        (answer,) = self.ask(pcm_info(min(count, _STREAMS_MAX)))
        directions = [one[4] for one in streams(answer)]
        about = f"{count} streams: {', '.join(_DIRECTIONS[one] for one in directions)}"
        if not self._around.intrusive:
            return PathResult(f"{about}; nothing was played, which others would hear")
        for direction, word in _DIRECTIONS.items():
            if direction in directions:
                about += f"; a period {word} after {self._move(directions.index(direction), direction):.0f} ms"
        return PathResult(about)

    def _move(self, stream: int, direction: int) -> float:
        """Play or record a period; the milliseconds that it took."""
        for kind in (Request.PCM_SET_PARAMS, Request.PCM_PREPARE, Request.PCM_START):
            self.ask(control(kind, stream))
        began = self._device.clock.monotonic()
        self.ask(period(stream, direction))
        took = self._device.clock.monotonic() - began
        for kind in (Request.PCM_STOP, Request.PCM_RELEASE):
            self.ask(control(kind, stream))
        return 1000 * took
