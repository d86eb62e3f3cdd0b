"""A client of QEMU's qtest protocol: the register accesses of a machine without a guest.

The protocol is lines of text, which QEMU does not check. So no command is accepted from outside: every one here
is made of numbers that were checked. ``IRQ raise N`` and ``IRQ lower N`` lines may come at any
time, also before the response to the command that caused them; they are recorded per line and never lost.
"""

from __future__ import annotations

import _socket
import struct
import time
from collections.abc import Callable, Sequence

from uvirtio.backends.qemu.connection import Connection
from uvirtio.errors import Misuse, QemuFailed
from uvirtio.host.pattern import Pattern
from uvirtio.memory.access import WidthRegisters
from uvirtio.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import NoReturn

    from uvirtio.interfaces.memory import Step

_VERBS = {1: "b", 2: "w", 4: "l"}
_QOM_PATH = Pattern(r"[a-z0-9_/\[\]-]{1,200}")
_BATCH = 64
"""Commands sent before responses are read: QEMU blocks when its responses are not read, so keep it small."""

_LONGEST_LINE = 4096
_LONGEST_READ = 1024
_MOST_DRAINED = 256
"""Pieces of 4 KiB read per call of ``drain()``; more is left for the next."""

_MOST_FORGOTTEN = 1000
"""Maximum number of responses to interrupted commands that are skipped."""


class IrqLine:
    """One intercepted interrupt line: its level, and how often it rose."""

    __slots__ = ("level", "raises", "watchers")

    def __init__(self) -> None:
        self.level = False
        self.raises = 0
        self.watchers: list[Callable[[], None]] = []

    def set(self, level: bool) -> None:
        """Set the level; a rising edge is counted, and calls the watchers."""
        if level and not self.level:
            self.raises += 1
            for watcher in self.watchers:
                watcher()
        self.level = level


