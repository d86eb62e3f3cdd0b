"""A network card in the hands of a test (5.1): frames and commands, and the host's side of its cable.

What is received without more are the answers of a station at 10.0.2.2 to ARP and ping, as QEMU's own network has
one. The host can put any other frame on the cable, and may show what the card lets through.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final, NamedTuple

from uvirtio.conform.exchange import net_header
from uvirtio.conform.lane import Lane
from uvirtio.conform.memory import Buffer
from uvirtio.conform.trial import Trial
from uvirtio.conform.verdict import Unfit, Violated
from uvirtio.device import Device
from uvirtio.errors import UvirtioError
from uvirtio.host.sockets import make_place, remove_place
from uvirtio.interfaces.backend import GuestMachine
from uvirtio.scripted import Net, ScriptedCore
from uvirtio.spec import features as f
from uvirtio.spec import net
from uvirtio.spec.net import Ack, Control

US: Final = bytes((10, 0, 2, 15))
STATION: Final = bytes((10, 0, 2, 2))
MAC: Final = bytes.fromhex("0200000000fe")
PEER: Final = bytes.fromhex("0200000000fd")
"""Locally administered addresses: ours, where the card has none, and that of frames which the host sends."""
ETHERTYPE: Final = b"\x88\xb5"
"""The EtherType for experiments (IEEE 802)."""
RSS_KEY: Final = bytes.fromhex("6d5a56da255b0ec24167253d43a38fb0d0ca2bcbae7b30b477cb2da38030f20c6a42b73bbeac01fa")
HASHES: Final = (
    (bytes((66, 9, 149, 187)), bytes((161, 142, 100, 80)), 0x323E8FC2),
    (bytes((199, 92, 111, 2)), bytes((65, 69, 140, 83)), 0xD718262A),
    (bytes((24, 19, 198, 95)), bytes((12, 22, 207, 184)), 0xD2D0A5DE),
)
"""Source, destination and hash of the IPv4 addresses with this key: Microsoft's verification of RSS."""
HASH_IPV4: Final = 1
"""Of the hash types, the addresses of IPv4 (5.1.9.4.3)."""
RSS_TABLE: Final = 128
"""Entries of the indirection table."""
_BUFFER: Final = 2048


def field(t: Trial, name: str) -> int:
    """A field of the configuration."""
    return t.config_field(net.CONFIG, name)


# --- frames (5.1.9.2 and 5.1.9.4; 5.1.6 in older versions of the standard) ---------------------------------------


class Received(NamedTuple):
    """A frame from the network."""

    header: bytes
    frame: bytes
    buffers: list[tuple[Buffer, int]]
    """Those that hold it, each with the length that the device says."""
    queue: int
    """The receive queue that it came on."""


