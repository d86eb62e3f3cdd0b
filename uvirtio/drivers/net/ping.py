"""ARP and ping (RFC 826, 791, 792): is a station at the other end, and how long does it take?"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address

from uvirtio.drivers.net.driver import Net
from uvirtio.drivers.net.frame import Frame, checksum, mac_text
from uvirtio.errors import BadSize
from uvirtio.spec import net as spec

_ARP, _IPV4 = b"\x08\x06", b"\x08\x00"
_ARP_ETHERNET = b"\x00\x01\x08\x00\x06\x04"
_REQUEST, _REPLY = b"\x00\x01", b"\x00\x02"
_IP = struct.Struct(">BBHHHBBH4s4s")
_ICMP = struct.Struct(">BBHHH")
_ECHO_REQUEST, _ECHO_REPLY, _PROTOCOL_ICMP = 8, 0, 1
_IP_AT, _ICMP_AT = spec.ETHERNET_HEADER, spec.ETHERNET_HEADER + 20
_DONT_FRAGMENT = 0x4000
_OVERHEAD = 28
"""Bytes of the headers of IP and ICMP in front of the data."""

_Heard = Callable[[bytes], bool]
"""Whether this is the frame that is waited for."""


def arp_request(mac: bytes, source: IPv4Address | None, target: IPv4Address) -> bytes:
    """Ask all who has an address, in a frame.

    Args:
        mac: Our Ethernet address.
        source: Our IP address; None: a probe, which tells no one of one (RFC 5227).
        target: The address that is asked for.
    """
    ours = source.packed if source is not None else bytes(4)
    body = _ARP_ETHERNET + _REQUEST + mac + ours + bytes(6) + target.packed
    return (spec.BROADCAST + mac + _ARP + body).ljust(spec.FRAME_MIN, b"\0")


def arp_answer(frame: bytes, mac: bytes, source: IPv4Address) -> bytes | None:
    """The answer to an ARP request for our address; None where the frame is none.

    Args:
        frame: What was received.
        mac: Our Ethernet address.
        source: Our IP address.
    """
    if len(frame) < 42 or frame[12:22] != _ARP + _ARP_ETHERNET + _REQUEST or frame[38:42] != source.packed:
        return None
    asker = frame[22:32]
    body = _ARP_ETHERNET + _REPLY + mac + source.packed + asker
    return (asker[:6] + mac + _ARP + body).ljust(spec.FRAME_MIN, b"\0")


def arp_told(frame: bytes, target: IPv4Address) -> bytes | None:
    """The Ethernet address of an ARP reply about ``target``; None where the frame is none."""
    if len(frame) < 42 or frame[12:22] != _ARP + _ARP_ETHERNET + _REPLY or frame[28:32] != target.packed:
        return None
    return frame[22:28]


def echo_request(
    ours: tuple[bytes, IPv4Address], theirs: tuple[bytes, IPv4Address], ident: int, number: int, data: bytes
) -> bytes:
    """An ICMP echo request in a frame, all checksums complete.

    Args:
        ours: Our Ethernet and IP address.
        theirs: Those of the station that is asked.
        ident: Of the whole run, 16 bits.
        number: Of this request, 16 bits.
        data: What comes back.
    """
    icmp = _ICMP.pack(_ECHO_REQUEST, 0, 0, ident, number) + data
    icmp = icmp[:2] + checksum(icmp).to_bytes(2, "big") + icmp[4:]
    ends = ours[1].packed, theirs[1].packed
    fields = 0x45, 0, 20 + len(icmp), number, _DONT_FRAGMENT, 64, _PROTOCOL_ICMP
    header = _IP.pack(*fields, checksum(_IP.pack(*fields, 0, *ends)), *ends)
    return (theirs[0] + ours[0] + _IPV4 + header + icmp).ljust(spec.FRAME_MIN, b"\0")


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer to a ping."""

    number: int
    """That of the request."""
    size: int
    """Bytes of ICMP header and data."""
    ttl: int
    """Time to live that it had left."""
    seconds: float
    """From the request to the answer."""
    intact: bool
    """Whether the data came back as it was sent."""


