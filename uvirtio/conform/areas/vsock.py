"""5.10: the socket device. A connection is seen by the host, so that needs consent; ports 7 and 9 are used."""

from __future__ import annotations

from typing import Final, NamedTuple

from uvirtio.conform.lane import Lane, Posted
from uvirtio.conform.memory import Buffer
from uvirtio.conform.row import MODERN, Area, Level, Need
from uvirtio.conform.traffic import taken_until_quiet
from uvirtio.conform.trial import Trial
from uvirtio.conform.verdict import Outcome, Severity
from uvirtio.diag.probes.vsock import PORT, packet
from uvirtio.spec import features as f
from uvirtio.spec import vsock
from uvirtio.spec.vsock import Op

AREA = Area("vsock", 160, "5.10: socket", transports=MODERN, types=frozenset({"vsock"}))

_HOST: Final[frozenset[Need]] = frozenset({"host"})
_ECHO: Final = 7
"""The port whose listener sends back what it gets (RFC 862)."""
_STREAM: Final = f.mask(f.Vsock.STREAM)
_CREDIT: Final = 16
_DATA: Final = bytes(range(64))
_BUFFERS: Final = 8
_LOAD: Final = 8
_QUIET: Final = "its host does not answer at this port"


class Packet(NamedTuple):
    """What the host has sent."""

    kind: int
    op: int
    buf_alloc: int
    fwd_cnt: int
    data: bytes


class Sockets:
    """The queues of a device that runs, and what its host has sent."""

    def __init__(self, t: Trial, *, features: int, buffers: int = _BUFFERS) -> None:
        others = t.plain & ~f.mask(*f.Vsock)
        t.start(features=others | features & t.offered, queues=[vsock.RX, vsock.TX])
        self._t = t
        self.cid = t.config_field(vsock.CONFIG, "guest_cid")
        self._rx: Lane = t.lanes[vsock.RX]
        self.tx: Lane = t.lanes[vsock.TX]
        self._waiting: list[tuple[Buffer, Posted]] = []
        for _ in range(buffers):
            buffer = t.writable(512)
            self._waiting.append((buffer, self._rx.post(buffer)))

    def send(self, op: int, *, port: int = PORT, data: bytes = b"",
             room: int = 65536) -> None:  # fmt: skip
        """Send a packet, and wait until it was taken."""
        self.tx.post(self._t.readable(packet(self.cid, op, port=port, data=data, room=room)))
        self._t.await_used(self.tx, 1)

    def heard(self) -> list[Packet]:
        """What came since the last call, until nothing more comes."""
        taken_until_quiet(self._t, self._rx)
        found = []
        for buffer, posted in list(self._waiting):
            if posted.length is None:
                continue
            self._waiting.remove((buffer, posted))
            if buffer.written < vsock.HEADER.size:
                continue
            *_, length, kind, op, _, room, forwarded = vsock.HEADER.unpack_from(buffer.data)
            found.append(Packet(kind, op, room, forwarded, buffer.data[vsock.HEADER.size :][:length]))
        return found

    def connect(self, port: int = PORT, room: int = 65536) -> Packet:
        """Ask for a connection; the answer. The test is left out where there is none."""
        self.send(Op.REQUEST, port=port, room=room)
        came = self.heard()
        self._t.need(bool(came), _QUIET)
        return came[0]


@AREA.row("D-VSK-06", "5.10.6.4.2", "MUST NOT", "guest_cid is no reserved CID.", level=Level.LOOK)
def own_cid(t: Trial) -> Outcome:
    """It is read."""
    seen = t.config_field(vsock.CONFIG, "guest_cid")
    t.expect(seen not in vsock.RESERVED_CIDS, f"guest_cid {seen:#x}", "a CID that is not reserved")
    return None


@AREA.row("D-VSK-01", "5.10.3.2", "SHOULD", "NO_IMPLIED_STREAM is offered.", level=Level.LOOK)
def no_implied_stream(t: Trial) -> Outcome:
    """The offer is read."""
    t.expect(f.has(t.offered, f.Vsock.NO_IMPLIED_STREAM), f"features {t.offered:#x}", "bit 2")
    return None


@AREA.row(
    "D-VSK-02", "5.10.3.2", "SHOULD", "Without any bit it acts as with STREAM.", level=Level.ODD, needs=_HOST
)
def stream_is_implied(t: Trial) -> Outcome:
    """A connection is asked for with STREAM, and then with none of the bits of sockets."""
    first = Sockets(t, features=_STREAM)
    with_it = first.connect()
    first.send(Op.RST)
    t.reset()
    sockets = Sockets(t, features=0)
    sockets.send(Op.REQUEST)
    came = [one.op for one in sockets.heard()]
    t.expect(came == [with_it.op], f"ops {came}, with STREAM {with_it.op}", "the same")
    sockets.send(Op.RST)
    return None


@AREA.row(
    "D-VSK-03",
    "5.10.6.1.2",
    "MUST",
    "tx is served while rx has no buffers.",
    level=Level.ODD,
    severity=Severity.SILENT,
    needs=_HOST,
)
def tx_goes_on(t: Trial) -> Outcome:
    """Eight connections are asked for without a buffer for an answer."""
    sockets = Sockets(t, features=_STREAM, buffers=0)
    for number in range(_LOAD):
        own = 20000 + number
        sockets.tx.post(t.readable(packet(sockets.cid, Op.REQUEST, own=own)))
        t.await_used(sockets.tx, 1)
    return None


@AREA.row(
    "D-VSK-04",
    "5.10.6.3.2",
    "MUST",
    "Data is sent only within the credit of the peer.",
    severity=Severity.SILENT,
    needs=_HOST,
)
def credit_is_kept(t: Trial) -> Outcome:
    """64 bytes are sent to the echo port of the host with a buf_alloc of 16, and what comes back is counted."""
    sockets = Sockets(t, features=_STREAM)
    t.need(sockets.connect(_ECHO, _CREDIT).op == Op.RESPONSE, _QUIET)
    sockets.send(Op.RW, port=_ECHO, data=_DATA, room=_CREDIT)
    came = b"".join(one.data for one in sockets.heard() if one.op == Op.RW)
    sockets.send(Op.RST, port=_ECHO)
    t.need(bool(came), "port 7 of its host does not send back what it gets")
    t.expect(len(came) <= _CREDIT, f"{len(came)} bytes for a buf_alloc of {_CREDIT}", f"at most {_CREDIT}")
    return None


@AREA.row(
    "D-VSK-05",
    "5.10.6.3.2",
    "MUST",
    "Packets of streams have a valid buf_alloc and fwd_cnt.",
    severity=Severity.SILENT,
    needs=_HOST,
)
def credit_is_told(t: Trial) -> Outcome:
    """A connection is asked for, and 64 bytes are sent over it."""
    sockets = Sockets(t, features=_STREAM)
    first = sockets.connect()
    t.need(first.op == Op.RESPONSE, _QUIET)
    t.expect(first.buf_alloc > 0 and not first.fwd_cnt, f"{first}", "room, and nothing taken yet")
    sockets.send(Op.RW, data=_DATA)
    sockets.send(Op.CREDIT_REQUEST)
    later = sockets.heard()
    sockets.send(Op.RST)
    for one in later:
        t.expect(
            one.fwd_cnt <= len(_DATA), f"fwd_cnt {one.fwd_cnt} of {len(_DATA)} bytes", "what was sent, at most"
        )
    return None
