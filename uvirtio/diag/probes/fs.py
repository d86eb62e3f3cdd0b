"""The data path of a file system device (5.11): a FUSE session is opened, its root is looked at, and it is ended.

Nothing of the file system is changed.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Callable, Sequence
from typing import Final

from uvirtio.device import Device, QueueSpec
from uvirtio.diag.probes.outcome import Around, PathResult
from uvirtio.diag.probes.talk import Ask, AskingPath, Room
from uvirtio.spec import fs as spec

_QUEUE_SIZE: Final = 8
_ERRNO_MAX: Final = 4095
"""Of Linux (MAX_ERRNO)."""


def fuse(opcode: int, unique: int, node: int, body: bytes, *, length: int | None = None, user: int = 0,
         group: int = 0) -> bytes:  # fmt: skip
    """A FUSE request (5.11.6).

    Args:
        opcode: Its number, 32 bits.
        unique: What its answer has too, 64 bits.
        node: The node that it is about, 64 bits.
        body: What follows the header.
        length: What the header says that all of it is long, in bytes; None: as long as it is.
        user: The user's id.
        group: The group's id.
    """
    size = spec.FUSE_IN_HEADER.size + len(body)
    return (
        spec.FUSE_IN_HEADER.pack(size if length is None else length, opcode, unique, node, user, group, 0, 0)
        + body
    )


def request(what: str, whole: bytes, answer: int, wrong: Callable[[bytes], str | None] = lambda body: None) -> Ask:
    """A request that is answered in full.

    Args:
        what: What it is called.
        whole: The request.
        answer: The bytes of its answer without the header.
        wrong: What is wrong with these; None: nothing.
    """
    asked = int(spec.FUSE_IN_HEADER.unpack_from(whole)[2])
    head = spec.FUSE_OUT_HEADER.size

    def judge(rooms: Sequence[Room]) -> str | None:
        size, error, unique = spec.FUSE_OUT_HEADER.unpack_from(rooms[0].data)
        if unique != asked or not head <= size <= head + answer:
            return f"length {size}, unique {unique:#x} instead of {head + answer} and {asked:#x}"
        if error:
            return f"error {error} ({os.strerror(-error) if 0 < -error <= _ERRNO_MAX else 'no errno'})"
        return wrong(rooms[0].data[head:])

    return Ask(what, spec.REQUESTQ, (whole,), (head + answer,), judge)


def init(unique: int, *, length: int | None = None, user: int = 0, group: int = 0) -> Ask:
    """FUSE_INIT, which comes first.

    Args:
        unique: As for ``fuse``.
        length: As for ``fuse``.
        user: As for ``fuse``.
        group: As for ``fuse``.
    """

    def wrong(body: bytes) -> str | None:
        (major,) = struct.unpack_from("<I", body)
        right = spec.FUSE_VERSION[0]
        return None if major == right else f"major version {major} of FUSE, not {right}"

    body = spec.FUSE_INIT_IN.pack(*spec.FUSE_VERSION, 1 << 17, 0)
    whole = fuse(spec.FUSE_INIT, unique, 0, body, length=length, user=user, group=group)
    return request("FUSE_INIT", whole, spec.FUSE_INIT_OUT_SIZE, wrong)


def _no_directory(body: bytes) -> str | None:
    (mode,) = struct.unpack_from("<I", body, spec.FUSE_ATTR_MODE)
    return None if stat.S_ISDIR(mode) else f"the root is no directory: mode {mode:#o}"


class FsPath(AskingPath):
    """Opens a FUSE session, and reads the attributes of the root directory."""

    def __init__(self, device: Device, around: Around) -> None:
        """Take over the device; ``start`` brings it up.

        Args:
            device: An open file system device.
            around: What stands around it.
        """
        super().__init__(device, around)
        self._unique = 0

    def queues(self) -> list[QueueSpec]:
        """The priority queue and one for requests."""
        return [
            QueueSpec(spec.HIPRIO, "hiprio", _QUEUE_SIZE),
            QueueSpec(spec.REQUESTQ, "requestq1", _QUEUE_SIZE),
        ]

    def exercise(self) -> PathResult:
        """Exchange FUSE_INIT, FUSE_GETATTR of the root, and FUSE_DESTROY."""
        about = f"tag {tag!r}; " if (tag := self._tag()) else ""
        (answer,) = self.ask(init(self._next(), user=os.getuid(), group=os.getgid()))
        major, minor = struct.unpack_from("<II", answer, spec.FUSE_OUT_HEADER.size)
        about += f"FUSE {major}.{minor}"
        attributes = self._request(spec.FUSE_GETATTR, spec.FUSE_ROOT_ID, spec.FUSE_GETATTR_IN.pack(0, 0, 0))
        (answer,) = self.ask(request("FUSE_GETATTR", attributes, spec.FUSE_ATTR_OUT_SIZE, _no_directory))
        (mode,) = struct.unpack_from("<I", answer, spec.FUSE_OUT_HEADER.size + spec.FUSE_ATTR_MODE)
        # The end of the session: some servers return that request unanswered, so its answer is not judged.
        self.put(request("FUSE_DESTROY", self._request(spec.FUSE_DESTROY, 0, b""), 0))
        return PathResult(f"{about}; root {stat.filemode(mode)}")

    def _next(self) -> int:
        self._unique += 1
        return self._unique

    def _request(self, opcode: int, node: int, body: bytes) -> bytes:
        return fuse(opcode, self._next(), node, body, user=os.getuid(), group=os.getgid())

    def _tag(self) -> str:
        """The tag, from a configuration that has it."""
        if self._device.transport.config_length < spec.TAG_SIZE:
            return ""
        raw = bytes(self._device.transport.read_config(number, 1) for number in range(spec.TAG_SIZE))
        return raw.rstrip(b"\0").decode("utf-8", "replace")
