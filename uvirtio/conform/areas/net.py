"""5.1: the network device. What is received are the answers of a station at 10.0.2.2 to ARP and ping."""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from uvirtio.conform.exchange import net_header
from uvirtio.conform.lane import Lane, Posted
from uvirtio.conform.levers import announce
from uvirtio.conform.memory import Buffer
from uvirtio.conform.row import ANY, Area, Level, Need
from uvirtio.conform.trial import Trial
from uvirtio.conform.verdict import Outcome, Severity, rejected
from uvirtio.spec import features as f
from uvirtio.spec import net
from uvirtio.spec.net import Ack, Control, RxMode

AREA = Area("net", 130, "5.1: network", transports=ANY, types=frozenset({"net"}))

_N: Final = f.Net
_HOST: Final[frozenset[Need]] = frozenset({"host"})
_US, _STATION = bytes((10, 0, 2, 15)), bytes((10, 0, 2, 2))
_MAC: Final = bytes.fromhex("0200000000fe")
_OTHER_MAC: Final = bytes.fromhex("0200000000fc")
_MTU_MIN, _MTU_GOOD = 68, 1280
_KEY_MIN, _TABLE_MIN = 40, 128
_DUPLEX: Final = (0, 1, 0xFF)
_UNKNOWN_SPEED: Final = 0xFFFF_FFFF
_UNKNOWN_FLAG: Final = 0x80
_UNKNOWN_CLASS: Final = 0x7F
_BUFFER, _SMALL = 2048, 256
_PAYLOAD: Final = 1400


def _field(t: Trial, name: str) -> int:
    return t.config_field(net.CONFIG, name)


# --- the offer and the configuration (5.1.3, 5.1.4) -------------------------------------------------------------


@AREA.row("D-NET-01", "5.1.4.1", "MUST", "MQ: max_virtqueue_pairs is 1 to 0x8000.", level=Level.LOOK)
def pairs(t: Trial) -> Outcome:
    """It is read."""
    t.need_feature(_N.MQ)
    seen = _field(t, "max_virtqueue_pairs")
    t.expect(1 <= seen <= net.PAIRS_MAX, f"max_virtqueue_pairs {seen}", f"1 to {net.PAIRS_MAX}")
    return None


@AREA.row("D-NET-02", "5.1.4.1", "MUST", "MTU: mtu is 68 to 65535, and should be 1280 or more.", level=Level.LOOK)
def mtu(t: Trial) -> Outcome:
    """It is read."""
    t.need_feature(_N.MTU)
    seen = _field(t, "mtu")
    t.expect(seen >= _MTU_MIN, f"mtu {seen}", f"at least {_MTU_MIN}")
    if seen < _MTU_GOOD:
        t.note(f"mtu {seen}, which should be {_MTU_GOOD} or more")
    return None


@AREA.row("D-NET-03", "5.1.4.1", "MUST NOT", "mtu does not change.", severity=Severity.SILENT)
def mtu_stays(t: Trial) -> Outcome:
    """It is read at first, after frames were sent, and after a reset."""
    t.need_feature(_N.MTU)
    first = _field(t, "mtu")
    t.good(t.start(also=f.mask(_N.MTU)), 4)
    seen = [_field(t, "mtu")]
    t.reset()
    seen.append(_field(t, "mtu"))
    t.expect(set(seen) == {first}, f"mtu {first}, then {seen}", f"{first}")
    return None


@AREA.row("D-NET-04", "5.1.4.1", "MUST", "RSS or HASH_REPORT: rss_max_key_size is 40 or more.", level=Level.LOOK)
def key_size(t: Trial) -> Outcome:
    """It is read."""
    t.need(bool(t.offered & f.mask(_N.RSS, _N.HASH_REPORT)), "neither RSS nor HASH_REPORT is offered")
    seen = _field(t, "rss_max_key_size")
    t.expect(seen >= _KEY_MIN, f"rss_max_key_size {seen}", f"{_KEY_MIN} or more")
    return None


@AREA.row("D-NET-05", "5.1.4.1", "MUST", "RSS: rss_max_indirection_table_length is 128 or more.", level=Level.LOOK)
def table_length(t: Trial) -> Outcome:
    """It is read."""
    t.need_feature(_N.RSS)
    seen = _field(t, "rss_max_indirection_table_length")
    t.expect(seen >= _TABLE_MIN, f"rss_max_indirection_table_length {seen}", f"{_TABLE_MIN} or more")
    return None


