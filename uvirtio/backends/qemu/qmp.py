"""A small synchronous client of QMP, QEMU's control protocol: JSON objects, one per line.

QEMU reads QMP a byte per turn of its main loop (about 2 microseconds each), so commands are kept short. Every
command carries an id; a response to a command that was interrupted is recognised by its id and dropped.
"""

from __future__ import annotations

import _socket
import json
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from math import inf

from uvirtio.backends.qemu.connection import Connection
from uvirtio.errors import DeviceGone, DeviceTimeout, QemuFailed, UsageError
from uvirtio.interfaces.values import TIMEOUT_MAX
from uvirtio.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

    Answer = Callable[[], Any]
    """Waits for the response to one command and returns its result; QemuFailed if QEMU refused it."""

_GREETING = 2.0
"""Seconds that a QEMU has for its greeting at most: it sends that at once, to the one client that it serves."""

_EVENTS_KEPT = 1000
_LONGEST_LINE = 16 << 20


class Qmp(Connection):
    """The QMP connection of one QEMU. The newest 1000 events are kept.

    Raises:
        DeviceGone: In any method: QEMU ended.
        DeviceTimeout: In any method: QEMU does not respond within the time-out.
        QemuFailed: In any method: QEMU sends what is not QMP.
        Closed: In any method: after ``close()``.
    """

    owed = "an answer to every command"
    no_answer = "does not answer on QMP"

    def __init__(
        self, connection: _socket.socket, *, timeout: float, why: Callable[[], str] | None = None
    ) -> None:
        """Take over a connected socket; parameters as for ``Connection``."""
        super().__init__(connection, timeout=timeout, why=why)
        self._received = bytearray()
        self._searched = 0
        self._commands = 0
        self._expected: set[int] = set()
        """The numbers of commands that were sent ahead, and whose responses nothing waits for yet."""

        self._early: dict[int, dict[str, Any]] = {}
        """Responses to them that have come."""

        self._events: deque[dict[str, Any]] = deque(maxlen=_EVENTS_KEPT)
        self.deleted: set[str] = set()
        """The ids of devices that QEMU reported as unplugged (DEVICE_DELETED)."""

        self.resets = 0
        """How often QEMU reported that the machine was reset (RESET)."""

        self.version: tuple[int, int, int] = (0, 0, 0)

    def greet(self, timeout: float) -> None:
        """Wait up to ``timeout`` seconds for QEMU's greeting, which has ``version``; leave negotiation mode."""
        self._greeted(timeout)
        self.execute("qmp_capabilities")

    def begin(self, timeout: float, *commands: tuple[str, dict[str, Any]]) -> Sequence[Answer]:
        """The same, with commands sent along that QEMU runs as soon as it can: their answers need no round trips.

        Args:
            timeout: Seconds that QEMU has for its greeting.
            *commands: Names and arguments.

        Returns:
            The answers, one for each command, that are waited for when they are called.
        """
        with self._lock:
            self._check()
            every = [("qmp_capabilities", {}), *commands]
            numbers = range(self._commands + 1, self._commands + 1 + len(every))
            text = b"".join(self._request(command, arguments) for command, arguments in every)
            self._send(text, time.monotonic() + timeout)
            self._expected.update(numbers)
        self._greeted(timeout)
        names = [command for command, _ in every]
        ready, *answers = (partial(self._answer, *one) for one in zip(numbers, names, strict=True))
        ready()
        return answers

    def _greeted(self, timeout: float) -> None:
        with self._lock:
            self._check()
            greeting = self._message(time.monotonic() + timeout)
            try:
                version = greeting["QMP"]["version"]["qemu"]
                self.version = (int(version["major"]), int(version["minor"]), int(version["micro"]))
            except (KeyError, TypeError, ValueError, OverflowError) as error:  # an infinity is no int
                raise self._nonsense(str(greeting)[:200]) from error

    def execute(self, command: str, **arguments: Any) -> Any:
        """Run a command and return its result.

        Args:
            command: Its name.
            **arguments: Its arguments; ``**{"command-line": "info pci"}`` for names with dashes.

        Raises:
            QemuFailed: QEMU refuses the command.
        """
        return self.execute_with((), command, **arguments)

    def execute_with(self, fds: Sequence[int], command: str, /, **arguments: Any) -> Any:
        """Run a command that takes file descriptors along (``add-fd``), and return its result.

        Args:
            fds: The descriptors.
            command: Its name.
            **arguments: Its arguments.

        Raises:
            QemuFailed: QEMU refuses the command.
        """
        with self._lock:
            self._check()
            if self._mute:
                self._listen()
            deadline = time.monotonic() + self._patience()
            self._send(self._request(command, arguments), deadline, fds)
            return self._answer(self._commands, command, deadline)

    def _request(self, command: str, arguments: dict[str, Any]) -> bytes:
        """Return the text of a command, with the next number."""
        self._commands += 1
        request: dict[str, Any] = {"execute": command, "id": self._commands}
        if arguments:
            request["arguments"] = arguments
        return json.dumps(request, separators=(",", ":")).encode()

    def _answer(self, number: int, command: str, deadline: float | None = None) -> Any:
        """Wait for the response to one command, and return its result; QemuFailed if QEMU refused it."""
        with self._lock:
            self._check()
            if deadline is None:
                deadline = time.monotonic() + self._patience()
            self._expected.discard(number)
            message = self._early.pop(number, None)
            while message is None:
                came = self._message(deadline)
                if came.get("id") == number:
                    message = came
                else:
                    self._keep(came)
        if "return" in message:
            return message["return"]
        error = message.get("error")
        detail = error if isinstance(error, dict) else {"desc": error}
        raise QemuFailed(
            f"QEMU refused {command}: {detail.get('desc')}",
            seen=detail.get("class"),
            expected="a command that this QEMU knows, with fitting arguments",
            remedy="see QEMU's QMP reference manual",
        )

    def events(self, name: str, timeout: float = 0.0) -> list[dict[str, Any]]:
        """Take the events of one name.

        Args:
            name: The name of the events.
            timeout: Seconds to wait for the first.

        Returns:
            The events, oldest first; empty if none came.

        Raises:
            UsageError: ``timeout`` is NaN or infinite, which no clock ever passes.
        """
        if not -inf < timeout < inf:
            raise UsageError(f"a time-out cannot be {timeout}", seen=timeout, expected="seconds")
        deadline = time.monotonic() + min(timeout, TIMEOUT_MAX)
        with self._lock:
            self._check()
            while True:
                self.drain()
                found = [event for event in self._events if event.get("event") == name]
                if found:
                    for event in found:
                        self._events.remove(event)
                    return found
                if time.monotonic() >= deadline:
                    return []
                self.await_message(deadline)

    def await_message(self, deadline: float) -> None:
        """Take the next message, if one comes before ``deadline`` (of ``time.monotonic()``)."""
        with self._lock:
            self._check()
            message = self._parsed()
            if message is None and self._receive(max(0.001, deadline - time.monotonic())):
                message = self._parsed()
            if message is not None:
                self._keep(message)

    def drain(self) -> None:
        """Take the events that QEMU has sent, without waiting."""
        with self._lock:
            self._check()
            for _ in range(_EVENTS_KEPT):
                message = self._parsed()
                if message is not None:
                    self._keep(message)
                elif not self._receive(0.0):
                    return

    # --- the protocol ---

    def _keep(self, message: dict[str, Any]) -> None:
        """Store an event, and a response that a call will ask for; drop one that no call waits for."""
        if "event" not in message:
            number = message.get("id")
            if isinstance(number, int) and number in self._expected:
                self._early[number] = message
            return
        self._events.append(message)
        data = message.get("data")
        if message["event"] == "RESET":
            self.resets += 1
        elif message["event"] == "DEVICE_DELETED" and isinstance(data, dict) and "device" in data:
            self.deleted.add(str(data["device"]))

    def _send(self, data: bytes, deadline: float, fds: Sequence[int] = ()) -> None:
        try:
            self._socket.settimeout(max(0.001, deadline - time.monotonic()))
            if fds:
                rights = (_socket.SOL_SOCKET, _socket.SCM_RIGHTS, b"".join(fd.to_bytes(4, "little") for fd in fds))
                sent = self._socket.sendmsg([data], [rights], _socket.MSG_NOSIGNAL)
                data = data[sent:]
            self._socket.sendall(data, _socket.MSG_NOSIGNAL)
        except TimeoutError:
            self._silent("does not read QMP commands")
        except OSError as error:
            self._gone(error)

    def _message(self, deadline: float) -> dict[str, Any]:
        while True:
            message = self._parsed()
            if message is not None:
                return message
            left = deadline - time.monotonic()
            if left <= 0 or not self._receive(left):
                self._silent(self.no_answer)

    def _receive(self, seconds: float) -> bool:
        """Add to what was received; False when nothing came in time."""
        try:
            self._socket.settimeout(seconds)
            data = self._socket.recv(65536)
        except (TimeoutError, BlockingIOError):
            return False
        except OSError as error:
            self._gone(error)
        if not data:
            self._gone(None)
        self._received += data
        return True

    def _parsed(self) -> dict[str, Any] | None:
        while True:
            end = self._received.find(b"\n", self._searched)
            if end < 0:
                self._searched = len(self._received)
                if self._searched > _LONGEST_LINE:
                    raise self._nonsense(f"a line of more than {_LONGEST_LINE} bytes")
                return None
            line = bytes(self._received[:end]).strip()
            del self._received[: end + 1]
            self._searched = 0
            if not line:
                continue
            try:
                message = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise self._nonsense(repr(line[:80])) from error
            if not isinstance(message, dict):
                raise self._nonsense(repr(line[:80]))
            return message

    def _nonsense(self, seen: str) -> QemuFailed:
        return QemuFailed(
            "QEMU violated the QMP protocol",
            seen=seen,
            expected="JSON objects, one per line",
            remedy="use QEMU 7.2 or later",
        )


