"""A vhost-user back end, played: it keeps the rules of the protocol, logs what it is sent, and errs where told.

It serves split rings of one connection at a time, in a thread. Every device-writable byte of a chain is filled
from ``PATTERN``.
"""

from __future__ import annotations

import array
import contextlib
import mmap
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from uvirtio.backends.vhost_user import spec
from uvirtio.backends.vhost_user.spec import ProtocolFeature as P
from uvirtio.backends.vhost_user.spec import Request as R
from uvirtio.spec import features as f

PATTERN = bytes(range(1, 256))
PLAIN = f.mask(f.VERSION_1, f.INDIRECT_DESC, f.EVENT_IDX, 24, 26, spec.F_PROTOCOL_FEATURES)
PROTOCOL = f.mask(P.MQ, P.REPLY_ACK, P.BACKEND_REQ, P.CONFIG)

ANSWERED = (R.GET_FEATURES, R.GET_PROTOCOL_FEATURES, R.GET_QUEUE_NUM, R.GET_VRING_BASE, R.GET_CONFIG, R.GET_STATUS)

Act = Callable[["PlayedBackEnd", socket.socket, bytes], None]
"""What is done with one message instead of what the protocol says."""


class Ring:
    def __init__(self) -> None:
        self.num = self.base = 0
        self.desc = self.avail = self.used = 0
        self.kick = self.call = -1
        self.enabled = False