@AREA.row("D-NET-06", "5.1.4.1", "MUST", "speed is in range or all ones; duplex 0, 1 or 0xff.", level=Level.LOOK)
def speed_and_duplex(t: Trial) -> Outcome:
    """They are read."""
    t.need_feature(_N.SPEED_DUPLEX)
    speed, duplex = _field(t, "speed"), _field(t, "duplex")
    t.expect(speed <= net.SPEED_MAX or speed == _UNKNOWN_SPEED, f"speed {speed:#x}", f"at most {net.SPEED_MAX:#x}")
    t.expect(duplex in _DUPLEX, f"duplex {duplex:#x}", "0, 1 or 0xff")
    return None


@AREA.row("D-NET-07", "5.1.4.1", "SHOULD NOT", "speed and duplex do not change while the link is up.")
def speed_stays(t: Trial) -> Outcome:
    """They are read before and after frames are sent."""
    t.need_feature(_N.SPEED_DUPLEX)
    lane = t.start(also=f.mask(_N.SPEED_DUPLEX) | t.offered & f.mask(_N.STATUS))

    def read() -> tuple[int, int]:
        return _field(t, "speed"), _field(t, "duplex")

    first = read()
    t.good(lane, 4)
    up = not t.has(_N.STATUS) or bool(_field(t, "status") & net.STATUS_LINK_UP)
    seen = read()
    t.need(up, "the link is down")
    t.expect(seen == first, f"speed and duplex {first}, then {seen}", f"{first}")
    return None


@AREA.row(
    "D-NET-08",
    "5.1.4.1",
    "SHOULD NOT",
    "No HASH_REPORT and no CTRL_RX_EXTRA without CTRL_VQ.",
    level=Level.LOOK,
)
def extras_without_controlq(t: Trial) -> Outcome:
    """The offer."""
    extra = [bit for bit in (_N.HASH_REPORT, _N.CTRL_RX_EXTRA) if f.has(t.offered, bit)]
    t.need(bool(extra), "neither is offered")
    names = ", ".join(f.feature(t.type, bit).name for bit in extra)
    t.expect(f.has(t.offered, _N.CTRL_VQ), f"{names} without CTRL_VQ", "CTRL_VQ, or none of them")
    return None


@AREA.row("D-NET-09", "5.1.3.1", "MUST NOT", "Offer no bit without a bit that it needs.", level=Level.LOOK)
def prerequisites(t: Trial) -> Outcome:
    """The offer: CTRL_VQ for what goes over the control queue, CSUM and GUEST_CSUM for segmentation."""
    broken = f.unmet(t.offered, f.device_dependencies("net"))
    words = [f"{f.feature(t.type, rule.bit).name} without {f.needed(t.type, rule)}" for rule in broken]
    t.expect(not broken, "; ".join(words), "no such bit")
    return None


# --- frames (5.1.9.2 and 5.1.9.4; 5.1.6 in older versions of the standard) ---------------------------------------


class Received(NamedTuple):
    """A frame from the station."""

    header: bytes
    frame: bytes
    buffers: list[tuple[Buffer, int]]
    """Those that hold it, each with the length that the device says."""


class Cable:
    """A running card with receive buffers, and a station that answers."""

    def __init__(self, t: Trial, *, also: int = 0, size: int = _BUFFER, count: int = 4) -> None:
        """Bring it up; ``also``: feature bits; ``size`` and ``count``: of the receive buffers."""
        self._t = t
        self._receive = t.start(also=also | t.offered & f.mask(_N.MAC), queues=[net.RECEIVEQ, net.TRANSMITQ])
        self._send = t.lanes[net.TRANSMITQ]
        self._waiting: dict[int, Buffer] = {}
        self.mac = _field(t, "mac").to_bytes(6, "little") if t.has(_N.MAC) else _MAC
        chains: list[Posted] = []
        for _ in range(count):
            buffer = t.writable(size)
            chains.append(self._receive.chain(buffer))
            self._waiting[chains[-1].head] = buffer
        self._receive.publish(*chains)
        self._receive.kick()
        self.header_size = len(net_header(t))

    def ask(self, frame: bytes, header: bytes | None = None) -> Received | None:
        """Send a frame and wait for the answer, as many buffers as one kind of frame takes; None: there is none.

        Args:
            frame: To be sent.
            header: Its header; None: zeros.
        """
        t = self._t
        self._send.post(t.readable(net_header(t) if header is None else header), t.readable(frame))
        t.await_used(self._send, 1)
        found: list[tuple[Buffer, int]] = []

        def done() -> bool:
            for used in self._receive.take():
                found.append((self._waiting[used.id], used.length))
            return bool(found) and len(found) >= self._count(found[0][0])

        if not t.until(done, t.pace.deadline):
            t.expect(not found, f"{len(found)} of {self._count(found[0][0]) if found else 0} buffers came", "all")
            return None
        data = b"".join(buffer.data[:length] for buffer, length in found)
        return Received(data[: self.header_size], data[self.header_size :], found)

    def _count(self, first: Buffer) -> int:
        """``num_buffers``, which counts with MRG_RXBUF alone."""
        return int.from_bytes(first.data[10:12], "little") if self._t.has(_N.MRG_RXBUF) else 1

    def arp(self, header: bytes | None = None) -> Received | None:
        """Ask for the station's address."""
        who = self.mac + _US + bytes(6) + _STATION
        frame = net.BROADCAST + self.mac + b"\x08\x06" + bytes.fromhex("0001080006040001") + who
        return self.ask(frame.ljust(net.FRAME_MIN, b"\0"), header)

    def first(self) -> Received:
        """The answer to an ordinary question; the test is left out where nothing answers."""
        answer = self.arp()
        self._t.need(answer is not None, "no station answers for 10.0.2.2")
        assert answer is not None
        return answer

    def ping(self, station: bytes, size: int) -> Received | None:
        """Ping the station.

        Args:
            station: Its MAC address.
            size: Bytes of data.
        """
        echo = _summed(struct.pack(">BBHHH", 8, 0, 0, 1, 1) + bytes(place & 0xFF for place in range(size)), 2)
        head = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(echo), 1, 0, 64, 1, 0, _US, _STATION)
        return self.ask(station + self.mac + b"\x08\x00" + _summed(head, 10) + echo)


