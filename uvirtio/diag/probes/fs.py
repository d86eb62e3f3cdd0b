"""The data path of a file system device (5.11): a FUSE session is opened, its root is looked at, and it is ended.

Nothing of the file system is changed. What the device writes is looked at, and not the length that it reports: the
buffer is filled with another byte before.
"""

from __future__ import annotations

import os
import stat
import struct
from typing import Final

from uvirtio.device import Device, Observer, QueueSpec
from uvirtio.diag.probes.outcome import Around, Idle, PathResult
from uvirtio.drivers.base import runs, transact
from uvirtio.errors import ProtocolError
from uvirtio.spec import fs as spec

_QUEUE_SIZE: Final = 8
_ANSWERS: Final = 512
"""Where answers begin in the buffer, in bytes."""

_FILL: Final = 0xEE


class FsPath(Idle):
    """Opens a FUSE session, and reads the attributes of the root directory."""

    def __init__(self, device: Device, around: Around) -> None:
        """Take over the device; ``start`` brings it up.

        Args:
            device: An open file system device.
            around: What stands around it.
        """
        self._device = device
        self._unique = 0

    def start(self, observe: Observer) -> None:
        """Bring the device up with its priority queue and one for requests."""
        queues = [
            QueueSpec(spec.HIPRIO, "hiprio", _QUEUE_SIZE),
            QueueSpec(spec.REQUESTQ, "requestq1", _QUEUE_SIZE),
        ]
        self._device.start(wanted=0, queues=queues, observe=observe, before_ok=self._make_buffer)

    def _make_buffer(self) -> None:
        self._buffer = self._device.dma.alloc(2 * _ANSWERS)

    def exercise(self) -> PathResult:
        """Exchange FUSE_INIT, FUSE_GETATTR of the root, and FUSE_DESTROY."""
        about = f"tag {tag!r}; " if (tag := self._tag()) else ""
        answer = self._request(
            spec.FUSE_INIT, 0, spec.FUSE_INIT_IN.pack(*spec.FUSE_VERSION, 1 << 17, 0), spec.FUSE_INIT_OUT_SIZE
        )
        major, minor = struct.unpack_from("<II", answer)
        about += f"FUSE {major}.{minor}"
        odd = "" if major == spec.FUSE_VERSION[0] else f"major version {major} of FUSE, not {spec.FUSE_VERSION[0]}"
        answer = self._request(
            spec.FUSE_GETATTR, spec.FUSE_ROOT_ID, spec.FUSE_GETATTR_IN.pack(0, 0, 0), spec.FUSE_ATTR_OUT_SIZE
        )
        (mode,) = struct.unpack_from("<I", answer, spec.FUSE_ATTR_MODE)
        about += f"; root {stat.filemode(mode)}"
        if not stat.S_ISDIR(mode):
            odd = odd or f"the root is no directory: mode {mode:#o}"
        self._end()
        return PathResult(about, odd)

    def change_configuration(self) -> PathResult | None:
        """Return None: the host cannot change the tag."""
        return None

    def _tag(self) -> str:
        """The tag, from a configuration that has it."""
        if self._device.transport.config_length < spec.TAG_SIZE:
            return ""
        raw = bytes(self._device.transport.read_config(number, 1) for number in range(spec.TAG_SIZE))
        return raw.rstrip(b"\0").decode("utf-8", "replace")

    def _exchange(self, opcode: int, node: int, body: bytes, room: int) -> bytes:
        """Send one request; what is in the room for its answer then."""
        self._unique += 1
        size = spec.FUSE_IN_HEADER.size + len(body)
        head = spec.FUSE_IN_HEADER.pack(size, opcode, self._unique, node, os.getuid(), os.getgid(), 0, 0)
        view = self._buffer.view
        view[:size] = head + body
        view[_ANSWERS : _ANSWERS + room] = bytes([_FILL]) * room
        transact(
            self._device,
            self._device.queues[spec.REQUESTQ],
            runs(self._buffer, 0, size),
            runs(self._buffer, _ANSWERS, room),
            timeout=self._device.timeout,
            what=f"the answer to FUSE request {opcode}",
        )
        return bytes(view[_ANSWERS : _ANSWERS + room])

    def _request(self, opcode: int, node: int, body: bytes, answer: int) -> bytes:
        """Send a request that is answered in full; the answer without its header."""
        head = spec.FUSE_OUT_HEADER.size
        given = self._exchange(opcode, node, body, head + answer)
        length, error, unique = spec.FUSE_OUT_HEADER.unpack_from(given)
        if unique != self._unique or not head <= length <= head + answer:
            raise self._wrong(
                opcode, f"length {length}, unique {unique:#x}", f"{head + answer} and {self._unique:#x}"
            )
        if error:
            said = os.strerror(-error) if error < 0 else "no errno"
            raise self._wrong(opcode, f"error {error} ({said})", "0")
        return given[head:]

    def _end(self) -> None:
        """End the session; some servers return that request unanswered."""
        self._exchange(spec.FUSE_DESTROY, 0, b"", spec.FUSE_OUT_HEADER.size)

    def _wrong(self, opcode: int, seen: str, expected: str) -> ProtocolError:
        return ProtocolError(
            f"{self._device.address} answers FUSE request {opcode} with what is no answer to it (5.11.6)",
            seen=seen,
            expected=expected,
        )
