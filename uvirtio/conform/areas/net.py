"""5.1: the network device. What is received are the answers of a station at 10.0.2.2 to ARP and ping."""

from __future__ import annotations

import struct
from typing import Final

from uvirtio.conform.cards import (
    ETHERTYPE,
    HASH_IPV4,
    HASHES,
    PEER,
    RSS_TABLE,
    Cable,
    Wire,
    command,
    controlq,
    done,
    field,
    is_answer,
    rss_config,
    view,
    wire,
)
from uvirtio.conform.levers import announce
from uvirtio.conform.row import ANY, MODERN, Area, Level, Need
from uvirtio.conform.trial import Trial
from uvirtio.conform.verdict import Outcome, Severity, free, rejected
from uvirtio.spec import features as f
from uvirtio.spec import net
from uvirtio.spec.net import Ack, Control, RxMode

AREA = Area("net", 130, "5.1: network", transports=ANY, types=frozenset({"net"}))

_N: Final = f.Net
_HOST: Final[frozenset[Need]] = frozenset({"host"})
_OTHER_MAC: Final = bytes.fromhex("0200000000fc")
_MTU_MIN, _MTU_GOOD = 68, 1280
_KEY_MIN, _TABLE_MIN = 40, 128
_DUPLEX: Final = (0, 1, 0xFF)
_UNKNOWN_SPEED: Final = 0xFFFF_FFFF
_UNKNOWN_FLAG: Final = 0x80
_UNKNOWN_CLASS: Final = 0x7F
_SMALL: Final = 256
_GROUP: Final = bytes.fromhex("0300000000fb")
_TAGS: Final = (1, 0x123, 0xFFE)
_PAYLOAD: Final = 1400


# --- the offer and the configuration (5.1.3, 5.1.4) -------------------------------------------------------------


@AREA.row("D-NET-01", "5.1.4.1", "MUST", "MQ: max_virtqueue_pairs is 1 to 0x8000.", level=Level.LOOK)
def pairs(t: Trial) -> Outcome:
    """It is read."""
    t.need_feature(_N.MQ)
    seen = field(t, "max_virtqueue_pairs")
    t.expect(1 <= seen <= net.PAIRS_MAX, f"max_virtqueue_pairs {seen}", f"1 to {net.PAIRS_MAX}")
    return None


@AREA.row("D-NET-02", "5.1.4.1", "MUST", "MTU: mtu is 68 to 65535, and should be 1280 or more.", level=Level.LOOK)
def mtu(t: Trial) -> Outcome:
    """It is read."""
    t.need_feature(_N.MTU)
    seen = field(t, "mtu")
    t.expect(seen >= _MTU_MIN, f"mtu {seen}", f"at least {_MTU_MIN}")
    if seen < _MTU_GOOD:
        t.note(f"mtu {seen}, which should be {_MTU_GOOD} or more")
    return None


@AREA.row("D-NET-03", "5.1.4.1", "MUST NOT", "mtu does not change.", severity=Severity.SILENT)
def mtu_stays(t: Trial) -> Outcome:
    """It is read at first, after frames were sent, and after a reset."""
    t.need_feature(_N.MTU)
    first = field(t, "mtu")
    t.good(t.start(also=f.mask(_N.MTU)), 4)
    seen = [field(t, "mtu")]
    t.reset()
    seen.append(field(t, "mtu"))
    t.expect(set(seen) == {first}, f"mtu {first}, then {seen}", f"{first}")
    return None


@AREA.row("D-NET-04", "5.1.4.1", "MUST", "RSS or HASH_REPORT: rss_max_key_size is 40 or more.", level=Level.LOOK)
def key_size(t: Trial) -> Outcome:
    """It is read."""
    t.need(bool(t.offered & f.mask(_N.RSS, _N.HASH_REPORT)), "neither RSS nor HASH_REPORT is offered")
    seen = field(t, "rss_max_key_size")
    t.expect(seen >= _KEY_MIN, f"rss_max_key_size {seen}", f"{_KEY_MIN} or more")
    return None