class Cable:
    """A running card with receive buffers on all its queues."""

    def __init__(
        self,
        t: Trial,
        *,
        also: int = 0,
        size: int = _BUFFER,
        count: int = 4,
        pairs: int = 1,
        control: bool = False,
    ) -> None:
        """Bring it up.

        Args:
            t: The trial.
            also: Feature bits.
            size: Of each receive buffer, in bytes.
            count: Receive buffers of each queue.
            pairs: Pairs of queues that are enabled.
            control: Whether the control queue is enabled, too; CTRL_VQ is accepted then.
        """
        self._t = t
        also |= t.offered & f.mask(f.Net.MAC) | (f.mask(f.Net.CTRL_VQ) if control else 0)
        queues = list(range(2 * pairs))
        if control:
            many = also & f.mask(f.Net.MQ, f.Net.RSS)
            queues.append(2 * field(t, "max_virtqueue_pairs") if many else net.CONTROLQ)
        t.start(also=also, queues=queues)
        self.control: Lane = t.lanes[queues[-1]]
        """The control queue, where it was asked for."""
        self._waiting: dict[tuple[int, int], Buffer] = {}
        self.mac = field(t, "mac").to_bytes(6, "little") if t.has(f.Net.MAC) else MAC
        self._receive = [t.lanes[queue] for queue in queues[: 2 * pairs : 2]]
        for lane in self._receive:
            chains = []
            for _ in range(count):
                buffer = t.writable(size)
                chains.append(lane.chain(buffer))
                self._waiting[lane.index, chains[-1].head] = buffer
            lane.publish(*chains)
            lane.kick()
        self.header_size = len(net_header(t))

    def ask(self, frame: bytes, header: bytes | None = None) -> Received | None:
        """Send a frame and wait for the answer; None: there is none.

        Args:
            frame: To be sent.
            header: Its header; None: zeros.
        """
        t, send = self._t, self._t.lanes[net.TRANSMITQ]
        send.post(t.readable(net_header(t) if header is None else header), t.readable(frame))
        t.await_used(send, 1)
        return self.receive(t.pace.deadline)

    def receive(self, seconds: float) -> Received | None:
        """Wait for a frame, as many buffers as one takes; None: none came.

        Args:
            seconds: How long.
        """
        t = self._t
        found: list[tuple[Buffer, int]] = []
        queues: list[int] = []

        def done() -> bool:
            for lane in self._receive:
                for used in lane.take():
                    if used.posted is not None:  # of one that is not out the lane has made a note
                        found.append((self._waiting[lane.index, used.id], used.length))
                        queues.append(lane.index)
            return bool(found) and len(found) >= self._count(found[0][0])

        if not t.until(done, seconds):
            t.expect(not found, f"{len(found)} of {self._count(found[0][0]) if found else 0} buffers came", "all")
            return None
        data = b"".join(buffer.data[:length] for buffer, length in found)
        return Received(data[: self.header_size], data[self.header_size :], found, queues[0])

    def await_frame(self, frame: bytes, what: str) -> Received:
        """Wait for a frame that has to arrive, as it was sent.

        Args:
            frame: As it was sent.
            what: What it is called in the verdict.

        Raises:
            Violated: It did not come, or another came.
        """
        found = self.receive(self._t.pace.deadline)
        if found is None:
            raise Violated(f"{what} does not arrive", "every such frame", late=True)
        self._t.expect(found.frame == frame, f"{what} arrives as {found.frame[:20].hex()}...", frame[:20].hex())
        return found

    def _count(self, first: Buffer) -> int:
        """``num_buffers``, which counts with MRG_RXBUF alone."""
        return int.from_bytes(first.data[10:12], "little") if self._t.has(f.Net.MRG_RXBUF) else 1

    def arp(self, header: bytes | None = None) -> Received | None:
        """Ask for the station's address."""
        who = self.mac + US + bytes(6) + STATION
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
        head = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(echo), 1, 0, 64, 1, 0, US, STATION)
        return self.ask(station + self.mac + b"\x08\x00" + _summed(head, 10) + echo)


def _summed(data: bytes, place: int) -> bytes:
    """With the checksum of IP and ICMP (RFC 1071) at a place that is zero."""
    total: int = sum(struct.unpack(f">{(len(data) + 1) // 2}H", data + bytes(len(data) % 2)))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return data[:place] + (~total & 0xFFFF).to_bytes(2, "big") + data[place + 2 :]


def is_answer(received: Received, cable: Cable) -> bool:
    """Whether a frame is the station's answer to ARP.

    Args:
        received: The frame.
        cable: The card that asked.
    """
    frame = received.frame
    return (
        frame[:6] == cable.mac
        and frame[12:14] == b"\x08\x06"
        and frame[20:22] == b"\0\2"
        and frame[28:32] == STATION
    )


# --- the control queue (5.1.9.5) --------------------------------------------------------------------------------


def controlq(t: Trial, *bits: int) -> Lane:
    """Bring the card up with its control queue alone.

    Args:
        t: The trial.
        *bits: Features that the test needs beside CTRL_VQ.
    """
    t.need_feature(f.Net.CTRL_VQ, *bits)
    return t.start(also=f.mask(f.Net.CTRL_VQ, *bits), queues=[net.CONTROLQ])


def command(t: Trial, lane: Lane, kind: int, command: int, data: bytes = b"") -> int:
    """Carry out a command; the answer, which is 0xa5 where none was written.

    Args:
        t: The trial.
        lane: The control queue.
        kind: The class.
        command: The command.
        data: What belongs to it.
    """
    answer = t.writable(net.ACK_SIZE)
    lane.post(t.readable(bytes([kind, command])), *([t.readable(data)] if data else []), answer)
    t.await_used(lane, 1)
    return answer.data[0]


def done(t: Trial, lane: Lane, kind: Control, number: int, data: bytes, what: str) -> None:
    """Carry out a command that has to work.

    Args:
        t: The trial.
        lane: The control queue.
        kind: The class.
        number: The command.
        data: What belongs to it.
        what: What it is called in the verdict.

    Raises:
        Violated: The answer is not OK.
    """
    answer = command(t, lane, kind, number, data)
    t.expect(answer == Ack.OK, f"{answer:#x} for {what}", "OK")


def rss_config(to_second: int, *, other: int) -> bytes:
    """The data of RSS_CONFIG (5.1.9.5.7) with the IPv4 hash: one entry of the table names receiveq2.

    Args:
        to_second: The entry; the others name receiveq1.
        other: The pair for frames without a hash: 0 or 1.
    """
    table = [int(place == to_second) for place in range(RSS_TABLE)]
    head = struct.pack(f"<IHH{RSS_TABLE}H", HASH_IPV4, RSS_TABLE - 1, other, *table)
    return head + struct.pack("<HB", 1, len(RSS_KEY)) + RSS_KEY


