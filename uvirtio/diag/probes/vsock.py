"""The data path of a socket device (5.10): a connection to the host is asked for, and ended.

It is the host that decides what comes: where a port has no listener, some devices answer with RST and some not at
all. So only an answer proves anything.
"""

from __future__ import annotations

from typing import Final

from uvirtio.device import QueueSpec
from uvirtio.diag.probes.outcome import PathResult
from uvirtio.diag.probes.talk import QUEUE_SIZE, Ask, AskingPath
from uvirtio.spec import features as f
from uvirtio.spec import vsock as spec
from uvirtio.spec.layout import by_name
from uvirtio.spec.vsock import Op

_FIELDS: Final = by_name(spec.CONFIG)
PORT: Final = 9
"""The port of the host that is asked for: that of the discard protocol (RFC 863)."""
OWN_PORT: Final = 1_0000
BUFFER: Final = 65536
"""``buf_alloc``, in bytes."""
_BUFFER_SIZE: Final = 256
_PATIENCE: Final = 0.5
"""Seconds for the host."""


def packet(cid: int, op: int, *, kind: int = spec.STREAM, port: int = PORT, own: int = OWN_PORT, data: bytes = b"",
           room: int = BUFFER, forwarded: int = 0) -> bytes:  # fmt: skip
    """A packet to the host (5.10.6).

    Args:
        cid: Of the guest.
        op: The operation, 16 bits.
        kind: The type of socket, 16 bits.
        port: The port of the host.
        own: The port of the guest.
        data: What follows the header.
        room: ``buf_alloc``.
        forwarded: ``fwd_cnt``.
    """
    head = spec.HEADER.pack(cid, spec.HOST_CID, own, port, len(data), kind, op, 0, room, forwarded)
    return head + data


def sending(whole: bytes) -> Ask:
    """Send a packet: that the buffer comes back says that it was taken, and no more.

    Args:
        whole: The packet.
    """
    return Ask("a packet", spec.TX, (whole,), ())


def wrong_packet(data: bytes, cid: int, own: int = OWN_PORT, port: int = PORT) -> str | None:
    """What is wrong with an answer of the host; None: nothing.

    Args:
        data: The packet.
        cid: Of the guest.
        own: The port of the guest.
        port: The port of the host.
    """
    if len(data) < spec.HEADER.size:
        return f"a packet of {len(data)} bytes, whose header has {spec.HEADER.size}"
    source, target, its, mine, length, kind, op, *_ = spec.HEADER.unpack_from(data)
    if (source, target, its, mine) != (spec.HOST_CID, cid, port, own):
        return f"from {source}:{its} to {target}:{mine} instead of {spec.HOST_CID}:{port} to {cid}:{own}"
    if kind != spec.STREAM or op not in tuple(Op) or length != len(data) - spec.HEADER.size:
        return f"type {kind}, op {op}, len {length} in a packet of {len(data)} bytes"
    return None


class VsockPath(AskingPath):
    """Asks the host for a connection, and ends it."""

    wanted = f.mask(f.Vsock.STREAM)

    def queues(self) -> list[QueueSpec]:
        """All three."""
        return [
            QueueSpec(spec.RX, "rx", QUEUE_SIZE, owed=False),
            QueueSpec(spec.TX, "tx", QUEUE_SIZE),
            QueueSpec(spec.EVENT, "event", QUEUE_SIZE, owed=False, required=False),
        ]

    def exercise(self) -> PathResult:
        """REQUEST to port 9 of the host; what comes is a RESPONSE, which is ended by RST, or a RST."""
        (cid,) = self._device.read_config(_FIELDS["guest_cid"])
        odd = f"guest_cid is {cid:#x}, which is reserved (5.10.4)" if cid in spec.RESERVED_CIDS else ""
        about = f"guest_cid {cid}"
        if not self._around.intrusive:
            why = "no connection was asked for, which the host would see (--intrusive)"
            return PathResult(f"{about}; {why}", odd, skipped=True)
        waiting = self.offer(spec.RX, _BUFFER_SIZE, 8)
        self.ask(sending(packet(cid, Op.REQUEST)))
        patience = min(_PATIENCE, self._device.timeout)
        came = waiting.take(patience, "an answer of the host", owed=False)
        if not came:
            what = f"port {PORT} of the host was asked for, and no answer came"
            return PathResult(f"{about}; {what}", odd, skipped=True)
        for data in came:
            wrong = wrong_packet(data, cid)
            if wrong is not None:
                raise self.fault("answers REQUEST wrongly", wrong, data)
        op = Op(spec.HEADER.unpack_from(came[0])[6])
        if op not in (Op.RESPONSE, Op.RST):
            raise self.fault("answers REQUEST wrongly", f"op {op.name}", came[0])
        if op == Op.RESPONSE:
            self.ask(sending(packet(cid, Op.RST)))
        return PathResult(f"{about}; port {PORT} of the host answers {op.name}", odd)
