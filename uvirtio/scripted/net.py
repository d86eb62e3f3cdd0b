"""A network card (5.1) made of Python, on a network with one other station: strict about the driver, and a liar.

    model = Net()
    device = ScriptedDevice(model)

The other station has the address 10.0.2.2 and answers ARP and ping; ``inject`` sends any frame, ``arrive`` one
that the card may leave by its tables, and ``sent`` has those that came. Lies: ``num_buffers`` and ``header_flags``
of what is received, ``written`` (the length that it claims of it), ``ack`` (the answer to every command), ``hold``
(frames to send are kept; ``release`` takes them).
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from uvirtio.scripted.model import Model
from uvirtio.scripted.net_commands import LaterCommands, inner
from uvirtio.scripted.ring import Chain
from uvirtio.spec import features as f
from uvirtio.spec import net as spec
from uvirtio.spec.layout import by_name
from uvirtio.spec.net import Control

FIELDS = by_name(spec.CONFIG)

MAC = bytes.fromhex("525400123456")
STATION_MAC, STATION = bytes.fromhex("52550a000202"), bytes((10, 0, 2, 2))
"""The other station's addresses, as those of QEMU's own network."""

_N = f.Net
FEATURES = f.mask(
    *(_N.MAC, _N.STATUS, _N.MRG_RXBUF, _N.CTRL_VQ, _N.CTRL_RX, _N.CTRL_RX_EXTRA, _N.CTRL_VLAN),
    *(_N.GUEST_ANNOUNCE, _N.CTRL_MAC_ADDR),
)
_HASH_IPV4 = 1
_IPIP, _IN_IP = 1 << 7, 4
_CONTROL_NEEDS = {
    Control.RX: _N.CTRL_RX,
    Control.MAC: _N.CTRL_RX,
    Control.VLAN: _N.CTRL_VLAN,
    Control.ANNOUNCE: _N.GUEST_ANNOUNCE,
    Control.MQ: _N.MQ,
    Control.GUEST_OFFLOADS: _N.CTRL_GUEST_OFFLOADS,
    Control.NOTF_COAL: _N.VQ_NOTF_COAL,
    Control.HASH_TUNNEL: _N.HASH_TUNNEL,
    Control.STATS: _N.DEVICE_STATS,
    Control.RSS_CONTEXT: _N.RSS_CONTEXT,
}
_LATER = frozenset({Control.NOTF_COAL, Control.HASH_TUNNEL, Control.STATS, Control.RSS_CONTEXT})


class Command(NamedTuple):
    """One command of the control queue as the device saw it."""

    kind: int
    command: int
    data: bytes


class Net(Model):
    """A card with ``pairs`` of queues; fields of the configuration by name as keywords."""

    device_id = spec.TYPE
    fields = FIELDS

    def __init__(
        self,
        *,
        features: int = FEATURES,
        pairs: int = 1,
        queue_size: int = 64,
        mac: bytes = MAC,
        config_length: int = 24,
        tunnel_types: int = 0,
        **fields: int,
    ) -> None:
        super().__init__()
        self.features = features
        self.pairs = pairs
        self.queue_sizes = (queue_size,) * (2 * pairs + 1)
        self.config = bytearray(b"\xa7" * config_length)  # what no feature stands for is junk
        told = {
            "mac": int.from_bytes(mac, "little"),
            "status": spec.STATUS_LINK_UP,
            "max_virtqueue_pairs": pairs,
            "mtu": spec.MTU_DEFAULT,
            "speed": 10000,
            "duplex": 1,
            **fields,
        }
        for name, value in told.items():
            if FIELDS[name].end <= config_length:
                self.put(name, value)
        # supported_tunnel_types, behind the fields that have names here (5.1.4).
        self.config[24:28] = struct.pack("<I", tunnel_types)[: max(0, config_length - 24)]
        self.later = LaterCommands(pairs, tunnel_types, lambda: self.control_queue)
        self.sent: list[bytes] = []
        """Frames that came from the driver."""
        self.headers: list[bytes] = []
        """Their headers."""
        self.commands: list[Command] = []
        self.buffers: dict[int, list[Chain]] = {}
        self.used_pairs = 1
        self.table: set[bytes] = set()
        """The addresses that it takes beside its own."""
        self.promiscuous = True
        self.all_groups = False
        self.vlans: set[int] = set()
        """The tags that it takes, with CTRL_VLAN."""
        self.rss: Rss | None = None
        self.answers = True
        """Whether the other station answers."""
        self.num_buffers: int | None = None
        self.header_flags = 0
        self.written: int | None = None
        self.ack: int | None = None
        self.hold = False
        self.kept: list[tuple[int, Chain]] = []

    def has(self, bit: int) -> bool:
        """Whether the driver accepted the feature ``bit``."""
        return f.has(self.device.driver_features, bit)

    @property
    def header_size(self) -> int:
        """Bytes of the header (5.1.6.1)."""
        return spec.HEADER_SIZE if self.has(f.VERSION_1) or self.has(_N.MRG_RXBUF) else spec.HEADER_SIZE_SHORT

    def shown_queues(self, count: int) -> int:
        """As QEMU has it: only with MQ are there more than the queues of one pair, and the control queue."""
        return count if self.has(_N.MQ) or self.has(_N.RSS) else min(count, spec.CONTROLQ + 1)

    @property
    def control_queue(self) -> int:
        """Where the control queue is (5.1.2)."""
        return 2 * self.pairs if self.has(_N.MQ) or self.has(_N.RSS) else spec.CONTROLQ

    def reset(self) -> None:
        """The device was reset: it has no buffers."""
        self.buffers.clear()
        self.kept.clear()
        self.used_pairs = 1
        self.table.clear()
        self.promiscuous, self.all_groups = True, False
        self.vlans.clear()
        self.rss = None
        self.later.reset()

    def queue_reset(self, queue: int) -> None:
        """One queue was reset."""
        self.buffers.pop(queue, None)

    def write_config(self, offset: int, width: int, value: int) -> None:
        """Take a write to the configuration: a legacy interface's address, and nothing else (5.1.4.2)."""
        legal = not self.has(f.VERSION_1) and offset + width <= FIELDS["mac"].end
        self.device.check("NET-01", legal, f"{value} was written at {offset}")
        if legal:
            super().write_config(offset, width, value)

    # --- the driver's side ----------------------------------------------------------------------------------

    def handle(self, queue: int, chain: Chain) -> int | None:
        """Keep a receive buffer, send a frame, or carry out a command."""
        if queue == self.control_queue:
            return self._control(chain)
        if queue % 2 == spec.RECEIVEQ:
            check = self.device.check
            check("NET-RX", not chain.readable, "a readable element in a receive buffer")
            if self.has(_N.MRG_RXBUF):
                check("NET-31", chain.room >= self.header_size, f"a receive buffer of {chain.room} bytes")
            else:
                check("NET-29", chain.room >= 1526, f"a receive buffer of {chain.room} bytes")
            if self.has(_N.MTU) and not self.has(_N.MRG_RXBUF):
                whole = self.get("mtu") + spec.ETHERNET_HEADER + self.header_size
                check("NET-08", chain.room >= whole, f"a receive buffer of {chain.room} bytes")
            self._framing(chain.writable[0].length)
            self.buffers.setdefault(queue, []).append(chain)
            return None
        if self.hold:
            self.kept.append((queue, chain))
            return None
        return self._send(queue, chain)

    def _framing(self, first: int) -> None:
        if not self.has(f.VERSION_1) and not self.has(f.ANY_LAYOUT):
            self.device.check("NET-L05", first == self.header_size, f"the first element has {first} bytes")

    def _send(self, queue: int, chain: Chain) -> int:
        check, data = self.device.check, chain.data()
        check("NET-TX", not chain.writable, "a writable element in a frame to send")
        check("NET-48", queue // 2 < self.used_pairs, f"a frame on transmitq{queue // 2 + 1}")
        header, frame = data[: self.header_size], data[self.header_size :]
        self._framing(chain.readable[0].length)
        flags, gso = header[0], header[1]
        check("NET-16", not any(header[10:12]), f"num_buffers is {header[10:12].hex()}")
        check("NET-28", not flags & ~1, f"flags {flags:#x}")
        check("NET-17", not flags or self.has(_N.CSUM), f"flags {flags:#x}")
        wanted = {0: None, 1: _N.HOST_TSO4, 3: _N.HOST_UFO, 4: _N.HOST_TSO6, 5: _N.HOST_USO}.get(gso & 0x7F, -1)
        check("NET-19", wanted is None or (wanted >= 0 and self.has(wanted)), f"gso_type {gso:#x}")
        check("NET-FRAME", len(frame) >= spec.ETHERNET_HEADER, f"a frame of {len(frame)} bytes")
        if self.has(_N.MTU) and not gso:
            tag = spec.VLAN_TAG * (frame[12:14] == b"\x81\x00")
            most = self.get("mtu") + spec.ETHERNET_HEADER + tag
            check("NET-09", len(frame) <= most, f"a frame of {len(frame)} bytes, of {most}")
        self.sent.append(frame)
        self.headers.append(header)
        if self.answers and (answer := station(frame)) is not None:
            self.inject(answer, queue=queue - 1)
        return 0

    def release(self) -> None:
        """Send what was kept; then what comes is sent at once."""
        kept, self.kept, self.hold = self.kept, [], False
        for queue, chain in kept:
            self.device.complete(queue, chain, self._send(queue, chain))

    def _control(self, chain: Chain) -> int:
        check = self.device.check
        lengths = [element.length for element in chain.readable]
        data = chain.data()
        kind, command = data[0], data[1]
        check("NET-L06", lengths[0] == spec.CONTROL_HEADER_SIZE, f"the command's first element is {lengths[0]}")
        later = kind in _LATER  # these may have a result behind the answer
        room = [one.length for one in chain.writable]
        check("NET-L09", room == [1] or (later and bool(room)), "the answer is no element of one byte")
        table = (kind, command) == (Control.MAC, spec.MAC_TABLE_SET)
        name, most = ("NET-L08", 2) if table else ("NET-L07", 1)
        check(name, len(lengths) - 1 <= most, f"elements of {lengths} bytes")
        self.commands.append(Command(kind, command, data[2:]))
        needed = _CONTROL_NEEDS.get(Control(kind)) if kind in set(Control) else None
        if (kind, command) == (Control.MQ, spec.MQ_RSS_CONFIG):
            needed = _N.RSS
        known = needed is not None and self.has(needed)
        names = {int(Control.RX): "NET-38", int(Control.MAC): "NET-40"}
        check(names.get(kind, "NET-CTRL"), known, f"class {kind}")
        if known and later and self.ack is None:
            result = self.later.carry_out(Control(kind), command, data[2:])
            return chain.fill(b"\x01" if result is None else b"\0" + result)
        done = known and self._carry_out(Control(kind), command, data[2:])
        answer = (0 if done else 1) if self.ack is None else self.ack
        return chain.fill(bytes([answer]))

    def _carry_out(self, kind: Control, command: int, data: bytes) -> bool:
        """What an honest device does; whether it could."""
        if kind is Control.RX:
            extra = command > spec.RxMode.ALLMULTI
            self.device.check("NET-39", not extra or self.has(_N.CTRL_RX_EXTRA), f"mode {command}")
            if len(data) != 1 or command > spec.RxMode.NOBCAST:
                return False
            if command == spec.RxMode.PROMISC:
                self.promiscuous = bool(data[0])
            if command == spec.RxMode.ALLMULTI:
                self.all_groups = bool(data[0])
            return True
        if kind is Control.MAC and command == spec.MAC_ADDR_SET:
            if len(data) == spec.MAC_SIZE:
                self.put("mac", int.from_bytes(data, "little"), interrupt=False)
            return len(data) == spec.MAC_SIZE
        if kind is Control.MAC:
            self.device.check("NET-42", _is_table(data), f"tables of {len(data)} bytes")
            if _is_table(data):
                self.table = _addresses(data)
            return _is_table(data)
        if kind is Control.VLAN:
            tag = int.from_bytes(data, "little")
            (self.vlans.add if command == spec.VLAN_ADD else self.vlans.discard)(tag)
            return True
        if kind is Control.MQ and command == spec.MQ_RSS_CONFIG:
            self.rss = Rss.of(data)
            return True
        if kind is Control.ANNOUNCE:
            self.put("status", self.get("status") & ~spec.STATUS_ANNOUNCE, interrupt=False)
            return True
        if kind is Control.MQ:
            (pairs,) = struct.unpack("<H", data)
            self.device.check("NET-46", 1 <= pairs <= self.pairs, f"{pairs} pairs of {self.pairs}")
            self.used_pairs = pairs
            return True
        return True

    # --- the network's side ---------------------------------------------------------------------------------

    def takes(self, frame: bytes) -> bool:
        """Whether the card takes a frame, by its address and its tag.

        Args:
            frame: From its first address on.
        """
        to = frame[:6]
        tag = int.from_bytes(frame[14:16], "big") & 0xFFF if frame[12:14] == b"\x81\0" else None
        if tag is not None and self.has(_N.CTRL_VLAN) and tag not in self.vlans:
            return False
        own = to in self.table or to in (self.get("mac").to_bytes(6, "little"), spec.BROADCAST)
        return own or self.promiscuous or bool(to[0] & 1 and self.all_groups)

    def queue_of(self, frame: bytes) -> int:
        """The receive queue for a frame: of RSS, or of the pairs in use.

        Args:
            frame: From its first address on.
        """
        if self.rss is not None:
            tunnel = self.later.tunnels & _IPIP and frame[12:14] == b"\x08\0" and frame[23] == _IN_IP
            return 2 * self.rss.pair(inner(frame) if tunnel else frame)
        return 2 * (frame[11] % self.used_pairs)

    def arrive(self, frame: bytes) -> None:
        """A frame comes over the cable, for the card to take or to leave.

        Args:
            frame: From its first address on.
        """
        if self.takes(frame):
            self.inject(frame, queue=self.queue_of(frame))

    def inject(self, *frames: bytes, queue: int = spec.RECEIVEQ, header: bytes = bytes(10)) -> int:
        """Frames from the network into the buffers that wait, then one interrupt; how many found some.

        Args:
            *frames: The frames.
            queue: The receive queue.
            header: The first 10 bytes of the header of each.
        """
        self.device.fetch(queue)
        waiting = self.buffers.setdefault(queue, [])
        given = 0
        for frame in frames:
            size = self.header_size
            rest = (bytes([header[0] | self.header_flags]) + header[1:]).ljust(size, b"\0") + frame
            pieces: list[tuple[Chain, bytes]] = []
            merged = self.has(_N.MRG_RXBUF)
            while rest and len(pieces) < len(waiting) and (merged or not pieces):
                chain = waiting[len(pieces)]
                pieces.append((chain, rest[: chain.room]))
                rest = rest[chain.room :]
            if rest:
                break  # it does not fit: dropped
            del waiting[: len(pieces)]
            count = len(pieces) if self.num_buffers is None else self.num_buffers
            for number, (chain, data) in enumerate(pieces):
                if size == spec.HEADER_SIZE and not number:  # 1 without MRG_RXBUF
                    data = data[:10] + struct.pack("<H", count) + data[12:]
                done = chain.fill(data)
                written = done if self.written is None else self.written
                self.device.complete(queue, chain, written, interrupt=False)
            given += 1
        self.device.interrupt_queue(queue)
        return given

    def set_link(self, up: bool) -> None:
        """The cable is plugged in, or pulled."""
        other = self.get("status") & ~spec.STATUS_LINK_UP
        self.put("status", other | up, interrupt=True)


class Rss(NamedTuple):
    """What RSS_CONFIG has set (5.1.9.5.7)."""

    types: int
    other: int
    """The pair for what has no hash."""
    table: tuple[int, ...]
    key: bytes

    @classmethod
    def of(cls, data: bytes) -> Rss:
        """From the data of the command.

        Args:
            data: All of it.
        """
        types, mask, other = struct.unpack_from("<IHH", data)
        table = struct.unpack_from(f"<{mask + 1}H", data, 8)
        at = 8 + 2 * (mask + 1) + 2
        return cls(types, other, table, data[at + 1 : at + 1 + data[at]])

    def pair(self, frame: bytes) -> int:
        """The pair of queues for a frame.

        Args:
            frame: From its first address on.
        """
        if frame[12:14] != b"\x08\0" or not self.types & _HASH_IPV4:
            return self.other
        return self.table[toeplitz(self.key, frame[26:34]) % len(self.table)]


def toeplitz(key: bytes, data: bytes) -> int:
    """The hash of RSS (5.1.9.4.3.3), 32 bits.

    Args:
        key: Longer than the data by 4 bytes at least.
        data: What is hashed.
    """
    window, found = int.from_bytes(key, "big"), 0
    for place in range(8 * len(data)):
        if data[place // 8] >> 7 - place % 8 & 1:
            found ^= window >> 8 * len(key) - 32 - place & 0xFFFF_FFFF
    return found


def _addresses(data: bytes) -> set[bytes]:
    """The addresses in the data of MAC_TABLE_SET."""
    (stations,) = struct.unpack_from("<I", data)
    rest = data[4 : 4 + 6 * stations] + data[8 + 6 * stations :]
    return {rest[place : place + 6] for place in range(0, len(rest), 6)}


def _is_table(data: bytes) -> bool:
    """Whether this is the data of MAC_TABLE_SET: stations first, then groups (5.1.6.5.2.2)."""
    at = 0
    for multicast in (False, True):
        if at + 4 > len(data):
            return False
        (count,) = struct.unpack_from("<I", data, at)
        macs = [data[at + 4 + 6 * number : at + 10 + 6 * number] for number in range(count)]
        if any(len(mac) != spec.MAC_SIZE or bool(mac[0] & 1) is not multicast for mac in macs):
            return False
        at += 4 + 6 * count
    return at == len(data)


def station(frame: bytes) -> bytes | None:
    """What the other station answers to a frame: ARP and ping for 10.0.2.2; None: nothing."""
    kind = frame[12:14]
    if kind == b"\x08\x06" and frame[20:22] == b"\0\1" and frame[38:42] == STATION:
        asker, address = frame[22:28], frame[28:32]
        return (
            asker
            + STATION_MAC
            + b"\x08\x06"
            + frame[14:20]
            + b"\0\2"
            + STATION_MAC
            + STATION
            + asker
            + address
            + bytes(18)
        )
    if kind == b"\x08\x00" and frame[14:15] == b"\x45" and frame[23:24] == b"\1" and frame[30:34] == STATION:
        echo = bytearray(frame)
        if echo[34:36] != b"\x08\0":
            return None
        echo[0:6], echo[6:12] = frame[6:12], STATION_MAC
        echo[26:30], echo[30:34] = frame[30:34], frame[26:30]
        (total,) = struct.unpack_from(">H", frame, 36)
        total += 0x0800  # the sum of a message whose first word is smaller by so much (RFC 1624)
        echo[34] = 0
        echo[36:38] = ((total & 0xFFFF) + (total >> 16)).to_bytes(2, "big")
        return bytes(echo)
    return None