@AREA.row("D-NET-05", "5.1.4.1", "MUST", "RSS: rss_max_indirection_table_length is 128 or more.", level=Level.LOOK)
def table_length(t: Trial) -> Outcome:
    """It is read."""
    t.need_feature(_N.RSS)
    seen = field(t, "rss_max_indirection_table_length")
    t.expect(seen >= _TABLE_MIN, f"rss_max_indirection_table_length {seen}", f"{_TABLE_MIN} or more")
    return None


@AREA.row("D-NET-06", "5.1.4.1", "MUST", "speed is in range or all ones; duplex 0, 1 or 0xff.", level=Level.LOOK)
def speed_and_duplex(t: Trial) -> Outcome:
    """They are read."""
    t.need_feature(_N.SPEED_DUPLEX)
    speed, duplex = field(t, "speed"), field(t, "duplex")
    t.expect(speed <= net.SPEED_MAX or speed == _UNKNOWN_SPEED, f"speed {speed:#x}", f"at most {net.SPEED_MAX:#x}")
    t.expect(duplex in _DUPLEX, f"duplex {duplex:#x}", "0, 1 or 0xff")
    return None


@AREA.row("D-NET-07", "5.1.4.1", "SHOULD NOT", "speed and duplex do not change while the link is up.")
def speed_stays(t: Trial) -> Outcome:
    """They are read before and after frames are sent."""
    t.need_feature(_N.SPEED_DUPLEX)
    lane = t.start(also=f.mask(_N.SPEED_DUPLEX) | t.offered & f.mask(_N.STATUS))

    def read() -> tuple[int, int]:
        return field(t, "speed"), field(t, "duplex")

    first = read()
    t.good(lane, 4)
    up = not t.has(_N.STATUS) or bool(field(t, "status") & net.STATUS_LINK_UP)
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


@AREA.row(
    "D-NET-10",
    "5.1.9.2.2",
    "MUST",
    "Flags of the header that are not known are ignored.",
    level=Level.REGISTERS,
    severity=Severity.SILENT,
    needs=_HOST,
    witness="network",
)
def unknown_flags(t: Trial) -> Outcome:
    """ARP with flag 0x80, once the station answered without."""
    cable = Cable(t)
    cable.first()
    answer = cable.arp(bytes([_UNKNOWN_FLAG]).ljust(cable.header_size, b"\0"))
    t.expect(answer is not None and is_answer(answer, cable), "no answer with flag 0x80", "the same answer")
    return None


@AREA.row(
    "D-NET-11",
    "5.1.9.2.2",
    "MUST NOT",
    "Without NEEDS_CSUM csum_start and csum_offset are not used, and hdr_len is never trusted.",
    level=Level.ODD,
    severity=Severity.SILENT,
    needs=_HOST,
    witness="network",
)
def fields_without_meaning(t: Trial) -> Outcome:
    """ARP with other values in these fields, once the station answered without."""
    cable = Cable(t)
    cable.first()
    header = struct.pack("<BBHHHH", 0, net.Gso.NONE, 0xFFFF, 0, 20, 2).ljust(cable.header_size, b"\0")
    answer = cable.arp(header)
    t.expect(answer is not None and is_answer(answer, cable), "no answer to such a frame", "the same answer")
    return None


@AREA.row(
    "D-NET-13",
    "5.1.9.4.1",
    "MUST",
    "num_buffers is 1 without MRG_RXBUF, and else the number of buffers.",
    severity=Severity.SILENT,
    needs=_HOST,
    witness="network",
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
    witness="network",
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
    witness="network",
)
def plain_header(t: Trial) -> Outcome:
    """The header of an answer to ARP."""
    flags, gso = Cable(t).first().header[:2]
    t.expect(flags == 0, f"flags {flags:#x}", "0")
    t.expect(gso == net.Gso.NONE, f"gso_type {gso:#x}", "NONE")
    return None


# --- the control queue (5.1.9.5) --------------------------------------------------------------------------------


@AREA.row(
    "D-NET-16",
    "5.1.9.5.1.1",
    "MUST",
    "The commands for promiscuous and all-multicast work.",
    needs=_HOST,
    witness="host",
)
def receive_modes(t: Trial) -> Outcome:
    """Each is turned on and off, and the host shows whether it is promiscuous, where it does."""
    lane = controlq(t, _N.CTRL_RX)
    for mode in (RxMode.PROMISC, RxMode.ALLMULTI):
        for on in (1, 0):
            done(t, lane, Control.RX, mode, bytes([on]), f"{mode.name} {on}")
            if mode is RxMode.PROMISC:
                _shown(t, view(t.device).promiscuous(), bool(on), "whether it is promiscuous")
    return None