class Qtest(Connection):
    """The qtest connection of one QEMU; addresses are guest-physical, widths 1, 2 or 4 bytes.

    Raises:
        DeviceGone: In any method: QEMU ended.
        DeviceTimeout: In any method: QEMU does not respond within the time-out.
        QemuFailed: In any method: QEMU refuses a command, or sends what is not qtest.
        Misuse: In any access: an address or a value is too large.
        Closed: In any method: after ``close()``.
    """

    owed = "an answer to every qtest command"
    no_answer = "does not answer"

    def __init__(
        self, connection: _socket.socket, *, timeout: float, why: Callable[[], str] | None = None
    ) -> None:
        """Take over a connected socket; parameters as for ``Connection``."""
        super().__init__(connection, timeout=timeout, why=why)
        self._received = b""
        self._piece = bytearray(4096)
        self._lines: dict[int, IrqLine] = {}
        self._unsure = False
        self._owed: list[str] = []
        """The writes that were posted and whose acknowledgements have not been taken."""

        self._syncs = 0
        # The kernel's own time-outs: a Python time-out would cost a poll() before every send and receive.
        connection.settimeout(None)
        seconds = struct.pack("ll", int(timeout), int(timeout * 1_000_000) % 1_000_000 or 1)
        connection.setsockopt(_socket.SOL_SOCKET, _socket.SO_RCVTIMEO, seconds)
        connection.setsockopt(_socket.SOL_SOCKET, _socket.SO_SNDTIMEO, seconds)

    # --- accesses ---

    def read(self, width: int, address: int) -> int:
        """Read ``width`` bytes of guest-physical memory or a register. Unmapped addresses read as 0."""
        return _number(self._ask(f"read{_VERBS[width]} {_checked(address, 64):#x}\n"))

    def write(self, width: int, address: int, value: int) -> None:
        """Write ``width`` bytes of guest-physical memory or a register. At unmapped addresses nothing happens."""
        self._ask(f"write{_VERBS[width]} {_checked(address, 64):#x} {_checked(value, 8 * width):#x}\n")

    def port_in(self, width: int, port: int) -> int:
        """Read an I/O port, ``width`` bytes."""
        return _number(self._ask(f"in{_VERBS[width]} {_checked(port, 16):#x}\n"))

    def port_out(self, width: int, port: int, value: int) -> None:
        """Write an I/O port, ``width`` bytes."""
        self._ask(f"out{_VERBS[width]} {_checked(port, 16):#x} {_checked(value, 8 * width):#x}\n")

    def post(self, writes: Sequence[tuple[int, int, int]]) -> None:
        """Make writes in their order without waiting for them, as PCI posts them: each later access comes after.

        What QEMU says of them is taken together with its next answer, so a refusal is raised there.

        Args:
            writes: Address, width and value of each.
        """
        lines = [
            f"write{_VERBS[width]} {_checked(at, 64):#x} {_checked(value, 8 * width):#x}\n"
            for at, width, value in writes
        ]
        with self._lock:
            self._ready()
            if len(self._owed) + len(lines) > _BATCH:
                self._take_owed()
            self._send("".join(lines))
            self._owed += lines
            self._unsure = False

    def settle(self) -> None:
        """Wait until QEMU has made the writes that were posted."""
        with self._lock:
            if self._owed and not self._closed:
                self._ready()
                self._take_owed()
                self._unsure = False

    def exchange(self, steps: Sequence[Step], *, ports: bool = False) -> list[int]:
        """Make several accesses in their order, sent at once: one round trip.

        Args:
            steps: The accesses, with addresses in place of offsets.
            ports: The addresses are I/O ports.

        Returns:
            What the reads among them read.
        """
        load, store, bits = ("in", "out", 16) if ports else ("read", "write", 64)
        lines = [
            f"{load}{_VERBS[width]} {_checked(at, bits):#x}\n"
            if value is None
            else f"{store}{_VERBS[width]} {_checked(at, bits):#x} {_checked(value, 8 * width):#x}\n"
            for at, width, value in steps
        ]
        answers: list[bytes] = []
        for start in range(0, len(lines), _BATCH):
            answers += self._ask_all(lines[start : start + _BATCH])
        return [_number(answer) for (_, _, value), answer in zip(steps, answers, strict=True) if value is None]

    def read_bytes(self, address: int, length: int) -> bytes:
        """Read up to 1024 bytes of guest-physical memory, or of registers, by accesses of 4 bytes at most."""
        if not 0 < length <= _LONGEST_READ:
            raise Misuse(f"{length} bytes in one read", seen=length, expected=f"1 to {_LONGEST_READ}")
        answer = self._ask(f"read {_checked(address, 64):#x} {length:#x}\n")
        try:
            data = bytes.fromhex(answer.removeprefix(b"0x").decode("ascii"))
        except ValueError:
            data = b""
        if len(data) != length:
            raise QemuFailed(
                "QEMU's response to a read is not what was asked for",
                seen=repr(answer[:40]),
                expected=f"OK 0x..., {length} bytes",
            )
        return data

    # --- interrupts ---

    def intercept(self, controller: str) -> None:
        """Report the input lines of an interrupt controller from now on; one per QEMU.

        Args:
            controller: Its path in the QOM tree, or a name that is unique, from QEMU's own list of interrupt
                controllers.

        Raises:
            Misuse: It is not a path in the QOM tree.
        """
        if _QOM_PATH.fullmatch(controller) is None:
            raise Misuse(f"{controller!r} is not a path in the QOM tree")
        self._ask(f"irq_intercept_in {controller}\n")

    def irq_line(self, number: int) -> IrqLine:
        """Return the state of one interrupt line, kept up to date by every command and by ``drain()``."""
        return self._lines.setdefault(number, IrqLine())

    def drain(self) -> None:
        """Take the interrupt lines that QEMU has sent, without waiting."""
        with self._lock:
            self._ready()
            for _ in range(_MOST_DRAINED):
                try:
                    count = self._socket.recv_into(self._piece, 0, _socket.MSG_DONTWAIT)
                except BlockingIOError:
                    break
                except OSError as error:
                    self._gone(error)
                if not count:
                    self._gone(None)
                self._received += self._piece[:count]
            while (line := self._next_line()) is not None:
                if not self._take_irq(line):
                    if not self._owed:
                        self._nonsense(line)
                    self._acknowledged(line)
            self._unsure = False

    # --- the protocol ---

    def _ask(self, line: str) -> bytes:
        """Send one command and return what follows OK. Every register access goes through here."""
        with self._lock:
            self._ready()
            self._send(line)
            self._take_owed()
            answer = self._answer()
            self._unsure = False
        return answer[3:] if answer.startswith(b"OK") else self._refused(line, answer)

    def _ask_all(self, lines: Sequence[str]) -> list[bytes]:
        """The same for several commands that are sent at once."""
        with self._lock:
            self._ready()
            self._send("".join(lines))
            self._take_owed()
            answers = [self._answer() for _ in lines]
            self._unsure = False
        return [
            answer[3:] if answer.startswith(b"OK") else self._refused(line, answer)
            for line, answer in zip(lines, answers, strict=True)
        ]

    def _take_owed(self) -> None:
        """Take what QEMU says of the writes that were posted."""
        while self._owed:
            self._acknowledged(self._answer())

    def _acknowledged(self, answer: bytes) -> None:
        line = self._owed.pop(0)
        if not answer.startswith(b"OK"):
            self._refused(line, answer)

    def _ready(self) -> None:
        """Prepare to send a command, or to take what was sent.

        A signal handler's exception, or a refusal, may come at any place from here until the responses are read;
        then the number of pending ones is unknown, and the next call finds it out first.
        """
        if self._closed:
            self._check()
        if self._mute:
            self._listen()
        if self._unsure:
            self._synchronise()
        self._unsure = True

    def _synchronise(self) -> None:
        """Skip responses to interrupted commands: the refusal of an unknown command quotes its name."""
        self._owed.clear()
        self._syncs += 1
        name = f"uvirtio-sync-{self._syncs}"
        self._send(name + "\n")
        for _ in range(_MOST_FORGOTTEN):
            if name.encode() in self._answer():
                self._unsure = False
                return
        self._nonsense(b"only answers to forgotten commands")

    def _send(self, text: str) -> None:
        try:
            self._socket.sendall(text.encode("ascii"), _socket.MSG_NOSIGNAL)
        except BlockingIOError:
            self._silent("does not read commands")
        except OSError as error:
            self._gone(error)

    def _answer(self) -> bytes:
        """Return the next line that is not an interrupt line."""
        line = self._next_line()
        if line is None:
            self._receive()
            line = self._next_line()
        if line is not None and not line.startswith(b"IRQ"):
            return line
        deadline = time.monotonic() + self._patience()
        while line is None or self._take_irq(line):
            if time.monotonic() > deadline:
                self._silent("sends everything but an answer")
            if line is None:
                self._receive()
            line = self._next_line()
        return line

    def _receive(self) -> None:
        if self._deadline() is not None and not self._poll.poll(1000 * self._patience()):
            self._silent(self.no_answer)
        try:
            count = self._socket.recv_into(self._piece)
        except BlockingIOError:
            self._silent(self.no_answer)
        except OSError as error:
            self._gone(error)
        if not count:
            self._gone(None)
        self._received += self._piece[:count]

    def _next_line(self) -> bytes | None:
        received = self._received
        line, end, rest = received.partition(b"\n")
        if not end:
            if len(received) > _LONGEST_LINE:
                self._nonsense(received)
            return None
        self._received = rest
        return line

    def _take_irq(self, line: bytes) -> bool:
        if not line.startswith(b"IRQ "):
            return False
        words = line.split()
        if len(words) != 3 or words[1] not in (b"raise", b"lower") or not words[2].isdigit() or len(words[2]) > 9:
            self._nonsense(line)
        self.irq_line(int(words[2])).set(words[1] == b"raise")
        return True

    def _refused(self, line: str, answer: bytes) -> NoReturn:
        raise QemuFailed(
            "QEMU refused a qtest command",
            seen=answer.decode("ascii", "replace"),
            expected=f"OK to {line.strip()!r}",
            remedy="use QEMU 7.2 or later",
        )

    def _nonsense(self, line: bytes) -> NoReturn:
        raise QemuFailed(
            "QEMU violated the qtest protocol",
            seen=line[:80].decode("ascii", "replace"),
            expected="OK, FAIL, ERR or IRQ",
            remedy="use QEMU 7.2 or later",
        )


