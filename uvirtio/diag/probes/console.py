"""The data path of a console (5.3): control messages, and bytes both ways where this process has the other end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from uvirtio.device import Device, QueueSpec
from uvirtio.diag.probes.outcome import Around, PathResult, other_side
from uvirtio.diag.probes.talk import QUEUE_SIZE, Ask, AskingPath
from uvirtio.errors import ProtocolError
from uvirtio.interfaces.backend import OtherSide
from uvirtio.spec import console as spec
from uvirtio.spec import features as f
from uvirtio.spec.console import Control
from uvirtio.spec.layout import by_name

_FIELDS: Final = by_name(spec.CONFIG)
_TO_HOST: Final = b"uvirtio to its host\r\n"
_FROM_HOST: Final = b"its host to uvirtio\r\n"
_EMERGENCY: Final = b"!"
_SIZE: Final = 64
"""Bytes of a buffer: a control message with the name of a port, and what the peer sends, fit."""
_PATIENCE: Final = 0.2
"""Seconds for the first control message: a device without a port has none to send."""
_MORE: Final = 0.02
"""Seconds for each further one."""


def transmission(text: bytes) -> Ask:
    """Send bytes from port 0 (5.3.6): that the buffer comes back proves nothing, the other end has to be read.

    Args:
        text: The bytes.
    """
    return Ask("a transmission", spec.TRANSMITQ, (text,), ())


def control(port: int, event: int, value: int) -> Ask:
    """A control message (5.3.6.2).

    Args:
        port: 32 bits.
        event: One of ``Control``, 16 bits.
        value: 16 bits.
    """
    return Ask("a control message", spec.CONTROL_TRANSMITQ, (spec.CONTROL.pack(port, event, value),), ())


def wrong_control(message: bytes, ports: int) -> str | None:
    """What is wrong with a control message of the device; None: nothing.

    Args:
        message: All of it.
        ports: ``max_nr_ports``.
    """
    if len(message) < spec.CONTROL.size:
        return f"a control message of {len(message)} bytes, which has {spec.CONTROL.size}"
    port, event, _ = spec.CONTROL.unpack_from(message)
    if event not in spec.FROM_DEVICE:
        return f"a control message with event {event}, which no device sends (5.3.6.2)"
    return f"a control message for port {port} of {ports}" if port >= ports else None


class ConsolePath(AskingPath):
    """Exchanges control messages, then bytes of port 0 with the peer."""

    wanted = f.mask(f.Console.MULTIPORT, f.Console.EMERG_WRITE)

    def __init__(self, device: Device, around: Around) -> None:
        """Take over the device; ``start`` brings it up.

        Args:
            device: An open console.
            around: What stands around it.
        """
        super().__init__(device, around)
        self._ports: set[int] = set()

    def queues(self) -> list[QueueSpec]:
        """Those of port 0, and the control queues."""
        names = {spec.RECEIVEQ: "receiveq0", spec.TRANSMITQ: "transmitq0"}
        if self._device.has(f.Console.MULTIPORT):
            names |= {spec.CONTROL_RECEIVEQ: "control receiveq", spec.CONTROL_TRANSMITQ: "control transmitq"}
        waits = (spec.RECEIVEQ, spec.CONTROL_RECEIVEQ)
        return [QueueSpec(index, name, QUEUE_SIZE, owed=index not in waits) for index, name in names.items()]

    def exercise(self) -> PathResult:
        """Ask for the ports, then send and receive, and write a character into the configuration."""
        said = []
        if self._device.has(f.Console.MULTIPORT):
            said.append(self._introduce())
        peer = other_side(self._device, "peer")
        if peer is None:
            what = "no bytes were sent: what is at the other end is not this process's"
            return PathResult("; ".join([*said, what]), skipped=not self._ports)
        said += self._both_ways(peer)
        if self._device.has(f.Console.EMERG_WRITE):
            said.append(self._emergency(peer))
        return PathResult("; ".join(said))

    # --- control messages (5.3.6.2) -------------------------------------------------------------------------

    def _introduce(self) -> str:
        """Say that the driver is ready, and answer what comes; the ports in words."""
        (most,) = self._device.read_config(_FIELDS["max_nr_ports"])
        waiting = self.offer(spec.CONTROL_RECEIVEQ, _SIZE, 8)
        self.ask(control(0, Control.DEVICE_READY, 1))
        told: list[str] = []
        clock = self._device.clock
        deadline = clock.monotonic() + _PATIENCE + self._device.timeout
        while messages := waiting.take(_MORE if told else _PATIENCE, "a control message", owed=False):
            if clock.monotonic() > deadline:
                raise self.fault("answers DEVICE_READY wrongly", "with messages without end", messages[-1])
            for message in messages:
                wrong = wrong_control(message, most)
                if wrong is not None:
                    raise self.fault("answers DEVICE_READY wrongly", wrong, message)
                told += self._answer(message)
        ports = ", ".join(map(str, sorted(self._ports))) or "none"
        return f"DEVICE_READY answered with {', '.join(told) or 'nothing'}; ports: {ports} of {most}"

    def _answer(self, message: bytes) -> Sequence[str]:
        port, event, value = spec.CONTROL.unpack_from(message)
        if event == Control.DEVICE_ADD:
            self._ports.add(port)
            self.ask(control(port, Control.PORT_READY, 1))
            self.ask(control(port, Control.PORT_OPEN, 1))
        if event == Control.DEVICE_REMOVE:
            self._ports.discard(port)
        return (f"{Control(event).name} {port}" + f" = {value}" * (event == Control.PORT_OPEN),)

    # --- bytes (5.3.6) --------------------------------------------------------------------------------------

    def _both_ways(self, peer: OtherSide) -> list[str]:
        waiting = self.offer(spec.RECEIVEQ, _SIZE, 4)
        self.ask(transmission(_TO_HOST))
        self._arrived(peer, _TO_HOST, "what port 0 transmits")
        peer.peer_send(_FROM_HOST)
        got = b""
        while len(got) < len(_FROM_HOST):
            got += b"".join(waiting.take(self._device.timeout, "bytes that the other end has sent"))
        if got != _FROM_HOST:
            raise self.differs("what port 0 receives", f"{got!r}", f"{_FROM_HOST!r}")
        return [f"{len(_TO_HOST)} bytes sent and {len(_FROM_HOST)} received, the same at both ends"]

    def _emergency(self, peer: OtherSide) -> str:
        self._device.write_config(_FIELDS["emerg_wr"], _EMERGENCY[0])
        self._arrived(peer, _EMERGENCY, "what emerg_wr writes (5.3.5)")
        return "emerg_wr seen there too"

    def _arrived(self, peer: OtherSide, sent: bytes, what: str) -> None:
        got = b""
        while len(got) < len(sent) and (more := peer.peer_receive(self._device.timeout)):
            got += more
        if got != sent:
            raise self._differs_there(what, got, sent)

    def _differs_there(self, what: str, got: bytes, sent: bytes) -> ProtocolError:
        return self.differs(f"{what}, read at the other end,", repr(got) if got else "nothing", repr(sent))
