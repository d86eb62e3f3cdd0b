"""Files of captured frames: classic pcap, as tcpdump and Wireshark read and write it (draft-ietf-opsawg-pcap)."""

from __future__ import annotations

import shlex
import struct
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from uvirtio.errors import BadCapture

_HEADER = struct.Struct("<IHHiIII")
_RECORD = struct.Struct("<IIII")
_MICRO, _NANO = 0xA1B2C3D4, 0xA1B23C4D
_NG = 0x0A0D0D0A
_ETHERNET = 1
SNAPLEN = 262144
"""Bytes of a frame that are kept, at most; more than any has."""

_BILLION = 1_000_000_000


class Writer:
    """Writes frames into a file, with their times in nanoseconds."""

    def __init__(self, file: BinaryIO) -> None:
        """Write the header of the file.

        Args:
            file: Open for writing, at its start; it stays the caller's.

        Raises:
            OSError: It cannot be written.
        """
        self._file = file
        self.frames = 0
        file.write(_HEADER.pack(_NANO, 2, 4, 0, 0, SNAPLEN, _ETHERNET))
        file.flush()

    def write(self, frames: Iterable[bytes | memoryview], nanoseconds: int) -> None:
        """Write frames that came at one time.

        Args:
            frames: The frames, without the checksum at their end.
            nanoseconds: Since 1970, UTC.

        Raises:
            OSError: They cannot be written.
        """
        seconds, rest = divmod(nanoseconds, _BILLION)
        for frame in frames:
            self._file.write(_RECORD.pack(seconds, rest, len(frame), len(frame)) + frame)
            self.frames += 1
        self._file.flush()


def read(file: BinaryIO, name: str) -> Iterator[tuple[int, bytes]]:
    """Read the frames of a capture, one at a time.

    Args:
        file: Open for reading, at its start.
        name: What it is called, for errors.

    Yields:
        (nanoseconds since 1970, frame) of each, in the order of the file.

    Raises:
        BadCapture: It is no such file, its frames are not Ethernet's, or it ends in the middle of one.
        OSError: It cannot be read.
    """
    head = file.read(_HEADER.size)
    found = _order(head)
    if found is None:
        (magic,) = struct.unpack("<I", head[:4].ljust(4, b"\0"))
        convert = (
            f"editcap -F pcap {shlex.quote(name)} OTHER"
            if magic == _NG
            else "name a file of tcpdump -w or Wireshark"
        )
        raise BadCapture(
            f"{name} is no capture in the pcap format",
            seen="pcapng" if magic == _NG else head[:4].hex() or "nothing",
            expected="a1b2c3d4 or a1b23c4d at the start",
            remedy=convert if magic == _NG else "name a file of tcpdump -w or Wireshark",
        )
    order, unit = found
    *_, link = struct.unpack(f"{order}IHHiIII", head)
    if link & 0x0FFF_FFFF != _ETHERNET:  # above: the length of an FCS
        raise BadCapture(
            f"{name} is no capture of Ethernet frames",
            seen=f"link type {link & 0x0FFF_FFFF}",
            expected="1, Ethernet",
            remedy="capture on a network card, or on a TAP",
        )
    record = struct.Struct(f"{order}IIII")
    while head := file.read(record.size):
        if len(head) < record.size:
            raise _cut(name, file, len(head), record.size)
        seconds, fraction, kept, length = record.unpack(head)
        if kept != length or kept > SNAPLEN:
            raise BadCapture(
                f"{name} has a frame that is not whole",
                seen=f"{kept} of {length} bytes",
                expected=f"all of it, {SNAPLEN} bytes at most",
                remedy="capture with a longer snap length: tcpdump -s 0",
            )
        frame = file.read(kept)
        if len(frame) < kept:
            raise _cut(name, file, len(frame), kept)
        yield seconds * _BILLION + fraction * unit, frame


def _order(head: bytes) -> tuple[str, int] | None:
    """Byte order, and nanoseconds of the unit of times; None where this is no pcap header."""
    if len(head) == _HEADER.size:
        for order in "<>":
            (magic,) = struct.unpack_from(f"{order}I", head)
            if magic in (_MICRO, _NANO):
                return order, 1000 if magic == _MICRO else 1
    return None


def _cut(name: str, file: BinaryIO, seen: int, expected: int) -> BadCapture:
    return BadCapture(
        f"{name} ends in the middle of a frame",
        seen=f"{seen} bytes",
        expected=f"{expected} bytes",
        remedy="the capture was cut short; frames before this one are whole",
    )