class MemoryRegisters(WidthRegisters):
    """Registers at a guest-physical address. Satisfies ``Registers``."""

    def __init__(self, qtest: Qtest, base: int, length: int) -> None:
        """Set the window of ``length`` bytes at the guest-physical address ``base``."""
        super().__init__(base, length)
        self._qtest = qtest

    def _read(self, place: int, width: int) -> int:
        return self._qtest.read(width, place)

    def _write(self, place: int, width: int, value: int) -> None:
        self._qtest.write(width, place, value)

    def exchange(self, steps: Sequence[Step]) -> list[int]:
        """Make several accesses in one round trip; see ``Exchanges``."""
        return self._qtest.exchange([(self._place(at, width), width, value) for at, width, value in steps])

    def read_all(self, length: int) -> bytes:
        """Read the first bytes of the window, up to 1024."""
        return self._qtest.read_bytes(self._place(0, 1), length)


class PostedRegisters(MemoryRegisters):
    """The same whose writes are not waited for: configuration space, where a later access shows what they did."""

    def _write(self, place: int, width: int, value: int) -> None:
        self._qtest.post([(place, width, value)])

    def exchange(self, steps: Sequence[Step]) -> list[int]:
        """Make several accesses in one round trip, or in none where all are writes; see ``Exchanges``."""
        writes = [(self._place(at, width), width, value) for at, width, value in steps if value is not None]
        if len(writes) < len(steps):
            return super().exchange(steps)
        self._qtest.post(writes)
        return []


class PortRegisters(WidthRegisters):
    """Registers at I/O ports. Satisfies ``Registers``."""

    def __init__(self, qtest: Qtest, base: int, length: int) -> None:
        """Set the window of ``length`` ports that begins at ``base``."""
        super().__init__(base, length)
        self._qtest = qtest

    def _read(self, place: int, width: int) -> int:
        return self._qtest.port_in(width, place)

    def _write(self, place: int, width: int, value: int) -> None:
        self._qtest.port_out(width, place, value)

    def exchange(self, steps: Sequence[Step]) -> list[int]:
        """Make several accesses in one round trip; see ``Exchanges``."""
        places = [(self._place(at, width), width, value) for at, width, value in steps]
        return self._qtest.exchange(places, ports=True)


def _checked(value: int, bits: int) -> int:
    """Check a number, since QEMU does not."""
    if not 0 <= value < 1 << bits:
        raise Misuse(f"{value:#x} does not fit {bits} bits")
    return value


def _number(text: bytes) -> int:
    try:
        return int(text, 16)
    except ValueError as error:
        raise QemuFailed(
            "QEMU's response to a read is not a number", seen=repr(text[:40]), expected="OK 0x..."
        ) from error
