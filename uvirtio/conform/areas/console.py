"""5.3: the console device. Characters that are written to emerg_wr come out at its host, so that needs consent."""

from __future__ import annotations

from typing import Final

from uvirtio.conform.lane import Lane, Posted
from uvirtio.conform.memory import Buffer
from uvirtio.conform.ports import port
from uvirtio.conform.row import ANY, Area, Level, Need
from uvirtio.conform.traffic import taken_until_quiet
from uvirtio.conform.trial import Trial
from uvirtio.conform.verdict import Outcome, Severity, Unfit
from uvirtio.diag.probes.outcome import other_side
from uvirtio.spec import console
from uvirtio.spec import features as f
from uvirtio.spec.console import Control
from uvirtio.spec.layout import by_name
from uvirtio.spec.status import Status

AREA = Area("console", 150, "5.3: console", transports=ANY, types=frozenset({"console"}))

_HOST: Final[frozenset[Need]] = frozenset({"host"})
_EMERGENCY: Final = by_name(console.CONFIG)["emerg_wr"]
_PORTS: Final = 16
"""Buffers for control messages."""
_NO_PORT: Final = 0xFFFF
_CHARACTER: Final = 0x7E
_WRITTEN: Final = 0x5A5A5A00 | _CHARACTER


def _emergency(t: Trial) -> None:
    t.transport.write_config(_EMERGENCY.offset, _EMERGENCY.width, _WRITTEN)


@AREA.row("D-CON-01", "5.3.5.1", "MUST", "emerg_wr may be written at any time.", level=Level.ODD, needs=_HOST)
def emergency_at_any_time(t: Trial) -> Outcome:
    """It is written after a reset, after DRIVER, and while the device runs, which goes on."""
    t.need_feature(f.Console.EMERG_WRITE)
    _emergency(t)
    t.acknowledge()
    _emergency(t)
    t.reset()
    lane = t.start(also=f.mask(f.Console.EMERG_WRITE))
    _emergency(t)
    t.good(lane, 2)
    status = t.status()
    t.expect(not status & Status.DEVICE_NEEDS_RESET, f"status {status:#x}", "a device that goes on")
    return None


@AREA.row(
    "D-CON-02",
    "5.3.5.1",
    "SHOULD",
    "The low byte of emerg_wr comes out at the host.",
    needs=_HOST,
    witness="host",
)
def emergency_comes_out(t: Trial) -> Outcome:
    """A character is written before the device is brought up, and the other end of port 0 is read."""
    t.need_feature(f.Console.EMERG_WRITE)
    side = other_side(t.device, "peer")
    if side is None:
        raise Unfit("this process does not have the other end of the console")
    while side.peer_receive(0.0):  # of tests before
        pass
    _emergency(t)
    got = side.peer_receive(t.pace.deadline)
    t.expect(got == bytes([_CHARACTER]), f"{got!r} at the other end", f"{bytes([_CHARACTER])!r}")
    return None


# --- control messages (5.3.6.2) ---------------------------------------------------------------------------------


class Messages:
    """The control queues of a device that runs with MULTIPORT, and what it has said there."""

    def __init__(self, t: Trial) -> None:
        t.need_feature(f.Console.MULTIPORT)
        queues = [console.CONTROL_RECEIVEQ, console.CONTROL_TRANSMITQ, console.RECEIVEQ, console.TRANSMITQ]
        t.start(also=f.mask(f.Console.MULTIPORT), queues=queues)
        self._t = t
        self.ports = t.config_field(console.CONFIG, "max_nr_ports")
        self.receive: Lane = t.lanes[console.CONTROL_RECEIVEQ]
        self._send: Lane = t.lanes[console.CONTROL_TRANSMITQ]
        self._buffers: list[tuple[Buffer, Posted]] = []
        for _ in range(_PORTS):
            buffer = t.writable(64)
            self._buffers.append((buffer, self.receive.post(buffer)))

    def say(self, ident: int, event: int, value: int) -> None:
        """Send a control message, and wait until it was taken."""
        self._send.post(self._t.readable(console.CONTROL.pack(ident, event, value)))
        self._t.await_used(self._send, 1)

    def heard(self) -> list[tuple[int, int, int]]:
        """What was said until nothing more comes: port, event, value."""
        taken_until_quiet(self._t, self.receive)
        told = []
        for buffer, posted in self._buffers:
            if posted.length:
                port_, event, value = console.CONTROL.unpack_from(buffer.data)
                told.append((port_, event, value))
        return told


@AREA.row(
    "D-CON-03",
    "5.3.6.2.1",
    "MUST NOT",
    "No DEVICE_ADD of a port that there is, or of one beyond max_nr_ports.",
    severity=Severity.SILENT,
)
def ports_are_added_once(t: Trial) -> Outcome:
    """DEVICE_READY is sent, and the messages are collected."""
    messages = Messages(t)
    messages.say(0, Control.DEVICE_READY, 1)
    added = [ident for ident, event, _ in messages.heard() if event == Control.DEVICE_ADD]
    wrong = [ident for ident in added if ident >= messages.ports or added.count(ident) > 1]
    t.expect(not wrong, f"ports {added} added, of {messages.ports}", "each port that there is, once")
    return None


@AREA.row(
    "D-CON-04",
    "5.3.6.2.1",
    "MUST NOT",
    "No DEVICE_REMOVE of a port that was not added.",
    severity=Severity.SILENT,
    needs=_HOST,
    witness="host",
)
def what_is_removed_was_added(t: Trial) -> Outcome:
    """A port comes and goes while the device runs, and the messages are collected."""
    messages = Messages(t)
    messages.say(0, Control.DEVICE_READY, 1)
    with port(t.device) as one:
        one.plug()
        one.unplug()
        told = messages.heard()
    there: set[int] = set()
    for ident, event, _ in told:
        if event == Control.DEVICE_ADD:
            there.add(ident)
        if event == Control.DEVICE_REMOVE:
            t.expect(ident in there, f"port {ident} removed, and {sorted(there)} added", "a port that was added")
    t.need(any(event == Control.DEVICE_REMOVE for _, event, _ in told), "the port that went was not told of")
    return None


@AREA.row(
    "D-CON-05",
    "5.3.6",
    "DESC",
    "Control messages about ports that there are not are survived.",
    level=Level.ODD,
    severity=Severity.DEAD,
)
def unknown_ports(t: Trial) -> Outcome:
    """PORT_READY and PORT_OPEN of port 65535; then DEVICE_READY, which is answered as before."""
    messages = Messages(t)
    messages.say(_NO_PORT, Control.PORT_READY, 1)
    messages.say(_NO_PORT, Control.PORT_OPEN, 1)
    messages.say(0, Control.DEVICE_READY, 1)
    told = [event for _, event, _ in messages.heard()]
    status = t.status()
    t.expect(not status & Status.DEVICE_NEEDS_RESET, f"status {status:#x}", "a device that goes on")
    t.need(bool(told), "it has no port to tell of")
    t.expect(Control.DEVICE_ADD in told, f"events {told}", "DEVICE_ADD")
    return None