def _summed(data: bytes, place: int) -> bytes:
    """With the checksum of IP and ICMP (RFC 1071) at a place that is zero."""
    total: int = sum(struct.unpack(f">{(len(data) + 1) // 2}H", data + bytes(len(data) % 2)))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return data[:place] + (~total & 0xFFFF).to_bytes(2, "big") + data[place + 2 :]


def _is_answer(received: Received, cable: Cable) -> bool:
    frame = received.frame
    return (
        frame[:6] == cable.mac
        and frame[12:14] == b"\x08\x06"
        and frame[20:22] == b"\0\2"
        and frame[28:32] == _STATION
    )


@AREA.row(
    "D-NET-10",
    "5.1.9.2.2",
    "MUST",
    "Flags of the header that are not known are ignored.",
    level=Level.REGISTERS,
    severity=Severity.SILENT,
    needs=_HOST,
)
def unknown_flags(t: Trial) -> Outcome:
    """ARP with flag 0x80, once the station answered without."""
    cable = Cable(t)
    cable.first()
    answer = cable.arp(bytes([_UNKNOWN_FLAG]).ljust(cable.header_size, b"\0"))
    t.expect(answer is not None and _is_answer(answer, cable), "no answer with flag 0x80", "the same answer")
    return None


@AREA.row(
    "D-NET-11",
    "5.1.9.2.2",
    "MUST NOT",
    "Without NEEDS_CSUM csum_start and csum_offset are not used, and hdr_len is never trusted.",
    level=Level.ODD,
    severity=Severity.SILENT,
    needs=_HOST,
)
def fields_without_meaning(t: Trial) -> Outcome:
    """ARP with other values in these fields, once the station answered without."""
    cable = Cable(t)
    cable.first()
    header = struct.pack("<BBHHHH", 0, net.Gso.NONE, 0xFFFF, 0, 20, 2).ljust(cable.header_size, b"\0")
    answer = cable.arp(header)
    t.expect(answer is not None and _is_answer(answer, cable), "no answer to such a frame", "the same answer")
    return None


@AREA.row(
    "D-NET-13",
    "5.1.9.4.1",
    "MUST",
    "num_buffers is 1 without MRG_RXBUF, and else the number of buffers.",
    severity=Severity.SILENT,
    needs=_HOST,
)
def num_buffers(t: Trial) -> Outcome:
    """ARP is answered in one buffer, without and with MRG_RXBUF."""
    for also in (0, f.mask(_N.MRG_RXBUF) & t.offered):
        cable = Cable(t, also=also)
        if cable.header_size == net.HEADER_SIZE:
            seen = int.from_bytes(cable.first().header[10:12], "little")
            merged = "with" if also else "without"
            t.expect(seen == 1, f"num_buffers {seen} {merged} MRG_RXBUF", "1")
        t.reset()
    return None


@AREA.row(
    "D-NET-14",
    "5.1.9.4.1",
    "MUST",
    "Of merged buffers all but the last are filled completely.",
    severity=Severity.SILENT,
    needs=_HOST,
)
def filled_completely(t: Trial) -> Outcome:
    """Ping with 1400 bytes, and receive buffers of 256."""
    t.need_feature(_N.MRG_RXBUF)
    cable = Cable(t, also=f.mask(_N.MRG_RXBUF), size=_SMALL, count=16)
    answer = cable.ping(cable.first().frame[6:12], _PAYLOAD)
    t.need(answer is not None, "the station answers no ping")
    assert answer is not None
    lengths = [length for _, length in answer.buffers]
    t.expect(sum(lengths) > _PAYLOAD and len(lengths) > 1, f"lengths {lengths}", f"more than {_PAYLOAD} bytes")
    t.expect(set(lengths[:-1]) == {_SMALL}, f"lengths {lengths}", f"{_SMALL} in all but the last")
    return None


