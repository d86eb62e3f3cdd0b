"""A socket device (5.10) made of Python, with a host whose ports are ``listening``; what comes there is sent back.

Lies: ``garbled`` (packets are from another port), ``untouched`` (packets count, and are not written).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from uvirtio.scripted.answering import Answering
from uvirtio.scripted.ring import Chain
from uvirtio.spec import features as f
from uvirtio.spec import vsock as spec
from uvirtio.spec.layout import by_name, size
from uvirtio.spec.vsock import Op

_BUFFER = 65536


@dataclass
class Connection:
    """One connection of the guest's."""

    credit: int
    """Bytes that the guest has room for (5.10.6.3)."""
    sent: int = 0
    received: int = 0
    waiting: bytes = b""
    """What the guest has no room for yet."""


class Vsock(Answering):
    """Stream sockets of guest 3."""

    device_id = spec.TYPE
    fields = by_name(spec.CONFIG)
    features = f.mask(f.Vsock.STREAM, f.Vsock.NO_IMPLIED_STREAM)
    queue_sizes = (64, 64, 64)

    def __init__(self, *, cid: int = 3, listening: frozenset[int] = frozenset({7, 9})) -> None:
        super().__init__()
        self.config = bytearray(size(spec.CONFIG))
        self.put("guest_cid", cid)
        self.listening = listening
        self.connections: dict[tuple[int, int], Connection] = {}
        """By the ports of guest and host."""
        self.buffers: deque[Chain] = deque()
        self.packets: deque[bytes] = deque()
        """Packets that wait for a buffer."""

    def reset(self) -> None:
        """The device was reset: its connections are gone."""
        self.connections.clear()
        self.buffers.clear()
        self.packets.clear()

    def queue_reset(self, queue: int) -> None:
        """One queue was reset."""
        if queue == spec.RX:
            self.buffers.clear()

    def answer(self, queue: int, data: bytes, chain: Chain) -> bytes | None:
        """Keep a buffer, or take a packet."""
        if queue == spec.EVENT:
            return None
        if queue == spec.RX:
            self.device.check("VSOCK-01", not chain.readable, "a readable element in a receive buffer")
            self.buffers.append(chain)
            self._deliver()
            return None
        self.device.check("VSOCK-02", not chain.writable, "a writable element in a packet to send")
        if len(data) >= spec.HEADER.size:
            self._taken(data)
        return b""

    def _taken(self, data: bytes) -> None:
        source, target, mine, its, length, kind, op, _, room, forwarded = spec.HEADER.unpack_from(data)
        if (source, target) != (self.get("guest_cid"), spec.HOST_CID):
            return
        key = (mine, its)
        known = self.connections.get(key)
        if kind != spec.STREAM:
            self.tell(key, Op.RST, kind=kind)
        elif op == Op.REQUEST and its in self.listening:
            self.connections[key] = Connection(room)
            self.tell(key, Op.RESPONSE)
        elif op in (Op.RST, Op.SHUTDOWN):
            if self.connections.pop(key, None) is not None and op == Op.SHUTDOWN:
                self.tell(key, Op.RST)
        elif known is None:
            self.tell(key, Op.RST)
        else:
            known.credit = max(0, room - (known.sent - forwarded))
            if op == Op.RW:
                known.received += length
                known.waiting += data[spec.HEADER.size :][:length]
            self._echo(key, known)

    def _echo(self, key: tuple[int, int], one: Connection) -> None:
        """Send back as much as the guest has room for."""
        data, one.waiting = one.waiting[: one.credit], one.waiting[one.credit :]
        if data:
            one.credit -= len(data)
            one.sent += len(data)
            self.tell(key, Op.RW, data)

    def tell(self, key: tuple[int, int], op: int, data: bytes = b"", *, kind: int = spec.STREAM) -> None:
        """Send a packet, now or when there is a buffer."""
        mine, its = key
        one = self.connections.get(key)
        received = 0 if one is None else one.received
        its ^= 1 if self.garbled else 0
        head = (spec.HOST_CID, self.get("guest_cid"), its, mine, len(data), kind, op, 0, _BUFFER, received)
        self.packets.append(spec.HEADER.pack(*head) + data)
        self._deliver()

    def _deliver(self) -> None:
        while self.buffers and self.packets:
            chain, data = self.buffers.popleft(), self.packets.popleft()
            if not self.untouched:
                chain.fill(data)
            self.device.complete(spec.RX, chain, min(len(data), chain.room))
