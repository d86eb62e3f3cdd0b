"""A vhost-user back end: one method for each message, under the names that vhost gives them.

What virtio keeps in registers and vhost-user has no message for is kept here: the device status, where STATUS is
not negotiated, and the configuration, which is read whole (libvhost-user ignores the offset).

The reset is the stop of every started ring. Where it shows that the back end still holds requests, or does not end
in time, the connection is closed and its memory given up; the next start makes another connection, if it is still
the same process that listens.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from uvirtio.backends.vhost_user import device_types, memory, spec
from uvirtio.backends.vhost_user.config import DeviceConfig
from uvirtio.backends.vhost_user.connection import Connection
from uvirtio.backends.vhost_user.events import ConfigChanges, HangUp
from uvirtio.backends.vhost_user.peer import Peer, of_child
from uvirtio.backends.vhost_user.spec import ProtocolFeature, Request
from uvirtio.errors import (
    Busy,
    Closed,
    DeviceAbsent,
    DeviceFailure,
    DeviceGone,
    NoSuchDevice,
    NotSupported,
    OperationFailed,
    PermissionLack,
    UvirtioError,
)
from uvirtio.host.roots import Roots
from uvirtio.memory.unclosed import warn_unclosed
from uvirtio.spec import blk
from uvirtio.spec import features as f
from uvirtio.spec.status import Status
from uvirtio.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from uvirtio.interfaces.memory import Event

QUEUE_SIZE: Final = 256
"""No message tells the maximum, and all back ends take this many entries."""

WANTED: Final = f.mask(
    ProtocolFeature.MQ,
    ProtocolFeature.REPLY_ACK,
    ProtocolFeature.BACKEND_REQ,
    ProtocolFeature.CONFIG,
    ProtocolFeature.RESET_DEVICE,
    ProtocolFeature.STATUS,
)
"""Protocol features that are accepted where they are offered."""

HIDDEN: Final = f.mask(spec.F_NOTIFY_ON_EMPTY, spec.F_LOG_ALL, spec.F_PROTOCOL_FEATURES, f.ACCESS_PLATFORM)
"""Bits among the features that no driver sees: three are none of a modern device's, and there is no IOTLB here
that ACCESS_PLATFORM could stand for."""

_FIRST_EXCHANGE: Final = 0.5
"""Seconds for which a first exchange that is cut off is tried again: some back ends replace their socket after
each connection."""

_PAUSE: Final = 2e-3


class Daemon(Protocol):
    """The process behind the socket, where this process has started it."""

    pid: int
    """Its number."""

    program: str
    """The path of its program."""

    serves_one: bool
    """Whether it has one connection, made before its start, and takes no other."""

    def take_connected(self) -> socket.socket | None:
        """Hand out that connection, once."""
        ...

    @property
    def exited(self) -> bool:
        """Whether it has ended."""
        ...

    def autopsy(self) -> str:
        """Return how it ended, and what it said."""
        ...

    def close(self) -> None:
        """End it; idempotent."""
        ...


@dataclass(slots=True)
class _Ring:
    """What is known of a ring since the last reset."""

    used: int = 0
    started: bool = False


class VhostUserNode:
    """A connected back end. Satisfies ``VhostUserNode`` of the interfaces; a context manager.

    Raises:
        DeviceTimeout: In any message: no reply in time.
        ProtocolError: In any message: a reply that cannot be.
        DeviceGone: In any message: the back end has closed the connection.
        OperationFailed: In any message: the back end refused it.
        Closed: In any method: after ``close()``.
    """

    bus: Literal["vhost-user"] = "vhost-user"
    calls: int | None = None
    undivided = True

    def __init__(
        self,
        path: str,
        device_id: int,
        *,
        address: str,
        timeout: float,
        given: Mapping[str, str] | None = None,
        slots: bool = False,
        daemon: Daemon | None = None,
        roots: Roots | None = None,
    ) -> None:
        """Connect to a back end, and agree on the protocol.

        Args:
            path: Its socket.
            device_id: The virtio device ID, which no message tells.
            address: What the device is called in errors.
            timeout: Seconds that the back end has for each reply.
            given: Fields of the configuration (``fields.KEYS``), for a back end that has none.
            slots: Ask how many memory regions it takes; not for a node whose rings will be started.
            daemon: The back end's process, which this object owns from now on, even if this call fails.
            roots: Where /proc is.

        Raises:
            NoSuchDevice: Nothing listens at the socket.
            PermissionLack: This user may not connect.
            Busy: Its backlog is full.
            OperationFailed: The process ended at once.
            NotSupported: The back end does not offer VERSION_1.
            UsageError: It has a configuration, and ``given`` has fields of one.
            DeviceTimeout: It does not answer: another front end may be connected.
            ProtocolError: It does not speak vhost-user.
            DeviceGone: It closed the connection.
        """
        self._path = path
        self._device_id = device_id
        self._timeout = timeout
        self._until = threading.local()
        self._daemon = daemon
        self.program = None if daemon is None else daemon.program
        """The path of the back end's program, where this process has started it."""
        self._roots = roots or Roots()
        self._closed = False
        self._connection: Connection | None = None
        self.peer: Peer | None = None
        """The process behind the socket."""
        self._memory: memory.SharedMemory | None = None
        self._table_sent = False
        self._rings: dict[int, _Ring] = {}
        self._status = 0
        self._features_refused = False
        self._config = DeviceConfig(device_id, given or {}, address)
        self.offered = 0
        """The feature word that the back end sends."""
        self._queues = 0
        self._packed = False
        self.address = address
        self.protocol_offered = 0
        """Mask of the ``ProtocolFeature`` bits that the back end offers."""
        self.protocol_features = 0
        """Mask of those that were negotiated."""
        # With CONFIGURE_MEM_SLOTS memory would be sent by another message.
        self._wanted = WANTED | (f.mask(ProtocolFeature.CONFIGURE_MEM_SLOTS) if slots else 0)
        self.memory_slots: int | None = None
        """How many memory regions the back end takes; None where it was not asked, or does not say."""
        self.removal: Event = HangUp(self._connected)
        """Fires when the back end hangs up."""
        self.config_changes: Event | None = None
        """Fires when the configuration changes; None where the back end cannot say so."""
        try:
            self._connect()
        except BaseException:
            self.close()
            raise
        self.description = self._described()

    def _described(self) -> str:
        """One line: who is behind the socket, and which protocol features were negotiated."""
        named = [bit.name for bit in ProtocolFeature if self.has(bit)]
        return f"vhost-user, {self.peer}, protocol features {' '.join(named) or 'none'}"

    def hurry(self, deadline: float | None) -> float | None:
        """Give the messages of this thread a deadline before that of each reply; see ``Hurries``."""
        before, self._until.deadline = self._hurried(), deadline
        return before

    def _hurried(self) -> float | None:
        found: float | None = getattr(self._until, "deadline", None)
        return found

    def _fate(self) -> str:
        """How the back end's process has ended; empty where it runs, or that cannot be seen."""
        if self.peer is None or not self.peer.ended:
            return ""
        return f"{self.peer} has ended" if self._daemon is None else self._daemon.autopsy()

    def has(self, bit: ProtocolFeature) -> bool:
        """Whether a protocol feature was negotiated."""
        return bool(self.protocol_features >> bit & 1)

    # --- the connection -------------------------------------------------------------------------------------

    def _connected(self) -> Connection:
        """The connection; a new one after the reset has given up the one before.

        Raises:
            DeviceGone: It has ended by itself.
            Closed: After ``close()``.
        """
        if self._closed:
            raise Closed(f"{self.address} is closed")
        if self._connection is None:
            self._connect()
        assert self._connection is not None
        return self._connection

    def _connect(self) -> None:
        deadline = time.monotonic() + min(self._timeout, _FIRST_EXCHANGE)
        while True:
            connection = Connection(self._socket(), self.address, self._timeout)
            try:
                self._greet(connection)
                return
            except DeviceGone:
                # Cut off at once: accepted by a socket that is about to be made again.
                if self._daemon is not None and self._ended_soon():
                    raise self._unreachable(OSError()) from None
                if connection.messages != 1 or time.monotonic() >= deadline:
                    raise
                time.sleep(_PAUSE)

    def _ended_soon(self) -> bool:
        """Whether the back end's process has ended; its sockets close a moment before that is known."""
        deadline = time.monotonic() + min(self._timeout, _FIRST_EXCHANGE)
        while self._daemon is not None and not self._daemon.exited and time.monotonic() < deadline:
            time.sleep(_PAUSE)
        return self._daemon is not None and self._daemon.exited

    def _socket(self) -> socket.socket:
        """Connect; a socket that is not there yet is waited for, for as long as its process runs."""
        if self._daemon is not None and self._daemon.serves_one:
            handed = self._daemon.take_connected()
            if handed is None:
                raise DeviceGone(
                    f"the back end of {self.address} serves one connection, and that has ended",
                    seen="the connection was given up, or cut off",
                    expected="a back end that takes another one",
                    remedy="open the address again, which starts it again; or use {fd}, where it can listen",
                )
            return handed
        patience = self._timeout if self._daemon is not None else min(self._timeout, _FIRST_EXCHANGE)
        deadline = time.monotonic() + patience
        while True:
            made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            made.setblocking(False)  # a full backlog would block connect(), without any limit
            try:
                made.connect(self._path)
            except OSError as error:
                made.close()
                ended = self._daemon is not None and self._daemon.exited
                wait = isinstance(error, FileNotFoundError | ConnectionRefusedError | BlockingIOError)
                if ended or not wait or time.monotonic() >= deadline:
                    raise self._unreachable(error) from error
                time.sleep(_PAUSE)
                continue
            return made

    def _unreachable(self, error: OSError) -> UvirtioError:
        seen = os.strerror(error.errno or 0)
        if self._daemon is not None and self._daemon.exited:
            return OperationFailed(
                "the back end ended before it took a connection",
                seen=self._daemon.autopsy(),
                expected=f"a process that listens on {self._path}",
                remedy="try its command by hand",
            )
        if isinstance(error, PermissionError):
            return PermissionLack(
                f"this user may not connect to {self._path}",
                seen=f"{seen}, as user {os.geteuid()}",
                expected="write permission for the socket, and search permission for its directories",
                remedy="run as the user of the back end, or have it make its socket for a group of yours",
            )
        if isinstance(error, BlockingIOError):
            return Busy(
                f"{self._path} takes no connection",
                seen="its backlog is full: other front ends wait for it, too",
                expected="a back end that is not in use",
                remedy="end the other front ends",
            )
        return NoSuchDevice(
            f"no back end listens on {self._path}",
            seen=seen,
            expected="the socket of a vhost-user back end",
            remedy="start one: qemu-storage-daemon --export type=vhost-user-blk,...; or vhost-user:qsd/FILE"
            if self._device_id == blk.TYPE
            else "start one, or have it started: vhost-user:TYPE,exec=COMMAND",
        )

    def _greet(self, connection: Connection) -> None:
        """The first exchange: features, protocol features, the owner, queues, the back-end channel."""
        offered, roots = 0, self._roots
        try:
            pid, uid, gid = connection.credentials
            if self.peer is not None and self._daemon is None and pid != self.peer.pid:
                raise DeviceGone(
                    f"another process listens for {self.address} now",
                    seen=f"pid {pid}",
                    expected=f"pid {self.peer.pid}",
                    remedy="open it again: that is another device",
                )
            if self.peer is None:
                self.peer = of_child(self._daemon.pid, roots) if self._daemon else Peer(pid, uid, gid, roots)
            connection.fate, connection.hurried = self._fate, self._hurried
            offered = connection.ask_number(Request.GET_FEATURES)
            if not offered >> f.VERSION_1 & 1:
                raise NotSupported(
                    f"the back end of {self.address} has no modern device",
                    seen=f"features {offered:#x}",
                    expected="VIRTIO_F_VERSION_1 (bit 32)",
                    remedy="use a newer back end",
                )
            self._negotiate(connection, offered)
            self.peer.look()
        except BaseException:
            connection.close()
            self._close_channel()
            raise
        self._connection, self.offered = connection, offered

    def _negotiate(self, connection: Connection, offered: int) -> None:
        self.protocol_offered = self.protocol_features = 0
        if offered >> spec.F_PROTOCOL_FEATURES & 1:
            self.protocol_offered = connection.ask_number(Request.GET_PROTOCOL_FEATURES)
            self.protocol_features = self.protocol_offered & self._wanted
            connection.tell(Request.SET_PROTOCOL_FEATURES, spec.U64.pack(self.protocol_features))
            connection.acks = self.has(ProtocolFeature.REPLY_ACK)
        connection.tell(Request.SET_OWNER)
        self._queues = device_types.QUEUES.get(self._device_id, 1)
        if self.has(ProtocolFeature.MQ):
            # Some say more than SET_VRING_KICK has bits for.
            self._queues = min(connection.ask_number(Request.GET_QUEUE_NUM), spec.QUEUES_MAX)
        if self.has(ProtocolFeature.CONFIGURE_MEM_SLOTS):
            self.memory_slots = connection.ask_number(Request.GET_MAX_MEM_SLOTS)
        if self.has(ProtocolFeature.BACKEND_REQ) and self.has(ProtocolFeature.CONFIG):
            self.config_changes = channel = ConfigChanges(self._config.forget, connection, self.address)
            channel.send_end(lambda fd: connection.tell(Request.SET_BACKEND_REQ_FD, fds=(fd,)))
        self._config.measure(connection, self._queues, asks=self.has(ProtocolFeature.CONFIG))

    # --- VdpaNode: identity, features, status ---------------------------------------------------------------

    def get_device_id(self) -> int:
        """Return the virtio device ID, which the address has told."""
        return self._device_id

    def get_features(self) -> int:
        """Return the offered features (GET_FEATURES), without the bits that mean nothing to a driver."""
        return self._config.features(self._connected().ask_number(Request.GET_FEATURES) & ~HIDDEN)

    def set_features(self, features: int) -> None:
        """Write the accepted features (SET_FEATURES); a refusal clears FEATURES_OK."""
        self._packed = bool(features >> f.RING_PACKED & 1)
        # A back end whose protocol features are used, and that is not told so here, ends at SET_VRING_ENABLE.
        features |= self.offered & 1 << spec.F_PROTOCOL_FEATURES
        features &= self.offered | ~self._config.added
        self._features_refused = False
        try:
            self._connected().tell(Request.SET_FEATURES, spec.U64.pack(features))
        except OperationFailed:
            self._features_refused = True

    def get_status(self) -> int:
        """Return the device status: GET_STATUS where STATUS was negotiated, else what was written.

        Raises:
            DeviceGone: The back end has hung up.
        """
        if self._closed:
            raise Closed(f"{self.address} is closed")
        if self._connection is None:  # given up by a reset
            return 0
        self._connection.check()
        if self.has(ProtocolFeature.STATUS):
            return self._connection.ask_number(Request.GET_STATUS) & 0xFF
        return self._status

    def set_status(self, value: int) -> None:
        """Write the device status; 0 stops every ring, and gives up the memory where requests are still out."""
        if value == 0:
            self._reset()
            return
        connection = self._connected()
        if self._features_refused:
            value &= ~int(Status.FEATURES_OK)
        if self.has(ProtocolFeature.STATUS):
            connection.tell(Request.SET_STATUS, spec.U64.pack(value))
        self._status = value

    def _reset(self) -> None:
        connection, self._status = self._connection, 0
        self._config.forget()
        if connection is None:
            return
        drained = False
        try:
            drained = self._stop(connection)
        except (DeviceFailure, DeviceAbsent, OperationFailed) as error:
            # What it answers does not matter: no memory of this connection is used again.
            connection.end(error)
        self._rings.clear()
        if connection.lost is not None:
            self._give_up()
        elif not drained:
            self._give_up()
            self._connection = None  # the next start makes another

    def _stop(self, connection: Connection) -> bool:
        """Stop the started rings; returns whether the back end has returned all that it took."""
        drained = True
        for index, ring in self._rings.items():
            if ring.started:
                ring.started = False
                if self.offered >> spec.F_PROTOCOL_FEATURES & 1:
                    connection.tell(Request.SET_VRING_ENABLE, spec.VRING_STATE.pack(index, 0))
                drained &= self._returned_all(ring, self._get_base(connection, index))
        if self.has(ProtocolFeature.RESET_DEVICE):
            connection.tell(Request.RESET_DEVICE)
        if self.has(ProtocolFeature.STATUS):
            connection.tell(Request.SET_STATUS, spec.U64.pack(0))
        return drained

    def _returned_all(self, ring: _Ring, base: int) -> bool:
        """Whether the place of the next buffer to take is that of the next one to return.

        A back end that does not wait for them at GET_VRING_BASE, against the text, goes on writing.
        """
        if self._packed:
            # Available index and wrap counter in the low half, used ones in the high half, where they are told.
            return base & 0xFFFF == base >> 16
        assert self._memory is not None
        return base & 0xFFFF == self._memory.read16(ring.used + 2)

    def _give_up(self) -> None:
        """Close the connection, and hand out nothing of its memory again."""
        if self._connection is not None:
            self._connection.close()
        self._close_channel()
        if self._memory is not None:
            self._memory.give_up()
            self._memory = None
        self._table_sent = False
        self._rings.clear()

    def _close_channel(self) -> None:
        channel, self.config_changes = self.config_changes, None
        if channel is not None:
            channel.close()

    # --- configuration --------------------------------------------------------------------------------------

    def get_config_size(self) -> int:
        """Return the length of the device configuration in bytes; 0 where the back end shows none."""
        return self._config.length

    @property
    def config_from_back_end(self) -> bool:
        """Whether the back end has the configuration, and not the address."""
        return self._config.from_back_end

    def get_config(self, offset: int, length: int) -> bytes:
        """Return ``length`` bytes from byte ``offset`` of the configuration, as it was read last."""
        return self._config.get(self._connected(), offset, length)

    def set_config(self, offset: int, data: bytes) -> None:
        """Write ``data`` from byte ``offset`` of the configuration on (SET_CONFIG).

        A back end may ignore it silently, or close the connection at a field that is not writable.
        """
        self._config.set(self._connected(), offset, data)

    # --- queues ---------------------------------------------------------------------------------------------

    def get_vqs_count(self) -> int:
        """Return the number of queues: GET_QUEUE_NUM, or what the device type has at least."""
        return self._queues

    def get_vring_num(self) -> int:
        """Return the largest queue size in entries."""
        return QUEUE_SIZE

    def get_vring_size(self, index: int) -> int | None:
        """Return None: no message tells it."""
        del index
        return None

    def set_vring_num(self, index: int, num: int) -> None:
        """Set the size of a queue in entries (SET_VRING_NUM)."""
        self._connected().tell(Request.SET_VRING_NUM, spec.VRING_STATE.pack(index, num))

    def set_vring_base(self, index: int, base: int) -> None:
        """Set the index at which the device begins (SET_VRING_BASE); for a packed queue as for vhost-vdpa."""
        self._connected().tell(Request.SET_VRING_BASE, spec.VRING_STATE.pack(index, base))

    def get_vring_base(self, index: int) -> int:
        """Stop a started ring and return the index at which it would go on (GET_VRING_BASE)."""
        base = self._get_base(self._connected(), index)
        self._rings.setdefault(index, _Ring()).started = False
        return base

    def _get_base(self, connection: Connection, index: int) -> int:
        reply = connection.ask(
            Request.GET_VRING_BASE, spec.VRING_STATE.pack(index, 0), sizes=(spec.VRING_STATE.size,)
        )
        return int(spec.VRING_STATE.unpack(reply)[1])

    def set_vring_addr(self, index: int, desc: int, avail: int, used: int) -> None:
        """Set the three areas of a queue (SET_VRING_ADDR), after the memory, once (SET_MEM_TABLE)."""
        connection = self._connected()
        self._share(connection)
        self._rings[index] = _Ring(used)
        connection.tell(Request.SET_VRING_ADDR, spec.VRING_ADDRESS.pack(index, 0, desc, used, avail, 0))

    def _share(self, connection: Connection) -> None:
        if self._table_sent:
            return
        shared = self._shared()
        table = spec.MEMORY_TABLE.pack(1, 0) + spec.MEMORY_REGION.pack(memory.BASE, shared.size, memory.BASE, 0)
        connection.tell(Request.SET_MEM_TABLE, table, fds=(shared.fd,))
        self._table_sent = True

    def _vring_fd(self, request: Request, index: int, fd: int) -> None:
        if fd < 0:
            self._connected().tell(request, spec.U64.pack(index | spec.VRING_NOFD))
        else:
            self._connected().tell(request, spec.U64.pack(index), fds=(fd,))

    def set_vring_kick(self, index: int, fd: int) -> None:
        """Set the eventfd by which the driver kicks a queue (SET_VRING_KICK): it starts the ring; -1 is none."""
        self._rings.setdefault(index, _Ring()).started = True
        self._vring_fd(Request.SET_VRING_KICK, index, fd)

    def set_vring_call(self, index: int, fd: int) -> None:
        """Set the eventfd that signals used buffers of a queue (SET_VRING_CALL); -1 is none."""
        self._vring_fd(Request.SET_VRING_CALL, index, fd)

    def set_vring_enable(self, index: int, on: bool) -> None:
        """Enable or disable a queue (SET_VRING_ENABLE), where the back end has that message.

        Some serve a disabled ring all the same.
        """
        if self.offered >> spec.F_PROTOCOL_FEATURES & 1:
            self._connected().tell(Request.SET_VRING_ENABLE, spec.VRING_STATE.pack(index, int(on)))

    def set_config_call(self, fd: int) -> None:
        """Do nothing: ``config_changes`` says that the configuration has changed."""

    def suspend(self) -> None:
        """Refuse: there is no such message.

        Raises:
            NotSupported: Always.
        """
        raise NotSupported(f"{self.address} cannot be suspended", seen="vhost-user", expected="vhost-vdpa")

    def resume(self) -> None:
        """Refuse: there is no such message.

        Raises:
            NotSupported: Always.
        """
        self.suspend()

    # --- memory, close --------------------------------------------------------------------------------------

    def _shared(self) -> memory.SharedMemory:
        if self._memory is None:
            self._memory = memory.SharedMemory()
        return self._memory

    def dma(self, translated: bool) -> memory.SharedDma:
        """Return memory for this device. The caller closes it after the device was reset.

        Raises:
            NotSupported: ``translated``: there is no IOTLB here, and ACCESS_PLATFORM is not offered.
        """
        if translated:
            raise NotSupported(
                f"{self.address} has no IOVAs", seen="ACCESS_PLATFORM", expected="a device without it"
            )
        self._connected()
        return memory.SharedDma(self._shared())

    def close(self) -> None:
        """Close the connection, and end the back end's process where this object has it; idempotent."""
        if self._closed:
            return
        self._closed = True
        with ExitStack() as stack:
            if self._daemon is not None:
                stack.callback(self._daemon.close)
            self._give_up()

    def __enter__(self) -> VhostUserNode:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            warn_unclosed(self, self.address, then=self.close)