def connect(path: str, timeout: float) -> Qmp:
    """Connect to the QMP socket of a QEMU that runs already, and greet.

    Args:
        path: The socket, of ``-qmp unix:PATH,server=on,wait=off``.
        timeout: Seconds that QEMU has for each response.

    Raises:
        QemuFailed: There is no such socket, or what is behind it does not speak QMP, or not with this process.
    """
    made = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        made.settimeout(timeout)
        made.connect(path)
    except (OSError, ValueError) as error:
        made.close()
        late = isinstance(error, TimeoutError | BlockingIOError)
        raise _no_qmp(path, "no answer" if late else getattr(error, "strerror", None) or str(error)) from error
    client = Qmp(made, timeout=timeout, why=lambda: "it closed the connection")
    try:
        client.greet(min(timeout, _GREETING))
    except (DeviceGone, DeviceTimeout, QemuFailed) as error:
        client.close()
        quiet = isinstance(error, DeviceTimeout)
        seen = f"{error.seen}: has it another client, which is all that it serves?" if quiet else str(error.seen)
        raise _no_qmp(path, seen) from error
    except BaseException:
        client.close()
        raise
    return client


def _no_qmp(path: str, seen: str) -> QemuFailed:
    return QemuFailed(
        f"{path} is not a QMP socket that can be used",
        seen=seen,
        expected="the socket of a QEMU that was started with -qmp unix:PATH,server=on,wait=off",
        remedy="name a socket that no other program is connected to; QEMU takes -qmp several times",
    )
