"""One good request of each device type: what tests of rings send, and the canary before and after each test.

None of them changes anything that outlives a reset: a disk is read, a balloon gets one pinned page and gives it
back.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Final, Protocol

from uvirtio.conform.asked import ASKED
from uvirtio.conform.lane import Posted
from uvirtio.conform.memory import Buffer
from uvirtio.conform.steps import Steps
from uvirtio.conform.verdict import Unfit
from uvirtio.spec import balloon, blk, mem, net, rng, scsi
from uvirtio.spec import features as f
from uvirtio.spec import input as input_spec

Elements = tuple[Buffer, ...]
_INQUIRY_SIZE: Final = 36
"""Bytes of INQUIRY data that there always are (SPC-5, 6.7.2)."""


class Exchange(Protocol):
    """The good request of one device type."""

    queue: int
    """The queue that takes it."""
    features: int
    """Feature bits of the type that it needs, where they are offered."""

    def elements(self, t: Steps) -> Elements:
        """The buffers of one request, readable ones first.

        Args:
            t: A trial whose device is running.
        """
        ...

    def wrong(self, elements: Elements, posted: Posted) -> str | None:
        """What is wrong with the answer; None: nothing.

        Args:
            elements: What ``elements`` returned.
            posted: The chain that was made of them, used by the device.
        """
        ...


class RngExchange:
    """Eight random bytes (5.4.6)."""

    queue = rng.REQUESTQ
    features = 0

    def elements(self, t: Steps) -> Elements:
        """A writable buffer."""
        return (t.writable(8),)

    def wrong(self, elements: Elements, posted: Posted) -> str | None:
        """At least one byte is asked for (5.4.6.2)."""
        return None if posted.length else "a random buffer came back with len 0"


class BlkExchange:
    """Sector 0 is read (5.2.6)."""

    queue = blk.REQUESTQ
    features = 0

    def elements(self, t: Steps) -> Elements:
        """Header, 512 bytes, status."""
        if not t.config_field(blk.CONFIG, "capacity"):
            raise Unfit("the disk has no sector")
        return t.readable(blk_header(blk.Request.IN, 0)), t.writable(blk.SECTOR_SIZE), t.writable(1)

    def wrong(self, elements: Elements, posted: Posted) -> str | None:
        """The status is OK."""
        status = elements[-1].data[0]
        return None if status == blk.Status.OK else f"sector 0 was read with status {status}"


def blk_header(kind: int, sector: int) -> bytes:
    """The header of a block request (5.2.6).

    Args:
        kind: The type, 32 bits.
        sector: 64 bits.
    """
    return struct.pack("<IIQ", kind, 0, sector)


class MemExchange:
    """The state of the first block (5.15.6.6)."""

    queue = mem.GUEST_REQUESTQ
    features = f.mask(f.Mem.UNPLUGGED_INACCESSIBLE)

    def elements(self, t: Steps) -> Elements:
        """A STATE request and its response."""
        address = t.config_field(mem.CONFIG, "addr")
        return t.readable(struct.pack("<H6xQH6x", mem.Request.STATE, address, 1)), t.writable(mem.RESPONSE_SIZE)

    def wrong(self, elements: Elements, posted: Posted) -> str | None:
        """The response has a type that there is; ERROR where nothing is usable."""
        answer = int.from_bytes(elements[1].data[:2], "little")
        return None if answer in tuple(mem.Response) else f"STATE was answered {answer:#x}"


class InputExchange:
    """A status event that changes nothing (5.8.6.1)."""

    queue = input_spec.STATUSQ
    features = 0

    def elements(self, t: Steps) -> Elements:
        """EV_SYN, SYN_REPORT."""
        return (t.readable(bytes(input_spec.EVENT_SIZE)),)

    def wrong(self, elements: Elements, posted: Posted) -> str | None:
        """It came back."""
        return None


class BalloonExchange:
    """A pinned page of ours is inflated (5.5.6.2); the reset gives it back."""

    queue = balloon.INFLATEQ
    features = 0

    def elements(self, t: Steps) -> Elements:
        """One page frame number."""
        return (t.readable(t.own_page().to_bytes(balloon.PFN_SIZE, "little")),)

    def wrong(self, elements: Elements, posted: Posted) -> str | None:
        """It came back."""
        return None


class ScsiExchange:
    """INQUIRY to 0:0 (5.6.6.1), which a unit answers whether or not it has a medium."""

    queue = scsi.REQUESTQ
    features = 0

    def elements(self, t: Steps) -> Elements:
        """Request, response with its sense data, 36 bytes of data."""
        sense = t.config_field(scsi.CONFIG, "sense_size")
        request = scsi_request(t, inquiry(_INQUIRY_SIZE))
        return t.readable(request), t.writable(scsi.RESPONSE_SIZE + sense), t.writable(_INQUIRY_SIZE)

    def wrong(self, elements: Elements, posted: Posted) -> str | None:
        """The command was carried out, or there is no target 0."""
        response = elements[1].data[scsi.RESPONSE_SIZE - 1]
        served = response in (scsi.Response.OK, scsi.Response.BAD_TARGET)
        return None if served else f"INQUIRY to 0:0 was answered with response {response}"


def scsi_request(t: Steps, cdb: bytes, target: int = 0) -> bytes:
    """A SCSI request up to its CDB (5.6.6.1), for LUN 0 of a target.

    Args:
        t: The trial; ``cdb_size`` is read.
        cdb: The CDB, without zeros at its end.
        target: 8 bits.
    """
    head = bytes([1, target]).ljust(scsi.REQUEST_SIZE, b"\0")
    return head + cdb.ljust(t.config_field(scsi.CONFIG, "cdb_size"), b"\0")


def inquiry(room: int) -> bytes:
    """The CDB of INQUIRY (SPC-5, 6.7).

    Args:
        room: The allocation length in bytes, 16 bits.
    """
    return struct.pack(">BBBHB", scsi.Opcode.INQUIRY, 0, 0, room, 0)


class NetExchange:
    """A frame for nowhere is transmitted (5.1.6.2)."""

    queue = net.TRANSMITQ
    features = 0

    def elements(self, t: Steps) -> Elements:
        """The header, and a frame of 60 bytes."""
        return t.readable(net_header(t)), t.readable(net_frame())

    def wrong(self, elements: Elements, posted: Posted) -> str | None:
        """It came back."""
        return None


def net_header(t: Steps) -> bytes:
    """The header of a frame that asks for nothing (5.1.6.1).

    Args:
        t: The trial; what was negotiated decides the size.
    """
    long = t.has(f.VERSION_1) or t.has(f.Net.MRG_RXBUF)
    return bytes(net.HEADER_SIZE if long else net.HEADER_SIZE_SHORT)


def net_frame() -> bytes:
    """A frame from one locally administered address to another, of the EtherType for experiments (IEEE 802)."""
    head = bytes.fromhex("0200000000fe 0200000000fd 88b5")
    return head.ljust(net.FRAME_MIN, b"\0")


EXCHANGES: Final[Mapping[str, type[Exchange]]] = {
    "rng": RngExchange,
    "blk": BlkExchange,
    "mem": MemExchange,
    "input": InputExchange,
    "balloon": BalloonExchange,
    "scsi": ScsiExchange,
    "net": NetExchange,
    **ASKED,
}
"""By type name. Of other types the canary brings the device up, and the rows that need traffic are left out."""

READ_ONLY: Final = frozenset({"input", "balloon", "console", "vsock"})
"""Types whose good request has no writable buffer."""
SERVED: Final = frozenset(EXCHANGES)
"""Types that have a good request."""
WRITTEN: Final = SERVED - READ_ONLY
"""Types whose good request has a writable buffer."""
FAULTS: Final = frozenset({"rng", "blk", "mem", "input", "balloon", "scsi"})
"""Types whose rings are made wrong on purpose; those of network devices and of types without a driver are not
(docs/conform.md)."""
NOTIFIED_WRONGLY: Final = FAULTS | {"net"}
"""Types that are asked for notifications which a driver may not ask for, and given flags that a device ignores."""
BESIDE: Final[Mapping[str, tuple[int, ...]]] = {"net": (net.RECEIVEQ,)}
"""Queues that are set up beside that of the request, as every driver does (5.1.5): a device may wait for them."""
