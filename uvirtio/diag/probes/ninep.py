"""The data path of a 9P transport (type 9): the version is agreed on, and the root is attached."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from struct import pack, unpack_from
from typing import Final

from uvirtio.device import QueueSpec
from uvirtio.diag.probes.outcome import PathResult
from uvirtio.diag.probes.talk import QUEUE_SIZE, Ask, AskingPath, Room
from uvirtio.spec import ninep as spec
from uvirtio.spec.layout import Field
from uvirtio.spec.ninep import Message

_TAG_LENGTH: Final = Field("tag_len", 0, spec.TAG_LENGTH_SIZE)
_TAG: Final = 1
_SIZE_MAX: Final = 8192
_ROOM: Final = 21
"""Bytes: what Rversion has; the other answers are shorter."""


def _text(text: bytes) -> bytes:
    return pack("<H", len(text)) + text


def request(kind: Message, tag: int, body: bytes, wrong: Callable[[bytes], str | None], *, least: int) -> Ask:
    """A message, whose answer has the next type and the same tag.

    Args:
        kind: Its type.
        tag: 16 bits.
        body: What follows the head.
        wrong: What is wrong with what follows the head of the answer; None: nothing.
        least: The bytes that this has at least.
    """

    def judge(rooms: Sequence[Room]) -> str | None:
        data = rooms[0].data
        size, got, echo = spec.HEAD.unpack_from(data)
        if got == Message.RLERROR:
            return f"Rlerror, errno {unpack_from('<I', data, spec.HEAD.size)[0]}"
        if (got, echo) != (kind + 1, tag) or not spec.HEAD.size + least <= size <= len(data):
            return f"type {got}, tag {echo:#x}, size {size} instead of type {kind + 1}, tag {tag:#x}"
        return wrong(data[spec.HEAD.size : size])

    whole = spec.HEAD.pack(spec.HEAD.size + len(body), kind, tag) + body
    return Ask(f"9P {kind.name.capitalize()}", spec.REQUESTQ, (whole,), (_ROOM,), judge)


def version() -> Ask:
    """Tversion, which also ends what there was before."""
    body = pack("<I", _SIZE_MAX) + _text(spec.VERSION)

    def wrong(answer: bytes) -> str | None:
        (size,) = unpack_from("<I", answer)
        said = answer[6:]
        if said != spec.VERSION:
            return f"version {said!r}"
        return None if 256 <= size <= _SIZE_MAX else f"messages of {size} bytes"

    return request(Message.TVERSION, spec.NO_TAG, body, wrong, least=6)


def attach() -> Ask:
    """Tattach of the root as fid 0, by uid 0."""
    body = pack("<II", 0, spec.NO_FID) + _text(b"") + _text(b"") + pack("<I", 0)

    def wrong(answer: bytes) -> str | None:
        kind, _, _ = spec.QID.unpack_from(answer)
        return None if kind & spec.QID_DIRECTORY else f"the root is no directory: qid type {kind:#x}"

    return request(Message.TATTACH, _TAG, body, wrong, least=spec.QID.size)


class NinePPath(AskingPath):
    """Agrees on 9P2000.L, and attaches the root of the file system."""

    def queues(self) -> list[QueueSpec]:
        """The one queue that there is."""
        return [QueueSpec(spec.REQUESTQ, "requests", QUEUE_SIZE)]

    def exercise(self) -> PathResult:
        """Tversion and Tattach, then Tversion again, which lets go of the root."""
        (answer,) = self.ask(version())
        (size,) = unpack_from("<I", answer, spec.HEAD.size)
        self.ask(attach())
        self.ask(version())
        return PathResult(f"{self._tag()}9P2000.L, messages of {size} bytes; the root is a directory")

    def _tag(self) -> str:
        """The mount tag, from a configuration that has it."""
        have = self._device.transport.config_length
        if have < spec.TAG_LENGTH_SIZE:
            return ""
        (length,) = self._device.read_config(_TAG_LENGTH)
        length = min(length, have - spec.TAG_LENGTH_SIZE)
        read = self._device.transport.read_config
        raw = bytes(read(spec.TAG_LENGTH_SIZE + number, 1) for number in range(length))
        return f"mount tag {raw.decode('utf-8', 'replace')!r}; "
