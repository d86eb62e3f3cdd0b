"""Frames and the headers in front of them (5.1.6): checksums and segments that one side left to the other."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from uvirtio.errors import BadFrame, UsageError
from uvirtio.spec import features as f
from uvirtio.spec import net as spec
from uvirtio.spec.net import GSO_ECN, Gso, HeaderFlag

_HEADER = struct.Struct("<BBHHHH")
_KINDS = {int(kind): kind for kind in Gso}
_NEEDS_CSUM = int(HeaderFlag.NEEDS_CSUM)

FrameData = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class Header:
    """What a header says of its frame (5.1.6), without ``num_buffers``. All zero: the frame is whole."""

    flags: int = 0
    """HeaderFlag bits; others are ignored (5.1.6.4.1)."""
    gso_type: int = 0
    """A Gso, with GSO_ECN added where segments carry the ECN bit."""
    hdr_len: int = 0
    """Bytes of all headers of a packet that is to be cut in segments; a hint (5.1.6.4.1)."""
    gso_size: int = 0
    """Bytes of payload of each segment."""
    csum_start: int = 0
    """Where the checksum begins, in bytes of the frame."""
    csum_offset: int = 0
    """Where it is stored, in bytes from ``csum_start``."""

    @property
    def needs_csum(self) -> bool:
        """Whether the checksum is not yet complete: it holds the pseudo header's alone."""
        return bool(self.flags & HeaderFlag.NEEDS_CSUM)

    @property
    def data_valid(self) -> bool:
        """Whether the other side has checked the checksum."""
        return bool(self.flags & HeaderFlag.DATA_VALID)

    @property
    def gso(self) -> Gso | None:
        """What kind of segments the packet is to be cut in; None for a kind that has no name here."""
        return _KINDS.get(self.gso_type & ~GSO_ECN)

    def pack(self) -> bytes:
        """The first 10 bytes of the header, as ``num_buffers`` follows them or not (5.1.6.1)."""
        return _HEADER.pack(
            self.flags, self.gso_type, self.hdr_len, self.gso_size, self.csum_start, self.csum_offset
        )


WHOLE = Header()
"""The header of a frame that is complete as it is."""

_NOTHING = bytes(_HEADER.size)


class Frame:
    """One Ethernet frame, without its checksum at the end (FCS), and the header that came with it.

    It is a copy: the device's memory is in use again by then.
    """

    __slots__ = ("_header", "_raw", "_start")

    def __init__(self, data: FrameData, header: Header = WHOLE) -> None:
        """Make a frame to send.

        Args:
            data: The frame, from the destination address on.
            header: What the device is asked to complete; nothing, by default.
        """
        self._raw: FrameData = data
        self._start = 0
        self._header: Header | None = header

    @classmethod
    def received(cls, raw: FrameData, start: int, header: Header | None) -> Frame:
        """A frame behind its header.

        Args:
            raw: Header and frame.
            start: Bytes of the header.
            header: What counts instead of it; None: it is decoded when it is asked for.
        """
        self = cls.__new__(cls)
        self._raw, self._start, self._header = raw, start, header
        return self

    @property
    def data(self) -> memoryview:
        """The frame as it came."""
        return memoryview(self._raw)[self._start :]

    @property
    def header(self) -> Header:
        """The header that came with it, or that it is sent with."""
        if self._header is None:
            self._header = Header(*_HEADER.unpack_from(self._raw))
        return self._header

    def __len__(self) -> int:
        return len(self._raw) - self._start

    def __bytes__(self) -> bytes:
        return bytes(self.data)

    def whole(self) -> memoryview:
        """The frame with its checksum complete, where the other side left that to us (NEEDS_CSUM).

        A packet that is to be cut in segments keeps its length: it is not cut here.

        Raises:
            BadFrame: The checksum would lie outside of the frame.
        """
        data, header = self.data, self.header
        if not header.needs_csum:
            return data
        start = header.csum_start
        at = start + header.csum_offset
        if at + 2 > len(data):
            raise BadFrame(
                "the checksum of a frame would lie outside of it",
                seen=f"csum_start {start}, csum_offset {header.csum_offset}, {len(data)} bytes",
                expected="a place inside the frame (5.1.6.4)",
                remedy="the sender is at fault; the frame is of no use",
            )
        made = bytearray(data)
        # 5.1.6.2: the field holds the pseudo header's sum, which is summed up with the rest. 0 is sent as 0xffff.
        made[at : at + 2] = (checksum(data[start:]) or 0xFFFF).to_bytes(2, "big")
        return memoryview(made)

    def __repr__(self) -> str:
        return f"<Frame of {len(self)} bytes>"