class Ping:
    """Asks one station, one request at a time. Frames that are for others are dropped meanwhile."""

    def __init__(self, net: Net, target: IPv4Address, *, source: IPv4Address, data_size: int = 56) -> None:
        """Prepare to ask.

        Args:
            net: The card.
            target: The station; it has to be on this network.
            source: Our address on it.
            data_size: Bytes of data of each request.

        Raises:
            BadSize: A frame cannot carry that much.
        """
        most = net.max_frame - spec.ETHERNET_HEADER - spec.VLAN_TAG - _OVERHEAD
        if not 0 <= data_size <= most:
            raise BadSize("a frame cannot carry that much", seen=data_size, expected=f"0..{most} bytes")
        self.target, self.source = target, source
        self.mac: bytes | None = None
        """The station's Ethernet address, once ``resolve`` has found it."""
        self._net, self._ident = net, int.from_bytes(net.mac[4:], "big")
        self._data = bytes(number & 0xFF for number in range(data_size))

    def resolve(self, timeout: float) -> bool:
        """Find the station's Ethernet address by ARP, asking three times.

        Args:
            timeout: Seconds in all.

        Returns:
            Whether it answered.

        Raises:
            NetStalled: There is no room for the request, or the link is down.
        """
        with self._net.session(timeout):
            for _ in range(3):
                request = arp_request(self._net.mac, self.source, self.target)
                self._net.send_all([request])
                if self._answered(self._heard_arp, timeout / 3):
                    return True
            return False

    def _heard_arp(self, frame: bytes) -> bool:
        self.mac = arp_told(frame, self.target) or self.mac
        return self.mac is not None

    def ask(self, number: int, timeout: float) -> Reply | None:
        """Send one request and wait for its answer; ``resolve`` comes first.

        Args:
            number: Of the request.
            timeout: Seconds to wait.

        Returns:
            The answer; None where none came in time.

        Raises:
            NetStalled: There is no room for the request, or the link is down.
        """
        assert self.mac is not None
        net, clock = self._net, self._net.device.clock
        found: list[Reply] = []
        request = echo_request(
            (net.mac, self.source), (self.mac, self.target), self._ident, number & 0xFFFF, self._data
        )

        def heard(frame: bytes) -> bool:
            reply = self._reply(frame, number, clock.monotonic() - begin)
            found.extend([reply] if reply is not None else [])
            return bool(found)

        begin = clock.monotonic()
        with net.session(timeout):
            net.send_all([request])
            self._answered(heard, timeout)
        return found[0] if found else None

    def _reply(self, frame: bytes, number: int, seconds: float) -> Reply | None:
        if len(frame) < _ICMP_AT + _ICMP.size or frame[12:15] != _IPV4 + b"\x45":
            return None
        _, _, length, _, _, ttl, protocol, _, source, target = _IP.unpack_from(frame, _IP_AT)
        icmp = frame[_ICMP_AT : _IP_AT + length]
        ours = (source, target, protocol) == (self.target.packed, self.source.packed, _PROTOCOL_ICMP)
        if not ours or len(icmp) < _ICMP.size or checksum(icmp) or checksum(frame[_IP_AT:_ICMP_AT]):
            return None
        kind, _, _, ident, sequence = _ICMP.unpack_from(icmp)
        if (kind, ident, sequence) != (_ECHO_REPLY, self._ident, number & 0xFFFF):
            return None
        return Reply(number, len(icmp), ttl, seconds, icmp[_ICMP.size :] == self._data)

    def _answered(self, heard: _Heard, timeout: float) -> bool:
        """Receive until ``heard`` of a frame; who asks for our address is answered."""
        net, clock = self._net, self._net.device.clock
        deadline = clock.monotonic() + net.device.seconds(timeout)
        while True:
            done = False
            for frame in net.receive(timeout=max(0.0, deadline - clock.monotonic())):
                done = self._hear(frame, heard) or done
            if done or clock.monotonic() >= deadline:
                return done

    def _hear(self, frame: Frame, heard: _Heard) -> bool:
        data = bytes(frame)
        answer = arp_answer(data, self._net.mac, self.source)
        if answer is not None:
            self._net.send([answer])
        return heard(data)

    def __repr__(self) -> str:
        where = mac_text(self.mac) if self.mac is not None else "not resolved"
        return f"<Ping {self.target} ({where})>"