@AREA.row(
    "D-NET-15",
    "5.1.9.4.1",
    "MUST",
    "Without GUEST_CSUM flags are 0, without GUEST_TSO gso_type is NONE.",
    severity=Severity.SILENT,
    needs=_HOST,
)
def plain_header(t: Trial) -> Outcome:
    """The header of an answer to ARP."""
    flags, gso = Cable(t).first().header[:2]
    t.expect(flags == 0, f"flags {flags:#x}", "0")
    t.expect(gso == net.Gso.NONE, f"gso_type {gso:#x}", "NONE")
    return None


# --- the control queue (5.1.9.5) --------------------------------------------------------------------------------


def _controlq(t: Trial, *bits: int) -> Lane:
    t.need_feature(_N.CTRL_VQ, *bits)
    return t.start(also=f.mask(_N.CTRL_VQ, *bits), queues=[net.CONTROLQ])


def _command(t: Trial, lane: Lane, kind: int, command: int, data: bytes = b"") -> int:
    """Carry out a command; the answer, which is 0xa5 where none was written."""
    answer = t.writable(net.ACK_SIZE)
    lane.post(t.readable(bytes([kind, command])), *([t.readable(data)] if data else []), answer)
    t.await_used(lane, 1)
    return answer.data[0]


@AREA.row("D-NET-16", "5.1.9.5.1.1", "MUST", "The commands for promiscuous and all-multicast work.")
def receive_modes(t: Trial) -> Outcome:
    """Each is turned on and off."""
    lane = _controlq(t, _N.CTRL_RX)
    for mode in (RxMode.PROMISC, RxMode.ALLMULTI):
        for on in (1, 0):
            answer = _command(t, lane, Control.RX, mode, bytes([on]))
            t.expect(answer == Ack.OK, f"{answer:#x} for {mode.name} {on}", "OK")
    return None


@AREA.row(
    "D-NET-17",
    "5.1.9.5.2.1",
    "MUST",
    "MAC_ADDR_SET shows in the configuration before the command is used.",
    severity=Severity.SILENT,
)
def address_shows(t: Trial) -> Outcome:
    """Another address is set, which the reset takes back."""
    t.need_feature(_N.MAC)
    lane = _controlq(t, _N.CTRL_MAC_ADDR, *([_N.CTRL_RX] if f.has(t.offered, _N.CTRL_RX) else []))
    answer = _command(t, lane, Control.MAC, net.MAC_ADDR_SET, _OTHER_MAC)
    seen = _field(t, "mac").to_bytes(6, "little")
    t.expect(answer == Ack.OK, f"{answer:#x} for MAC_ADDR_SET", "OK")
    t.expect(seen == _OTHER_MAC, f"mac {seen.hex(':')}", _OTHER_MAC.hex(":"))
    return None


@AREA.row(
    "D-NET-20",
    "5.1.9.5.4.2",
    "MUST",
    "ANNOUNCE_ACK clears the bit before the command is used.",
    severity=Severity.SILENT,
    needs=_HOST,
)
def announcement(t: Trial) -> Outcome:
    """The host asks for an announcement, and it is acknowledged."""
    ask = announce(t.device)
    lane = _controlq(t, _N.STATUS, _N.GUEST_ANNOUNCE)
    ask(0)
    t.owe(lambda: bool(_field(t, "status") & net.STATUS_ANNOUNCE), "ANNOUNCE is not set", "bit 1 of status")
    answer = _command(t, lane, Control.ANNOUNCE, net.ANNOUNCE_ACK)
    seen = _field(t, "status")
    t.expect(answer == Ack.OK, f"{answer:#x} for ANNOUNCE_ACK", "OK")
    t.expect(not seen & net.STATUS_ANNOUNCE, f"status {seen:#x}", "ANNOUNCE clear")
    return None


@AREA.row(
    "D-NET-27",
    "5.1.9.5",
    "DESC",
    "A command of a class that is not known gives ERR, and one byte is used.",
    level=Level.REGISTERS,
)
def unknown_class(t: Trial) -> Outcome:
    """Class 0x7f, command 0."""
    lane = _controlq(t)
    answer = t.writable(net.ACK_SIZE)
    posted = lane.post(t.readable(bytes([_UNKNOWN_CLASS, 0])), answer)
    if not t.serve(lane, posted):
        return rejected("DEVICE_NEEDS_RESET or silence")
    t.expect(answer.data[0] == Ack.ERR, f"answer {answer.data[0]:#x}", "ERR")
    t.expect(posted.length == 1, f"len {posted.length}", "1")
    return None
