"""5.1.9.5.8 to 5.1.9.5.11 and 5.1.9.4.4: commands of network devices that few have yet."""

from __future__ import annotations

import struct
from typing import Final

from uvirtio.conform.cards import HASH_IPV4, HASHES, PEER, RSS_KEY, RSS_TABLE, Cable, Wire, done, rss_config, wire
from uvirtio.conform.lane import Lane
from uvirtio.conform.row import MODERN, Area, Level
from uvirtio.conform.trial import Trial
from uvirtio.conform.verdict import Outcome, Severity
from uvirtio.spec import features as f
from uvirtio.spec import net
from uvirtio.spec.net import Ack, Control

AREA = Area(
    "net_commands",
    131,
    "5.1.9.5: coalescing, statistics, tunnels and RSS contexts of network devices",
    transports=MODERN,
    types=frozenset({"net"}),
)

_N: Final = f.Net
_QUEUE_SET, _QUEUE_GET = 2, 3
_QUERY, _GET = 0, 1
_CAPABILITIES, _ADD = 0, 1
_CVQ: Final = 1 << 32
_UNKNOWN: Final = 1 << 63
_IPIP: Final = 1 << 7
_OUTER, _INNER = HASHES[:2]


def _ask(t: Trial, lane: Lane, kind: Control, number: int, data: bytes, room: int) -> tuple[int, bytes]:
    """Carry out a command whose result stands behind the answer; both."""
    answer = t.writable(net.ACK_SIZE + room)
    lane.post(t.readable(bytes([kind, number])), *([t.readable(data)] if data else []), answer)
    t.await_used(lane, 1)
    return answer.data[0], answer.data[net.ACK_SIZE :]


@AREA.row(
    "D-NET-23",
    "5.1.9.5.10.6",
    "MUST",
    "Coalescing: 0 after a reset, as it was set then, and ERR for what is no enabled queue of frames.",
    level=Level.REGISTERS,
)
def coalescing(t: Trial) -> Outcome:
    """VQ_GET of both queues, VQ_SET of one; both for the control queue and for 0xfff; VQ_GET after a reset."""
    t.need_feature(_N.CTRL_VQ, _N.VQ_NOTF_COAL)

    def read(lane: Lane, queue: int) -> tuple[int, ...]:
        ack, result = _ask(t, lane, Control.NOTF_COAL, _QUEUE_GET, struct.pack("<HH", queue, 0), 8)
        t.expect(ack == Ack.OK, f"{ack:#x} for VQ_GET of queue {queue}", "OK")
        return struct.unpack("<II", result)

    for turn in ("at first", "after a reset"):
        lane = Cable(t, also=f.mask(_N.VQ_NOTF_COAL), control=True).control
        for queue in (net.RECEIVEQ, net.TRANSMITQ):
            seen = read(lane, queue)
            t.expect(seen == (0, 0), f"max_packets and max_usecs of queue {queue} {turn}: {seen}", "0 and 0")
        done(t, lane, Control.NOTF_COAL, _QUEUE_SET, struct.pack("<HHII", 1, 0, 4, 100), "VQ_SET of queue 1")
        both = read(lane, net.RECEIVEQ), read(lane, net.TRANSMITQ)
        t.expect(both == ((0, 0), (4, 100)), f"{both} after VQ_SET of queue 1", "that of queue 1 alone")
        for queue in (net.CONTROLQ, 0xFFF):
            for number, data in ((_QUEUE_GET, b""), (_QUEUE_SET, bytes(8))):
                request = struct.pack("<HH", queue, 0) + data
                ack, _ = _ask(t, lane, Control.NOTF_COAL, number, request, 0 if data else 8)
                t.expect(ack == Ack.ERR, f"{ack:#x} for command {number} of queue {queue:#x}", "ERR")
        t.reset()
    return None


