"""One good request of each device type: what tests of rings send, and the canary before and after each test.

None of them changes anything that outlives a reset: a disk is read, a balloon gets one pinned page and gives it
back.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Final, Protocol

from uvirtio.conform.lane import Posted
from uvirtio.conform.memory import Buffer
from uvirtio.conform.steps import Steps
from uvirtio.conform.verdict import Unfit
from uvirtio.spec import balloon, blk, mem, rng
from uvirtio.spec import features as f
from uvirtio.spec import input as input_spec

Elements = tuple[Buffer, ...]


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


EXCHANGES: Final[Mapping[str, type[Exchange]]] = {
    "rng": RngExchange,
    "blk": BlkExchange,
    "mem": MemExchange,
    "input": InputExchange,
    "balloon": BalloonExchange,
}
"""By type name. Of other types the canary brings the device up, and the rows that need traffic are left out."""