# --- the other end of the cable ---------------------------------------------------------------------------------


class Wire:
    """The host's side of a card."""

    def send(self, frame: bytes) -> None:
        """Put a frame on the cable, for the card to take or to leave.

        Args:
            frame: From its first address on, without a checksum.
        """
        raise NotImplementedError

    def groups(self) -> set[bytes] | None:
        """The group addresses in the card's table, by the host's own word; None: it does not say."""
        return None

    def promiscuous(self) -> bool | None:
        """Whether the card takes every frame, by the host's own word; None: it does not say."""
        return None

    def mac(self) -> bytes | None:
        """The address that the card takes for its own, by the host's own word; None: it does not say."""
        return None


class _ScriptedWire(Wire):
    def __init__(self, model: Net) -> None:
        self._model = model

    def send(self, frame: bytes) -> None:
        """Put it on the cable."""
        self._model.arrive(frame)

    def groups(self) -> set[bytes]:
        """Of the table."""
        return {mac for mac in self._model.table if mac[0] & 1}

    def promiscuous(self) -> bool:
        """As the card was told."""
        return self._model.promiscuous

    def mac(self) -> bytes:
        """As the card was told."""
        return self._model.get("mac").to_bytes(6, "little")


class _MachineWire(Wire):
    """QEMU: frames through a filter on the card's network, and ``query-rx-filter``."""

    def __init__(self, guest: GuestMachine, connected: socket.socket | None) -> None:
        self._guest = guest
        self._connected = connected

    def send(self, frame: bytes) -> None:
        """Put it on the cable."""
        assert self._connected is not None
        self._connected.sendall(struct.pack(">I", len(frame)) + frame)  # the form of net/filter-mirror.c

    def _told(self, name: str) -> object:
        (told,) = [one for one in self._guest.qmp("query-rx-filter") if one["name"] == self._guest.id]
        return told[name]

    def groups(self) -> set[bytes]:
        """Of the table."""
        told = self._told("multicast-table")
        assert isinstance(told, list)
        return {bytes.fromhex(str(mac).replace(":", "")) for mac in told}

    def promiscuous(self) -> bool:
        """As the card was told."""
        return bool(self._told("promiscuous"))

    def mac(self) -> bytes:
        """As the card was told."""
        return bytes.fromhex(str(self._told("main-mac")).replace(":", ""))


def view(device: Device) -> Wire:
    """What the host shows of a card; one whose host does not, shows nothing.

    Args:
        device: The card.
    """
    backend = device.transport.backend
    if isinstance(backend, ScriptedCore) and isinstance(backend.model, Net):
        return _ScriptedWire(backend.model)
    if device.guest is not None:
        return _MachineWire(device.guest, None)
    return Wire()


@contextmanager
def wire(device: Device) -> Iterator[Wire]:
    """The other end of a card's cable.

    Args:
        device: The card.

    Raises:
        Unfit: There is no way to it here.
    """
    backend = device.transport.backend
    if isinstance(backend, ScriptedCore) and isinstance(backend.model, Net):
        yield _ScriptedWire(backend.model)
    elif device.guest is not None:
        with _redirector(device.guest) as connected:
            yield _MachineWire(device.guest, connected)
    else:
        raise Unfit("its host cannot be asked to send frames")


@contextmanager
def _redirector(guest: GuestMachine) -> Iterator[socket.socket]:
    """A socket whose frames QEMU puts on the way from the network to the card."""
    network = guest.qmp("qom-get", path=f"/machine/peripheral/{guest.id}", property="netdev")
    if not network:
        raise Unfit("the card is in no network")
    name = "uvirtio-conform-wire"
    path = make_place("uvirtio-wire-")
    try:
        with socket.socket(socket.AF_UNIX) as connected:
            where = {"addr": {"type": "unix", "data": {"path": str(path)}}, "server": True, "wait": False}
            guest.qmp("chardev-add", id=name, backend={"type": "socket", "data": where})
            try:
                about = {"qom-type": "filter-redirector", "netdev": network, "queue": "tx", "indev": name}
                guest.qmp("object-add", id=name, **about)
                connected.connect(str(path))
                yield connected
            finally:
                for gone in ("object-del", "chardev-remove"):
                    with suppress(UvirtioError):  # the machine may have ended, which the next step sees
                        guest.qmp(gone, id=name)
    finally:
        remove_place(path)