@AREA.row(
    "D-NET-17",
    "5.1.9.5.2.1",
    "MUST",
    "MAC_ADDR_SET shows in the configuration before the command is used.",
    severity=Severity.SILENT,
    needs=_HOST,
    witness="host",
)
def address_shows(t: Trial) -> Outcome:
    """Another address is set, which the reset takes back; it is read, and compared with what the host shows."""
    t.need_feature(_N.MAC)
    lane = controlq(t, _N.CTRL_MAC_ADDR, *([_N.CTRL_RX] if f.has(t.offered, _N.CTRL_RX) else []))
    answer = command(t, lane, Control.MAC, net.MAC_ADDR_SET, _OTHER_MAC)
    seen = field(t, "mac").to_bytes(6, "little")
    t.expect(answer == Ack.OK, f"{answer:#x} for MAC_ADDR_SET", "OK")
    _shown(t, view(t.device).mac(), _OTHER_MAC, "the address")
    t.expect(seen == _OTHER_MAC, f"mac {seen.hex(':')}", _OTHER_MAC.hex(":"))
    return None


def _to_group(t: Trial, cable: Cable, other: Wire) -> bool:
    """Without PROMISC and ALLMULTI, whether a frame to a group arrives."""
    for mode in (RxMode.PROMISC, RxMode.ALLMULTI):
        done(t, cable.control, Control.RX, mode, b"\0", f"{mode.name} 0")
    other.send(_frame(_GROUP))
    return cable.receive(2 * t.pace.watch) is not None


def _frame(to: bytes, head: bytes = b"") -> bytes:
    return (to + PEER + head + ETHERTYPE + bytes(range(46))).ljust(net.FRAME_MIN, b"\0")


@AREA.row(
    "D-NET-18",
    "5.1.9.5.2.1",
    "MUST",
    "The table of MAC addresses is empty after a reset, and in use before its command is used.",
    severity=Severity.SILENT,
    needs=_HOST,
    witness="host",
)
def table_of_addresses(t: Trial) -> Outcome:
    """The host sends frames to a group: before MAC_TABLE_SET has it, behind that, and after a reset."""
    t.need_feature(_N.CTRL_VQ, _N.CTRL_RX)
    with wire(t.device) as other:
        cable = Cable(t, also=f.mask(_N.CTRL_RX), control=True)
        before = _to_group(t, cable, other)
        tables = struct.pack("<II6s", 0, 1, _GROUP)
        done(t, cable.control, Control.MAC, net.MAC_TABLE_SET, tables, "MAC_TABLE_SET")
        _shown(t, other.groups(), {_GROUP}, "the table")
        other.send(_frame(_GROUP))
        cable.await_frame(_frame(_GROUP), "a frame to a group of the table")
        t.reset()
        _shown(t, other.groups(), set(), "the table after a reset")
        after = _to_group(t, Cable(t, also=f.mask(_N.CTRL_RX), control=True), other)
    t.expect(before or not after, "a frame to a group arrives after the reset, as before it", "an empty table")
    return free("frames to groups that are not in the table arrive, too") if before else None


def _shown(t: Trial, seen: object, expected: object, what: str) -> None:
    """What the host shows, where it does."""
    if seen is not None:
        t.expect(seen == expected, f"{what} is {seen!r}, as the host shows it", f"{expected!r}")