def checksum(data: FrameData) -> int:
    """The Internet checksum (RFC 1071) of some bytes, as it is stored: the ones' complement of their sum.

    Args:
        data: The bytes; an odd one at the end counts as the high half of a word.
    """
    odd = len(data) & 1
    words = struct.unpack(f">{len(data) // 2}H", bytes(data[: len(data) - odd]))
    total: int = sum(words) + (data[-1] << 8 if odd else 0)
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


_GSO_NEEDS: dict[Gso, int] = {
    Gso.TCPV4: f.Net.HOST_TSO4,
    Gso.TCPV6: f.Net.HOST_TSO6,
    Gso.UDP: f.Net.HOST_UFO,
    Gso.UDP_L4: f.Net.HOST_USO,
}


def check_header(header: Header, length: int, features: int) -> None:
    """Check that a header asks for nothing that was not negotiated (5.1.6.2.1).

    Args:
        header: The header of a frame that is to be sent.
        length: Bytes of the frame.
        features: The negotiated feature bits.

    Raises:
        BadFrame: It does, or its numbers lie outside of the frame.
    """
    if header.flags & ~_NEEDS_CSUM:
        raise _bad("flags that only a device may set", f"flags {header.flags:#x}", "NEEDS_CSUM or 0 (5.1.6.2.1)")
    if header.needs_csum and not f.has(features, f.Net.CSUM):
        raise _bad("a checksum that the device will not complete", "NEEDS_CSUM", "CSUM negotiated (5.1.6.2.1)")
    if header.needs_csum and header.csum_start + header.csum_offset + 2 > length:
        seen = f"csum_start {header.csum_start}, csum_offset {header.csum_offset}"
        raise _bad("a checksum outside of the frame", seen, f"a place in its {length} bytes")
    kind = header.gso
    if kind is Gso.NONE and not header.gso_type:
        return
    needed = _GSO_NEEDS.get(kind) if kind is not None else None
    if kind is None or needed is None or not f.has(features, needed):
        name = f.Net(needed).name if needed is not None else "no feature bit"
        raise _bad(
            "segments that the device will not make",
            f"gso_type {header.gso_type:#x}",
            f"{name} negotiated",
        )
    if header.gso_type & GSO_ECN and not f.has(features, f.Net.HOST_ECN):
        raise _bad("segments with ECN", f"gso_type {header.gso_type:#x}", "HOST_ECN negotiated (5.1.6.2.1)")
    if not header.needs_csum or not header.gso_size:
        seen = f"flags {header.flags:#x}, gso_size {header.gso_size}"
        raise _bad("segments without their size or checksum", seen, "NEEDS_CSUM, and a gso_size (5.1.6.2.1)")
    if not header.csum_start < header.hdr_len <= length:
        seen = f"hdr_len {header.hdr_len}, csum_start {header.csum_start}"
        raise _bad("segments without headers", seen, "hdr_len with the transport header (5.1.6.2.1)")


def _bad(what: str, seen: str, expected: str) -> BadFrame:
    return BadFrame(
        f"the header asks for {what}",
        seen=seen,
        expected=expected,
        remedy="send the frame complete, or take the offload: Net(device, offloads=True)",
    )


def mac_text(mac: FrameData) -> str:
    """An Ethernet address as text: ``52:54:00:12:34:56``."""
    return ":".join(f"{byte:02x}" for byte in mac)


def mac_of(text: str) -> bytes:
    """Read an Ethernet address.

    Args:
        text: Six pairs of hexadecimal digits with ``:`` or ``-`` between them.

    Raises:
        UsageError: It is none.
    """
    parts = text.replace("-", ":").split(":")
    if len(parts) != spec.MAC_SIZE or not all(len(part) == 2 and _is_hex(part) for part in parts):
        raise UsageError(
            f"{text!r} is no Ethernet address", seen=text, expected="six pairs of digits: 52:54:00:12:34:56"
        )
    return bytes(int(part, 16) for part in parts)


def _is_hex(part: str) -> bool:
    return part.isascii() and all(digit in "0123456789abcdefABCDEF" for digit in part)


def check_macs(macs: Sequence[bytes], *, multicast: bool | None = None) -> None:
    """Check Ethernet addresses.

    Args:
        macs: The addresses, 6 bytes each.
        multicast: Whether all of them must be group addresses; False: none may be one; None: it does not matter.

    Raises:
        UsageError: One is not of this kind.
    """
    for mac in macs:
        if len(mac) != spec.MAC_SIZE:
            raise UsageError("an Ethernet address has 6 bytes", seen=bytes(mac).hex(), expected="6 bytes")
        if multicast is False and not any(mac):
            raise UsageError(f"{mac_text(mac)} is no address", seen="all zero", expected="one station's address")
        if multicast is not None and bool(mac[0] & 1) is not multicast:
            kind = "a group" if multicast else "one station's"
            raise UsageError(
                f"{mac_text(mac)} is not {kind} address",
                seen=f"bit 0 of its first byte is {mac[0] & 1}",
                expected=f"{int(multicast)} (IEEE 802)",
            )
