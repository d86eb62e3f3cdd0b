"""What a scripted network card does with the commands that came after the first ones (5.1.9.5.8 to 5.1.9.5.11)."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

from uvirtio.spec import net as spec
from uvirtio.spec.net import Control

_CAPABILITIES, _ADD, _MODIFY, _DELETE = range(4)
_TX_SET, _RX_SET, _QUEUE_SET, _QUEUE_GET = range(4)
_QUERY, _GET = range(2)
_RX_BASIC, _CVQ = 1 << 0, 1 << 32
_ENTRY: Final = 16
_RSS_AT: Final = 8


class LaterCommands:
    """Coalescing of notifications, statistics, tunnels and RSS contexts of one card."""

    def __init__(self, pairs: int, tunnel_types: int, control_queue: Callable[[], int]) -> None:
        self._pairs = pairs
        self._tunnel_types = tunnel_types
        self._control_queue = control_queue
        self.most_contexts = 2
        self.contexts: dict[int, bytes] = {}
        """The configuration of each RSS context, by its id."""
        self.coalescing: dict[int, tuple[int, int]] = {}
        """max_packets and max_usecs of each queue."""
        self.tunnels = 0
        """The encapsulations whose inner header is hashed."""
        self.asked = self.done = 0

    def reset(self) -> None:
        """The device was reset."""
        self.contexts.clear()
        self.coalescing.clear()
        self.tunnels = self.asked = self.done = 0

    def carry_out(self, kind: Control, command: int, data: bytes) -> bytes | None:
        """What stands behind the answer OK; None: the answer is ERR.

        Args:
            kind: The class.
            command: The command.
            data: What belongs to it.
        """
        if kind is Control.NOTF_COAL:
            return self.coalesce(command, data)
        if kind is Control.STATS:
            return self.statistics(command, data)
        if kind is Control.HASH_TUNNEL:
            (asked,) = struct.unpack_from("<I", data)
            if asked & ~self._tunnel_types:
                return None
            self.tunnels = asked
            return b""
        return self.context(command, data)

    def _of_frames(self, queue: int) -> bool:
        return queue < 2 * self._pairs

    def coalesce(self, command: int, data: bytes) -> bytes | None:
        """A command of the class NOTF_COAL."""
        if command in (_TX_SET, _RX_SET):
            packets, usecs = struct.unpack("<II", data)
            for queue in range(command == _TX_SET, 2 * self._pairs, 2):
                self.coalescing[queue] = packets, usecs
            return b""
        (queue,) = struct.unpack_from("<H", data)
        if not self._of_frames(queue):
            return None
        if command == _QUEUE_GET:
            return struct.pack("<II", *self.coalescing.get(queue, (0, 0)))
        self.coalescing[queue] = struct.unpack_from("<II", data, 4)
        return b""

    def statistics(self, command: int, data: bytes) -> bytes | None:
        """A command of the class STATS: those of the control queue, and the basic ones of receive queues."""
        if command == _QUERY:
            return struct.pack("<Q", _RX_BASIC | _CVQ)
        found = b""
        for at in range(0, len(data), _ENTRY):
            queue, types = struct.unpack_from("<H6xQ", data, at)
            control = queue == self._control_queue()
            valid = _CVQ if control else _RX_BASIC if queue < 2 * self._pairs and queue % 2 == 0 else 0
            if not types or types & ~valid:
                return None
            body = struct.pack("<QQ", self.asked, self.done) if control else bytes(48)
            found += struct.pack("<BxHxxH", types.bit_length() - 1, queue, 8 + len(body)) + body
        return found

    def context(self, command: int, data: bytes) -> bytes | None:
        """A command of the class RSS_CONTEXT."""
        if command == _CAPABILITIES:
            return struct.pack("<H", self.most_contexts)
        (ident,) = struct.unpack_from("<H", data)
        known = ident in self.contexts
        if not 1 <= ident <= self.most_contexts or known is (command == _ADD):
            return None
        if command == _DELETE:
            del self.contexts[ident]
        else:
            self.contexts[ident] = data[_RSS_AT:]
        return b""


def inner(frame: bytes) -> bytes:
    """The frame as it is inside of an IPIP tunnel (RFC 2003), behind the same Ethernet header.

    Args:
        frame: With an outer IPv4 header of protocol 4.
    """
    return frame[: spec.ETHERNET_HEADER] + frame[spec.ETHERNET_HEADER + 4 * (frame[14] & 15) :]