class PlayedBackEnd:
    """Listens on ``path`` until ``close()``, or serves ``connection`` alone.

    ``acts`` maps a message to what is done instead.
    """

    def __init__(
        self,
        path: Path | None,
        *,
        connection: socket.socket | None = None,
        features: int = PLAIN,
        protocol: int = PROTOCOL,
        config: bytes = b"",
        queues: int = 1,
        acts: dict[R, Act] | None = None,
    ) -> None:
        self.features, self.protocol, self.config, self.count = features, protocol, config, queues
        self.acts = acts or {}
        self.holds = self.deaf = False
        """Takes buffers and does not return them; does not hear kicks."""
        self.accepted = 0
        self.taken_protocol = self.taken = self.status = 0
        self.log: list[str] = []
        self.payloads: list[tuple[str, bytes]] = []
        self.rings: dict[int, Ring] = {}
        self.memory: mmap.mmap | None = None
        self.region = (0, 0, 0)
        self.channel: socket.socket | None = None
        self.files: list[int] = []
        self._connection = connection
        self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        if path is not None:
            self._listening.bind(str(path))
            self._listening.listen(4)
        self._closed = False
        self._wake, self._woken = os.pipe()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    # --- the thread -----------------------------------------------------------------------------------------

    def _run(self) -> None:
        if self._connection is not None:
            with self._connection:
                self._converse(self._connection)
            return
        while True:
            if not self._wait(self._listening):
                return
            connection, _ = self._listening.accept()
            self.accepted += 1
            with connection:
                alive = self._converse(connection)
            self._forget()
            if not alive:
                return

    def _wait(self, what: socket.socket) -> bool:
        """Wait for the socket, and serve rings meanwhile; False at the end of this back end."""
        while True:
            kicks = {ring.kick: ring for ring in self.rings.values() if ring.kick >= 0}
            poller = select.poll()
            for number in (what.fileno(), self._wake, *kicks):
                poller.register(number, select.POLLIN)
            ready = {number for number, _ in poller.poll()}
            if self._wake in ready:
                return False
            for fd in ready:
                if fd in kicks:
                    with contextlib.suppress(BlockingIOError):
                        os.eventfd_read(fd)
                    if not self.deaf:
                        self._serve(kicks[fd])
            if what.fileno() in ready:
                return True

    def _converse(self, connection: socket.socket) -> bool:
        """Serve one front end; False at the end of this back end."""
        room = socket.CMSG_SPACE(8 * 4)
        while self._wait(connection):
            try:
                head, extra, _, _ = connection.recvmsg(spec.HEADER.size, room, socket.MSG_WAITALL)
            except OSError:
                return True
            if len(head) < spec.HEADER.size:
                return True
            number, flags, size = spec.HEADER.unpack(head)
            payload = connection.recv(size, socket.MSG_WAITALL) if size else b""
            fds = array.array("i")
            for _level, _kind, data in extra:
                fds.frombytes(data)
            self.files += fds
            request = R(number)
            self.log.append(request.name)
            self.payloads.append((request.name, payload))
            act = self.acts.get(request)
            try:
                if act is not None:
                    act(self, connection, payload)
                    continue
                answer = getattr(self, f"_{request.name.lower()}", self._nothing)(payload, list(fds))
                if request in ANSWERED:
                    self.reply(connection, request, answer)
                elif flags & spec.NEED_REPLY:
                    self.reply(connection, request, spec.U64.pack(answer or 0))
            except OSError:
                return True
        return False

    def _forget(self) -> None:
        self.rings.clear()
        if self.memory is not None:
            self.memory.close()
            self.memory = None
        if self.channel is not None:
            self.channel.close()
            self.channel = None
        for fd in self.files:
            with contextlib.suppress(OSError):
                os.close(fd)
        self.files.clear()

    def join(self) -> None:
        """Wait until it has served the connection that it was given."""
        self._thread.join()

    def close(self) -> None:
        """End it; idempotent."""
        if self._closed:
            return
        self._closed = True
        os.write(self._woken, b"x")
        self._thread.join(10)
        assert not self._thread.is_alive()
        self._forget()
        self._listening.close()
        os.close(self._wake)
        os.close(self._woken)

    # --- messages -------------------------------------------------------------------------------------------

    @staticmethod
    def reply(connection: socket.socket, request: R, payload: bytes, fds: tuple[int, ...] = ()) -> None:
        extra = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        head = spec.HEADER.pack(request, spec.VERSION | spec.REPLY, len(payload))
        connection.sendmsg([head + payload], extra)

    def tell_config_change(self, *, need_reply: bool = False) -> None:
        """Send CONFIG_CHANGE_MSG on the back-end channel."""
        assert self.channel is not None
        flags = spec.VERSION | (spec.NEED_REPLY if need_reply else 0)
        self.channel.send(spec.HEADER.pack(spec.BackendRequest.CONFIG_CHANGE_MSG, flags, 0))

    def _nothing(self, payload: bytes, fds: list[int]) -> int:
        del payload, fds
        return 0

    def _get_features(self, *_: Any) -> bytes:
        return spec.U64.pack(self.features)

    def _set_features(self, payload: bytes, _: Any) -> int:
        self.taken = spec.U64.unpack(payload)[0]
        return int(bool(self.taken & ~self.features))

    def _get_protocol_features(self, *_: Any) -> bytes:
        return spec.U64.pack(self.protocol)

    def _set_protocol_features(self, payload: bytes, _: Any) -> int:
        self.taken_protocol = spec.U64.unpack(payload)[0]
        assert not self.taken_protocol & ~self.protocol
        return 0

    def _get_queue_num(self, *_: Any) -> bytes:
        return spec.U64.pack(self.count)

    def _get_config(self, payload: bytes, _: Any) -> bytes:
        offset, size, _flags = spec.CONFIG.unpack_from(payload)
        assert len(payload) == spec.CONFIG.size + size
        if size > len(self.config):
            return b""
        return spec.CONFIG.pack(offset, size, 0) + self.config[:size]  # as libvhost-user: the offset is ignored

    def _set_backend_req_fd(self, _: bytes, fds: list[int]) -> int:
        self.channel = socket.socket(fileno=fds[0])
        self.files.remove(fds[0])
        return 0

    def _get_status(self, *_: Any) -> bytes:
        return spec.U64.pack(self.status)

    def _set_status(self, payload: bytes, _: Any) -> int:
        self.status = spec.U64.unpack(payload)[0]
        return 0

    def _set_mem_table(self, payload: bytes, fds: list[int]) -> int:
        count, _padding = spec.MEMORY_TABLE.unpack_from(payload)
        assert count == len(fds) == 1
        guest, size, user, offset = spec.MEMORY_REGION.unpack_from(payload, spec.MEMORY_TABLE.size)
        assert guest == user and offset == 0
        self.region = (guest, size, user)
        self.memory = mmap.mmap(fds[0], size)
        return 0

    def _ring(self, payload: bytes) -> tuple[Ring, int]:
        index, number = spec.VRING_STATE.unpack(payload)
        return self.rings.setdefault(index, Ring()), number

    def _set_vring_num(self, payload: bytes, _: Any) -> int:
        ring, ring.num = self._ring(payload)
        return 0

    def _set_vring_base(self, payload: bytes, _: Any) -> int:
        ring, ring.base = self._ring(payload)
        return 0

    def _set_vring_addr(self, payload: bytes, _: Any) -> int:
        assert self.memory is not None
        index, _flags, desc, used, avail, _log = spec.VRING_ADDRESS.unpack(payload)
        ring = self.rings[index]
        ring.desc, ring.used, ring.avail = (address - self.region[2] for address in (desc, used, avail))
        return 0

    def _set_vring_kick(self, payload: bytes, fds: list[int]) -> int:
        self.rings[spec.U64.unpack(payload)[0] & spec.VRING_INDEX_MASK].kick = fds[0]
        return 0

    def _set_vring_call(self, payload: bytes, fds: list[int]) -> int:
        self.rings[spec.U64.unpack(payload)[0] & spec.VRING_INDEX_MASK].call = fds[0]
        return 0

    def _set_vring_enable(self, payload: bytes, _: Any) -> int:
        ring, on = self._ring(payload)
        ring.enabled = bool(on)
        return 0

    def _get_vring_base(self, payload: bytes, _: Any) -> bytes:
        index = spec.VRING_STATE.unpack(payload)[0]
        ring = self.rings[index]
        assert ring.kick >= 0, "a ring that was not started"
        ring.kick = -1
        return spec.VRING_STATE.pack(index, ring.base)

    # --- rings ----------------------------------------------------------------------------------------------

    def _serve(self, ring: Ring) -> None:
        memory = self.memory
        assert memory is not None
        (there,) = struct.unpack_from("<H", memory, ring.avail + 2)
        while ring.base != there:
            (head,) = struct.unpack_from("<H", memory, ring.avail + 4 + 2 * (ring.base % ring.num))
            ring.base = (ring.base + 1) % 0x10000
            if self.holds:
                continue
            wrote, index = 0, head
            while True:
                address, length, flags, after = struct.unpack_from("<QIHH", memory, ring.desc + 16 * index)
                if flags & 2:
                    start = address - self.region[0]
                    memory[start : start + length] = (PATTERN * (length // len(PATTERN) + 1))[:length]
                    wrote += length
                if not flags & 1:
                    break
                index = after
            (used,) = struct.unpack_from("<H", memory, ring.used + 2)
            struct.pack_into("<II", memory, ring.used + 4 + 8 * (used % ring.num), head, wrote)
            struct.pack_into("<H", memory, ring.used + 2, (used + 1) % 0x10000)
        # Ask for a kick at the next buffer (2.7.10), and call.
        struct.pack_into("<H", memory, ring.used + 4 + 8 * ring.num, ring.base)
        os.eventfd_write(ring.call, 1)


# --- what a back end may do wrong: the acts of one message ------------------------------------------------------


def says(
    payload: bytes, *, request: int | None = None, flags: int = spec.VERSION | spec.REPLY, size: int = -1
) -> Act:
    """Answer with these bytes, under any header."""

    def act(played: PlayedBackEnd, connection: socket.socket, _: bytes) -> None:
        number = R[played.log[-1]] if request is None else request
        connection.sendall(spec.HEADER.pack(number, flags, len(payload) if size < 0 else size) + payload)

    return act


def silent(_played: PlayedBackEnd, _connection: socket.socket, _payload: bytes) -> None:
    """Say nothing."""


def cut_off(data: bytes) -> Act:
    """Send some bytes, and close the connection."""

    def act(_: PlayedBackEnd, connection: socket.socket, _payload: bytes) -> None:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_RDWR)

    return act


def late(seconds: float) -> Act:
    """Answer as ever, after a while."""

    def act(played: PlayedBackEnd, connection: socket.socket, _: bytes) -> None:
        time.sleep(seconds)
        with contextlib.suppress(OSError):
            played.reply(connection, R[played.log[-1]], spec.U64.pack(0))

    return act


def with_descriptors(count: int) -> Act:
    """Answer as ever, with that many descriptors."""

    def act(played: PlayedBackEnd, connection: socket.socket, _: bytes) -> None:
        null = os.open("/dev/null", os.O_RDONLY)
        try:
            played.reply(connection, R[played.log[-1]], spec.U64.pack(PLAIN), (null,) * count)
        finally:
            os.close(null)

    return act