@AREA.row(
    "D-NET-24",
    "5.1.9.5.11.12",
    "MUST",
    "Statistics: one queue or type that is wrong fails the whole command.",
    level=Level.REGISTERS,
)
def statistics(t: Trial) -> Outcome:
    """Those of the control queue, and again with an unknown queue, an unknown type, a type of other queues."""
    t.need_feature(_N.CTRL_VQ, _N.DEVICE_STATS)
    lane = Cable(t, also=f.mask(_N.DEVICE_STATS), control=True).control
    ack, result = _ask(t, lane, Control.STATS, _QUERY, b"", 8)
    t.expect(ack == Ack.OK, f"{ack:#x} for STATS_QUERY", "OK")
    t.need(bool(int.from_bytes(result, "little") & _CVQ), "it has no statistics of the control queue")
    good = struct.pack("<H6xQ", net.CONTROLQ, _CVQ)
    ack, result = _ask(t, lane, Control.STATS, _GET, good, 24)
    kind, queue, size = struct.unpack_from("<BxHxxH", result)
    head = (ack, kind, queue, size)
    t.expect(head == (Ack.OK, 32, net.CONTROLQ, 24), f"answer, type, queue, size: {head}", "0, 32, 2, 24")
    for what, wrong in (
        ("queue 0xfff", struct.pack("<H6xQ", 0xFFF, _CVQ)),
        ("type 63", struct.pack("<H6xQ", net.CONTROLQ, _UNKNOWN)),
        ("the type of the control queue for a receive queue", struct.pack("<H6xQ", net.RECEIVEQ, _CVQ)),
    ):
        ack, _ = _ask(t, lane, Control.STATS, _GET, good + wrong, 64)
        t.expect(ack == Ack.ERR, f"{ack:#x} for {what}, behind an entry that is right", "ERR")
    return None


def _packet(head: bytes) -> bytes:
    """An IPv4 packet in another one."""
    source, to, _ = _INNER
    inside = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 40, 1, 0, 64, 0xFD, 0, source, to) + bytes(20)
    source, to, _ = _OUTER
    return head + struct.pack(">BBHHHBBH4s4s", 0x45, 0, 60, 1, 0, 64, 4, 0, source, to) + inside


@AREA.row(
    "D-NET-25",
    "5.1.9.4.4.4",
    "MUST",
    "The inner header is not hashed where no tunnel type is enabled, and after a reset.",
    severity=Severity.SILENT,
    needs=frozenset({"host"}),
    witness="network",
)
def inner_hash(t: Trial) -> Outcome:
    """A packet in another one, whose hashes lead to different queues: with IPIP, without, after a reset."""
    t.need_feature(_N.CTRL_VQ, _N.RSS, _N.HASH_TUNNEL)
    t.need(t.config_field(net.CONFIG, "max_virtqueue_pairs") > 1, "it has one pair of queues")
    t.need(bool(t.transport.read_config(24, 4) & _IPIP), "it knows no IPIP tunnel")
    with wire(t.device) as other:
        for turn in ("at first", "after a reset"):
            cable = Cable(t, also=f.mask(_N.RSS, _N.HASH_TUNNEL), pairs=2, control=True)
            data = rss_config(_INNER[2] % RSS_TABLE, other=0)
            done(t, cable.control, Control.MQ, net.MQ_RSS_CONFIG, data, "RSS_CONFIG")
            _goes(t, cable, other, net.RECEIVEQ, turn)
            for types, queue in ((_IPIP, 2), (0, net.RECEIVEQ), (_IPIP, 2)):
                done(
                    t, cable.control, Control.HASH_TUNNEL, 0, struct.pack("<I", types), f"tunnel types {types:#x}"
                )
                _goes(t, cable, other, queue, f"with tunnel types {types:#x}")
            t.reset()
    return None


def _goes(t: Trial, cable: Cable, other: Wire, queue: int, when: str) -> None:
    frame = _packet(cable.mac + PEER + b"\x08\0")
    other.send(frame)
    found = cable.await_frame(frame, "a packet in a tunnel")
    t.expect(found.queue == queue, f"it comes on queue {found.queue} {when}", f"queue {queue}")


@AREA.row(
    "D-NET-26",
    "5.1.9.5.8.3",
    "MUST",
    "RSS contexts: max_rss_contexts is 1 at least, and a reset clears them.",
)
def contexts(t: Trial) -> Outcome:
    """CAP_GET, and as many are added as there may be, before and after a reset."""
    t.need_feature(_N.CTRL_VQ, _N.RSS, _N.RSS_CONTEXT)
    for turn in ("", " after a reset"):
        lane = Cable(t, also=f.mask(_N.RSS, _N.RSS_CONTEXT), control=True).control
        ack, result = _ask(t, lane, Control.RSS_CONTEXT, _CAPABILITIES, b"", 2)
        most = int.from_bytes(result, "little")
        t.expect(ack == Ack.OK and most >= 1, f"answer {ack:#x}, max_rss_contexts {most}", "OK, and 1 or more")
        rss = struct.pack("<IHHHHB", HASH_IPV4, 0, 0, 0, 1, len(RSS_KEY)) + RSS_KEY
        for ident in range(1, min(most, 8) + 1):
            data = struct.pack("<H6x", ident) + rss
            done(t, lane, Control.RSS_CONTEXT, _ADD, data, f"the addition of context {ident}{turn}")
        t.reset()
    return None