@AREA.row(
    "D-NET-19",
    "5.1.9.5.3.1",
    "MUST",
    "Without CTRL_VLAN frames with any tag are received.",
    severity=Severity.SILENT,
    needs=_HOST,
    witness="network",
)
def any_tag(t: Trial) -> Outcome:
    """CTRL_VLAN is offered and not accepted; the host sends frames with the tags 1, 0x123 and 0xffe."""
    t.need_feature(_N.CTRL_VLAN)
    with wire(t.device) as other:
        cable = Cable(t)
        for tag in _TAGS:
            frame = _frame(cable.mac, net.ETHERTYPE_VLAN.to_bytes(2, "big") + tag.to_bytes(2, "big"))
            other.send(frame)
            cable.await_frame(frame, f"a frame with the tag {tag:#x}")
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
    lane = controlq(t, _N.STATUS, _N.GUEST_ANNOUNCE)
    ask(0)
    t.owe(lambda: bool(field(t, "status") & net.STATUS_ANNOUNCE), "ANNOUNCE is not set", "bit 1 of status")
    answer = command(t, lane, Control.ANNOUNCE, net.ANNOUNCE_ACK)
    seen = field(t, "status")
    t.expect(answer == Ack.OK, f"{answer:#x} for ANNOUNCE_ACK", "OK")
    t.expect(not seen & net.STATUS_ANNOUNCE, f"status {seen:#x}", "ANNOUNCE clear")
    return None


@AREA.row(
    "D-NET-21",
    "5.1.9.5.6.2",
    "MUST",
    "After a reset frames come on receiveq1 alone, until the command for more pairs.",
    severity=Severity.SILENT,
    needs=_HOST,
    witness="network",
)
def pairs_in_use(t: Trial) -> Outcome:
    """Frames from sixteen addresses, buffers on two pairs: before VQ_PAIRS_SET 2, behind it, after a reset."""
    t.need_feature(_N.CTRL_VQ, _N.MQ)
    t.need(field(t, "max_virtqueue_pairs") > 1, "it has one pair of queues")
    with wire(t.device) as other:
        for command_made in (False, True, False):
            cable = Cable(t, also=f.mask(_N.MQ), count=16, pairs=2, control=True)
            if command_made:
                data = (2).to_bytes(2, "little")
                done(t, cable.control, Control.MQ, net.MQ_VQ_PAIRS_SET, data, "VQ_PAIRS_SET 2")
            for number in range(16):
                frame = _frame(cable.mac)[:11] + bytes([number]) + _frame(cable.mac)[12:]
                other.send(frame)
                found = cable.await_frame(frame, f"frame {number}")
                wrong = found.queue and not command_made
                t.expect(not wrong, f"frame {number} on receiveq2, with one pair in use", "receiveq1")
            t.reset()
    return None


@AREA.row(
    "D-NET-22",
    "5.1.9.5.7.3",
    "MUST",
    "RSS puts a frame where its hash and the table say, and one without a hash into unclassified_queue.",
    severity=Severity.SILENT,
    transports=MODERN,
    needs=_HOST,
    witness="network",
)
def hashed(t: Trial) -> Outcome:
    """The host sends IPv4 packets whose hashes are published, and a frame of another protocol."""
    t.need_feature(_N.CTRL_VQ, _N.RSS)
    t.need(field(t, "max_virtqueue_pairs") > 1, "it has one pair of queues")
    t.need(bool(field(t, "supported_hash_types") & HASH_IPV4), "it has no hash of IPv4 addresses")
    with wire(t.device) as other:
        for source, to, value in HASHES:
            for hit in (True, False):
                cable = Cable(t, also=f.mask(_N.RSS), pairs=2, control=True)
                data = rss_config((value + (not hit)) % RSS_TABLE, other=1)
                done(t, cable.control, Control.MQ, net.MQ_RSS_CONFIG, data, "RSS_CONFIG")
                head = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 46, 1, 0, 64, 0xFD, 0, source, to)
                packet = cable.mac + PEER + b"\x08\0" + head + bytes(26)
                for frame, queue in ((packet, 2 * hit), (_frame(cable.mac), 2)):
                    other.send(frame)
                    found = cable.await_frame(frame, "a frame")
                    seen = f"on queue {found.queue}; entry {value % RSS_TABLE} of the table is {int(hit)}"
                    t.expect(found.queue == queue, seen, f"queue {queue}")
                t.reset()
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
    lane = controlq(t)
    answer = t.writable(net.ACK_SIZE)
    posted = lane.post(t.readable(bytes([_UNKNOWN_CLASS, 0])), answer)
    if not t.serve(lane, posted):
        return rejected("DEVICE_NEEDS_RESET or silence")
    t.expect(answer.data[0] == Ack.ERR, f"answer {answer.data[0]:#x}", "ERR")
    t.expect(posted.length == 1, f"len {posted.length}", "1")
    return None
